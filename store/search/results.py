"""Results of a search of a store: the matches together with their rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..exchange.tables import to_pandas
from .matches import Matches, Positions

if TYPE_CHECKING:
    import pandas

    from ..snapshot import Snapshot


@dataclass(frozen=True)
class SearchResults:
    """The k nearest rows of each query, nearest first. `results[i]` are those of query i."""

    snapshot: Snapshot
    matches: Matches

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.matches)

    def __getitem__(self, queries: Any) -> SearchResults:
        """Select the results of some of the queries."""
        if isinstance(queries, int) and not -len(self) <= queries < len(self):
            raise IndexError(f"query {queries} is out of range for {len(self)} queries")
        return SearchResults(self.snapshot, self.matches[queries])

    def __iter__(self) -> Iterator[SearchResults]:
        return (self[i] for i in range(len(self)))

    @property
    def rows(self) -> Positions:
        """(queries, k) positions in the snapshot, -1 where there are fewer than k rows."""
        return self.matches.rows

    @property
    def similarity(self) -> npt.NDArray[np.float32]:
        """(queries, k) inner products, higher is nearer, NaN where there is no row."""
        return self.matches.similarity

    @property
    def keys(self) -> list[list[str]]:
        """Keys of the nearest rows of each query."""
        column = self.snapshot.column("keys")
        return [column[rows[rows >= 0]].tolist() for rows in self.rows]

    def to_pandas(self) -> pandas.DataFrame:
        """One row per neighbour: query, rank (from 1), similarity, and the columns of `Store.to_pandas`."""
        query, column = np.nonzero(self.rows >= 0)
        frame = to_pandas(self.snapshot, self.rows[query, column])
        frame.insert(0, "similarity", self.similarity[query, column])
        frame.insert(0, "rank", column + 1)
        frame.insert(0, "query", query)
        return frame

    def __repr__(self) -> str:
        return f"SearchResults({len(self)} queries, {self.matches.k} neighbours each)"
