"""Snapshot of a store: the live rows at one moment, unchanged whatever a writer does meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.locking import lease
from ..errors import BadBlock, Damaged
from .key_index import Hashes, KeyIndex
from .live_shard import LiveShard
from .manifest import Manifest, numbers, path_of, read_manifest
from .records import LABELS, Block, Ids, Mask, Names, Rows, Vectors
from .search.exact import ExactSearch
from .search.matches import Matches, Positions, Searcher
from .search.prepared_filter import PreparedFilter
from .shard import hash_keys
from .space import Space

if TYPE_CHECKING:
    from .search.ann_index import SnapshotIndex


class Snapshot:
    """The live rows of a store at one moment.

    A row's *position* (0 … len-1) is its place in this snapshot; its *id* (shard number × 2³² + row in the shard)
    stays the same in every snapshot that has it. Both grow in the order rows came in.
    """

    def __init__(self, folder: Path, manifest: Manifest, before: Snapshot | None = None) -> None:
        """`before` is an earlier snapshot of the same store, whose open shards and keys are taken over."""
        self.folder = folder
        self.manifest = manifest
        self._elsewhere: Searcher | None = None
        self._held: Snapshot | None = None
        known = {live.part.name: live for live in before._shards} if before else {}
        self._shards: list[LiveShard] = [
            LiveShard(folder, part, manifest.space, known.get(part.name)) for part in manifest.parts
        ]
        counts = [part.rows - part.deleted_rows for part in manifest.parts]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)  # (shards + 1,)
        self._numbers = np.array([part.number for part in manifest.parts], np.int64)
        if before and "_keys" in vars(before):
            self._keys = before._keys
            for live in self._shards:
                if live.part.name not in known:
                    self._keys.add(live.hashes, live.ids)

    @property
    def number(self) -> int:
        return self.manifest.number

    @property
    def space(self) -> Space:
        return self.manifest.space

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def summary(self) -> str:
        """Rows, labels and encoder in one line."""
        counts = dict(zip(*np.unique(self.column("labels"), return_counts=True), strict=True))
        labels = ", ".join(f"{counts[label]:,} {word}" for label, word in LABELS.items() if label in counts)
        return f"{len(self):,} rows{f' ({labels})' if labels else ''}, encoder {self.space.encoder}"

    def __repr__(self) -> str:
        return f"Snapshot({str(self.folder)!r}, number {self.number}: {self.summary})"

    @cached_property
    def rows(self) -> Rows:
        """Metadata of all live rows. For single columns of millions of rows use `column(name)`."""
        return Rows(**{f.name: self.column(f.name) for f in fields(Rows)})

    def whole(self) -> Snapshot:
        """Itself, if all its shards are there; raises Damaged otherwise."""
        for shard in self._shards:
            _ = shard.file
        return self

    def column(self, name: str) -> npt.NDArray[Any]:
        """One column of `rows`, shape (rows,); loaded once."""
        if name not in self._columns:
            parts = [shard.take(shard.file.column(name)) for shard in self._shards]
            self._columns[name] = np.concatenate(parts) if parts else getattr(Rows.concat([]), name)
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        return {}

    @cached_property
    def ids(self) -> Ids:
        """(rows,) what stays the same for a row in every snapshot; ascending."""
        parts = [shard.ids for shard in self._shards]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def places(self, ids: Ids) -> Positions:
        """(n,) positions of the rows with these ids, -1 where this snapshot does not have one."""
        result = np.full(len(ids), -1, np.int64)
        if not self._shards:
            return result
        shard_of = np.searchsorted(self._numbers, ids >> 32)
        shard_of[shard_of == len(self._numbers)] = 0
        shard_of[self._numbers[shard_of] != ids >> 32] = -1
        for number in np.unique(shard_of[shard_of >= 0]):
            here = np.flatnonzero(shard_of == number)
            live = self._shards[number].live(ids[here] & 0xFFFFFFFF)
            result[here[live >= 0]] = live[live >= 0] + self._starts[number]
        return result

    def vectors(self, positions: Any = None, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        """(n, dim) of the rows at these positions (integers, slice or mask), all for None.

        `dtype=np.float16` gives them as they are stored, in half the memory.

        Raises
        ------
        BadBlock
            A position or a mask that is not of these rows.
        Damaged
            A shard is missing or altered.
        """
        wanted = self._positions(positions)
        result = np.empty((len(wanted), self.space.dim), dtype)
        for shard, here, rows in self._located(wanted):
            result[here] = shard.file.vectors[rows]
        return result

    def digests(self, positions: Positions) -> npt.NDArray[np.void]:
        """(n,) V16, the file digests of some rows, without loading those of all."""
        result = np.empty(len(positions), "V16")
        for shard, here, rows in self._located(positions):
            result[here] = shard.file.digests[rows]
        return result

    def blocks(self, size: int = 65_536, where: Any = None) -> Iterator[Block]:
        """Iterate over all rows (or those of a mask, or at some positions) in blocks of `size`.

        Read as they are asked for: what is in memory is a block and a shard.
        """
        wanted = self._positions(where)
        last: tuple[LiveShard, Rows] | None = None
        for start in range(0, len(wanted), size):
            positions = wanted[start : start + size]
            parts, order = [], []
            for shard, here, places in self._located(positions):
                if last is None or last[0] is not shard:
                    last = shard, shard.file.rows()
                parts.append(last[1].take(places))
                order.append(np.arange(len(positions))[here])
            rows = Rows.concat(parts).take(np.argsort(np.concatenate(order), kind="stable"))
            occurring = set(rows.categories.tolist())
            texts = {name: vector for name, vector in self.texts.items() if name in occurring}
            yield Block(self.space, rows, self.vectors(positions), texts=texts)

    def search(
        self, queries: Vectors, k: int, where: Mask | PreparedFilter | None = None, recall: float = 0.99
    ) -> Matches:
        """The k nearest rows of each query, of those a mask over the rows allows.

        Similarities are those of the stored vectors. Without an index
        (`clipfake.store.maintenance.build_index.build_index`) the rows are exactly the nearest; with one, the share
        `recall` of them on average; with `recall=1` exactly them.

        Parameters
        ----------
        queries : (queries, dim), or (dim,) for one; unit length in a normalised space
        where : (rows,) bool, or a `scope` of this snapshot for a filter that is asked again and again

        Raises
        ------
        BadBlock
            Queries of another dimension, or a filter of other rows.
        Damaged
            A shard that is read is missing or altered.
        """
        return self.search_each(queries, k, [where], recall)[0]

    def search_each(
        self, queries: Vectors, k: int, wheres: Sequence[Mask | PreparedFilter | None], recall: float = 0.99
    ) -> list[Matches]:
        """`search` for several filters at once, which costs less where no index answers: every row is read once."""
        queries = np.atleast_2d(queries)
        if queries.shape[1] != self.space.dim:
            raise BadBlock(f"queries of {queries.shape[1]} dimensions against a store of {self.space}")
        scopes = [where if isinstance(where, PreparedFilter) else self.scope(where) for where in wheres]
        if any(scope.of is not self.manifest for scope in scopes):
            raise BadBlock(f"a scope of another snapshot; make it of this one, snapshot {self.number}")
        if self._elsewhere and recall < 1:
            return [self._elsewhere.search(queries, k, scope.mask, recall) for scope in scopes]
        results, left = [Matches.none(len(queries), k) for _ in scopes], [scope.positions for scope in scopes]
        if recall < 1 and len(queries) and len(self) and self._index:
            for i, scope in enumerate(scopes):
                results[i], left[i] = self._index.search(self, queries, k, scope, recall)
        unanswered = [i for i, positions in enumerate(left) if positions is None or len(positions)]
        if unanswered:
            exact = self._exact.search_each(self, queries, k, [left[i] for i in unanswered])
            for i, found in zip(unanswered, exact, strict=True):
                results[i] = results[i].merge(found, k)
        return results

    def scope(self, mask: Mask | None) -> PreparedFilter:
        """A filter made ready for many searches of this snapshot; raises BadBlock unless it has a bool a row."""
        return PreparedFilter(mask, len(self), self.manifest)

    def searched_by(self, other: Searcher) -> Snapshot:
        """Return the same rows, searched by `other` (see `clipfake.store.backends`) unless `recall` is 1."""
        result = copy(self)
        result._elsewhere, result._held = other, self  # its files stay as long as the one that was opened
        return result

    @cached_property
    def _index(self) -> SnapshotIndex | None:
        from .search.ann_index import attach  # FAISS is loaded by the first search

        return attach(self)

    @cached_property
    def _exact(self) -> ExactSearch:
        return ExactSearch(self)

    @cached_property
    def texts(self) -> dict[str, npt.NDArray[np.float32]]:
        """category -> (dim,) its text vector; {} where the encoder has no text side."""
        return {name: vector for shard in self._shards for name, vector in shard.file.texts.items()}

    def thumbnail(self, position: int) -> bytes:
        """The small JPEG of one row, b"" where none was kept."""
        return self.thumbnails(np.array([position], np.int64))[0]

    @property
    def has_thumbnails(self) -> bool:
        """True if any row has one."""
        return any(shard.file.has_thumbnails for shard in self._shards)

    def thumbnails(self, positions: Positions) -> tuple[bytes, ...]:
        """The small JPEGs of some rows, b"" where none was kept."""
        result = np.full(len(positions), b"", object)
        for shard, here, rows in self._located(np.asarray(positions, np.int64)):
            which = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
            result[here] = np.array(shard.file.pictures(which), object)
        return tuple(result.tolist())

    def find(self, keys: Sequence[str] | Names, hashes: Hashes | None = None) -> Positions:
        """(n,) positions of these keys, -1 where a key is not stored; quick among millions.

        `hashes` are theirs, from whoever has them already.
        """
        result = np.full(len(keys), -1, np.int64)
        which, ids = self._keys.candidates(hash_keys(keys) if hashes is None else hashes)
        positions = self.places(ids)
        which, positions = which[positions >= 0], positions[positions >= 0]
        for shard, here, rows in self._located(positions):
            there = shard.file.keys_at(np.arange(len(shard.file))[rows])
            for one, position, key in zip(which[here].tolist(), positions[here].tolist(), there, strict=True):
                if keys[one] == key:  # two keys may share a hash
                    result[one] = position
        return result

    @cached_property
    def _keys(self) -> KeyIndex:
        keys = KeyIndex()
        if self._shards:
            keys.add(np.concatenate([shard.hashes for shard in self._shards]), self.ids)
        return keys

    def _positions(self, wanted: Any) -> Positions:
        if wanted is None:
            return np.arange(len(self), dtype=np.int64)
        if isinstance(wanted, slice):
            return np.arange(*wanted.indices(len(self)), dtype=np.int64)
        wanted = np.asarray(wanted)
        if wanted.dtype == np.bool_:
            if wanted.shape != (len(self),):
                raise BadBlock(f"a mask of shape {wanted.shape} over {len(self)} rows; give one value a row")
            return np.flatnonzero(wanted).astype(np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise BadBlock(f"positions {wanted.min()}..{wanted.max()} in a snapshot of {len(self)} rows")
        return np.asarray(wanted, np.int64)

    def _located(self, positions: Positions) -> Iterator[tuple[LiveShard, Any, Any]]:
        """Shard by shard: the shard, where in `positions` its rows stand, and which of its rows they are.

        Rows in store order are told as slices, which are read many times faster than lists of numbers.
        """
        if not len(positions):
            return
        order = None
        if len(positions) > 1 and (np.diff(positions) <= 0).any():
            order = np.argsort(positions, kind="stable")
            positions = positions[order]
        cuts = np.searchsorted(positions, self._starts)
        for number in np.flatnonzero(np.diff(cuts)):
            start, end = int(cuts[number]), int(cuts[number + 1])
            rows = self._shards[number].place(positions[start:end] - self._starts[number])
            whole = order is None and rows[-1] - rows[0] == len(rows) - 1
            here = slice(start, end) if order is None else order[start:end]
            yield self._shards[number], here, slice(int(rows[0]), int(rows[-1]) + 1) if whole else rows


def open_snapshot(folder: Path, number: int | None = None) -> Snapshot:
    """The newest snapshot of a store, or an earlier one by its number; its files stay as long as it is held.

    Raises
    ------
    NoStore
        There is no snapshot of this number (any more).
    NotAStore, Damaged
        The manifest cannot be read.
    """
    manifest = read_manifest(folder, number)
    try:
        snapshot = Snapshot(folder, manifest)
        if lease(path_of(folder, manifest.number), snapshot):
            return snapshot
    except Damaged:
        if number is not None or numbers(folder)[-1] == manifest.number:
            raise
    return open_snapshot(folder, number)  # a writer went on meanwhile
