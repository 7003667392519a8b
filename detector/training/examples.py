"""Labelled rows to train on: in memory with all their metadata, or with vectors that are read on demand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import HeadError
from ...store.records import TEXT, Ints, Names, Vectors
from ...store.search.matches import Positions
from ...store.snapshot import Snapshot

ROWS_AT_ONCE = 16_384  # rows of a batch whose vectors are in memory
EQUAL = 1e-6  # difference in every coordinate of a unit vector that is float32 rounding
FACTS = ("JPEG", "PNG", "WEBP", "other format", "width", "height", "JPEG quality", "bytes per pixel")


class Labelled(Protocol):
    """Rows to train on, with their vectors in memory or on disk."""

    @property
    def labels(self) -> Ints:
        """(rows,) 0 or 1."""

    @property
    def categories(self) -> Names:
        """(rows,) "" where unknown."""

    @property
    def sources(self) -> Names:
        """(rows,) names of their sources."""

    def __len__(self) -> int: ...

    def vectors_of(self, rows: Any) -> Vectors:
        """(n, dim) float32 vectors of the rows at these positions (integers or a slice)."""


def batches(rows: Labelled) -> Iterator[tuple[slice, Vectors]]:
    """Yield the positions and vectors of all rows in order, `ROWS_AT_ONCE` at a time."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        batch = slice(start, min(start + ROWS_AT_ONCE, len(rows)))
        yield batch, rows.vectors_of(batch)


@dataclass(frozen=True)
class StoredRows:
    """Rows of a snapshot whose vectors are read from disk on demand."""

    snapshot: Snapshot
    positions: Positions  # (rows,)

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def labels(self) -> Ints:
        return self._column("labels")

    @cached_property
    def categories(self) -> Names:
        return self._column("categories")

    @cached_property
    def sources(self) -> Names:
        return self._column("sources")

    def vectors_of(self, rows: Any) -> Vectors:
        return self.snapshot.vectors(self.positions[rows])

    def _column(self, name: str) -> npt.NDArray[Any]:
        return np.asarray(self.snapshot.column(name)[self.positions])


@dataclass(frozen=True, eq=False)  # compared by identity: == of arrays has no single truth value
class Examples:
    """Rows of a snapshot in memory; all columns have the same length."""

    vectors: Vectors  # (rows, dim) float32
    labels: Ints  # (rows,) 0 or 1
    categories: Names  # (rows,) "" where unknown
    sources: Names  # (rows,)
    facts: npt.NDArray[np.float32]  # (rows, len(FACTS)) of the file, not of its pixels

    def __len__(self) -> int:
        return len(self.labels)

    def vectors_of(self, rows: Any) -> Vectors:
        return np.asarray(self.vectors[rows])

    def take(self, rows: Any) -> Examples:
        """Select rows by position (integers, a slice or a mask), in that order."""
        return replace(self, **{name: column[rows] for name, column in vars(self).items()})

    @classmethod
    def from_arrays(cls, vectors: Vectors, labels: Ints, **columns: Any) -> Examples:
        """Make examples of arrays in memory; columns that are not given hold "" or 0."""
        n = len(labels)
        blank = np.full(n, "", TEXT)
        unknown = {"categories": blank, "sources": blank, "facts": np.zeros((n, len(FACTS)), np.float32)}
        return cls(np.asarray(vectors, np.float32), np.asarray(labels), **{**unknown, **columns})

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot, positions: Positions) -> Examples:
        """Read these rows of a snapshot into memory, 4 bytes for each dimension of a row."""
        return cls(
            vectors=snapshot.vectors(positions),
            labels=snapshot.column("labels")[positions],
            categories=snapshot.column("categories")[positions],
            sources=snapshot.column("sources")[positions],
            facts=file_facts(snapshot, positions),
        )


def sample(rows: Labelled, most: int, seed: int) -> Examples:
    """Read about `most` rows into memory, each class in proportion; only vectors and labels are read."""
    kept = subsample(np.arange(len(rows)), rows.labels, most, seed)
    return Examples.from_arrays(rows.vectors_of(kept), rows.labels[kept])


def reject_equal(rows: Labelled) -> None:
    """Raise HeadError if all vectors are equal; a head would only amplify their rounding errors."""
    first = rows.vectors_of([0])
    if all(float(np.abs(vectors - first).max(initial=0)) < EQUAL for _, vectors in batches(rows)):
        raise HeadError(f"the vectors of all {len(rows)} training rows are equal; index with another encoder")


def file_facts(snapshot: Snapshot, positions: Positions) -> npt.NDArray[np.float32]:
    """(rows, len(FACTS)) format (one column each), size, JPEG quality and bytes per pixel; -1 where unknown."""
    formats = snapshot.column("formats")[positions]
    width, height = (snapshot.column(name)[positions].astype(np.float32) for name in ("widths", "heights"))
    known = [formats == name for name in FACTS[:3]]
    size = snapshot.column("bytes")[positions].astype(np.float32)
    pixels = width * height
    density = np.where(pixels > 0, size / np.maximum(pixels, 1), -1)
    quality = snapshot.column("qualities")[positions]
    return np.stack([*known, ~np.any(known, axis=0), width, height, quality, density], axis=1).astype(np.float32)


def subsample(positions: Positions, labels: Ints, most: int, seed: int) -> Positions:
    """Draw about `most` of these positions, ascending: each class in proportion, but at least one row of it.

    All are returned if there are no more than `most`.

    Parameters
    ----------
    labels : (positions,) classes or groups
    """
    if len(positions) <= most:
        return positions
    rng = np.random.default_rng([seed, 3])
    kept = []
    for label in np.unique(labels):
        rows = positions[labels == label]
        kept.append(rng.permutation(rows)[: max(1, round(most * len(rows) / len(positions)))])
    return np.sort(np.concatenate(kept))
