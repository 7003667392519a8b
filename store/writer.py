"""Writer of a store: appends, replaces and deletes rows. Rows are sealed into shards, and every seal is a commit."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np

from ..core.atomic_files import flush, make_folder, remove_leftover
from ..core.locking import WriterLock, remove_unless_leased
from ..errors import BadBlock, SpaceMismatch, Unflushed
from .key_index import Hashes
from .manifest import Manifest, ShardRef, path_of, read_manifest, unused_shard, write_manifest
from .named_vectors import open_named_vectors, store_named_vectors
from .records import Block, Ids, Mask, Names, RowLabels, Vectors, to_float16
from .search.matches import Positions
from .shard import Shard, hash_keys, require_valid_vectors, write_checked_shard
from .snapshot import Snapshot
from .space import Space
from .tombstones import write_tombstones


@dataclass(frozen=True)
class AppendCounts:
    """Numbers of appended rows by outcome."""

    added: int = 0
    known: int = 0  # already stored, unchanged
    replaced: int = 0  # already stored with another file digest
    relabelled: int = 0  # already stored with the same file and other labels, which were corrected

    def __add__(self, other: AppendCounts) -> AppendCounts:
        return AppendCounts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class _Waiting:
    """Rows that were appended and checked, and are not sealed yet."""

    block: Block
    hashes: Hashes  # of their keys
    replaces: Positions  # (n,) positions in the snapshot, which does not change until the rows are sealed
    relabelled: bool = False  # each row is the one it replaces with other labels, so that its named vectors stay


class Writer:
    """Writer of a store. Make it with `Store.writer()`, which holds the writer lock.

    Rows are buffered, and sealed into a shard when there are enough of them or enough time has passed; each seal is a
    commit. A process that is killed loses at most the rows not yet sealed.
    """

    def __init__(self, lock: WriterLock, note: str, rows_per_shard: int, seconds_per_shard: float) -> None:
        self._lock = lock
        self._folder = folder = lock.folder
        self._manifest = read_manifest(folder)
        self._next_shard = unused_shard(folder, self._manifest.next_shard)
        self._first = self._manifest.number  # the snapshot before this writer
        self._note = note
        self._rows_per_shard = rows_per_shard
        self._seconds_per_shard = seconds_per_shard
        self._waiting: list[_Waiting] = []
        self._waiting_keys: set[str] = set()
        self._named_dims: dict[str, int] = {}  # of the named vectors that were appended
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
        """(n,) positions of these keys in `snapshot`, -1 for a key that is not sealed; see `Snapshot.find`."""
        return self._snapshot.find(keys, hashes)

    def append(self, block: Block) -> AppendCounts:
        """Append rows. One whose key is stored is replaced; if its image is the same, only its labels are corrected.

        It is the same image if the file digest is the same, and, where none is known, the vector. Labels are corrected
        as by `RowLabels.corrected`; a row that has them already is skipped.

        Raises
        ------
        SpaceMismatch, BadBlock
            The block cannot be stored; nothing of it is appended.
        """
        self.space.require(block.space, "the block")
        self._require_named(block)
        keys = block.rows.keys.tolist()
        if len(set(keys)) < len(keys) or not self._waiting_keys.isdisjoint(keys):
            repeated = next(key for i, key in enumerate(keys) if key in self._waiting_keys or key in keys[:i])
            raise BadBlock(f"the key {repeated} was appended twice; keys must be unique (two sources of one name?)")
        hashes = hash_keys(keys)
        positions = self.find(keys, hashes)
        stored = positions >= 0
        same = self._snapshot.same_images(block, positions)
        relabelled = self._correct(block.take(same), positions[same]) if same.any() else 0
        fresh = block.take(~same) if same.any() else block
        if len(fresh):
            named = {name: to_float16(vectors, copied=True) for name, vectors in fresh.named.items()}
            vectors = to_float16(fresh.vectors, copied=True)  # the caller may reuse its array
            fresh = replace(fresh, vectors=vectors, named=named)
            require_valid_vectors(fresh)
            self._waiting.append(_Waiting(fresh, hashes[~same], positions[stored & ~same]))
            self._waiting_keys.update(fresh.rows.keys.tolist() if same.any() else keys)
        self._seal_if_due()
        replaced = int((stored & ~same).sum())
        return AppendCounts(len(fresh) - replaced, int(same.sum()) - relabelled, replaced, relabelled)

    def _require_named(self, block: Block) -> None:
        """Raise unless the store has named vectors of these names and dimensions."""
        for name, vectors in block.named.items():
            if name not in self._named_dims:
                self._named_dims[name] = open_named_vectors(self._folder, name).space.dim
            if vectors.shape[1] != (dim := self._named_dims[name]):
                raise SpaceMismatch(f"the vectors {name} have {vectors.shape[1]} dimensions, those of the store {dim}")

    def relabel(self, ids: Ids, labels: Sequence[RowLabels], texts: Mapping[str, Vectors] | None = None) -> int:
        """Give stored rows other labels; returns their number. Rows that are not stored any more are left out.

        The rows are written again, with their vectors, thumbnails and named vectors, and the old ones are deleted in
        the same commit: a process that is killed leaves each row with its old labels or with the new ones.

        Parameters
        ----------
        ids : (n,) ids of the rows, each once
        labels : labels of each row
        texts : category -> (dim,) text vector, of categories that have none yet

        Raises
        ------
        Damaged
            A vector or named vector is damaged and cannot be copied.
        """
        self.seal()
        positions = self._snapshot.positions_of(ids)
        remaining = np.flatnonzero(positions >= 0)
        self._relabel(positions[remaining], [labels[i] for i in remaining.tolist()], texts)
        self._seal_if_due()
        return len(remaining)

    def _correct(self, block: Block, positions: Positions) -> int:
        """Correct the labels of the rows at these positions by those of the same images; returns how many differed."""
        stored = self._snapshot.row_labels(positions)
        corrected = [old.corrected(new) for old, new in zip(stored, block.rows.row_labels(), strict=True)]
        wrong = [i for i, (old, new) in enumerate(zip(stored, corrected, strict=True)) if old != new]
        self._relabel(positions[wrong], [corrected[i] for i in wrong], block.texts)
        return len(wrong)

    def _relabel(self, positions: Positions, labels: Sequence[RowLabels], texts: Mapping[str, Vectors] | None) -> None:
        if len(positions):
            block = self._snapshot.relabelled(positions, labels, texts)
            block = replace(block, vectors=to_float16(block.vectors))
            keys = block.rows.keys.tolist()
            self._waiting.append(_Waiting(block, hash_keys(keys), positions, relabelled=True))
            self._waiting_keys.update(keys)

    def _seal_if_due(self) -> None:
        late = time.monotonic() - self._sealed_at > self._seconds_per_shard
        if len(self._waiting_keys) >= self._rows_per_shard or (self._waiting and late):
            self.seal()

    def adopt(self, path: Path) -> AppendCounts:
        """Move a shard that another process sealed inside the store's folder into the store.

        If all of its rows are new, the file itself becomes a shard of the store. Otherwise its rows are appended, and
        also if it has named vectors, which have files of their own in a store. If the process is killed in between,
        adopting the shard again adds no row twice.

        Raises
        ------
        SpaceMismatch, BadBlock, Damaged
            The shard cannot be stored; nothing of it is.
        """
        self.seal()
        shard = Shard(path)
        self.space.require(shard.header.space, str(path))
        number = self._shard_number()
        part = ShardRef(f"{number:06d}.h5", len(shard), shard.header.digest, shard.size)
        counts = AppendCounts(added=len(shard))
        known = self.find(shard.column("keys"), shard.column("key_hashes")) >= 0
        if known.any() or shard.named or not _hard_link(path, self._folder / "shards" / part.name):
            counts = self.append(shard.block())
            self.seal()
        else:
            self._commit(parts=(*self._manifest.parts, part), next_shard=number + 1)
        remove_leftover(path)
        return counts

    def delete(self, where: Mask) -> int:
        """Delete the rows of a mask over `snapshot`, after sealing; returns their number. Shard files do not change.

        Raises
        ------
        BadBlock
            The mask does not have one bool per row. Rows appended since the mask was made are sealed first and count.
        """
        self.seal()
        if deleted := len(self.snapshot.prepare_filter(where)):
            self._commit(parts=self._without(self.snapshot.ids[where]))
        return deleted

    def seal(self) -> None:
        """Write the buffered rows as a shard and commit it."""
        if not self._waiting:
            return
        self._lock.require_held()  # also before the commit; here, nothing is written into the folder of another store
        block = Block.concat([waiting.block for waiting in self._waiting])
        hashes = np.concatenate([waiting.hashes for waiting in self._waiting])
        replaced = np.concatenate([waiting.replaces for waiting in self._waiting])
        number = self._shard_number()
        name = f"{number:06d}.h5"
        path = self._folder / "shards" / name
        # `append` has checked the rows; the named vectors get files of their own
        header = write_checked_shard(path, replace(block, named={}), hashes, exclusive=True)
        replaced_ids = self.snapshot.ids[replaced] if len(replaced) else replaced
        part = ShardRef(name, header.rows, header.digest, Shard(path).size)
        self._store_named_vectors(part, block.named)
        self._commit(parts=(*self._without(replaced_ids), part), next_shard=number + 1)
        self._sealed_at = time.monotonic()

    def _shard_number(self) -> int:
        """A number for a new shard. Each attempt has its own, so that no file is ever replaced."""
        self._next_shard += 1
        return self._next_shard - 1

    def _store_named_vectors(self, part: ShardRef, named: Mapping[str, Vectors]) -> None:
        """Store the named vectors of the rows, and copy those of rows that are relabelled to their new shard."""
        none: Ids = np.zeros(0, np.int64)
        old, new, row = [none], [none], part.number << 32
        for waiting in self._waiting:
            if waiting.relabelled:
                old.append(self.snapshot.ids[waiting.replaces])
                new.append(row + np.arange(len(waiting.block)))
            row += len(waiting.block)
        store_named_vectors(self._lock, part, named, np.concatenate(old), np.concatenate(new))

    def _commit(self, **changes: object) -> None:
        before, after = self._manifest, self._manifest.follow(self._note, **changes)
        try:
            write_manifest(self._folder, after, self._lock)
        except Unflushed:
            self._committed(after)
            raise
        self._committed(after)
        if before.number > self._first:  # the history keeps one snapshot per writer
            remove_unless_leased(path_of(self._folder, before.number))

    def _committed(self, manifest: Manifest) -> None:
        # Only after the commit, so that a failed one is tried again.
        self._manifest, self._waiting, self._waiting_keys = manifest, [], set()
        self._snapshot = Snapshot(self._folder, manifest, self._snapshot)

    def _without(self, ids: Ids) -> tuple[ShardRef, ...]:
        """Write tombstones for these rows and return the parts that refer to them; nothing is committed yet."""
        parts = []
        for part in self._manifest.parts:
            rows = ids[ids >> 32 == part.number] & 0xFFFFFFFF
            if len(rows):
                part = write_tombstones(self._folder, part, rows, self._manifest.number + 1)
            parts.append(part)
        return tuple(parts)


def _hard_link(path: Path, target: Path) -> bool:
    """Make `target` a new hard link to `path`; False if it exists, or the file system has no hard links."""
    try:
        make_folder(target.parent)
        os.link(path, target)
        flush(target.parent)
    except OSError:
        return False
    return True
