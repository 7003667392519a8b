"""Every row's nearest other rows: a store asked about itself, block by block, and the copies that this finds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...core.atomic_files import disk_errors, flush, make_folder, read_array, read_json, reserve, write_text
from ...errors import StoreError
from ..records import FAKE, REAL, Mask, Names, distinct
from ..search.exact import ExactSearch
from ..search.matches import Matches, Positions
from ..snapshot import Snapshot

BLOCK_ROWS = 4096  # that ask at a time
CARD = "pairs.json"
FILES: dict[str, np.dtype[Any]] = {"rows.npy": np.dtype(np.int64), "similarity.npy": np.dtype(np.float32)}
Progress = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True)
class NeighborTable:
    """The k nearest other rows of each row of a snapshot that was asked about. Make it with `all_pairs`."""

    snapshot: int
    positions: Positions  # (n,) of the rows that were asked about, ascending
    rows: Positions  # (n, k) positions of their nearest, nearest first, -1 where there are fewer; mapped from disk
    similarity: npt.NDArray[np.float32]  # (n, k) inner products, NaN where there is no row; mapped from disk

    def __len__(self) -> int:
        return len(self.positions)


def all_pairs(
    snapshot: Snapshot,
    folder: Path | str,
    k: int = 10,
    where: Mask | None = None,
    progress: Progress | None = None,
    block_rows: int = BLOCK_ROWS,
) -> NeighborTable:
    """The k nearest other rows of every row, exactly; of the rows of a mask, among themselves.

    `folder` gets `rows.npy` (n, k) int64, `similarity.npy` (n, k) float32 and `pairs.json`. Stopped at any moment and
    run again it goes on after the last finished block; when all is there it is only read.

    In memory: the vectors as float32 while they take less than a gigabyte (and half as much again while they are
    converted), otherwise a piece of them at a time, and at most 256 MiB of similarities. Time grows with the square of
    the rows: a million 512-d rows are a quadrillion multiply-adds, hours on two cores and about a minute on a GPU,
    which is used if there is one.

    Raises
    ------
    StoreError
        The folder holds the pairs of other rows or another k, or cannot be written.
    """
    folder = Path(folder)
    positions = np.arange(len(snapshot)) if where is None else np.flatnonzero(where)
    if not len(positions):
        raise StoreError(f"there are no rows to compare (of {len(snapshot)} in {snapshot.folder}); allow others")
    parameters = {
        "content": hashlib.blake2b(json.dumps([asdict(part) for part in snapshot.manifest.parts]).encode()).hexdigest(),
        "rows": len(positions),
        "which": hashlib.blake2b(positions.tobytes(), digest_size=16).hexdigest(),
        "k": k,
    }
    done = _begun(folder, parameters, (len(positions), k))
    arrays = [_opened(folder / name, (len(positions), k), "r+") for name in FILES]
    exact = ExactSearch(snapshot) if done < len(positions) else None
    while done < len(positions):
        assert exact is not None
        asking = positions[done : done + block_rows]
        found = exact.search(snapshot, snapshot.vectors(asking), k + 1, None if where is None else positions)
        found = _others(found, asking, k)
        part = slice(done, done + len(asking))
        for array, values in zip(arrays, (found.rows, found.similarity), strict=True):
            array[part] = values
            array.flush()
        done += len(asking)
        write_text(folder / CARD, json.dumps({**parameters, "done": done}) + "\n")
        if progress:
            progress(done, len(positions))
    rows, similarity = (_opened(folder / name, (len(positions), k), "r") for name in FILES)
    return NeighborTable(snapshot.number, positions, rows, similarity)


def _begun(folder: Path, parameters: dict[str, Any], shape: tuple[int, int]) -> int:
    """Return how many rows are done, and create the files if there are none."""
    try:
        content = read_json(folder / CARD)
        done = int(content.pop("done"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as e:
        raise StoreError(f"{folder / CARD} cannot be read ({e}); name another folder, or remove this one") from e
    else:
        if content != parameters:
            raise StoreError(
                f"{folder} holds the {content.get('k')} nearest of {content.get('rows')} rows of another snapshot or "
                f"filter, not those asked for; name another folder, or remove this one"
            )
        return done
    with disk_errors(f"write {folder}"):
        make_folder(folder)
        for name, kind in FILES.items():
            np.lib.format.open_memmap(folder / name, mode="w+", dtype=kind, shape=shape).flush()
            reserve(folder / name, (folder / name).stat().st_size)
            flush(folder / name)
    write_text(folder / CARD, json.dumps({**parameters, "done": 0}) + "\n")
    return 0


def _opened(path: Path, shape: tuple[int, int], mode: Literal["r", "r+"]) -> np.memmap[Any, Any]:
    """A file of the pairs, mapped; raises StoreError where it is not the one that was begun."""
    try:
        read_array(path)  # to be written, numpy would lengthen one that is too short
        mapped = read_array(path, mode)
        assert isinstance(mapped, np.memmap)
    except (OSError, ValueError) as e:
        raise StoreError(f"{path} cannot be read ({e}); remove the folder {path.parent} and start again") from e
    if (mapped.shape, mapped.dtype) != (shape, FILES[path.name]):
        raise StoreError(f"{path} holds {mapped.dtype} {mapped.shape} instead of {shape}; remove {path.parent}")
    return mapped


def _others(found: Matches, asking: Positions, k: int) -> Matches:
    """The matches without the asking rows themselves; of k + 1 the last goes where a row did not find itself."""
    itself = found.rows == asking[:, None]
    itself[:, -1] |= ~itself.any(axis=1)
    rows = found.rows[~itself].reshape(len(asking), k)
    return Matches(rows, found.similarity[~itself].reshape(len(asking), k))


@dataclass(frozen=True)
class DuplicateGroup:
    """Rows that are one picture, or nearly."""

    keys: tuple[str, ...]
    labels: tuple[int, ...]  # of the rows
    sources: tuple[str, ...]  # that occur
    similarity: float  # the lowest of the links that hold it together

    @property
    def contradicts(self) -> bool:
        """True if one picture is labelled both real and fake."""
        return {REAL, FAKE} <= set(self.labels)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "contradicts": self.contradicts}


@dataclass(frozen=True)
class DuplicateReport:
    """The groups, largest first."""

    threshold: float
    rows: int  # that were compared
    groups: tuple[DuplicateGroup, ...]

    @property
    def extra(self) -> int:
        """Rows that would go if each group kept one."""
        return sum(len(group.keys) - 1 for group in self.groups)

    @property
    def across_sources(self) -> int:
        """Groups whose rows come from several sources: what a split by source would not keep apart."""
        return sum(len(group.sources) > 1 for group in self.groups)

    @property
    def contradicting(self) -> int:
        return sum(group.contradicts for group in self.groups)

    def to_dict(self) -> dict[str, Any]:
        return {
            "threshold": self.threshold,
            "rows": self.rows,
            "extra": self.extra,
            "across_sources": self.across_sources,
            "contradicting": self.contradicting,
            "groups": [group.to_dict() for group in self.groups],
        }


def find_duplicates(snapshot: Snapshot, pairs: NeighborTable, threshold: float = 0.98) -> DuplicateReport:
    """Groups of rows linked by pairs that are at least so similar, or by equal bytes of their files.

    A link is one of a row's k nearest: of more than k + 1 rows that are all alike some links are not seen, which
    matters only where they fall apart into groups that are each full.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    place = np.full(len(snapshot), -1, np.int64)
    place[pairs.positions] = np.arange(len(pairs))
    one, which = np.nonzero(np.nan_to_num(pairs.similarity, nan=-2.0) >= threshold)
    other, near = place[pairs.rows[one, which]], np.asarray(pairs.similarity[one, which])
    first, second = _same_bytes(snapshot.column("digests")[pairs.positions])
    ends = np.concatenate([one, first]), np.concatenate([other, second])
    strength = np.concatenate([near, np.ones(len(first), np.float32)])
    links = coo_matrix((np.ones(len(strength), np.int8), ends), shape=(len(pairs), len(pairs)))
    group_of = connected_components(links, directed=False)[1]
    size = np.bincount(group_of)
    lowest = np.full(len(size), np.inf)
    np.minimum.at(lowest, group_of[ends[0]], strength)
    order = np.argsort(group_of, kind="stable")
    ends_of = np.cumsum(size)
    groups = []
    for group in sorted(np.flatnonzero(size > 1).tolist(), key=lambda group: (-size[group], group)):
        rows = pairs.positions[order[ends_of[group] - size[group] : ends_of[group]]]
        groups.append(_group(snapshot, rows, float(lowest[group])))
    return DuplicateReport(threshold, len(pairs), tuple(groups))


def _group(snapshot: Snapshot, rows: Positions, similarity: float) -> DuplicateGroup:
    def column_of_rows(name: str) -> Any:
        return snapshot.column(name)[rows].tolist()

    sources: Names = snapshot.column("sources")[rows]
    return DuplicateGroup(
        tuple(column_of_rows("keys")), tuple(column_of_rows("labels")), tuple(distinct(sources)[0].tolist()), similarity
    )


def _same_bytes(digests: npt.NDArray[np.void]) -> tuple[Positions, Positions]:
    """Links between rows whose files are equal byte for byte; a row without a digest has none."""
    halves = np.ascontiguousarray(digests).view("<u8").reshape(-1, 2)
    known = np.flatnonzero(halves.any(axis=1))
    order = known[np.lexsort(halves[known].T)]
    same = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    return order[:-1][same], order[1:][same]
