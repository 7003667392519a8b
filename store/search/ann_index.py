"""Approximate k-NN indexes of a snapshot, one for each label. They only make searches faster.

Indexes are stored in `indexes/knn-<snapshot>/`, those of named vectors in `indexes/knn+<names>-<snapshot>/`, and can be
deleted at any time. Rows added after an index was built, rows whose named vectors were replaced since, and labels with
few rows are searched exactly; deleted rows are skipped. `clipfake.store.maintenance.build_index` builds the indexes.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from ...core.atomic_files import require_readable
from ...core.npy_file import read_npy
from ...core.reading import require_regular
from ...core.sealed_json import SealedJson, checksum
from ...errors import Damaged, StoreError, Unreadable
from ..records import Mask, Vectors
from ..space import MAIN, Space
from .ivf import AllowedRows, IvfIndex, ProbeBudget
from .matches import Matches, Positions, SearchableRows
from .prepared_filter import PreparedFilter

AGAIN = "searches are still correct, only slower; run `clipfake store index` with the same --vectors to rebuild it"
FILE = SealedJson("clipfake-index", 1, "index", Damaged, AGAIN)
NAME = "knn"
FOLDER_NAME = re.compile(rf"{NAME}((?:\+[a-z0-9_-]+)*)-[0-9]+")  # of an index, with the names of its vectors
LOG = logging.getLogger(__name__)

AHEADS = (50, 100, 200, 400, 800, 1600, 3200)  # numbers of quantised candidates to rescore
RESCORED_ROWS = 65_536  # vectors read at a time for rescoring

Kind = Literal["auto", "exact", "plain", "quantized"]
QUANTIZED_ON_DISK = "compact"  # the name of the kind "quantized" in index.json


@dataclass(frozen=True)
class LabelIndexInfo:
    """Statistics of one label's index, as in index.json."""

    label: int
    kind: Kind  # "plain" or "quantized"
    rows: int
    trained_rows: int  # number of rows when the cells were trained
    cells: int
    fit: float  # mean similarity of rows to the centre of their cell when the cells were trained
    added_fit: float  # the same for the rows added since
    efforts: dict[int, ProbeBudget]  # k -> rows to read
    aheads: tuple[float, ...]  # recall after rescoring as many candidates as in AHEADS; () if plain
    recall: dict[str, float]  # measured recall@10 at a target of 0.99, by the share of rows a filter allows
    files: dict[str, tuple[int, int, str, str]]  # name -> size, size of tables, checksum of tables, checksum of file

    def effort(self, k: int, recall: float, share: float) -> int:
        """Number of allowed rows to read for k neighbours.

        Interpolates between the measured values of k, and extrapolates in proportion beyond the largest.
        """
        measured = sorted(self.efforts)
        rows = [max(self.efforts[m].for_recall(recall, share), 1) for m in measured]
        read = np.exp(np.interp(np.log(k), np.log(measured), np.log(rows)))
        return int(np.ceil(read * max(1.0, k / measured[-1])))

    def ahead(self, k: int, recall: float) -> int:
        """Number of candidates to take from the cells and rescore."""
        if not self.aheads:
            return k
        aim = 1 - (1 - recall) / 2
        enough = next((n for n, r in zip(AHEADS, self.aheads, strict=True) if r >= aim), AHEADS[-1])
        return max(k, round(enough * max(1.0, k / 10)))

    def to_dict(self) -> dict[str, Any]:
        kind = QUANTIZED_ON_DISK if self.kind == "quantized" else self.kind
        return {**asdict(self), "kind": kind, "efforts": {str(k): e.to_dict() for k, e in self.efforts.items()}}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> LabelIndexInfo:
        """Parse the fields; raises KeyError, TypeError, ValueError or AttributeError if they are invalid."""
        stem, files = f"{int(fields['label'])}", fields["files"]
        # A file that is not listed would not be checked.
        if files.keys() != {f"{stem}.faiss", f"{stem}.ids.npy", f"{stem}.cells.npy"}:
            raise ValueError(f"unexpected files for label {stem}: {', '.join(files)}")
        return cls(
            **{
                **fields,
                "kind": "quantized" if fields["kind"] == QUANTIZED_ON_DISK else fields["kind"],
                "efforts": {int(k): ProbeBudget.from_dict(e) for k, e in fields["efforts"].items()},
                "aheads": tuple(fields["aheads"]),
                "files": {name: tuple(facts) for name, facts in fields["files"].items()},
            }
        )


class SnapshotIndex:
    """An index resolved against one snapshot: which of its rows are live, and their positions."""

    def __init__(
        self,
        folder: Path,
        labels: list[tuple[LabelIndexInfo, IvfIndex, npt.NDArray[np.int64]]],
        number: int,
        replaced: tuple[int, ...] = (),
    ) -> None:
        self.folder = folder
        self.number = number  # of the snapshot it was built from
        self.labels = labels  # each with the ids of its rows, by ordinal; -1 for a row whose vector was replaced
        self.replaced = replaced  # shards whose named vectors were replaced since
        self._positions: list[tuple[Positions, Mask | None]] = []  # position and liveness by ordinal; None: all live
        self._unindexed: Mask = np.zeros(0, bool)  # rows of the snapshot that no index contains
        self._unreadable: set[int] = set()  # labels whose index could not be read by the last search
        # Weak, so that the translation of a filter is dropped together with the filter.
        self._filters: WeakKeyDictionary[PreparedFilter, IndexedFilter] = WeakKeyDictionary()

    def resolve(self, snapshot: SearchableRows) -> SnapshotIndex:
        """Look up the indexed rows in a snapshot; returns self."""
        self._unindexed = np.ones(len(snapshot), bool)
        for _, _, ids in self.labels:
            positions = snapshot.positions_of(ids)
            live = positions >= 0
            self._unindexed[positions[live]] = False
            self._positions.append((np.maximum(positions, 0), None if live.all() else live))
        return self

    def search(
        self, snapshot: SearchableRows, queries: Vectors, k: int, where: PreparedFilter, recall: float
    ) -> tuple[Matches, Positions | None]:
        """Search the indexes; returns the matches and the positions still to be searched exactly (None for all)."""
        indexed = self._filters.get(where)
        if indexed is None:
            indexed = self._filters[where] = self._indexed_filter(where)
        result, exact_labels = Matches.none(len(queries), k), []
        for (label_info, cells, _), (positions, _), allowed in zip(
            self.labels, self._positions, indexed.allowed, strict=True
        ):
            if not allowed.count:
                continue
            effort = min(allowed.count, label_info.effort(k, recall, allowed.count / len(cells)))
            if exact_is_cheaper(len(queries), allowed.count, effort):
                exact_labels.append(label_info.label)
                continue
            ahead = min(label_info.ahead(k, recall), allowed.count)
            try:
                ordinals = cells.search(queries, ahead, effort, allowed)
            except (Damaged, Unreadable) as e:  # the file was cut short after it was opened, or the disk fails
                self._log(label_info.label, e)
                exact_labels.append(label_info.label)
                continue
            self._unreadable.discard(label_info.label)
            candidates = np.where(ordinals < 0, -1, positions[ordinals])
            result = result.merge(rescore(snapshot, queries, candidates, k), k)
        return result, self._remaining(where, indexed, exact_labels)

    def _log(self, label: int, error: StoreError) -> None:
        if label not in self._unreadable:  # once, not with every search
            LOG.warning("an index cannot be read, so that searches are exact: %s; %s", error, AGAIN)
            self._unreadable.add(label)

    def _indexed_filter(self, where: PreparedFilter) -> IndexedFilter:
        """Translate a filter from positions to the ordinals of each index."""
        allowed = []
        for (_, cells, _), (positions, live) in zip(self.labels, self._positions, strict=True):
            mask = live
            if where.mask is not None:
                mask = where.mask[positions] if live is None else where.mask[positions] & live
            allowed.append(AllowedRows(cells, None if mask is None or mask.all() else mask))
        unindexed = self._unindexed if where.mask is None else self._unindexed & where.mask
        return IndexedFilter(allowed, np.flatnonzero(unindexed))

    def _remaining(self, where: PreparedFilter, indexed: IndexedFilter, exact_labels: list[int]) -> Positions | None:
        """Positions to search exactly: the rows that no index contains and all rows of `exact_labels`."""
        if not exact_labels:
            return indexed.unindexed
        mask = self._unindexed.copy()
        for (label_info, _, _), (positions, live) in zip(self.labels, self._positions, strict=True):
            if label_info.label in exact_labels:
                mask[positions if live is None else positions[live]] = True
        if where.mask is None:
            return None if mask.all() else np.flatnonzero(mask)
        return np.flatnonzero(mask & where.mask)


@dataclass(frozen=True)
class IndexedFilter:
    """A filter in terms of one index: what `SnapshotIndex` caches for each `PreparedFilter`."""

    allowed: list[AllowedRows]  # one per label
    unindexed: Positions  # allowed rows that no index contains


def exact_is_cheaper(queries: int, rows: int, effort: int) -> bool:
    """True if a matrix product over `rows` rows costs less than reading `effort` rows of an index for each query.

    Measured by benchmarks/store/search.py: converting a stored value costs as much as scanning one in FAISS, and a
    product over many queries is about fifteen times faster per query.
    """
    return rows * (1 + queries / 15) < effort * queries


def rescore(snapshot: SearchableRows, queries: Vectors, candidates: Positions, k: int) -> Matches:
    """The k nearest of each query's candidates, compared by their stored vectors.

    Parameters
    ----------
    queries : (queries, dim)
    candidates : (queries, n) positions, -1 for none
    """
    result = Matches.none(len(queries), k)
    step = max(1, RESCORED_ROWS // max(candidates.shape[1], 1))
    for start in range(0, len(queries), step):
        batch = candidates[start : start + step]
        vectors = snapshot.vectors(np.maximum(batch, 0).ravel(), np.float16).astype(np.float32)
        vectors = vectors.reshape(*batch.shape, -1)
        similarity = np.einsum("qnd,qd->qn", vectors, np.asarray(queries[start : start + step], np.float32))
        best = Matches.none(len(batch), k).merge(Matches(batch, similarity), k)
        result.rows[start : start + step] = best.rows
        result.similarity[start : start + step] = np.where(best.rows < 0, np.nan, best.similarity)
    return result


def folders(store: Path, names: tuple[str, ...] = (MAIN,)) -> list[Path]:
    """Folders of a store's indexes of these vectors, oldest first."""
    return [path for path, of in all_folders(store) if of == names]


def all_folders(store: Path) -> list[tuple[Path, tuple[str, ...]]]:
    """Folders of a store's indexes, and the names of the vectors that each was built from, sorted."""
    found = ((path, names_of(path.name)) for path in sorted((store / "indexes").glob(f"{NAME}*")) if path.is_dir())
    return [(path, names) for path, names in found if names]


def folder_name(names: tuple[str, ...], number: int) -> str:
    """Name of the folder of an index of these vectors of a snapshot.

    >>> folder_name(("main",), 3), folder_name(("main", "layers"), 3)
    ('knn-000003', 'knn+main+layers-000003')
    """
    return f"{'+'.join([NAME, *(() if names == (MAIN,) else names)])}-{number:06d}"


def names_of(folder: str) -> tuple[str, ...]:
    """Names of the vectors that the index in a folder of this name was built from; () if it is no index.

    >>> names_of("knn-000003"), names_of("knn+main+layers-000003"), names_of("knn-000003.tmp")
    (('main',), ('main', 'layers'), ())
    """
    match = FOLDER_NAME.fullmatch(folder)
    return (tuple(match[1].split("+")[1:]) or (MAIN,)) if match else ()


def attach(snapshot: SearchableRows) -> SnapshotIndex | None:
    """The newest readable index, resolved against this snapshot; None if there is none.

    Damaged indexes are skipped here and reported by `verify`.
    """
    listed = folders(snapshot.folder, snapshot.vector_names)
    for folder in reversed(listed):
        try:
            return open_index(folder, snapshot.space, snapshot.vector_files).resolve(snapshot)
        except StoreError:
            continue
    if folders(snapshot.folder, snapshot.vector_names) != listed:  # replaced by a newer one in the meantime
        return attach(snapshot)
    return None


def open_index(
    folder: Path, space: Space, files: Mapping[int, str] = {}, *, mapped: bool = True, whole: bool = False
) -> SnapshotIndex:
    """Read an index.

    Parameters
    ----------
    space : embedding space that the index must have
    files : shard number -> checksums of its files of named vectors; the index forgets the rows of others
    mapped : map the files into memory instead of reading them
    whole : verify the checksum of whole files, not only of their tables

    Raises
    ------
    Damaged, SpaceMismatch
    """
    try:
        with FILE.reading(folder / "index.json") as content:
            space.require(Space.from_dict(content["space"]), f"the index {folder}")
            infos = [LabelIndexInfo.from_dict(fields) for fields in content["labels"]]
            number = int(content["snapshot"])
            built_from = {int(shard): str(digest) for shard, digest in content.get("files", {}).items()}
    except FileNotFoundError as e:
        raise Damaged(f"{folder / 'index.json'} is missing; {AGAIN}") from e
    replaced = tuple(shard for shard, digest in built_from.items() if files.get(shard) != digest)
    labels = []
    for info in infos:
        cells, ids = _read(folder, info, mapped=mapped, whole=whole)
        labels.append((info, cells, np.where(np.isin(ids >> 32, replaced), -1, ids) if replaced else ids))
    return SnapshotIndex(folder, labels, number, replaced)


def _read(
    folder: Path, label_info: LabelIndexInfo, *, mapped: bool, whole: bool
) -> tuple[IvfIndex, npt.NDArray[np.int64]]:
    for name, (size, tables, tables_checksum, file_checksum) in label_info.files.items():
        path = folder / name
        try:
            require_regular(path)
            if path.stat().st_size != size:
                raise Damaged(f"{path} is truncated; {AGAIN}")
            if whole and checksums(path, tables) != (tables_checksum, file_checksum):
                raise Damaged(f"{path} was altered (checksum differs); {AGAIN}")
            with path.open("rb") as file:
                if not whole and checksum(file.read(tables)) != tables_checksum:
                    raise Damaged(f"{path} was altered (checksum differs); {AGAIN}")
        except OSError as e:
            require_readable(path, e)
            raise Damaged(f"{path} cannot be read ({e.strerror}); {AGAIN}") from e
    stem = str(label_info.label)
    try:
        ids = read_npy(folder / f"{stem}.ids.npy", Damaged)
        cell_of = read_npy(folder / f"{stem}.cells.npy", Damaged).astype(np.int64)
        if ids.shape != (label_info.rows,) or ids.dtype != np.int64:
            raise ValueError(f"expected {label_info.rows} int64 ids, found {ids.dtype} of shape {ids.shape}")
        return IvfIndex.load(folder / f"{stem}.faiss", cell_of, mapped=mapped), ids
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError, MemoryError) as e:
        require_readable(folder, e)
        raise Damaged(f"{folder} cannot be read ({e}); {AGAIN}") from e


def checksums(path: Path, tables: int) -> tuple[str, str]:
    """Checksums of a file's first `tables` bytes and of the whole file."""
    file_hash = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        head = file.read(tables)
        file_hash.update(head)
        while chunk := file.read(2**22):
            file_hash.update(chunk)
    return checksum(head), file_hash.hexdigest()
