"""Shards that workers seal beside the store without its lock, and that whoever holds the lock takes in.

So any number of processes and machines can embed parts of one data set at a time: each works on its own rows, and a
shard is whole or absent. A shard that is taken in twice adds nothing the second time.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ..core.atomic_files import TEMPORARY, remove_leftover
from ..errors import Damaged, Locked
from ..store.records import Block
from ..store.shard import write_shard
from ..store.snapshot import Snapshot
from ..store.store import Store
from ..store.writer import SECONDS_PER_SHARD, AppendCounts, Writer

FOLDER = "incoming"
ABANDONED = 86_400.0  # seconds after which a shard that is not finished never will be


class Sink(Protocol):
    """Interface of what a run appends to: the store's writer, or `StagedWriter`."""

    @property
    def snapshot(self) -> Snapshot: ...

    def append(self, block: Block) -> AppendCounts: ...

    def seal(self) -> None: ...


class StagedWriter:
    """Takes blocks as a `Writer` does, and seals them for another to take in."""

    def __init__(self, store: Store, rows_per_shard: int) -> None:
        self.snapshot = store.snapshot()
        self._folder = store.folder
        self._rows_per_shard = rows_per_shard
        self._waiting: list[Block] = []
        self._sealed_at = time.monotonic()
        self._count = 0

    def append(self, block: Block) -> AppendCounts:
        places = self.snapshot.find(block.rows.keys)
        stored = places >= 0
        same = stored.copy()
        same[stored] = self.snapshot.digests(places[stored]) == block.rows.digests[stored]
        self._waiting.append(block.take(~same))
        late = time.monotonic() - self._sealed_at > SECONDS_PER_SHARD
        if late or sum(map(len, self._waiting)) >= self._rows_per_shard:
            self.seal()
        replaced = int((stored & ~same).sum())
        return AppendCounts(int((~same).sum()) - replaced, int(same.sum()), replaced)

    def seal(self) -> None:
        block = Block.concat(self._waiting) if self._waiting else None
        if block is not None and len(block):
            self._count += 1
            name = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns():x}-{self._count}"
            write_shard(self._folder / FOLDER / f"{name}.h5", block)
        self._waiting, self._sealed_at = [], time.monotonic()


def take_in(writer: Writer, folder: Path) -> AppendCounts:
    """Append what waits in the store's `incoming` folder and remove it there, and what was never finished."""
    for torn in (folder / FOLDER).glob(f"*{TEMPORARY}"):
        with suppress(OSError):  # another process may just have finished it
            if time.time() - torn.stat().st_mtime > ABANDONED:
                torn.unlink()
    total = AppendCounts()
    for path in sorted((folder / FOLDER).glob("*.h5")):
        total += take_in_one(writer, path)
    return total


def remove_torn(folder: Path, process: int) -> None:
    """Remove what a process of this machine that has died was writing into the `incoming` folder."""
    for torn in (folder / FOLDER).glob(f"*.{process}{TEMPORARY}"):
        remove_leftover(torn)


def take_in_one(writer: Writer, path: Path) -> AppendCounts:
    """Append one sealed shard and remove it; raises Damaged."""
    try:
        return writer.adopt(path)
    except Damaged as e:
        raise Damaged(f"{e}. It was not taken in yet: remove it and run the same command again") from e


def commit(store: Store, *, patience: float = 0.0) -> bool:
    """Take in what waits; False if another process held the lock for so many seconds (it, or the next, will)."""
    until = time.monotonic() + patience
    while True:
        try:
            with store.writer("incoming") as writer:
                take_in(writer, store.folder)
                return True
        except Locked:
            if time.monotonic() >= until:
                return False
            time.sleep(0.2)
