"""Changing a store: rows in, rows out, sealed into shards; every seal is a commit. Whoever has it holds the lock."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..core.atomic_files import TEMPORARY, flush, make_folder, remove_leftover
from ..core.locking import give_up
from ..errors import BadBlock, StoreError
from .key_index import Hashes
from .manifest import ShardRef, numbers, path_of, read_manifest, write_manifest
from .records import Block, Ids, Mask, Names, to_float16
from .search.matches import Positions
from .shard import Shard, hash_keys, reject_unfit, write_shard
from .snapshot import Snapshot
from .space import Space
from .tombstones import write_tombstones

ROWS_PER_SHARD = 16_384
SECONDS_PER_SHARD = 30.0  # a slow encoder's rows are safe after this long


@dataclass(frozen=True)
class AppendCounts:
    """Counts of what became of appended rows."""

    added: int = 0
    known: int = 0  # were there already, unchanged
    replaced: int = 0  # were there with other bytes

    def __add__(self, other: AppendCounts) -> AppendCounts:
        return AppendCounts(self.added + other.added, self.known + other.known, self.replaced + other.replaced)


@dataclass(frozen=True)
class _Waiting:
    """Rows that were taken in and are not sealed yet."""

    block: Block
    hashes: Hashes  # of their keys
    replaces: Positions  # (n,) of the snapshot, which stays the same until they are sealed


class Writer:
    """The one who may change a store. Make it with `Store.writer()`.

    Rows are gathered and sealed into a shard when there are enough of them or enough time has passed; each seal is a
    commit. A process killed in between loses at most the rows not yet sealed.
    """

    def __init__(self, folder: Path, note: str, rows_per_shard: int, seconds_per_shard: float) -> None:
        """The lock of the folder must be held."""
        self._folder = folder
        self._manifest = read_manifest(folder)
        self._first = self._manifest.number  # the snapshot before this writer
        self._note = note
        self._rows_per_shard = rows_per_shard
        self._seconds_per_shard = seconds_per_shard
        self._waiting: list[_Waiting] = []
        self._waiting_keys: set[str] = set()
        self._sealed_at = time.monotonic()
        self._snapshot = Snapshot(self._folder, self._manifest)

    @property
    def space(self) -> Space:
        return self._manifest.space

    @property
    def snapshot(self) -> Snapshot:
        """Snapshot of the rows sealed so far."""
        return self._snapshot

    def find(self, keys: list[str] | Names, hashes: Hashes | None = None) -> Positions:
        """(n,) positions of these keys in `snapshot`, -1 where a key is not sealed; quick among millions."""
        return self._snapshot.find(keys, hashes)

    def append(self, block: Block) -> AppendCounts:
        """Take rows in. A row already stored with the same file digest is left alone, another digest replaces it.

        Raises
        ------
        SpaceMismatch, BadBlock
            Nothing of the block is taken.
        """
        self.space.require(block.space, "the block")
        keys = block.rows.keys.tolist()
        if len(set(keys)) < len(keys) or not self._waiting_keys.isdisjoint(keys):
            twice = next(key for i, key in enumerate(keys) if key in self._waiting_keys or key in keys[:i])
            raise BadBlock(f"the key {twice} was given twice; keys are unique (two sources of one name?)")
        hashes = hash_keys(keys)
        positions = self.find(keys, hashes)
        stored = positions >= 0
        same = np.zeros(len(block), bool)
        same[stored] = self._snapshot.digests(positions[stored]) == block.rows.digests[stored]
        fresh = block.take(~same) if same.any() else block
        if len(fresh):
            fresh = replace(fresh, vectors=to_float16(fresh.vectors, copied=True))  # the caller may use its array again
            reject_unfit(fresh, hashes[~same])
            self._waiting.append(_Waiting(fresh, hashes[~same], positions[stored & ~same]))
            self._waiting_keys.update(fresh.rows.keys.tolist() if same.any() else keys)
        if len(self._waiting_keys) >= self._rows_per_shard or (
            self._waiting and time.monotonic() - self._sealed_at > self._seconds_per_shard
        ):
            self.seal()
        replaced = int((stored & ~same).sum())
        return AppendCounts(added=len(fresh) - replaced, known=int(same.sum()), replaced=replaced)

    def adopt(self, path: Path) -> AppendCounts:
        """Take in a shard that another process sealed inside the store's folder, and remove it from where it was.

        Where all of its rows are new the file becomes the store's own as it is; otherwise its rows are appended. A
        process killed in between has done it or not; adopting it again adds nothing.

        Raises
        ------
        SpaceMismatch, BadBlock, Damaged
            Nothing of it is taken.
        """
        self.seal()
        shard = Shard(path)
        self.space.require(shard.header.space, str(path))
        number = self._manifest.next_shard
        part = ShardRef(f"{number:06d}.h5", len(shard), shard.header.digest, shard.size)
        counts = AppendCounts(added=len(shard))
        known = self.find(shard.column("keys"), shard.column("key_hashes")) >= 0
        if known.any() or not _linked(path, self._folder / "shards" / part.name):
            counts = self.append(shard.block())
            self.seal()
        else:
            self._commit(parts=(*self._manifest.parts, part), next_shard=number + 1)
        remove_leftover(path)
        return counts

    def delete(self, where: Mask) -> int:
        """Drop the rows of a mask over `snapshot`, once all is sealed; returns how many. Shards stay as they are.

        Raises
        ------
        BadBlock
            Not one bool for each row: what was appended since the mask was made has been sealed and counts too.
        """
        self.seal()
        if dropped := len(self.snapshot.scope(where)):
            self._commit(parts=self._without(self.snapshot.ids[where]))
        return dropped

    def seal(self) -> None:
        """Write what was taken in as a shard and make it visible."""
        if not self._waiting:
            return
        block = Block.concat([waiting.block for waiting in self._waiting])
        hashes = np.concatenate([waiting.hashes for waiting in self._waiting])
        replaced = np.concatenate([waiting.replaces for waiting in self._waiting])
        number = self._manifest.next_shard
        name = f"{number:06d}.h5"
        path = self._folder / "shards" / name
        header = write_shard(path, block, hashes)
        gone = self.snapshot.ids[replaced] if len(replaced) else replaced
        parts = (*self._without(gone), ShardRef(name, header.rows, header.digest, path.stat().st_size))
        self._commit(parts=parts, next_shard=number + 1)
        self._sealed_at = time.monotonic()

    def _commit(self, **changes: object) -> None:
        before, after = self._manifest, self._manifest.follow(self._note, **changes)
        write_manifest(self._folder, after)
        self._manifest, self._waiting, self._waiting_keys = after, [], set()  # not before: what failed is tried again
        if before.number > self._first:  # one snapshot a writer is history enough
            give_up(path_of(self._folder, before.number))
        self._snapshot = Snapshot(self._folder, after, self._snapshot)

    def _without(self, ids: Ids) -> tuple[ShardRef, ...]:
        """The parts with these rows deleted; the files that say so are written, the commit is not."""
        parts = []
        for part in self._manifest.parts:
            rows = ids[ids >> 32 == part.number] & 0xFFFFFFFF
            if len(rows):
                part = write_tombstones(self._folder, part, rows, self._manifest.number + 1)
            parts.append(part)
        return tuple(parts)


def _linked(path: Path, name: Path) -> bool:
    """Give a file a second name; False where the file system has but one a file."""
    try:
        make_folder(name.parent)
        name.unlink(missing_ok=True)
        os.link(path, name)
        flush(name.parent)
    except OSError:
        return False
    return True


def tidy(folder: Path) -> None:
    """Remove what a killed writer left: temporary files, and shards no snapshot names. The lock must be held."""
    for room in ("shards", "deleted", "snapshots"):
        for path in (folder / room).glob(f"*{TEMPORARY}"):
            remove_leftover(path)
    try:
        parts = [part for n in numbers(folder) for part in read_manifest(folder, n).parts]
    except StoreError:
        return  # an unreadable snapshot may name any shard: `store repair` decides
    for room, named in (("shards", {p.name for p in parts}), ("deleted", {p.deleted for p in parts})):
        for path in (folder / room).glob("*"):
            if path.name not in named:
                remove_leftover(path)
