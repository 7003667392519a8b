"""Evidence: which labelled rows count for real and which for fake. As many of each, and no picture twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock

import numpy as np
import numpy.typing as npt

from ..errors import NotEnoughRows
from ..store.records import FAKE, REAL, Mask, Vectors, distinct
from ..store.search.matches import Matches
from ..store.search.prepared_filter import PreparedFilter
from ..store.snapshot import Snapshot

FETCHED = 4  # times k rows are fetched: some are copies
FETCHED_MORE = 8  # the same where one will ask what would be without a source
WINDOW = 2  # times k rows are looked at, so that no far row testifies only because near ones have had their say
WIDER = 4  # times as many rows are fetched anew where so many are copies, or the asked file itself, that some lack
MOST = 2048  # rows fetched for a query, at most: all are compared with each other
RECALL = 0.98  # of the rows fetched; of the nearest ten, more than 0.99 (benchmarks/detector/query.py measures it)
KEPT = 32  # banks without a source, ready to be asked again
CHUNK = 256  # queries whose neighbours are compared with each other at a time
CELLS = 2**22  # such comparisons at a time, where more rows are fetched


@dataclass(frozen=True)
class EvidenceOptions:
    """Options that decide which rows are evidence."""

    k: int = 9  # witnesses of each class, at most; calibrations are of nine: fewer are read a little too boldly
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

        The nearest-neighbour rule of Ojha et al. (CVPR 2023) with cosine similarity. 0 where a class has no witness at
        all: as if its similarity were 0, the other class would win by what it would never get from witnesses.
        """
        compared = (self.real.rows >= 0).any(1) & (self.fake.rows >= 0).any(1)
        return np.where(compared, self.fake.mean_similarity() - self.real.mean_similarity(), 0.0)

    @property
    def nearest(self) -> npt.NDArray[np.float64]:
        """(queries,) similarity of the nearest witness of either class; -1, unlike anything, without any."""
        either = np.fmax(self.real.similarity[:, 0], self.fake.similarity[:, 0])
        return np.fmax(either.astype(np.float64), -1.0)


@dataclass(frozen=True)
class Candidates:
    """The nearest rows of one class for some queries: who testifies, and who would under other rules."""

    found: Matches  # (queries, candidates), nearest first
    present: Mask  # (queries, candidates) there, and not the query itself
    copies: dict[int, Mask]  # (candidates, candidates) which are one picture, of the queries that have such
    sources: npt.NDArray[np.int64]  # (queries, candidates) equal for rows of one source
    complete: bool  # the class has no other row

    def take(self, queries: Sequence[int] | npt.NDArray[np.int64]) -> Candidates:
        """Select the candidates of some of the queries."""
        copies = {place: self.copies[query] for place, query in enumerate(queries) if query in self.copies}
        rows = np.asarray(queries, np.int64)
        found = Matches(self.found.rows[rows], self.found.similarity[rows])
        return Candidates(found, self.present[rows], copies, self.sources[rows], self.complete)

    @cached_property
    def fresh(self) -> Mask:
        """(queries, candidates) present, and no copy of a nearer one."""
        fresh = self.present.copy()
        for query, copies in self.copies.items():
            fresh[query] = without_copies(self.present[query], copies)
        return fresh

    def witnesses(self, rules: EvidenceOptions) -> Matches:
        """(queries, k) who testifies."""
        kept = select_neighbors(self.fresh, self.sources, rules)
        first = np.argsort(~kept, axis=1, kind="stable")[:, : rules.k]
        chosen, width = np.take_along_axis(kept, first, 1), first.shape[1]
        result = Matches.none(len(kept), rules.k)
        result.rows[:, :width] = np.where(chosen, np.take_along_axis(self.found.rows, first, 1), -1)
        similarity = np.take_along_axis(self.found.similarity, first, 1)
        result.similarity[:, :width] = np.where(chosen, similarity, np.nan)
        return result

    def without(self, source: int) -> Candidates:
        """Return the candidates without one source's rows, as if these had never been stored."""
        return replace(self, present=self.present & (self.sources != source))

    def refilled(self, queries: npt.NDArray[np.int64], more: Candidates) -> Candidates:
        """Replace some queries' candidates by the nearest of `more` that are not copies."""
        fresh = more.fresh
        order = np.argsort(~fresh, axis=1, kind="stable")[:, : self.found.k]
        kept, width = np.take_along_axis(fresh, order, 1), order.shape[1]
        copies = {query: self.copies[query] for query in self.copies.keys() - set(queries.tolist())}
        found = Matches(self.found.rows.copy(), self.found.similarity.copy())
        result = Candidates(found, self.present.copy(), copies, self.sources.copy(), self.complete)
        result.present[queries] = False
        result.present[queries, :width] = kept
        result.found.rows[queries, :width] = np.take_along_axis(more.found.rows, order, 1)
        result.found.similarity[queries, :width] = np.take_along_axis(more.found.similarity, order, 1)
        result.sources[queries, :width] = np.take_along_axis(more.sources, order, 1)
        return result

    def enough(self, rules: EvidenceOptions) -> Mask:
        """(queries,) whether a search for more rows could not change the witnesses."""
        return np.asarray((self.fresh.sum(1) >= WINDOW * rules.k) | self.complete)


@dataclass(frozen=True)
class Bank:
    """The labelled rows of a snapshot that evidence is drawn from. Make it with `Bank.from_snapshot`."""

    snapshot: Snapshot
    rules: EvidenceOptions
    members: Mask  # (rows,) who may testify
    sources: npt.NDArray[np.int64]  # (rows,) equal for rows of one source
    names: tuple[str, ...]  # of the sources
    _reduced: dict[str, Bank] = field(default_factory=dict, init=False, repr=False)  # source -> the bank without it
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)  # a service judges in several threads

    @classmethod
    def from_snapshot(
        cls, snapshot: Snapshot, rules: EvidenceOptions = EvidenceOptions(), *, where: Mask | None = None
    ) -> Bank:
        """The labelled rows of a snapshot, or those of a mask; raises NotEnoughRows unless both classes are there."""
        names, codes, _ = distinct(snapshot.column("sources"))
        members = np.ones(len(snapshot), bool) if where is None else where
        return cls(snapshot, rules, members, codes.astype(np.int64), tuple(names.tolist()))

    def __post_init__(self) -> None:
        for label, name in ((REAL, "real"), (FAKE, "fake")):
            if not len(self._classes[label]):
                raise NotEnoughRows(
                    f"the store {self.snapshot.folder} has no {name} rows to compare with (of {len(self.snapshot)} "
                    f"rows in all); index a folder of {name} images with `clipfake index --folders ...`"
                )

    @property
    def labels(self) -> npt.NDArray[np.int8]:
        """(rows,) 0 real, 1 fake, -1 unknown, of all rows of the snapshot."""
        return self.snapshot.column("labels")

    @cached_property
    def _classes(self) -> dict[int, PreparedFilter]:
        """The rows of each class."""
        return {label: self.snapshot.scope(self.members & (self.labels == label)) for label in (REAL, FAKE)}

    def without(self, source: str) -> Bank:
        """Return the bank without one source; the most recent results are cached."""
        with self._lock:
            if source not in self._reduced:
                if len(self._reduced) >= KEPT:
                    del self._reduced[next(iter(self._reduced))]
                code = self.names.index(source) if source in self.names else -1
                self._reduced[source] = self.where(self.sources != code)
            return self._reduced[source]

    def where(self, rows: Mask) -> Bank:
        """Only the rows of a mask, of those that are members."""
        return replace(self, members=self.members & rows)

    def evidence(self, vectors: Vectors, digests: npt.NDArray[np.void] | None = None) -> Evidence:
        """The witnesses for each of (queries, dim) unit vectors; rows of the same file digest do not testify."""
        found = self.candidates(vectors, digests)
        return Evidence(found[REAL].witnesses(self.rules), found[FAKE].witnesses(self.rules))

    def candidates(
        self,
        vectors: Vectors,
        digests: npt.NDArray[np.void] | None = None,
        labels: Sequence[int] = (REAL, FAKE),
        times: int = FETCHED,
    ) -> dict[int, Candidates]:
        """The nearest `times` k rows of each class, from which the rules choose.

        Where copies or the query's own file leave too few of them, farther rows that are neither take their places.
        """
        vectors = np.atleast_2d(vectors)
        fetched = times * self.rules.k
        scopes = [self._classes[label] for label in labels]
        matches_of_label = zip(labels, scopes, self.snapshot.search_each(vectors, fetched, scopes, RECALL), strict=True)
        near = {label: self._candidates(found, scope, digests) for label, scope, found in matches_of_label}
        return {
            label: self._topped_up(near[label], vectors, digests, scope)
            for label, scope in zip(labels, scopes, strict=True)
        }

    def _topped_up(
        self, near: Candidates, vectors: Vectors, digests: npt.NDArray[np.void] | None, scope: PreparedFilter
    ) -> Candidates:
        """The same, with farther rows where those at hand do not settle who testifies."""
        short, wide, fetched = np.flatnonzero(~near.enough(self.rules)), near.found.k, near.found.k
        while len(short) and wide < min(len(scope), MOST):
            wide, left = min(wide * WIDER, MOST), []
            for part in np.array_split(short, min(len(short), -(-len(short) * wide**2 // CELLS))):
                own = None if digests is None else digests[part]
                more = self._candidates(self.snapshot.search(vectors[part], wide, scope, RECALL), scope, own)
                gained = more.fresh.sum(1) > near.fresh[part].sum(1)
                near = near.refilled(part[gained], more.take(np.flatnonzero(gained)))
                left.append(part[~more.enough(self.rules)])
            short = np.concatenate(left)
        if digests is not None:  # as many rows as may be fetched, and all of them the asked file
            for query in short[~near.present[short].any(1)]:
                other = (_halves(self.snapshot.column("digests")) != _halves(digests[[query]])).any(1)
                rest = self.snapshot.scope(other if scope.mask is None else scope.mask & other)
                if len(rest):
                    found = self.snapshot.search(vectors[[query]], fetched, rest, RECALL)
                    near = near.refilled(np.array([query]), self._candidates(found, rest, None))
        return near

    def _candidates(self, found: Matches, scope: PreparedFilter, digests: npt.NDArray[np.void] | None) -> Candidates:
        """Return the candidates of one class, whose rows are the filter's."""
        found = found.first(min(found.k, len(scope)))
        present, copies = np.zeros(found.rows.shape, bool), dict[int, Mask]()
        for start in range(0, len(found), CHUNK):
            part = slice(start, start + CHUNK)
            present[part], alike = self._seen(found[part], None if digests is None else digests[part])
            copies |= {start + int(query): alike[query] for query in np.flatnonzero(alike.any((1, 2)))}
        return Candidates(found, present, copies, self.sources[np.maximum(found.rows, 0)], found.k == len(scope))

    def _seen(self, found: Matches, own: npt.NDArray[np.void] | None) -> tuple[Mask, Mask]:
        """(queries, n) which candidates are there and not the query; (queries, n, n) which two are one picture."""
        rows = np.maximum(found.rows, 0)
        digests = _halves(self.snapshot.column("digests")[rows])  # (queries, n, 2)
        known: Mask = np.asarray(digests.any(2))
        present: Mask = np.asarray(found.rows >= 0)
        if own is not None:
            mine = _halves(own)
            present &= ~((digests == mine[:, None]).all(2) & np.asarray(mine.any(1))[:, None])
        copies: Mask = (digests[:, :, None] == digests[:, None, :]).all(3) & known[:, :, None]
        vectors = self.snapshot.vectors(rows.reshape(-1)).reshape(*rows.shape, -1)
        alike = vectors @ vectors.transpose(0, 2, 1)
        # stored in half precision, a vector of few dimensions is not quite of unit length
        length = np.sqrt(np.diagonal(alike, axis1=1, axis2=2))
        copies |= alike > self.rules.duplicate * (length[:, :, None] * length[:, None, :])
        copies &= present[:, :, None] & present[:, None, :] & ~np.eye(found.k, dtype=bool)
        return present, copies

    def find(self, digest: bytes, most: int = 1) -> npt.NDArray[np.int64]:
        """(n,) positions of the first rows whose file has this digest; none if it is all zero: that says unknown."""
        order, first = self._by_digest
        wanted = np.frombuffer(digest, np.uint64)
        begin, end = (int(np.searchsorted(first, wanted[0], side)) for side in ("left", "right"))
        alike = order[begin:end] if wanted.any() else order[:0]
        same = (_halves(self.snapshot.column("digests")[alike]) == wanted).all(1)
        return np.asarray(alike[same][:most])

    @cached_property
    def _by_digest(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        first = _halves(self.snapshot.column("digests"))[:, 0]
        order = np.argsort(first, kind="stable")
        return order, first[order]


def without_copies(present: Mask, copies: Mask) -> Mask:
    """Mask of a query's candidates that are present and no copy of a nearer one.

    Parameters
    ----------
    present : (candidates,) bool, candidates nearest first
    copies : (candidates, candidates) bool, which are one picture
    """
    nearer = np.tri(len(present), k=-1, dtype=bool)
    return np.asarray(present & ~(copies & nearer & present).any(1))


def select_neighbors(fresh: Mask, sources: npt.NDArray[np.int64], rules: EvidenceOptions) -> Mask:
    """Mask of the candidates that count as evidence.

    Parameters
    ----------
    fresh : (queries, candidates) bool, candidates nearest first
    sources : (queries, candidates) int, equal for one source
    """
    near = fresh & (np.cumsum(fresh, axis=1) <= WINDOW * rules.k)
    crowd = ((sources[:, :, None] == sources[:, None, :]) & _before(fresh) & near[:, None, :]).sum(2)
    kept = near & (crowd < rules.per_source)
    return np.asarray(kept & (np.cumsum(kept, axis=1) <= rules.k))


def _before(candidates: Mask) -> Mask:
    """[i, j]: j is nearer than i."""
    return np.tri(candidates.shape[1], k=-1, dtype=bool)


def _halves(digests: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
    """(..., 2) uint64 of V16: numbers can be compared in bulk; all zero means unknown."""
    return np.ascontiguousarray(digests).view(np.uint64).reshape(*digests.shape, 2)
