"""A shard as a snapshot sees it: without the rows deleted in that snapshot."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import Damaged
from .manifest import ShardRef
from .records import Ids
from .shard import Shard
from .space import Space
from .tombstones import read_tombstones


class LiveShard:
    """A shard without its deleted rows."""

    def __init__(self, folder: Path, part: ShardRef, space: Space, before: LiveShard | None = None) -> None:
        """`before` is the same shard in an earlier snapshot, whose open file and list of live rows are reused."""
        self.part = part
        self._space = space
        self._folder = folder
        same = before is not None and before.part.header == part.header
        self._before = before.file if before and same and "file" in vars(before) else None
        # Read at once: the file is small, and a writer may remove it later.
        self.alive: npt.NDArray[np.int64] | None = None  # rows of the file that are live, None for all
        if before and same and before.part.deleted_digest == part.deleted_digest:
            self.alive = before.alive
        elif part.deleted:
            self.alive = np.delete(np.arange(part.rows), read_tombstones(folder, part))

    @cached_property
    def file(self) -> Shard:
        """Open shard file; raises Damaged if it is not the one in the manifest."""
        if self._before:
            return self._before
        shard = Shard(self._folder / "shards" / self.part.name)
        if shard.size != self.part.size:
            raise Damaged(
                f"{shard.path} has {shard.size} bytes instead of {self.part.size}; run `clipfake store verify`"
            )
        if (len(shard), shard.header.digest) != (self.part.rows, self.part.header):
            raise Damaged(f"{shard.path} is not the shard listed in the manifest; run `clipfake store verify`")
        if not shard.header.space.same(self._space):
            raise Damaged(
                f"{shard.path} has vectors of {shard.header.space}, the manifest has {self._space}; "
                f"run `clipfake store verify`"
            )
        return shard

    @property
    def ids(self) -> Ids:
        """(live,) ids of the live rows: shard number × 2³² + row in the file."""
        return (self.part.number << 32) + self.file_rows(np.arange(self.part.rows - self.part.deleted_rows))

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """(live,) hashes of the live rows' keys."""
        return self.take(self.file.column("key_hashes"))

    def file_rows(self, live: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Convert positions of live rows to rows of the file."""
        return live if self.alive is None else self.alive[live]

    def live_positions(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Convert rows of the file to positions of live rows, -1 for rows that are not live."""
        if self.alive is None:
            return np.where(rows < self.part.rows, rows, -1)
        if not len(self.alive):
            return np.full(len(rows), -1, np.int64)
        positions = np.minimum(np.searchsorted(self.alive, rows), len(self.alive) - 1)
        return np.where(self.alive[positions] == rows, positions, -1)

    def take(self, column: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Select the live rows of a column of the file."""
        return column if self.alive is None else column[self.alive]
