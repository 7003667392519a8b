"""What a reader sees: the live rows of one moment, unchanged whatever a writer does meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .block import Block, Mask, Names, Rows, Vectors
from .errors import BadBlock, Damaged
from .manifest import Manifest, Part
from .search import Matches, Positions, exact
from .shard import Shard, checksum
from .space import Space

SEARCH_ROWS = 16_384  # rows in one matrix product: enough for speed, little enough to stay in memory


class Snapshot:
    """The live rows of a store at one moment.

    A row's *position* (0 … len-1) is its place in this snapshot; its *id* (shard number × 2³² + row in the shard)
    stays the same in every snapshot that has it.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._shards = [_Live(folder, part) for part in manifest.parts]
        counts = [part.rows - part.deleted_rows for part in manifest.parts]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)  # (shards + 1,)

    @property
    def number(self) -> int:
        return self.manifest.number

    @property
    def space(self) -> Space:
        return self.manifest.space

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def rows(self) -> Rows:
        """All live rows. To load only what is needed of millions, ask for `column(name)`."""
        if not self._shards:
            return Rows.concat([])
        return Rows(**{f.name: self.column(f.name) for f in fields(Rows)})

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
    def ids(self) -> npt.NDArray[np.int64]:
        """(rows,) what stays the same for a row in every snapshot."""
        parts = [shard.ids for shard in self._shards]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def vectors(self, positions: Any = None) -> npt.NDArray[np.float32]:
        """(n, dim) float32 of the rows at these positions (integers, slice or mask), all for None."""
        wanted = self._positions(positions)
        result = np.empty((len(wanted), self.space.dim), np.float32)
        for shard, here, rows in self._located(wanted):
            result[here] = shard.file.vectors[rows]
        return result

    def blocks(self, size: int = 65_536, where: Mask | None = None) -> Iterator[Block]:
        """All rows (or those of a mask over the rows) with vectors as stored, in blocks of at most `size` rows."""
        wanted = self._positions(where)
        for start in range(0, len(wanted), size):
            positions = wanted[start : start + size]
            yield Block(self.space, self.rows.take(positions), self.vectors(positions), texts=self.texts)

    def search(self, queries: Vectors, k: int, where: Mask | None = None) -> Matches:
        """The k nearest rows of each query, of those a mask over the rows allows.

        Parameters
        ----------
        queries : (queries, dim), unit length in a normalised space
        where : (rows,) bool
        """
        queries = np.atleast_2d(queries)
        if queries.shape[1] != self.space.dim:
            raise BadBlock(f"queries of {queries.shape[1]} dimensions against a store of {self.space}")
        wanted = self._positions(where)
        pieces = (wanted[i : i + SEARCH_ROWS] for i in range(0, len(wanted), SEARCH_ROWS))
        return exact(queries, ((piece, self.vectors(piece)) for piece in pieces), k)

    @cached_property
    def texts(self) -> dict[str, npt.NDArray[np.float32]]:
        """category -> (dim,) its text vector; {} where the encoder has no text side."""
        return {name: vector for shard in self._shards for name, vector in shard.file.texts.items()}

    def thumbnail(self, position: int) -> bytes:
        """The small JPEG of one row, b"" where none was kept."""
        [(shard, _, rows)] = self._located(np.array([position], np.int64))
        return shard.file.thumbnail(int(rows[0]))

    def find(self, keys: list[str] | Names) -> Positions:
        """(n,) positions of these keys, -1 where a key is not stored."""
        place = {key: i for i, key in enumerate(self.column("keys").tolist())}
        return np.array([place.get(key, -1) for key in keys], np.int64)

    def _positions(self, wanted: Any) -> Positions:
        if wanted is None:
            return np.arange(len(self), dtype=np.int64)
        if isinstance(wanted, slice):
            return np.arange(len(self), dtype=np.int64)[wanted]
        wanted = np.asarray(wanted)
        if wanted.dtype == np.bool_:
            if wanted.shape != (len(self),):
                raise BadBlock(f"a mask of shape {wanted.shape} over {len(self)} rows; give one value a row")
            return np.flatnonzero(wanted).astype(np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise BadBlock(f"positions {wanted.min()}..{wanted.max()} in a snapshot of {len(self)} rows")
        return np.asarray(wanted, np.int64)

    def _located(self, positions: Positions) -> Iterator[tuple[_Live, Any, npt.NDArray[np.int64]]]:
        """Shard by shard: the shard, where in `positions` its rows stand, and which of its rows they are."""
        shard_of = np.searchsorted(self._starts, positions, side="right") - 1
        for number in np.unique(shard_of):
            here = np.flatnonzero(shard_of == number)
            yield (
                self._shards[number],
                here,
                self._shards[number].place(positions[here] - self._starts[number]),
            )


class _Live:
    """A shard without its deleted rows."""

    def __init__(self, folder: Path, part: Part) -> None:
        self.part = part
        self._folder = folder

    @cached_property
    def file(self) -> Shard:
        shard = Shard(self._folder / "shards" / self.part.name)
        if (len(shard), shard.header.digest) != (self.part.rows, self.part.header):
            raise Damaged(f"{shard.path} is not the shard its manifest names; run `clipfake store verify`")
        return shard

    @cached_property
    def alive(self) -> npt.NDArray[np.int64] | None:
        """Which rows live, None for all."""
        if not self.part.deleted:
            return None
        alive = np.ones(self.part.rows, bool)
        alive[read_deleted(self._folder, self.part)] = False
        return np.flatnonzero(alive)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        return (self.part.number << 32) + self.place(np.arange(self.part.rows - self.part.deleted_rows))

    def place(self, live: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """From the n-th live row to the row in the file."""
        return live if self.alive is None else self.alive[live]

    def take(self, column: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return column if self.alive is None else column[self.alive]


def read_deleted(folder: Path, part: Part) -> npt.NDArray[np.uint32]:
    """The rows of a shard that a snapshot no longer has; raises Damaged."""
    if not part.deleted:
        return np.zeros(0, np.uint32)
    path = folder / "deleted" / part.deleted
    try:
        content = path.read_bytes()
    except OSError as e:
        raise Damaged(f"{path} cannot be read ({e.strerror}); run `clipfake store repair`") from e
    if checksum(content) != part.deleted_digest:
        raise Damaged(f"{path} is not what was written (checksum differs); run `clipfake store repair`")
    return np.frombuffer(content, "<u4")
