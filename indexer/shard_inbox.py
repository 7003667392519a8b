"""Shards that workers write beside the store without its lock, and that the lock's holder adopts into the store.

Any number of processes and machines can embed parts of one data set at the same time: each works on its own rows, and a
shard is complete or absent. Adopting a shard a second time adds nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ..core.atomic_files import TEMPORARY
from ..errors import Damaged, Locked, StoreError
from ..store.records import Block, Ids, Mask, RowLabels, Vectors
from ..store.shard import SECONDS_PER_SHARD, write_shard
from ..store.snapshot import Snapshot
from ..store.store import Store
from ..store.writer import AppendCounts, Writer

FOLDER = "incoming"
ABANDONED = 86_400.0  # seconds after which an unfinished shard is removed


class Sink(Protocol):
    """Interface of the writer that a run appends to: the store's `Writer`, or `StagedWriter`."""

    @property
    def snapshot(self) -> Snapshot: ...

    def append(self, block: Block) -> AppendCounts: ...

    def relabel(self, ids: Ids, labels: Sequence[RowLabels], texts: Mapping[str, Vectors] | None = None) -> int: ...

    def seal(self) -> None: ...

    def delete(self, where: Mask) -> int: ...


class StagedWriter:
    """Writer of shards that another process adopts into the store."""

    def __init__(self, store: Store, rows_per_shard: int) -> None:
        self.snapshot = store.snapshot()
        self._folder = store.folder
        self._rows_per_shard = rows_per_shard
        self._waiting: list[Block] = []
        self._sealed_at = time.monotonic()
        self._count = 0

    def append(self, block: Block) -> AppendCounts:
        positions = self.snapshot.find(block.rows.keys)
        stored = positions >= 0
        same = self.snapshot.same_images(block, positions)
        wrong = same.copy()  # rows of the same image whose labels differ; the adopting writer corrects them
        stored_labels = self.snapshot.row_labels(positions[same])
        listed_labels = block.rows.take(same).row_labels()
        wrong[same] = [old != old.corrected(new) for old, new in zip(stored_labels, listed_labels, strict=True)]
        self._waiting.append(block.take(~same | wrong))
        self._seal_if_due()
        replaced, relabelled = int((stored & ~same).sum()), int(wrong.sum())
        return AppendCounts(int((~same).sum()) - replaced, int(same.sum()) - relabelled, replaced, relabelled)

    def relabel(self, ids: Ids, labels: Sequence[RowLabels], texts: Mapping[str, Vectors] | None = None) -> int:
        positions = self.snapshot.positions_of(ids)
        self._waiting.append(self.snapshot.relabelled(positions, labels, texts))
        self._seal_if_due()
        return len(ids)

    def _seal_if_due(self) -> None:
        late = time.monotonic() - self._sealed_at > SECONDS_PER_SHARD
        if late or sum(map(len, self._waiting)) >= self._rows_per_shard:
            self.seal()

    def seal(self) -> None:
        block = Block.concat(self._waiting) if self._waiting else None
        if block is not None and len(block):
            self._count += 1
            name = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns():x}-{self._count}"
            write_shard(self._folder / FOLDER / f"{name}.h5", block)
        self._waiting, self._sealed_at = [], time.monotonic()

    def delete(self, where: Mask) -> int:
        """Raise StoreError, as deleting rows needs the store's lock."""
        raise StoreError("rows can be deleted only by the writer that holds the store's lock")


def adopt_shards(writer: Writer, folder: Path) -> AppendCounts:
    """Append the shards in the store's `incoming` folder and remove them; abandoned unfinished ones are removed too."""
    for unfinished in (folder / FOLDER).glob(f"*.h5.*{TEMPORARY}"):
        with suppress(OSError):  # another process may just have finished it
            if time.time() - unfinished.stat().st_mtime > ABANDONED:
                unfinished.unlink()
    total = AppendCounts()
    for path in sorted((folder / FOLDER).glob("*.h5")):
        total += adopt_shard(writer, path)
    return total


def adopt_shard(writer: Writer, path: Path) -> AppendCounts:
    """Append one shard and remove it from the `incoming` folder; raises Damaged."""
    try:
        return writer.adopt(path)
    except Damaged as e:
        raise Damaged(f"{e}. It is not part of the store yet: remove it and run the same command again") from e


def commit(store: Store, *, timeout: float = 0.0) -> bool:
    """Adopt all waiting shards; False if another process holds the lock for `timeout` seconds.

    Shards left behind are adopted by the next process that opens the store for writing.
    """
    until = time.monotonic() + timeout
    while True:
        try:
            with store.writer("incoming") as writer:
                adopt_shards(writer, store.folder)
                return True
        except Locked:
            if time.monotonic() >= until:
                return False
            time.sleep(0.2)
