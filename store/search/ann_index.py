"""k-NN indexes of a snapshot, one for each label, as searches use them: measured, and never needed for a right answer.

They lie in `indexes/knn-<snapshot>/` and can be deleted at any time. Rows that came after, and labels with few rows,
are searched exactly beside them; rows that are gone are passed over. `clipfake.store.maintenance.build_index` makes
them.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...core.atomic_files import TEMPORARY, read_array
from ...core.sealed_json import SealedJson, checksum
from ...errors import Damaged, StoreError
from ..records import Mask, Vectors
from ..space import Space
from .ivf import AllowedRows, IvfIndex, ProbeBudget
from .matches import Matches, Positions, SearchableRows
from .prepared_filter import PreparedFilter

AGAIN = "searches stay right without it; run `clipfake store index` to build it again"
FILE = SealedJson("clipfake-index", 1, "index", Damaged, AGAIN)
NAME = "knn"

AHEADS = (50, 100, 200, 400, 800, 1600, 3200)  # quantised rows compared exactly
RESCORED_ROWS = 65_536  # vectors fetched at a time to compare exactly

Kind = Literal["auto", "exact", "plain", "quantized"]
QUANTIZED_ON_DISK = "compact"  # what index.json calls the kind "quantized"


@dataclass(frozen=True)
class LabelIndexInfo:
    """Statistics of one label's index, as in index.json."""

    label: int
    kind: Kind  # "plain" or "quantized"
    rows: int
    trained_rows: int  # when the cells were made
    cells: int
    fit: float  # mean similarity of rows to their cell's centre, when the cells were made
    added_fit: float  # the same of the rows added since
    efforts: dict[int, ProbeBudget]  # k -> rows to read
    aheads: tuple[float, ...]  # recall after comparing so many quantised rows exactly, for each of AHEADS; () if plain
    recall: dict[str, float]  # measured recall@10 at a target of 0.99, by the share of rows a filter allows
    files: dict[str, tuple[int, int, str, str]]  # name -> bytes, bytes of tables, their checksum, the whole's checksum

    def effort(self, k: int, recall: float, share: float) -> int:
        """Allowed rows to read: between two measured k on the line between them, beyond the largest in proportion."""
        measured = sorted(self.efforts)
        rows = [max(self.efforts[m].for_recall(recall, share), 1) for m in measured]
        read = np.exp(np.interp(np.log(k), np.log(measured), np.log(rows)))
        return int(np.ceil(read * max(1.0, k / measured[-1])))

    def ahead(self, k: int, recall: float) -> int:
        """Rows to take from the cells and compare exactly."""
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
        """Raises KeyError, TypeError, ValueError or AttributeError where it is none."""
        stem, files = f"{int(fields['label'])}", fields["files"]
        if files.keys() != {f"{stem}.faiss", f"{stem}.ids.npy", f"{stem}.cells.npy"}:
            raise ValueError(f"the files {', '.join(files)} of label {stem}")  # one that is not named is not checked
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
    """An index as one snapshot may use it: which of its rows are alive, and where they are."""

    def __init__(
        self, folder: Path, labels: list[tuple[LabelIndexInfo, IvfIndex, npt.NDArray[np.int64]]], number: int
    ) -> None:
        self.folder = folder
        self.number = number  # of the snapshot it was made from
        self.labels = labels  # with the ids of the rows, by ordinal
        self._places: list[tuple[Positions, Mask | None]] = []  # position and whether alive, by ordinal; None for all
        self._rest: Mask = np.zeros(0, bool)  # rows of the snapshot that no index has

    def to(self, snapshot: SearchableRows) -> SnapshotIndex:
        """Itself, looked up for this snapshot."""
        self._rest = np.ones(len(snapshot), bool)
        for _, _, ids in self.labels:
            places = snapshot.places(ids)
            alive = places >= 0
            self._rest[places[alive]] = False
            self._places.append((np.maximum(places, 0), None if alive.all() else alive))
        return self

    def search(
        self, snapshot: SearchableRows, queries: Vectors, k: int, scope: PreparedFilter, recall: float
    ) -> tuple[Matches, Positions | None]:
        """Search the indexes; returns matches, and the positions left to search exactly."""
        within: IndexedFilter = scope.indexed or self._within(scope)
        scope.indexed = within
        result, exactly = Matches.none(len(queries), k), []
        for (label_info, cells, _), (places, _), allowed in zip(self.labels, self._places, within.allowed, strict=True):
            if not allowed.count:
                continue
            effort = min(allowed.count, label_info.effort(k, recall, allowed.count / len(cells)))
            if exactly_is_cheaper(len(queries), allowed.count, effort):
                exactly.append(label_info.label)
                continue
            ahead = min(label_info.ahead(k, recall), allowed.count)
            ordinals = cells.search(queries, ahead, effort, allowed)
            found = np.where(ordinals < 0, -1, places[ordinals])
            result = result.merge(compared(snapshot, queries, found, k), k)
        return result, self._left(scope, within, exactly)

    def _within(self, scope: PreparedFilter) -> IndexedFilter:
        """Restrict a filter to each label's index."""
        allowed = []
        for (_, cells, _), (places, alive) in zip(self.labels, self._places, strict=True):
            mask = alive if scope.mask is None else scope.mask[places] if alive is None else scope.mask[places] & alive
            allowed.append(AllowedRows(cells, None if mask is None or mask.all() else mask))
        return IndexedFilter(allowed, np.flatnonzero(self._rest if scope.mask is None else self._rest & scope.mask))

    def _left(self, scope: PreparedFilter, within: IndexedFilter, exactly: list[int]) -> Positions | None:
        """Positions to search exactly: those no index has, and all of these labels."""
        if not exactly:
            return within.rest
        mask = self._rest.copy()
        for (label_info, _, _), (places, alive) in zip(self.labels, self._places, strict=True):
            if label_info.label in exactly:
                mask[places if alive is None else places[alive]] = True
        if scope.mask is None:
            return None if mask.all() else np.flatnonzero(mask)
        return np.flatnonzero(mask & scope.mask)


@dataclass(frozen=True)
class IndexedFilter:
    """Per-filter state that an index caches."""

    allowed: list[AllowedRows]  # by label
    rest: Positions  # that no index has


def exactly_is_cheaper(queries: int, rows: int, effort: int) -> bool:
    """True if a matrix product over `rows` rows costs less than reading `effort` rows of an index for each query.

    Read from benchmarks/store/search.py: converting a stored value costs as much as scanning one in FAISS, and a
    product over many queries is some fifteen times quicker a query.
    """
    return rows * (1 + queries / 15) < effort * queries


def compared(snapshot: SearchableRows, queries: Vectors, found: Positions, k: int) -> Matches:
    """The k nearest of the candidates of each query, by the vectors as they are stored; `found` is (queries, n)."""
    result = Matches.none(len(queries), k)
    step = max(1, RESCORED_ROWS // max(found.shape[1], 1))
    for start in range(0, len(queries), step):
        candidates = found[start : start + step]
        vectors = snapshot.vectors(np.maximum(candidates, 0).ravel(), np.float16).astype(np.float32)
        vectors = vectors.reshape(*candidates.shape, -1)
        similarity = np.einsum("qnd,qd->qn", vectors, np.asarray(queries[start : start + step], np.float32))
        best = Matches.none(len(candidates), k).merge(Matches(candidates, similarity), k)
        result.rows[start : start + step] = best.rows
        result.similarity[start : start + step] = np.where(best.rows < 0, np.nan, best.similarity)
    return result


def folders(store: Path) -> list[Path]:
    """The indexes there are, oldest first."""
    return sorted(path for path in (store / "indexes").glob(f"{NAME}-*") if path.suffix != TEMPORARY and path.is_dir())


def attach(snapshot: SearchableRows) -> SnapshotIndex | None:
    """The newest index that can be read, for this snapshot; None where there is none (`verify` names a damaged one)."""
    listed = folders(snapshot.folder)
    for folder in reversed(listed):
        try:
            return open_index(folder, snapshot.space).to(snapshot)
        except StoreError:
            continue
    if folders(snapshot.folder) != listed:  # a newer one took their place meanwhile
        return attach(snapshot)
    return None


def open_index(folder: Path, space: Space, *, mapped: bool = True, whole: bool = False) -> SnapshotIndex:
    """Read an index; `whole` compares every byte with its checksum, otherwise only the tables.

    Raises
    ------
    Damaged, SpaceMismatch
    """
    try:
        with FILE.reading(folder / "index.json") as content:
            space.require(Space.from_dict(content["space"]), f"the index {folder}")
            labels = [LabelIndexInfo.from_dict(one) for one in content["labels"]]
            number = int(content["snapshot"])
    except FileNotFoundError as e:
        raise Damaged(f"{folder / 'index.json'} is missing; {AGAIN}") from e
    return SnapshotIndex(folder, [(one, *_read(folder, one, mapped=mapped, whole=whole)) for one in labels], number)


def _read(
    folder: Path, label_info: LabelIndexInfo, *, mapped: bool, whole: bool
) -> tuple[IvfIndex, npt.NDArray[np.int64]]:
    for name, (size, tables, head, everything) in label_info.files.items():
        path = folder / name
        try:
            if path.stat().st_size != size:
                raise Damaged(f"{path} is truncated; {AGAIN}")
            if whole and checksums(path, tables) != (head, everything):
                raise Damaged(f"{path} is not what was written (checksum differs); {AGAIN}")
            with path.open("rb") as file:
                if not whole and checksum(file.read(tables)) != head:
                    raise Damaged(f"{path} is not what was written (checksum differs); {AGAIN}")
        except OSError as e:
            raise Damaged(f"{path} cannot be read ({e.strerror}); {AGAIN}") from e
    stem = str(label_info.label)
    try:
        ids = np.array(read_array(folder / f"{stem}.ids.npy"))
        cell_of = read_array(folder / f"{stem}.cells.npy").astype(np.int64)
        if ids.shape != (label_info.rows,) or ids.dtype != np.int64:
            raise ValueError(f"{ids.dtype} ids of shape {ids.shape} for {label_info.rows} rows")
        return IvfIndex.load(folder / f"{stem}.faiss", cell_of, mapped=mapped), ids
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError, MemoryError) as e:
        raise Damaged(f"{folder} cannot be read ({e}); {AGAIN}") from e


def checksums(path: Path, tables: int) -> tuple[str, str]:
    """Checksums of a file's first bytes and of the whole file."""
    whole = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        first = file.read(tables)
        whole.update(first)
        while piece := file.read(2**22):
            whole.update(piece)
    return checksum(first), whole.hexdigest()
