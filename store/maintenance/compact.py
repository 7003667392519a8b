"""Reclaim space: remove deleted rows from the shards, merge small shards, and give up earlier snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import Damaged
from ..manifest import Compaction, ShardRef, numbers, read_manifest, unused_shard, write_manifest
from ..named_vectors import copy_vectors, tidy_all
from ..records import Block, Ids
from ..retention import GRACE, complete_manifests, give_up, superseded, tidy
from ..rooms import store_lock
from ..shard import ROWS_PER_SHARD, Shard, write_shard
from ..snapshot import Snapshot
from ..store import Store
from ..tombstones import read_tombstones
from .build_index import indexed_files, renumber


@dataclass(frozen=True)
class CompactReport:
    """Report of `compact`."""

    snapshot: int
    rows: int
    shards: tuple[int, int]  # of the snapshot, before and after
    bytes: tuple[int, int]  # of all shards on disk, before and after; more after it while earlier snapshots are kept
    given_up: int  # earlier snapshots that were removed, to which `undo` can no longer return
    held: int  # earlier snapshots still open in readers; a later writer or `compact` removes them and their files
    kept: int = 0  # earlier snapshots kept for copies under way; a later writer removes them and their files
    kept_until: str = ""  # ISO time until which they are kept
    reclaimable: int = 0  # bytes of the shards that only earlier snapshots name

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compact(store: Store, *, rows_per_shard: int = ROWS_PER_SHARD, grace: timedelta = GRACE) -> CompactReport:
    """Rewrite shards that have deleted rows or are small, and give up earlier snapshots.

    One shard at a time is in memory. If the process is killed, the store is unchanged or compacted. Rewritten rows get
    new ids; indexes are updated.

    Parameters
    ----------
    grace : time for which the snapshots before are kept, so that a copy that was begun before, file by file, is whole.
        Their files are removed by the first writer or `compact` after it. Zero reclaims their space at once

    Raises
    ------
    Locked
        Another process is writing.
    Damaged
        A shard is missing, or a row is damaged and cannot be copied: run `clipfake store repair` first.
    """
    folder = store.folder
    with store_lock(folder) as lock:
        before = read_manifest(folder)
        Snapshot(folder, before).require_shards()  # an earlier snapshot may be the only whole one
        size = _bytes(folder)
        kept, moved = plan(before.parts, rows_per_shard)
        first = number = unused_shard(folder, before.next_shard)
        parts, old_ids, new_ids = list(kept), [], []
        for block, ids in _regroup(_live_blocks(folder, moved), rows_per_shard):
            path = folder / "shards" / f"{number:06d}.h5"
            header = write_shard(path, block, exclusive=True)
            parts.append(ShardRef(path.name, header.rows, header.digest, Shard(path).size))
            old_ids.append(ids)
            new_ids.append((number << 32) + np.arange(len(block)))
            number += 1
        after, files = before, indexed_files(folder, before)
        if moved:
            if old_ids:  # none if all their rows are deleted
                copy_vectors(lock, np.concatenate(old_ids), np.concatenate(new_ids), parts[len(kept) :])
            until = (datetime.now(UTC) + grace).isoformat(timespec="seconds")
            compaction = Compaction(first, tuple(moved), until)
            after = before.follow("compacted", parts=tuple(parts), next_shard=number, compaction=compaction)
            write_manifest(folder, after, lock)
        earlier = [n for n in numbers(folder) if n != after.number]
        lock.require_held()  # another writer may be about to name what no snapshot names now
        held = give_up(folder, superseded(complete_manifests(folder), grace))
        if tidy(lock):
            tidy_all(lock)
        if old_ids:
            renumber(folder, after, np.concatenate(old_ids), np.concatenate(new_ids), files)
    remaining = [n for n in numbers(folder) if n != after.number]
    return CompactReport(
        after.number,
        after.rows,
        (len(before.parts), len(after.parts)),
        (size, _bytes(folder)),
        given_up=len(earlier) - len(remaining),
        held=len(held),
        kept=len(remaining) - len(held),
        kept_until=after.compaction.earlier_until if after.compaction and len(remaining) > len(held) else "",
        reclaimable=_bytes(folder) - sum(part.size for part in after.parts),
    )


def plan(parts: tuple[ShardRef, ...], rows_per_shard: int) -> tuple[list[ShardRef], list[ShardRef]]:
    """Decide which shards stay and which are rewritten: those with deleted rows, and small ones if there are several.

    >>> whole, small = ShardRef("000001.h5", 100, "", 0), ShardRef("000002.h5", 10, "", 0)
    >>> plan((whole, small), 100) == ([whole, small], [])
    True
    """
    small = [part for part in parts if part.rows - part.deleted_rows <= rows_per_shard // 2]
    moved = [part for part in parts if part.deleted_rows or (len(small) > 1 and part in small)]
    return [part for part in parts if part not in moved], moved


def _live_blocks(folder: Path, parts: list[ShardRef]) -> Iterator[tuple[Block, Ids]]:
    """The live rows of each shard, with thumbnails and texts, and their ids."""
    for part in parts:
        shard = Shard(folder / "shards" / part.name)
        rows = np.delete(np.arange(part.rows), read_tombstones(folder, part))
        if len(damaged := np.intersect1d(shard.damaged_rows(), rows)):
            raise Damaged(
                f"{shard.path}: the vectors of {len(damaged)} rows, starting at row {damaged[0]}, are corrupt "
                f"(checksum differs); run `clipfake store repair` first"
            )
        vectors = np.asarray(shard.vectors)
        block = Block(shard.header.space, shard.rows(), vectors, shard.thumbnails(), shard.texts)
        yield block.take(rows), (part.number << 32) + rows


def _regroup(pieces: Iterator[tuple[Block, Ids]], size: int) -> Iterator[tuple[Block, Ids]]:
    """Regroup the rows into blocks of `size`; the last one is shorter."""
    pending: list[tuple[Block, Ids]] = []
    for piece in pieces:
        pending.append(piece)
        while sum(len(ids) for _, ids in pending) >= size:
            block, ids = _concatenated(pending)
            yield block.take(slice(0, size)), ids[:size]
            pending = [(block.take(slice(size, None)), ids[size:])]
    if sum(len(ids) for _, ids in pending):
        yield _concatenated(pending)


def _concatenated(pieces: list[tuple[Block, Ids]]) -> tuple[Block, Ids]:
    return Block.concat([block for block, _ in pieces]), np.concatenate([ids for _, ids in pieces])


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "shards").glob("*.h5"))
