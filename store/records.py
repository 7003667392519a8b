"""Rows that travel together: who they are (Rows) and where they lie (Block). Columns, not lists of objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BadBlock, SpaceMismatch
from .space import Space

REAL, FAKE, UNKNOWN = 0, 1, -1
LABELS = {REAL: "real", FAKE: "fake", UNKNOWN: "unknown"}
LABEL_NUMBERS = {word: number for number, word in LABELS.items()}

Vectors = npt.NDArray[np.floating[Any]]  # (rows, dim)
Names = npt.NDArray[Any]  # (rows,) numpy StringDType
Ints = npt.NDArray[np.integer[Any]]  # (rows,)
Mask = npt.NDArray[np.bool_]  # (rows,)
Ids = npt.NDArray[np.int64]  # (rows,) shard number × 2³² + row in the shard: the same in every snapshot

TEXT = np.dtypes.StringDType()
INFINITE = 0x7C00  # a float16's bits; those of NaN are greater
PIECE_ROWS = 65_536  # whose texts are Python strings at a time


def names(values: Sequence[str] | Names) -> Names:
    """Strings as a numpy array of variable-length text, shape (rows,)."""
    return np.asarray(values, dtype=TEXT)


def to_float16(vectors: Vectors, *, copied: bool = False) -> npt.NDArray[np.float16]:
    """(rows, dim) as they are stored, themselves if they are so already unless they are to be `copied`.

    What is too large for a float16 becomes infinite, and is no fit row.
    """
    with np.errstate(over="ignore"):
        return np.array(vectors, "<f2", order="C", copy=copied or None)


def invalid_rows(vectors: npt.NDArray[np.float16]) -> npt.NDArray[np.int64]:
    """Return the rows that may not be stored: vectors that are zero or not finite cannot be compared."""
    # by the bits, which without the sign grow as the number does: ten times quicker than by the lengths
    largest = (vectors.view(np.uint16) & 0x7FFF).max(axis=1)
    return np.flatnonzero((largest == 0) | (largest >= INFINITE))


def distinct(texts: Names) -> tuple[Names, Ints, Ints]:
    """The different texts in order, which of them each is (rows,), and how often each occurs.

    >>> [part.tolist() for part in distinct(names(["b", "a", "b"]))]
    [['a', 'b'], [1, 0, 1], [1, 2]]
    """
    # A dictionary: numpy sorts all rows for this, eight times slower where few texts differ, and its quick sort of
    # texts crashes on several sorted runs (numpy 2.4.6).
    number: dict[str, int] = {}  # by text, in the order they are met
    which = np.empty(len(texts), np.int64)
    for start in range(0, len(texts), PIECE_ROWS):
        piece = texts[start : start + PIECE_ROWS].tolist()
        for text in set(piece).difference(number):
            number[text] = len(number)
        which[start : start + PIECE_ROWS] = [number[text] for text in piece]
    found = sorted(number)
    place = np.empty(len(found), np.int64)
    place[[number[text] for text in found]] = np.arange(len(found))
    which = place[which]
    return names(found), which, np.bincount(which, minlength=len(found))


@dataclass(frozen=True)
class Rows:
    """Metadata of rows, without vectors. All columns have the same length.

    A row is named by its key, `source/path inside the source`, unique in a store.
    """

    keys: Names
    labels: Ints  # int8: 0 real, 1 fake, -1 unknown
    targets: Ints  # int16: the raw 0..6 of the data set, -1 where there was none
    sources: Names  # the folder the row came from
    generators: Names  # what made a fake, "" for a real or unknown row
    categories: Names  # what the picture shows, "" where it was not said
    paths: Names  # where the file was when it was indexed
    digests: npt.NDArray[np.void]  # V16: BLAKE2b-128 of the file's bytes
    bytes: Ints  # int64: size of the file
    widths: Ints  # int32: pixels
    heights: Ints  # int32: pixels
    formats: Names  # "JPEG", "PNG", ...
    qualities: Ints  # int16: JPEG quality estimated from its quantisation tables, -1 where there is none
    mtimes: Ints  # int64: nanoseconds since the epoch when it was indexed

    def __post_init__(self) -> None:
        lengths = {f.name: len(getattr(self, f.name)) for f in fields(self)}
        if len(set(lengths.values())) > 1:
            raise BadBlock(f"columns of unequal length: {lengths}; every column has one value a row")

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: Any) -> Rows:
        """The rows at these positions (integers, a slice or a mask), in that order."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @classmethod
    def concat(cls, parts: Sequence[Rows]) -> Rows:
        """One after the other; no parts give no rows."""
        if not parts:
            return cls.make(keys=[], labels=[])
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})

    @classmethod
    def make(cls, keys: Sequence[str] | Names, labels: Sequence[int] | Ints, **columns: Any) -> Rows:
        """Rows from what is known of them; every other column says "unknown".

        >>> Rows.make(keys=["ffhq/a.jpg"], labels=[0], sources=["ffhq"]).sources.tolist()
        ['ffhq']
        """
        n = len(keys)
        unknown: dict[str, Any] = {
            "targets": np.full(n, -1),
            "sources": [""] * n,
            "generators": [""] * n,
            "categories": [""] * n,
            "paths": [""] * n,
            "digests": np.zeros(n, "V16"),
            "bytes": np.zeros(n),
            "widths": np.zeros(n),
            "heights": np.zeros(n),
            "formats": [""] * n,
            "qualities": np.full(n, -1),
            "mtimes": np.zeros(n),
        }
        given = {"keys": keys, "labels": labels, **unknown, **columns}
        return cls(**{name: np.asarray(values, dtype=COLUMNS[name]) for name, values in given.items()})


# The type of each column of Rows, in memory. FORMAT.md says how each lies on disk.
COLUMNS: dict[str, Any] = {
    "keys": TEXT,
    "labels": np.int8,
    "targets": np.int16,
    "sources": TEXT,
    "generators": TEXT,
    "categories": TEXT,
    "paths": TEXT,
    "digests": "V16",
    "bytes": np.int64,
    "widths": np.int32,
    "heights": np.int32,
    "formats": TEXT,
    "qualities": np.int16,
    "mtimes": np.int64,
}


@dataclass(frozen=True)
class Block:
    """Rows with their vectors, and with what belongs to them: thumbnails and the text vectors of their categories."""

    space: Space
    rows: Rows
    vectors: Vectors  # (rows, dim), unit length where the space is normalised
    thumbnails: tuple[bytes, ...] = ()  # one small JPEG a row, b"" where there is none; () for none at all
    texts: dict[str, Vectors] = field(default_factory=dict)  # category -> (dim,)

    def __post_init__(self) -> None:
        shape = self.vectors.shape
        if len(shape) != 2 or shape[0] != len(self.rows):
            raise BadBlock(f"{len(self.rows)} rows with vectors of shape {shape}; expected ({len(self.rows)}, dim)")
        if shape[1] != self.space.dim:
            raise SpaceMismatch(f"vectors of {shape[1]} dimensions in a space of {self.space.dim}: {self.space}")
        if self.thumbnails and len(self.thumbnails) != len(self.rows):
            raise BadBlock(f"{len(self.thumbnails)} thumbnails for {len(self.rows)} rows; give one a row or none")

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Any) -> Block:
        """The rows at these positions (integers, a slice or a mask), in that order."""
        positions = np.arange(len(self))[rows]
        return replace(
            self,
            rows=self.rows.take(rows),
            vectors=self.vectors[rows],
            thumbnails=tuple(self.thumbnails[i] for i in positions) if self.thumbnails else (),
        )

    @classmethod
    def concat(cls, blocks: Sequence[Block]) -> Block:
        """One after the other, of one space; pictures are kept if any block has them."""
        [first, *others] = blocks
        if not others:
            return first
        for block in others:
            first.space.require(block.space, "a block")
        pictures = [block.thumbnails or (b"",) * len(block) for block in blocks]
        some = any(block.thumbnails for block in blocks)
        return cls(
            first.space,
            Rows.concat([block.rows for block in blocks]),
            np.concatenate([block.vectors for block in blocks]),
            tuple(picture for piece in pictures for picture in piece) if some else (),
            {category: vector for block in blocks for category, vector in block.texts.items()},
        )
