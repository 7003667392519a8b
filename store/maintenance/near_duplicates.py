"""Find the nearest other rows of every row, block by block, and group near-duplicates."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.atomic_files import disk_errors, flush, make_folder, read_json, reserve, write_text
from ...core.npy_file import open_npy
from ...core.row_file import RowFile
from ...errors import Linked, StoreError
from ..records import FAKE, REAL, Mask, Names, distinct
from ..search.exact import ExactSearch
from ..search.matches import Matches, Positions
from ..snapshot import Snapshot

BLOCK_ROWS = 4096  # rows searched at a time
PROGRESS_FILE = "pairs.json"  # parameters and number of finished rows
FILES: dict[str, np.dtype[Any]] = {"rows.npy": np.dtype(np.int64), "similarity.npy": np.dtype(np.float32)}
Progress = Callable[[int, int], None]  # finished rows, all rows


@dataclass(frozen=True)
class NeighborTable:
    """The k nearest other rows of each compared row of a snapshot. Create it with `all_pairs`."""

    snapshot: int
    positions: Positions  # (n,) of the compared rows, ascending
    rows: Positions  # (n, k) positions of their neighbours, nearest first, -1 where there are fewer than k
    similarity: npt.NDArray[np.float32]  # (n, k) inner products, NaN where there is no row

    def __len__(self) -> int:
        return len(self.positions)


def all_pairs(
    snapshot: Snapshot,
    folder: Path | str,
    k: int = 10,
    where: Mask | None = None,
    on_progress: Progress | None = None,
    block_rows: int = BLOCK_ROWS,
) -> NeighborTable:
    """Find the k nearest other rows of every row by exact search.

    Writes `rows.npy` (n, k) int64, `similarity.npy` (n, k) float32 and `pairs.json` into `folder`. An interrupted run
    continues after the last finished block; a finished one is only read.

    Memory: the vectors as float32 while they take less than a gigabyte (and half as much again during the conversion),
    otherwise a part of them at a time, at most 256 MiB of similarities, and in the end the result, 12 bytes for each of
    the k neighbours of a row. Time grows with the square of the number of
    rows: a million 512-d rows are a quadrillion multiply-adds, hours on two cores and about a minute on a GPU, which is
    used if there is one.

    Parameters
    ----------
    where : mask of the rows to compare with each other (default: all rows)
    block_rows : rows searched at a time

    Raises
    ------
    StoreError
        There are no rows, or the folder cannot be written or holds the result of other rows or another k.
    """
    folder = Path(folder)
    _require_unlinked(folder)
    positions = np.arange(len(snapshot)) if where is None else np.flatnonzero(where)
    if not len(positions):
        raise StoreError(f"no rows to compare: the filter selects none of {len(snapshot)} rows in {snapshot.folder}")
    parameters = {
        "content": hashlib.blake2b(json.dumps([asdict(part) for part in snapshot.manifest.parts]).encode()).hexdigest(),
        "rows": len(positions),
        "which": hashlib.blake2b(positions.tobytes(), digest_size=16).hexdigest(),
        "k": k,
    }
    done = _start_or_resume(folder, parameters, (len(positions), k))
    arrays = [_open_array(folder / name, (len(positions), k)) for name in FILES]
    exact = ExactSearch(snapshot) if done < len(positions) else None
    while done < len(positions):
        assert exact is not None
        block = positions[done : done + block_rows]
        matches = exact.search(snapshot, snapshot.vectors(block), k + 1, None if where is None else positions)
        matches = _without_self(matches, block, k)
        _write_rows(arrays[0], done, matches.rows)
        _write_rows(arrays[1], done, matches.similarity)
        done += len(block)
        write_text(folder / PROGRESS_FILE, json.dumps({**parameters, "done": done}) + "\n")
        if on_progress:
            on_progress(done, len(positions))
    rows, similarity = (array[:] for array in arrays)
    return NeighborTable(snapshot.number, positions, rows, similarity)


def _require_unlinked(folder: Path) -> None:
    """Raise Linked if a file of the result is a link: the file that it leads to would be written."""
    for path in (folder / name for name in (*FILES, PROGRESS_FILE)):
        if path.is_symlink():
            raise Linked(f"{path} is a symbolic link, and would be written; remove it, or name another folder")


def _start_or_resume(folder: Path, parameters: dict[str, Any], shape: tuple[int, int]) -> int:
    """Return the number of finished rows; creates the files if there are none."""
    try:
        content = read_json(folder / PROGRESS_FILE)
        done = int(content.pop("done"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as e:
        raise StoreError(
            f"{folder / PROGRESS_FILE} cannot be read ({e}); name another folder, or remove this one"
        ) from e
    else:
        if content != parameters:
            raise StoreError(
                f"{folder} holds a result with k={content.get('k')} for {content.get('rows')} rows, of another k, "
                f"snapshot or filter than requested; name another folder, or remove this one"
            )
        return done
    with disk_errors(f"write {folder}"):
        make_folder(folder)
        for name, dtype in FILES.items():
            header = {"descr": dtype.newbyteorder("<").str, "fortran_order": False, "shape": shape}
            with (folder / name).open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                size = file.tell() + math.prod(shape) * dtype.itemsize
            reserve(folder / name, size)
            flush(folder / name)
    write_text(folder / PROGRESS_FILE, json.dumps({**parameters, "done": 0}) + "\n")
    return 0


def _open_array(path: Path, shape: tuple[int, int]) -> RowFile:
    """Open a file of the result; raises StoreError if it does not have the expected shape and type."""
    try:
        array = open_npy(path, lambda problem: StoreError(f"{problem}; {_again(path)}"))
    except (OSError, ValueError) as e:
        raise StoreError(f"{path} cannot be read ({e}); {_again(path)}") from e
    if (array.shape, array.dtype) != (shape, FILES[path.name]) or not isinstance(array, RowFile):
        raise StoreError(f"{path} holds {array.dtype} {array.shape} instead of {shape}; {_again(path)}")
    return array


def _again(path: Path) -> str:
    return f"remove the folder {path.parent} and run the command again"


def _write_rows(array: RowFile, start: int, values: npt.NDArray[Any]) -> None:
    """Write rows from `start` on and flush them to the disk; raises StoreError for a file that was cut short."""
    _ = array[start : start + len(values)]  # after the end of a file that was cut short, there would be zeros between
    with disk_errors(f"write {array.path}"), array.path.open("r+b") as file:
        file.seek(array.offset + start * values.itemsize * values.shape[1])
        file.write(np.ascontiguousarray(values, array.dtype).data)
        file.flush()
        os.fsync(file.fileno())


def _without_self(matches: Matches, queries: Positions, k: int) -> Matches:
    """Remove the query row from its own k + 1 matches; if it is not among them, remove the last one."""
    removed = matches.rows == queries[:, None]
    removed[:, -1] |= ~removed.any(axis=1)
    rows = matches.rows[~removed].reshape(len(queries), k)
    return Matches(rows, matches.similarity[~removed].reshape(len(queries), k))


@dataclass(frozen=True)
class DuplicateGroup:
    """Rows that show the same image, or nearly."""

    keys: tuple[str, ...]
    labels: tuple[int, ...]  # of the rows
    sources: tuple[str, ...]  # distinct
    similarity: float  # lowest similarity of the links in the group

    @property
    def contradicts(self) -> bool:
        """True if the rows are labelled both real and fake."""
        return {REAL, FAKE} <= set(self.labels)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "contradicts": self.contradicts}


@dataclass(frozen=True)
class DuplicateReport:
    """Groups of near-duplicates, largest first."""

    threshold: float
    rows: int  # compared
    groups: tuple[DuplicateGroup, ...]

    @property
    def extra(self) -> int:
        """Number of rows that would be removed if each group kept one."""
        return sum(len(group.keys) - 1 for group in self.groups)

    @property
    def across_sources(self) -> int:
        """Number of groups with several sources, which a split by source would not keep together."""
        return sum(len(group.sources) > 1 for group in self.groups)

    @property
    def contradicting(self) -> int:
        """Number of groups labelled both real and fake."""
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
    """Group rows that are linked by a similarity of at least the threshold, or by files with equal bytes.

    Links are taken from each row's k nearest rows. Among more than k + 1 copies some links are therefore missing, which
    can only matter if the copies split into groups of more than k rows each.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    index_of = np.full(len(snapshot), -1, np.int64)  # position -> index among the compared rows
    index_of[pairs.positions] = np.arange(len(pairs))
    row, rank = np.nonzero(np.nan_to_num(pairs.similarity, nan=-2.0) >= threshold)
    neighbour, near = index_of[pairs.rows[row, rank]], np.asarray(pairs.similarity[row, rank])
    first, second = _same_bytes(snapshot.column("digests")[pairs.positions])
    ends = np.concatenate([row, first]), np.concatenate([neighbour, second])
    similarity = np.concatenate([near, np.ones(len(first), np.float32)])
    links = coo_matrix((np.ones(len(similarity), np.int8), ends), shape=(len(pairs), len(pairs)))
    group_of = connected_components(links, directed=False)[1]
    size = np.bincount(group_of)
    lowest = np.full(len(size), np.inf)
    np.minimum.at(lowest, group_of[ends[0]], similarity)
    by_group = np.argsort(group_of, kind="stable")
    group_end = np.cumsum(size)
    groups = []
    for group in sorted(np.flatnonzero(size > 1).tolist(), key=lambda group: (-size[group], group)):
        rows = pairs.positions[by_group[group_end[group] - size[group] : group_end[group]]]
        groups.append(_group(snapshot, rows, float(lowest[group])))
    return DuplicateReport(threshold, len(pairs), tuple(groups))


def _group(snapshot: Snapshot, rows: Positions, similarity: float) -> DuplicateGroup:
    keys, labels = (tuple(snapshot.column(name)[rows].tolist()) for name in ("keys", "labels"))
    sources: Names = snapshot.column("sources")[rows]
    return DuplicateGroup(keys, labels, tuple(distinct(sources)[0].tolist()), similarity)


def _same_bytes(digests: npt.NDArray[np.void]) -> tuple[Positions, Positions]:
    """Links between rows whose files are equal byte for byte; rows without a digest have none."""
    halves = np.ascontiguousarray(digests).view("<u8").reshape(-1, 2)
    with_digest = np.flatnonzero(halves.any(axis=1))
    order = with_digest[np.lexsort(halves[with_digest].T)]
    same = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
    return order[:-1][same], order[1:][same]
