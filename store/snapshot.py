"""Snapshot of a store: a consistent, read-only view of its live rows that no later write changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.locking import lease
from ..core.row_file import copy_rows
from ..errors import BadBlock, Damaged
from .key_index import Hashes, KeyIndex
from .live_shard import LiveShard
from .manifest import Manifest, numbers, path_of, read_manifest
from .records import LABELS, Block, Ids, Mask, Names, RowLabels, Rows, Vectors, to_float16
from .rooms import require_unlinked
from .search.exact import ExactSearch
from .search.matches import Matches, Positions, Searcher
from .search.prepared_filter import PreparedFilter
from .shard import Shard, hash_keys
from .space import MAIN, Space

if TYPE_CHECKING:
    from .search.ann_index import SnapshotIndex


class Snapshot:
    """The live rows of a store at one moment.

    A row's *position* (0 … len-1) is its index in this snapshot; its *id* (shard number × 2³² + row in the shard) is
    the same in every snapshot that contains the row. Both follow the order in which rows were added.
    """

    vector_names: tuple[str, ...] = (MAIN,)  # of the vectors that a row's vector is made of

    def __init__(self, folder: Path, manifest: Manifest, before: Snapshot | None = None) -> None:
        """`before` is another snapshot of the same store whose open shards and key index are reused."""
        self.folder = folder
        self.manifest = manifest
        self._searcher: Searcher | None = None
        self._source: Snapshot | None = None  # the snapshot this is a view of, referenced to keep its files leased
        previous = {shard.part.name: shard for shard in before._shards} if before else {}
        self._shards: list[LiveShard] = []
        for part in manifest.parts:
            shard = previous.get(part.name)
            if shard is None or shard.part != part:
                shard = LiveShard(folder, part, manifest.space, before=shard)
            self._shards.append(shard)
        counts = [part.rows - part.deleted_rows for part in manifest.parts]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)  # (shards + 1,)
        self._numbers = np.array([part.number for part in manifest.parts], np.int64)
        if before and "_keys" in vars(before):
            self._keys = before._keys
            for shard in self._shards:
                if shard.part.name not in previous:
                    self._keys.add(shard.hashes, shard.ids)

    @property
    def number(self) -> int:
        return self.manifest.number

    @property
    def space(self) -> Space:
        return self.manifest.space

    @property
    def main(self) -> Snapshot:
        """The same rows with the store's own vectors."""
        return self

    @property
    def vector_files(self) -> dict[int, str]:
        """Shard number -> checksums of its files of named vectors; empty for main vectors, which never change."""
        return {}

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

    def require_shards(self) -> None:
        """Raise Damaged unless every shard is present and is the one in the manifest."""
        for shard in self._shards:
            _ = shard.file

    def column(self, name: str) -> npt.NDArray[Any]:
        """One column of `rows`, shape (rows,); cached after the first call."""
        if name not in self._columns:
            parts = [shard.take(shard.file.column(name)) for shard in self._shards]
            self._columns[name] = np.concatenate(parts) if parts else getattr(Rows.concat([]), name)
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        return {}

    @cached_property
    def ids(self) -> Ids:
        """(rows,) ids of the rows, ascending; a row has the same id in every snapshot."""
        parts = [shard.ids for shard in self._shards]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def positions_of(self, ids: Ids) -> Positions:
        """(n,) positions of the rows with these ids, -1 for ids that are not in this snapshot."""
        result = np.full(len(ids), -1, np.int64)
        if not self._shards:
            return result
        shard_of = np.searchsorted(self._numbers, ids >> 32)
        shard_of[shard_of == len(self._numbers)] = 0
        shard_of[self._numbers[shard_of] != ids >> 32] = -1
        for number in np.unique(shard_of[shard_of >= 0]):
            in_shard = np.flatnonzero(shard_of == number)
            live = self._shards[number].live_positions(ids[in_shard] & 0xFFFFFFFF)
            result[in_shard[live >= 0]] = live[live >= 0] + self._starts[number]
        return result

    def vectors(self, positions: Any = None, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        """(n, dim) vectors of the rows at these positions (integers, slice or mask; default: all).

        `dtype=np.float16` returns the vectors as stored, in half the memory.

        Raises
        ------
        BadBlock
            A position is out of range, or a mask has another length.
        Damaged
            A shard is missing or altered.
        """
        positions = self._positions(positions)
        result = np.empty((len(positions), self.space.dim), dtype)
        for shard, slots, rows in self._by_shard(positions):
            copy_rows(shard.file.vectors, rows, result, slots)
        return result

    def digests(self, positions: Positions) -> npt.NDArray[np.void]:
        """(n,) V16 file digests of the rows at these positions, without loading the whole column."""
        result = np.empty(len(positions), "V16")
        for shard, slots, rows in self._by_shard(positions):
            result[slots] = shard.file.digests[rows]
        return result

    def same_images(self, block: Block, positions: Positions) -> npt.NDArray[np.bool_]:
        """(rows of the block,) True where the row at the position (-1 for none) is of the same image.

        Images are the same if their file digests are, and, where no digest is known, their vectors as stored.
        """
        same = np.zeros(len(block), bool)
        stored = np.flatnonzero(positions >= 0)
        same[stored] = self.digests(positions[stored]) == block.rows.digests[stored]
        unknown = np.flatnonzero(same)
        unknown = unknown[block.rows.digests[unknown] == np.zeros((), "V16")]
        if len(unknown):
            vectors = self.vectors(positions[unknown], np.float16)
            same[unknown] = (vectors == to_float16(block.vectors[unknown])).all(axis=1)
        return same

    def paths(self, positions: Positions) -> list[str]:
        """Paths of the images at these positions; those of two shards are kept."""
        result = [""] * len(positions)
        for shard, slots, rows in self._by_shard(positions):
            paths = _paths_of(shard.file)[rows].tolist()
            for i, path in zip(np.arange(len(positions))[slots].tolist(), paths, strict=True):
                result[i] = path
        return result

    def row_labels(self, positions: Positions) -> list[RowLabels]:
        """Labels of the rows at these positions, without loading whole columns of strings."""
        result: list[Any] = [None] * len(positions)
        for shard, slots, rows in self._by_shard(positions):
            labels = shard.file.labels_of(np.arange(len(shard.file))[rows] if isinstance(rows, slice) else rows)
            for i, of_row in zip(np.arange(len(positions))[slots].tolist(), labels, strict=True):
                result[i] = of_row
        return result

    def check_vectors(self, positions: Positions) -> None:
        """Raise Damaged unless the vectors of the rows at these positions are as they were written."""
        for shard, _, rows in self._by_shard(positions):
            shard.file.check_vectors(np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows)

    def relabelled(
        self, positions: Positions, labels: Sequence[RowLabels], texts: Mapping[str, Vectors] | None = None
    ) -> Block:
        """The rows at these positions with other labels; vectors, thumbnails and facts of the files stay.

        Parameters
        ----------
        texts : category -> (dim,) text vector, of categories that have none yet

        Raises
        ------
        Damaged
            A vector is not as it was written, so that it must not be copied.
        """
        self.check_vectors(positions)
        [block] = self.blocks(max(len(positions), 1), positions)
        thumbnails = self.thumbnails(positions) if self.has_thumbnails else ()
        categories = {of_row.category for of_row in labels}
        known = {**self.texts, **(texts or {})}
        return replace(
            block,
            rows=block.rows.with_labels(labels),
            thumbnails=thumbnails if any(thumbnails) else (),
            texts={category: known[category] for category in categories & known.keys()},
        )

    def blocks(self, size: int = 65_536, where: Any = None) -> Iterator[Block]:
        """Iterate over the rows (all, or those of a mask or at given positions) in blocks of `size`.

        Blocks are read lazily: one block and the metadata of one shard are in memory at a time.
        """
        selected = self._positions(where)
        last: tuple[LiveShard, Rows] | None = None
        for start in range(0, len(selected), size):
            positions = selected[start : start + size]
            parts, order = [], []
            for shard, slots, shard_rows in self._by_shard(positions):
                if last is None or last[0] is not shard:
                    last = shard, shard.file.rows()
                parts.append(last[1].take(shard_rows))
                order.append(np.arange(len(positions))[slots])
            rows = Rows.concat(parts).take(np.argsort(np.concatenate(order), kind="stable"))
            occurring = set(rows.categories.tolist())
            texts = {name: vector for name, vector in self.texts.items() if name in occurring}
            yield Block(self.space, rows, self.vectors(positions), texts=texts)

    def search(
        self, queries: Vectors, k: int, where: Mask | PreparedFilter | None = None, recall: float = 0.99
    ) -> Matches:
        """The k nearest allowed rows of each query.

        The search is exact unless there is an index (`clipfake.store.maintenance.build_index.build_index`) and `recall`
        is below 1. Similarities are always computed from the stored vectors.

        Parameters
        ----------
        queries : (queries, dim), or (dim,) for one; unit length in a normalised space
        k : number of neighbours per query
        where : (rows,) bool mask of the allowed rows, or `prepare_filter(mask)` for repeated searches (default: all)
        recall : share of the true neighbours to find on average; 1 searches exactly

        Raises
        ------
        BadBlock
            The queries have another dimension, or the filter belongs to another snapshot.
        Damaged
            A shard that is read is missing or altered.
        """
        return self.search_each(queries, k, [where], recall)[0]

    def search_each(
        self, queries: Vectors, k: int, wheres: Sequence[Mask | PreparedFilter | None], recall: float = 0.99
    ) -> list[Matches]:
        """Run `search` for several filters at once: without an index, every row is read only once."""
        queries = np.atleast_2d(queries)
        if queries.shape[1] != self.space.dim:
            raise BadBlock(f"queries have {queries.shape[1]} dimensions, the store has vectors of {self.space}")
        filters = [where if isinstance(where, PreparedFilter) else self.prepare_filter(where) for where in wheres]
        if any(prepared.manifest is not self.manifest for prepared in filters):
            raise BadBlock(f"the filter was prepared for another snapshot; prepare it again for snapshot {self.number}")
        if self._searcher and recall < 1:
            return [self._searcher.search(queries, k, prepared.mask, recall) for prepared in filters]
        results = [Matches.none(len(queries), k) for _ in filters]
        remaining = [prepared.positions for prepared in filters]  # to be searched exactly
        if recall < 1 and len(queries) and len(self) and self._index:
            for i, prepared in enumerate(filters):
                results[i], remaining[i] = self._index.search(self, queries, k, prepared, recall)
        unfinished = [i for i, positions in enumerate(remaining) if positions is None or len(positions)]
        if unfinished:
            exact = self._exact.search_each(self, queries, k, [remaining[i] for i in unfinished])
            for i, matches in zip(unfinished, exact, strict=True):
                results[i] = results[i].merge(matches, k)
        return results

    def prepare_filter(self, mask: Mask | None) -> PreparedFilter:
        """Prepare a mask for repeated searches of this snapshot; raises BadBlock unless it has one bool per row."""
        return PreparedFilter(mask, len(self), self.manifest)

    def with_searcher(self, searcher: Searcher) -> Snapshot:
        """Return a view of the same rows that `searcher` searches (see `clipfake.store.backends`), unless recall=1."""
        view = copy(self)
        view._searcher, view._source = searcher, self
        return view

    @cached_property
    def _index(self) -> SnapshotIndex | None:
        from .search.ann_index import attach  # imports FAISS, so only at the first search

        return attach(self)

    @cached_property
    def _exact(self) -> ExactSearch:
        return ExactSearch(self)

    @cached_property
    def texts(self) -> dict[str, npt.NDArray[np.float32]]:
        """category -> (dim,) text vector; empty if the encoder has no text encoder."""
        return {name: vector for shard in self._shards for name, vector in shard.file.texts.items()}

    def thumbnail(self, position: int) -> bytes:
        """Thumbnail (JPEG) of one row, b"" if it has none."""
        return self.thumbnails(np.array([position], np.int64))[0]

    @property
    def has_thumbnails(self) -> bool:
        """True if any row has a thumbnail."""
        return any(shard.file.has_thumbnails for shard in self._shards)

    def thumbnails(self, positions: Positions) -> tuple[bytes, ...]:
        """Thumbnails (JPEG) of the rows at these positions, b"" for a row without one."""
        result = np.full(len(positions), b"", object)
        for shard, slots, rows in self._by_shard(np.asarray(positions, np.int64)):
            row_numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
            result[slots] = np.array(shard.file.thumbnails_of(row_numbers), object)
        return tuple(result.tolist())

    def find(self, keys: Sequence[str] | Names, hashes: Hashes | None = None) -> Positions:
        """(n,) positions of these keys, -1 for a key that is not stored.

        Parameters
        ----------
        hashes : (n,) hashes of the keys, if the caller has computed them already
        """
        result = np.full(len(keys), -1, np.int64)
        queried, ids = self._keys.candidates(hash_keys(keys) if hashes is None else hashes)
        positions = self.positions_of(ids)
        queried, positions = queried[positions >= 0], positions[positions >= 0]
        for shard, slots, rows in self._by_shard(positions):
            stored = shard.file.keys_at(np.arange(len(shard.file))[rows])
            for i, position, key in zip(queried[slots].tolist(), positions[slots].tolist(), stored, strict=True):
                if keys[i] == key:  # two keys may share a hash
                    result[i] = position
        return result

    @cached_property
    def _keys(self) -> KeyIndex:
        keys = KeyIndex()
        if self._shards:
            keys.add(np.concatenate([shard.hashes for shard in self._shards]), self.ids)
        return keys

    def _positions(self, selection: Any) -> Positions:
        """Convert integers, a slice, a mask or None (all rows) to positions; raises BadBlock."""
        if selection is None:
            return np.arange(len(self), dtype=np.int64)
        if isinstance(selection, slice):
            return np.arange(*selection.indices(len(self)), dtype=np.int64)
        selection = np.asarray(selection)
        if selection.dtype == np.bool_:
            if selection.shape != (len(self),):
                raise BadBlock(f"mask of shape {selection.shape} for {len(self)} rows; pass one bool per row")
            return np.flatnonzero(selection).astype(np.int64)
        if len(selection) and (selection.min() < 0 or selection.max() >= len(self)):
            raise BadBlock(f"positions {selection.min()}..{selection.max()} are out of range for {len(self)} rows")
        return np.asarray(selection, np.int64)

    def _by_shard(self, positions: Positions) -> Iterator[tuple[LiveShard, Any, Any]]:
        """Group positions by shard: yields the shard, indexes into `positions`, and row numbers in the shard's file.

        Consecutive rows are given as slices, which are read many times faster than lists of numbers.
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
            rows = self._shards[number].file_rows(positions[start:end] - self._starts[number])
            consecutive = order is None and rows[-1] - rows[0] == len(rows) - 1
            slots = slice(start, end) if order is None else order[start:end]
            yield self._shards[number], slots, slice(int(rows[0]), int(rows[-1]) + 1) if consecutive else rows


def open_snapshot(folder: Path, number: int | None = None) -> Snapshot:
    """Open the newest snapshot of a store, or an earlier one by its number. Its files are kept while it is referenced.

    Raises
    ------
    NoStore
        There is no snapshot with this number, or no longer.
    NotAStore, Damaged
        The manifest cannot be read.
    Linked
        Something in the store is a symbolic link.
    """
    require_unlinked(folder)
    manifest = read_manifest(folder, number)
    try:
        snapshot = Snapshot(folder, manifest)
        if lease(path_of(folder, manifest.number), snapshot):
            return snapshot
    except Damaged:
        if number is not None or numbers(folder)[-1] == manifest.number:
            raise
    return open_snapshot(folder, number)  # a writer committed a newer one in the meantime


@lru_cache(maxsize=2)
def _paths_of(shard: Shard) -> Names:
    return np.asarray(shard.column("paths"))
