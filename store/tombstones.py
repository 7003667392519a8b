"""Tombstones: the numbers of a shard's deleted rows, in a small file of their own since shards never change."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.atomic_files import require_readable, written_aside
from ..core.reading import read_bounded
from ..core.sealed_json import checksum
from ..errors import Damaged
from .manifest import ShardRef
from .rooms import own_files


def read_tombstones(folder: Path, part: ShardRef) -> npt.NDArray[np.uint32]:
    """(deleted,) rows of a shard that are deleted in a snapshot, ascending; raises Damaged."""
    if not part.deleted:
        return np.zeros(0, np.uint32)
    path = folder / "deleted" / part.deleted
    try:
        content = read_bounded(path, 4 * part.rows)
    except OSError as e:
        require_readable(path, e)
        raise Damaged(f"{path} cannot be read ({e.strerror}); run `clipfake store repair`") from e
    if checksum(content) != part.deleted_digest:
        raise Damaged(f"{path} was altered (checksum differs); run `clipfake store repair`")
    rows = np.frombuffer(content[: len(content) // 4 * 4], "<u4")
    if len(content) != 4 * part.deleted_rows or (rows[1:] <= rows[:-1]).any() or (rows >= part.rows).any():
        raise Damaged(
            f"{path} is not an ascending list of {part.deleted_rows} row numbers below {part.rows}; "
            f"run `clipfake store repair`"
        )
    return rows


def write_tombstones(folder: Path, part: ShardRef, rows: npt.NDArray[Any], number: int) -> ShardRef:
    """Write tombstones for these rows and those already deleted; returns the part as snapshot `number` sees it.

    A file that exists is never replaced, as a snapshot of another writer may name it: the new one then gets a higher
    number in its name than that of the snapshot.
    """
    deleted = np.union1d(read_tombstones(folder, part), rows).astype("<u4")
    names = tombstones_of(folder, part)
    # above all others, so that the newest has the highest
    name = f"{part.number:06d}-{max(number, _number_of(names[-1]) + 1 if names else 0):06d}.u4"
    with written_aside(folder / "deleted" / name, exclusive=True, pending=True) as temporary:
        temporary.write_bytes(deleted.tobytes())
    return replace(part, deleted=name, deleted_rows=len(deleted), deleted_digest=checksum(deleted.tobytes()))


def tombstones_of(folder: Path, part: ShardRef) -> list[str]:
    """Names of all tombstone files of a shard, whether or not a snapshot names them; the newest is the last."""
    own = re.compile(rf"{part.number:06d}-[0-9]{{6,18}}\.u4")  # within rooms.TOMBSTONES
    return sorted(filter(own.fullmatch, own_files(folder, "deleted", own=own)), key=_number_of)


def _number_of(name: str) -> int:
    """The number in the name of a tombstone file, at least that of the snapshot that it was written for."""
    return int(name.removesuffix(".u4").split("-")[1])
