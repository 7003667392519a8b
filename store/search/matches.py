"""Matches of a search, the interfaces of searches, and a plain search in numpy as the reference for faster ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..records import Mask, Vectors
from ..space import Space

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """The k nearest rows of each query, nearest first."""

    rows: Positions  # (queries, k) positions in the snapshot's rows, -1 where there are fewer than k
    similarity: npt.NDArray[np.float32]  # (queries, k) inner products, higher is nearer, NaN where there is no row

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def k(self) -> int:
        return int(self.rows.shape[1])

    def __getitem__(self, queries: Any) -> Matches:
        """Select the matches of some of the queries."""
        return Matches(np.atleast_2d(self.rows[queries]), np.atleast_2d(self.similarity[queries]))

    def first(self, k: int) -> Matches:
        """Keep only the k nearest."""
        return Matches(self.rows[:, :k], self.similarity[:, :k])

    def mean_similarity(self, kept: Mask | None = None) -> npt.NDArray[np.float64]:
        """(queries,) mean similarity of the matches, or of those in a (queries, k) mask; 0 if there are none.

        >>> Matches(np.array([[4, 2, -1]]), np.array([[0.5, 0.25, np.nan]], np.float32)).mean_similarity()
        array([0.375])
        """
        counted = self.rows >= 0 if kept is None else kept
        total = np.where(counted, self.similarity, 0).sum(1, dtype=np.float64)
        return np.asarray(total / np.maximum(counted.sum(1), 1))

    @classmethod
    def none(cls, queries: int, k: int) -> Matches:
        """Make matches without any row."""
        return cls(np.full((queries, k), -1, np.int64), np.full((queries, k), np.nan, np.float32))

    def merge(self, other: Matches, k: int) -> Matches:
        """The k nearest of both; ties are ordered by position in the snapshot."""
        rows = np.concatenate([self.rows, other.rows], axis=1)
        similarity = np.concatenate([self.similarity, other.similarity], axis=1)
        order = np.lexsort((rows, np.where(rows < 0, np.inf, -similarity)), axis=1)[:, :k]
        return Matches(np.take_along_axis(rows, order, 1), np.take_along_axis(similarity, order, 1))


class Searcher(Protocol):
    """Interface of a searcher that replaces the snapshot's own search."""

    def search(self, queries: Vectors, k: int, where: Mask | None = None, recall: float = 0.99) -> Matches:
        """Search as `Snapshot.search` does."""


class SearchableRows(Protocol):
    """Interface of a snapshot that searches need."""

    @property
    def folder(self) -> Path: ...

    @property
    def space(self) -> Space: ...

    @property
    def vector_names(self) -> tuple[str, ...]: ...

    @property
    def vector_files(self) -> dict[int, str]:
        """Shard number -> checksums of the files whose vectors may be replaced."""

    def __len__(self) -> int: ...

    def vectors(self, positions: Any = None, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
        """(n, dim) vectors of the rows at these positions."""

    def positions_of(self, ids: npt.NDArray[np.int64]) -> Positions:
        """(n,) positions of the rows with these ids, -1 for ids that are not in the snapshot."""


def nearest(queries: Vectors, vectors: Vectors, positions: Positions, k: int) -> Matches:
    """The k rows of `vectors` with the largest inner products with each query, by one matrix product in numpy.

    Parameters
    ----------
    queries : (queries, dim)
    vectors : (rows, dim)
    positions : (rows,) position of each row of `vectors`, for the result
    """
    count = min(k, len(vectors))
    result = Matches.none(len(queries), k)
    if count == 0 or len(queries) == 0:
        return result
    similarity = np.asarray(queries, np.float32) @ np.asarray(vectors, np.float32).T
    best = np.argpartition(-similarity, count - 1, axis=1)[:, :count] if count < len(vectors) else None
    chosen = similarity if best is None else np.take_along_axis(similarity, best, 1)
    rows = np.broadcast_to(positions, similarity.shape) if best is None else positions[best]
    return result.merge(Matches(np.asarray(rows, np.int64), chosen), k)
