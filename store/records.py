"""Rows in memory, as columns: `Rows` holds their metadata, `Block` adds their vectors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

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
Ids = npt.NDArray[np.int64]  # (rows,) shard number × 2³² + row in the shard; the same in every snapshot

TEXT = np.dtypes.StringDType()
PIECE_ROWS = 65_536  # rows converted to Python strings at a time


def names(values: Sequence[str] | Names) -> Names:
    """(rows,) array of variable-length strings."""
    return np.asarray(values, dtype=TEXT)


def to_float16(vectors: Vectors, *, copied: bool = False) -> npt.NDArray[np.float16]:
    """(rows, dim) vectors as they are stored; no copy is made of float16 vectors unless `copied`.

    Values too large for float16 become infinite, which `invalid_rows` reports.
    """
    with np.errstate(over="ignore"):
        return np.array(vectors, "<f2", order="C", copy=copied or None)


# Magnitudes that float16 rounds to zero and to infinity, as bits of a float16 and of a float32.
_ROUNDED_TO_ZERO = {np.dtype(np.float16): 0, np.dtype(np.float32): np.float32(2**-25).view(np.uint32)}
_ROUNDED_TO_INFINITY = {np.dtype(np.float16): 0x7C00, np.dtype(np.float32): np.float32(65520).view(np.uint32)}


def invalid_rows(vectors: Vectors) -> npt.NDArray[np.int64]:
    """Rows that cannot be stored because their vector is zero or not finite as float16."""
    if vectors.dtype not in _ROUNDED_TO_ZERO:
        vectors = to_float16(vectors)
    # Without the sign bit, the bits are ordered as the magnitudes are, with NaN last. Comparing them is ten times
    # faster than computing lengths, and a float32 need not be converted.
    half = vectors.dtype == np.float16
    bits: npt.NDArray[np.unsignedinteger[Any]] = vectors.view(np.uint16 if half else np.uint32)
    largest = (bits & (0x7FFF if half else 0x7FFFFFFF)).max(axis=1)
    zero, infinity = _ROUNDED_TO_ZERO[vectors.dtype], _ROUNDED_TO_INFINITY[vectors.dtype]
    return np.flatnonzero((largest <= zero) | (largest >= infinity))


def distinct(texts: Names) -> tuple[Names, Ints, Ints]:
    """Distinct texts in ascending order, the index of each row's text among them, and how often each occurs.

    >>> [part.tolist() for part in distinct(names(["b", "a", "b"]))]
    [['a', 'b'], [1, 0, 1], [1, 2]]
    """
    # With a dictionary: np.unique sorts all rows, which is eight times slower if few texts differ, and numpy (2.4.6)
    # must never order strings of variable length: sorting them can crash, and searching them gives wrong positions for
    # texts of 16 bytes or more. tests/conftest.py refuses every such call.
    codes: dict[str, int] = {}  # by text, in order of first occurrence
    inverse = np.empty(len(texts), np.int64)
    for start in range(0, len(texts), PIECE_ROWS):
        piece = texts[start : start + PIECE_ROWS].tolist()
        for text in set(piece).difference(codes):
            codes[text] = len(codes)
        inverse[start : start + PIECE_ROWS] = [codes[text] for text in piece]
    ordered = sorted(codes)
    rank = np.empty(len(ordered), np.int64)
    rank[[codes[text] for text in ordered]] = np.arange(len(ordered))
    inverse = rank[inverse]
    return names(ordered), inverse, np.bincount(inverse, minlength=len(ordered))


class TextIndex:
    """Index of distinct texts, to find others among them.

    >>> TextIndex(["a", "b"]).find(["b", "c"]).tolist()
    [1, -1]
    """

    def __init__(self, texts: Sequence[str] | Names) -> None:
        self._index_of = {text: index for index, text in enumerate(_as_list(texts))}

    def find(self, texts: Sequence[str] | Names) -> npt.NDArray[np.int64]:
        """(n,) index of each text among those of this index, -1 for one that is not among them."""
        get = self._index_of.get
        return np.array([get(text, -1) for text in _as_list(texts)], np.int64)


def _as_list(texts: Sequence[str] | Names) -> list[str]:
    return texts.tolist() if isinstance(texts, np.ndarray) else list(texts)


@dataclass(frozen=True)
class Rows:
    """Metadata of rows, without vectors. All columns have the same length.

    A row is identified by its key, `source/path inside the source`, which is unique in a store.
    """

    keys: Names
    labels: Ints  # int8: 0 real, 1 fake, -1 unknown
    targets: Ints  # int16: the data set's own class number, 0..6, -1 for none
    sources: Names  # name of the folder or data set the row came from
    generators: Names  # generator of a fake image, "" for a real or unknown row
    categories: Names  # category of the image's content, "" if unknown
    paths: Names  # path of the file when it was indexed
    digests: npt.NDArray[np.void]  # V16: BLAKE2b-128 of the file's bytes
    bytes: Ints  # int64: size of the file
    widths: Ints  # int32: pixels
    heights: Ints  # int32: pixels
    formats: Names  # "JPEG", "PNG", ...
    qualities: Ints  # int16: JPEG quality estimated from the quantisation tables, -1 if there are none
    mtimes: Ints  # int64: modification time of the file when it was indexed, nanoseconds since the epoch

    def __post_init__(self) -> None:
        lengths = {f.name: len(getattr(self, f.name)) for f in fields(self)}
        if len(set(lengths.values())) > 1:
            raise BadBlock(f"columns of unequal length: {lengths}; every column needs one value per row")

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: Any) -> Rows:
        """The rows at these positions (integers, a slice or a mask), in that order."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def row_labels(self) -> list[RowLabels]:
        """The labels of each row."""
        columns = (getattr(self, name).tolist() for name in LABEL_COLUMNS)
        return [RowLabels(*values) for values in zip(*columns, strict=True)]

    def with_labels(self, labels: Sequence[RowLabels]) -> Rows:
        """The same rows with these labels, one per row."""
        columns = zip(*labels, strict=True) if labels else [()] * len(LABEL_COLUMNS)
        return replace(
            self, **{name: np.array(v, COLUMNS[name]) for name, v in zip(LABEL_COLUMNS, columns, strict=True)}
        )

    @classmethod
    def concat(cls, parts: Sequence[Rows]) -> Rows:
        """Concatenate rows; an empty list gives no rows."""
        if not parts:
            return cls.make(keys=[], labels=[])
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)})

    @classmethod
    def make(cls, keys: Sequence[str] | Names, labels: Sequence[int] | Ints, **columns: Any) -> Rows:
        """Make rows from some of their columns; the others get the value for "unknown".

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
        values = {"keys": keys, "labels": labels, **unknown, **columns}
        return cls(**{name: np.asarray(column, dtype=COLUMNS[name]) for name, column in values.items()})


class RowLabels(NamedTuple):
    """What is known about a row's origin and content. All of it can be corrected while the image stays as it is."""

    label: int
    target: int
    source: str
    generator: str
    category: str

    def corrected(self, listed: RowLabels) -> RowLabels:
        """Correct these values by those of a newer listing, where it has any: known is never replaced by unknown.

        >>> RowLabels(0, 0, "ffhq", "", "face").corrected(RowLabels(1, -1, "ffhq", "gan", ""))
        RowLabels(label=1, target=-1, source='ffhq', generator='gan', category='face')
        >>> RowLabels(1, 6, "mine", "gan", "face").corrected(RowLabels(-1, -1, "photos", "", "cat"))
        RowLabels(label=1, target=6, source='mine', generator='gan', category='cat')
        """
        category = listed.category or self.category
        if listed.label == UNKNOWN != self.label:
            return self._replace(category=category)
        if listed.label != self.label:
            return listed._replace(source=listed.source or self.source, category=category)
        return RowLabels(
            self.label,
            self.target if listed.target < 0 else listed.target,
            listed.source or self.source,
            listed.generator or self.generator,
            category,
        )


LABEL_COLUMNS = ("labels", "targets", "sources", "generators", "categories")  # the fields of RowLabels


# dtype of each column of Rows in memory. docs/FORMAT.md describes the columns on disk.
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
    """Rows with their vectors, thumbnails, the text vectors of their categories and their named vectors."""

    space: Space
    rows: Rows
    vectors: Vectors  # (rows, dim), unit length where the space is normalised
    thumbnails: tuple[bytes, ...] = ()  # one small JPEG per row, b"" for a row without one; () for none
    texts: dict[str, Vectors] = field(default_factory=dict)  # category -> (dim,)
    named: dict[str, Vectors] = field(default_factory=dict)  # name -> (rows, dim), NaN for a row without such a vector

    def __post_init__(self) -> None:
        shape = self.vectors.shape
        if len(shape) != 2 or shape[0] != len(self.rows):
            raise BadBlock(f"vectors of shape {shape} for {len(self.rows)} rows; expected ({len(self.rows)}, dim)")
        if shape[1] != self.space.dim:
            raise SpaceMismatch(f"vectors of {shape[1]} dimensions do not fit the space {self.space}")
        if self.thumbnails and len(self.thumbnails) != len(self.rows):
            raise BadBlock(f"{len(self.thumbnails)} thumbnails for {len(self.rows)} rows; pass one per row or none")
        for name, vectors in self.named.items():
            if vectors.ndim != 2 or len(vectors) != len(self.rows):
                raise BadBlock(f"vectors {name} of shape {vectors.shape} for {len(self.rows)} rows; pass one per row")

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
            named={name: vectors[rows] for name, vectors in self.named.items()},
        )

    @classmethod
    def concat(cls, blocks: Sequence[Block]) -> Block:
        """Concatenate blocks of one space; thumbnails are kept if any block has them."""
        [first, *others] = blocks
        if not others:
            return first
        for block in others:
            first.space.require(block.space, "the block")
        thumbnails = [block.thumbnails or (b"",) * len(block) for block in blocks]
        has_thumbnails = any(block.thumbnails for block in blocks)
        return cls(
            first.space,
            Rows.concat([block.rows for block in blocks]),
            np.concatenate([block.vectors for block in blocks]),
            tuple(itertools.chain.from_iterable(thumbnails)) if has_thumbnails else (),
            {category: vector for block in blocks for category, vector in block.texts.items()},
            _concat_named(blocks),
        )


def _concat_named(blocks: Sequence[Block]) -> dict[str, Vectors]:
    """Named vectors of concatenated blocks, NaN for the rows of a block without vectors of a name."""
    dims = {name: vectors.shape[1] for block in blocks for name, vectors in block.named.items()}
    return {
        name: np.concatenate(
            [
                block.named[name] if name in block.named else np.full((len(block), dim), np.nan, np.float16)
                for block in blocks
            ]
        )
        for name, dim in dims.items()
    }
