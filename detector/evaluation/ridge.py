"""A ridge head from sums over its rows: those of each source once, and heads of any sources without reading them again.

Both classes weigh the same, whatever their numbers, which makes its direction that of Fisher's discriminant (LDA)
shrunk towards the identity: another shrinkage is all that other LDAs differ by, so there is no head of that name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...store.records import FAKE, REAL, distinct
from ...store.search.matches import Positions
from ...store.snapshot import Snapshot

RIDGE = 1e-2  # of the mean square of a coordinate
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class RidgeSums:
    """Sums over some rows that a ridge head needs; the last coordinate of each row is a constant 1."""

    n: int
    square: npt.NDArray[np.float64]  # (dim + 1, dim + 1) Σxxᵀ

    def __add__(self, other: RidgeSums) -> RidgeSums:
        return RidgeSums(self.n + other.n, self.square + other.square)

    def __sub__(self, other: RidgeSums) -> RidgeSums:
        return RidgeSums(self.n - other.n, self.square - other.square)

    @classmethod
    def from_vectors(cls, vectors: npt.NDArray[Any]) -> RidgeSums:
        """Compute the sums of (rows, dim) vectors."""
        x = with_constant(vectors)
        return cls(len(x), x.T @ x)


def with_constant(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(rows, dim + 1) with the constant."""
    return np.pad(np.asarray(vectors, np.float64), ((0, 0), (0, 1)), constant_values=1.0)


def ridge(real: RidgeSums, fake: RidgeSums) -> npt.NDArray[np.float64]:
    """(dim + 1,) weights of the least-squares head for -1 real, +1 fake, each class weighing a half."""
    square = real.square / real.n + fake.square / fake.n
    pull = fake.square[-1] / fake.n - real.square[-1] / real.n
    dim = len(square) - 1
    square = square + np.diag(np.append(np.full(dim, RIDGE * np.trace(square[:dim, :dim]) / dim), 0.0))
    return np.asarray(np.linalg.solve(square, pull), np.float64)


def decision_values(
    snapshot: Snapshot, positions: Positions, weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """(n,) what a head says of some rows, read a piece at a time."""
    found = [with_constant(vectors) @ weights for _, vectors in batches(snapshot, positions)]
    return np.concatenate(found) if found else np.zeros(0)


def group_sums(snapshot: Snapshot, groups: npt.NDArray[np.int64], number: int) -> list[RidgeSums]:
    """The sums of each of so many groups of rows; rows of group -1 are in none."""
    sums = [RidgeSums(0, np.zeros((snapshot.space.dim + 1,) * 2)) for _ in range(number)]
    for positions, vectors in batches(snapshot, np.flatnonzero(groups >= 0)):
        for group in np.unique(groups[positions]):
            sums[group] = sums[group] + RidgeSums.from_vectors(vectors[groups[positions] == group])
    return sums


def total_of(sums: Sequence[RidgeSums]) -> RidgeSums:
    first, *others = sums
    for other in others:
        first = first + other
    return first


def by_source(snapshot: Snapshot) -> tuple[npt.NDArray[np.int64], list[tuple[int, str]]]:
    """(rows,) which (label, source) a row is of, -1 for rows without a label, and what these are."""
    labels = snapshot.column("labels").astype(np.int64)
    sources, which, _ = distinct(snapshot.column("sources"))
    code = np.where((labels == REAL) | (labels == FAKE), labels * len(sources) + which, -1)
    found = np.unique(code[code >= 0])
    names = [(int(one) // len(sources), str(sources[int(one) % len(sources)])) for one in found]
    return np.where(code >= 0, np.searchsorted(found, code), -1), names


def batches(
    snapshot: Snapshot, positions: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Some rows in order, `ROWS_AT_ONCE` at a time: which they are, and their vectors."""
    for start in range(0, len(positions), ROWS_AT_ONCE):
        piece = positions[start : start + ROWS_AT_ONCE]
        yield piece, snapshot.vectors(piece)
