"""Which labelled rows speak for real and which for fake: as many of each, no picture twice, none for itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.block import FAKE, REAL, Mask, Vectors
from ..store.errors import NotEnoughRows
from ..store.search import Matches
from ..store.snapshot import Snapshot

FETCHED = 4  # times k rows are fetched: some are copies
WINDOW = 2  # times k rows are looked at, so that no far row testifies only because near ones have had their say
CHUNK = 256  # queries whose neighbours are compared with each other at a time


@dataclass(frozen=True)
class Rules:
    """Who may testify."""

    k: int = 9  # witnesses of each class, at most
    per_source: int = 5  # of them from one source
    duplicate: float = 0.9999  # rows more similar than this to each other are one picture


@dataclass(frozen=True)
class Evidence:
    """The witnesses of some queries, nearest first."""

    real: Matches  # (queries, k)
    fake: Matches  # (queries, k)

    @property
    def signal(self) -> npt.NDArray[np.float64]:
        """(queries,) mean similarity of the fake witnesses less that of the real ones; above 0 leans fake.

        The nearest-neighbour rule of Ojha et al. (CVPR 2023) with cosine similarity.
        """
        return _mean(self.fake) - _mean(self.real)

    @property
    def nearest(self) -> npt.NDArray[np.float64]:
        """(queries,) similarity of the nearest witness of either class."""
        return np.asarray(np.fmax(self.real.similarity[:, 0], self.fake.similarity[:, 0]), np.float64)

    def take(self, queries: Any) -> Evidence:
        """That of some of the queries."""
        return Evidence(self.real[queries], self.fake[queries])


@dataclass(frozen=True)
class Bank:
    """The labelled rows of a snapshot that evidence is drawn from. Make it with `Bank.of`."""

    snapshot: Snapshot
    rules: Rules
    members: Mask  # (rows,) who may testify
    labels: npt.NDArray[np.int8]  # (rows,)
    sources: npt.NDArray[np.int64]  # (rows,) equal for rows of one source
    names: tuple[str, ...]  # of the sources

    @classmethod
    def of(cls, snapshot: Snapshot, rules: Rules = Rules(), *, where: Mask | None = None) -> Bank:
        """The labelled rows of a snapshot, or those of a mask; raises NotEnoughRows unless both classes are there."""
        labels = snapshot.column("labels")
        names, sources = np.unique(snapshot.column("sources"), return_inverse=True)
        members = np.ones(len(snapshot), bool) if where is None else where
        return cls(snapshot, rules, members, labels, sources, tuple(names.tolist()))

    def __post_init__(self) -> None:
        for label, name in ((REAL, "real"), (FAKE, "fake")):
            if not self.members[self.labels == label].any():
                raise NotEnoughRows(
                    f"the store {self.snapshot.folder} has no {name} rows to compare with (of {len(self.snapshot)} "
                    f"rows in all); index a folder of {name} images with `clipfake index --folders ...`"
                )

    def without(self, *sources: str) -> Bank:
        """The same bank with these sources removed."""
        codes = [self.names.index(source) for source in sources if source in self.names]
        return replace(self, members=self.members & ~np.isin(self.sources, codes))

    def where(self, rows: Mask) -> Bank:
        """Only the rows of a mask, of those that are members."""
        return replace(self, members=self.members & rows)

    def under(self, **changes: Any) -> Bank:
        """The same rows under other rules."""
        return replace(self, rules=replace(self.rules, **changes))

    def evidence(self, vectors: Vectors, digests: npt.NDArray[np.void] | None = None) -> Evidence:
        """The witnesses for each of (queries, dim) unit vectors; rows of the same file digest do not testify."""
        return Evidence(self.witnesses(vectors, REAL, digests), self.witnesses(vectors, FAKE, digests))

    def witnesses(self, vectors: Vectors, label: int, digests: npt.NDArray[np.void] | None = None) -> Matches:
        """(queries, k) the nearest rows of one class, by the rules."""
        vectors = np.atleast_2d(vectors)
        where = self.members & (self.labels == label)
        found = self.snapshot.search(vectors, min(FETCHED * self.rules.k, int(where.sum())), where)
        result = Matches.none(len(vectors), self.rules.k)
        for start in range(0, len(vectors), CHUNK):
            part = slice(start, start + CHUNK)
            near = found[part]
            kept = self._kept(near, None if digests is None else digests[part])
            first = np.argsort(~kept, axis=1, kind="stable")[:, : self.rules.k]
            chosen, width = np.take_along_axis(kept, first, 1), first.shape[1]
            result.rows[part, :width] = np.where(chosen, np.take_along_axis(near.rows, first, 1), -1)
            similarity = np.take_along_axis(near.similarity, first, 1)
            result.similarity[part, :width] = np.where(chosen, similarity, np.nan)
        return result

    def _kept(self, found: Matches, own: npt.NDArray[np.void] | None) -> Mask:
        rows = np.maximum(found.rows, 0)
        digests = _halves(self.snapshot.column("digests")[rows])  # (queries, fetched, 2)
        known: Mask = np.asarray(digests.any(2))
        present = np.asarray(found.rows >= 0)
        if own is not None:
            mine = _halves(own)
            present &= ~((digests == mine[:, None]).all(2) & np.asarray(mine.any(1))[:, None])
        copies: Mask = (digests[:, :, None] == digests[:, None, :]).all(3) & known[:, :, None]
        vectors = self.snapshot.vectors(rows.reshape(-1)).reshape(*rows.shape, -1)
        alike: Mask = vectors @ vectors.transpose(0, 2, 1) > self.rules.duplicate
        return admitted(present, copies | alike, self.sources[rows], self.rules)


def admitted(present: Mask, copies: Mask, sources: npt.NDArray[np.int64], rules: Rules) -> Mask:
    """Which candidates testify, of those that are nearest when copies are counted once.

    Parameters
    ----------
    present : (queries, candidates) bool, candidates nearest first
    copies : (queries, candidates, candidates) bool, which are one picture
    sources : (queries, candidates) int, equal for one source
    """
    before = np.tri(present.shape[1], k=-1, dtype=bool)  # [i, j]: j is nearer than i
    fresh = present & ~(copies & before & present[:, None, :]).any(2)
    near = fresh & (np.cumsum(fresh, axis=1) <= WINDOW * rules.k)
    crowd = ((sources[:, :, None] == sources[:, None, :]) & before & near[:, None, :]).sum(2)
    kept = near & (crowd < rules.per_source)
    return np.asarray(kept & (np.cumsum(kept, axis=1) <= rules.k))


def _halves(digests: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
    """(..., 2) uint64 of V16: numbers can be compared in bulk; all zero means unknown."""
    return np.ascontiguousarray(digests).view(np.uint64).reshape(*digests.shape, 2)


def _mean(matches: Matches) -> npt.NDArray[np.float64]:
    present = matches.rows >= 0
    total = np.where(present, matches.similarity, 0).sum(1, dtype=np.float64)
    return np.asarray(total / np.maximum(present.sum(1), 1))
