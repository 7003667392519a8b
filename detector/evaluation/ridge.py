"""A ridge head fitted from sums over rows.

The sums of each source are computed once; a head of any combination of sources is then fitted without reading rows.
Both classes have equal weight whatever their sizes, so its direction is that of Fisher's linear discriminant (LDA) with
the covariance shrunk towards the identity. There is no separate LDA head, as it would differ in the shrinkage only.
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

RIDGE = 1e-2  # penalty relative to the mean square of a coordinate
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class RidgeSums:
    """Sums over rows from which a ridge head is fitted; the last coordinate of each row is a constant 1."""

    n: int  # number of rows
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
    """(rows, dim + 1) float64: the vectors with the constant 1 appended."""
    return np.pad(np.asarray(vectors, np.float64), ((0, 0), (0, 1)), constant_values=1.0)


def ridge(real: RidgeSums, fake: RidgeSums) -> npt.NDArray[np.float64]:
    """(dim + 1,) weights of the least-squares head with targets -1 real, +1 fake, classes of equal weight."""
    gram = real.square / real.n + fake.square / fake.n
    target = fake.square[-1] / fake.n - real.square[-1] / real.n
    dim = len(gram) - 1
    gram = gram + np.diag(np.append(np.full(dim, RIDGE * np.trace(gram[:dim, :dim]) / dim), 0.0))
    return np.asarray(np.linalg.solve(gram, target), np.float64)


def decision_values(
    snapshot: Snapshot, positions: Positions, weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """(n,) decision values of the rows at some positions, read in batches."""
    scores = [with_constant(vectors) @ weights for _, vectors in batches(snapshot, positions)]
    return np.concatenate(scores) if scores else np.zeros(0)


def group_sums(snapshot: Snapshot, groups: npt.NDArray[np.int64], n_groups: int) -> list[RidgeSums]:
    """The sums of each group of rows; rows of group -1 are in none."""
    sums = [RidgeSums(0, np.zeros((snapshot.space.dim + 1,) * 2)) for _ in range(n_groups)]
    for positions, vectors in batches(snapshot, np.flatnonzero(groups >= 0)):
        for group in np.unique(groups[positions]):
            sums[group] = sums[group] + RidgeSums.from_vectors(vectors[groups[positions] == group])
    return sums


def total_of(sums: Sequence[RidgeSums]) -> RidgeSums:
    """Add up sums; raises ValueError if there are none."""
    total, *others = sums
    for other in others:
        total = total + other
    return total


def by_source(snapshot: Snapshot) -> tuple[npt.NDArray[np.int64], list[tuple[int, str]]]:
    """(rows,) number of each row's group, -1 for rows without a label; (label, source) of each group."""
    labels = snapshot.column("labels").astype(np.int64)
    sources, source_codes, _ = distinct(snapshot.column("sources"))
    codes = np.where((labels == REAL) | (labels == FAKE), labels * len(sources) + source_codes, -1)
    used = np.unique(codes[codes >= 0])
    names = [(int(code) // len(sources), str(sources[int(code) % len(sources)])) for code in used]
    return np.where(codes >= 0, np.searchsorted(used, codes), -1), names


def batches(
    snapshot: Snapshot, positions: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Yield positions and vectors of the rows in order, `ROWS_AT_ONCE` at a time."""
    for start in range(0, len(positions), ROWS_AT_ONCE):
        batch = positions[start : start + ROWS_AT_ONCE]
        yield batch, snapshot.vectors(batch)
