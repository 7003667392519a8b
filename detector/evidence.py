"""Evidence: the labelled rows nearest to a query, equally many of each class, without copies.

Copies of an image count once, and the queried file itself never counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock

import numpy as np
import numpy.typing as npt

from ..errors import NotEnoughRows
from ..store.records import FAKE, REAL, Mask, Names, Vectors, distinct
from ..store.search.matches import Matches
from ..store.search.prepared_filter import PreparedFilter
from ..store.snapshot import Snapshot

OVERSAMPLING = 4  # candidates fetched for each neighbour wanted, since some of them are copies
OVERSAMPLING_WITH_CHANGES = 8  # the same if the neighbours without one of the sources will be wanted too
WINDOW = 2  # only the nearest 2k candidates count, so that the per-source cap cannot pull in distant neighbours
REFILL_FACTOR = 4  # factor by which the search is widened while copies leave too few candidates
RECALL = 0.98  # of all candidates; above 0.99 for the ten nearest (measured by benchmarks/detector/query.py)
CACHED_BANKS = 32  # banks without a source that are kept for the next query
CHUNK = 256  # queries whose candidates are compared with each other at a time
VOTERS = 15  # nearest fakes that vote on the generator
MAJORITY = 0.6  # share of the votes that a generator needs; then 88 % of the named ones are right, at 0.5 81 %
UNKNOWN_BELOW = 5.0  # percentile of the nearest similarity below which the generator is called unknown
PAIRS_IN_MEMORY = 2**22  # pairs of candidates compared at a time when the search is widened


@dataclass(frozen=True)
class EvidenceOptions:
    """Options that decide which rows are evidence."""

    k: int = 9  # neighbours of each class, at most; calibrations assume nine, with fewer a verdict is slightly too sure
    per_source: int = 5  # neighbours of one source; more only where the nearest 2k candidates hold too few others
    duplicate: float = 0.9999  # cosine similarity above which two rows are copies of one image
    max_candidates: int = 2048  # rows fetched for a query, at most: all pairs of them are compared


@dataclass(frozen=True)
class Evidence:
    """The neighbours of each class for a batch of queries, nearest first."""

    real: Matches  # (queries, k)
    fake: Matches  # (queries, k)

    @property
    def signal(self) -> npt.NDArray[np.float64]:
        """(queries,) mean similarity of the fake neighbours minus that of the real ones; above 0 leans fake.

        The nearest-neighbour rule of Ojha et al. (CVPR 2023) with cosine similarity. As many neighbours of each class
        are compared, since a mean over fewer is higher, and the n-th of each has the weight 1/n: the nearest tell most
        about an image whose source is not stored (benchmarks/detector/neighbors.py). It is 0 if a class has no
        neighbour at all.
        """
        compared = (self.real.rows >= 0) & (self.fake.rows >= 0)
        weights = compared / np.arange(1.0, self.real.k + 1)
        difference = np.where(compared, self.fake.similarity - self.real.similarity, 0)
        return np.asarray((weights * difference).sum(1) / np.maximum(weights.sum(1), 1.0))

    @property
    def nearest(self) -> npt.NDArray[np.float64]:
        """(queries,) similarity of the nearest neighbour of either class; -1, the lowest, if there is none."""
        either = np.fmax(self.real.similarity[:, 0], self.fake.similarity[:, 0])
        return np.fmax(either.astype(np.float64), -1.0)


@dataclass(frozen=True)
class Candidates:
    """The nearest rows of one class for a batch of queries, from which `EvidenceOptions` select the neighbours."""

    matches: Matches  # (queries, candidates), nearest first
    present: Mask  # (queries, candidates) True for a row that is not the queried file itself
    copies: dict[int, Mask]  # query -> (candidates, candidates) which are copies, for queries with copies
    sources: npt.NDArray[np.int64]  # (queries, candidates) codes of their sources
    complete: bool  # these are all rows of the class

    def take(self, queries: Sequence[int] | npt.NDArray[np.int64]) -> Candidates:
        """Select the candidates of some of the queries."""
        copies = {position: self.copies[query] for position, query in enumerate(queries) if query in self.copies}
        rows = np.asarray(queries, np.int64)
        matches = Matches(self.matches.rows[rows], self.matches.similarity[rows])
        return Candidates(matches, self.present[rows], copies, self.sources[rows], self.complete)

    @cached_property
    def unique(self) -> Mask:
        """(queries, candidates) True for a candidate that is present and not a copy of a nearer one."""
        unique = self.present.copy()
        for query, copies in self.copies.items():
            unique[query] = without_copies(self.present[query], copies)
        return unique

    def select(self, options: EvidenceOptions) -> Matches:
        """Select the neighbours: (queries, k) matches, nearest first."""
        kept = select_neighbors(self.unique, self.sources, options)
        first = np.argsort(~kept, axis=1, kind="stable")[:, : options.k]
        chosen, width = np.take_along_axis(kept, first, 1), first.shape[1]
        result = Matches.none(len(kept), options.k)
        result.rows[:, :width] = np.where(chosen, np.take_along_axis(self.matches.rows, first, 1), -1)
        similarity = np.take_along_axis(self.matches.similarity, first, 1)
        result.similarity[:, :width] = np.where(chosen, similarity, np.nan)
        return result

    def without(self, source: int) -> Candidates:
        """Return the candidates without one source's rows, as if these had never been stored."""
        return replace(self, present=self.present & (self.sources != source))

    def without_rows(self, rows: Sequence[int]) -> Candidates:
        """Return the candidates without these rows of the snapshot and without their copies by vector or file."""
        removed = np.isin(self.matches.rows, rows)
        for query, copies in self.copies.items():
            removed[query] |= copies[removed[query]].any(0)
        return replace(self, present=self.present & ~removed)

    def refilled(self, queries: npt.NDArray[np.int64], more: Candidates) -> Candidates:
        """Replace some queries' candidates by the nearest of `more` that are not copies."""
        unique = more.unique
        order = np.argsort(~unique, axis=1, kind="stable")[:, : self.matches.k]
        kept, width = np.take_along_axis(unique, order, 1), order.shape[1]
        copies = {query: self.copies[query] for query in self.copies.keys() - set(queries.tolist())}
        matches = Matches(self.matches.rows.copy(), self.matches.similarity.copy())
        result = Candidates(matches, self.present.copy(), copies, self.sources.copy(), self.complete)
        result.present[queries] = False
        result.present[queries, :width] = kept
        result.matches.rows[queries, :width] = np.take_along_axis(more.matches.rows, order, 1)
        result.matches.similarity[queries, :width] = np.take_along_axis(more.matches.similarity, order, 1)
        result.sources[queries, :width] = np.take_along_axis(more.sources, order, 1)
        return result

    def sufficient(self, options: EvidenceOptions) -> Mask:
        """(queries,) True if a search for more rows could not change the neighbours."""
        return np.asarray((self.unique.sum(1) >= WINDOW * options.k) | self.complete)


@dataclass(frozen=True)
class Bank:
    """The labelled rows of a snapshot that evidence is drawn from. Make it with `Bank.from_snapshot`."""

    snapshot: Snapshot
    options: EvidenceOptions
    members: Mask  # (rows,) True for a row that may be evidence
    sources: npt.NDArray[np.int64]  # (rows,) codes of their sources
    source_names: tuple[str, ...]  # by code
    _reduced: dict[str, Bank] = field(default_factory=dict, init=False, repr=False)  # source -> the bank without it
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)  # a service judges in several threads

    @classmethod
    def from_snapshot(
        cls, snapshot: Snapshot, options: EvidenceOptions = EvidenceOptions(), *, where: Mask | None = None
    ) -> Bank:
        """The labelled rows of a snapshot, or of a (rows,) mask of it; raises NotEnoughRows if a class is empty."""
        names, codes, _ = distinct(snapshot.column("sources"))
        members = np.ones(len(snapshot), bool) if where is None else where
        return cls(snapshot, options, members, codes.astype(np.int64), tuple(names.tolist()))

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
        """The rows of each class, by label."""
        return {label: self.snapshot.prepare_filter(self.members & (self.labels == label)) for label in (REAL, FAKE)}

    def without(self, source: str) -> Bank:
        """Return the bank without one source; the most recent results are cached."""
        with self._lock:
            if source not in self._reduced:
                if len(self._reduced) >= CACHED_BANKS:
                    del self._reduced[next(iter(self._reduced))]
                code = self.source_names.index(source) if source in self.source_names else -1
                self._reduced[source] = self.where(self.sources != code)
            return self._reduced[source]

    def where(self, rows: Mask) -> Bank:
        """Return the bank with only those of its members that are in a (rows,) mask."""
        return replace(self, members=self.members & rows)

    def evidence(self, vectors: Vectors, digests: npt.NDArray[np.void] | None = None) -> Evidence:
        """The neighbours of (queries, dim) unit vectors; stored rows of the same file digest do not count."""
        candidates = self.candidates(vectors, digests)
        return Evidence(candidates[REAL].select(self.options), candidates[FAKE].select(self.options))

    def candidates(
        self,
        vectors: Vectors,
        digests: npt.NDArray[np.void] | None = None,
        labels: Sequence[int] = (REAL, FAKE),
        oversampling: int = OVERSAMPLING,
    ) -> dict[int, Candidates]:
        """The `oversampling` k nearest rows of each class, by label.

        If copies or the queried file itself leave too few neighbours, the search is widened.

        Parameters
        ----------
        vectors : (queries, dim) unit vectors
        digests : (queries,) V16 of the queried files, if known
        """
        vectors = np.atleast_2d(vectors)
        classes = [self._classes[label] for label in labels]
        matches = self.snapshot.search_each(vectors, oversampling * self.options.k, classes, RECALL)
        candidates = {}
        for label, of_class, nearest in zip(labels, classes, matches, strict=True):
            near = self._candidates(nearest, of_class, digests)
            candidates[label] = self._widen(near, vectors, digests, of_class)
        return candidates

    def _widen(
        self, near: Candidates, vectors: Vectors, digests: npt.NDArray[np.void] | None, of_class: PreparedFilter
    ) -> Candidates:
        """Search for more rows of the class where the candidates do not settle the neighbours."""
        options = self.options
        short, k = np.flatnonzero(~near.sufficient(options)), near.matches.k
        while len(short) and k < min(len(of_class), options.max_candidates):
            k, still_short = min(k * REFILL_FACTOR, options.max_candidates), []
            for part in np.array_split(short, min(len(short), -(-len(short) * k**2 // PAIRS_IN_MEMORY))):
                own = None if digests is None else digests[part]
                more = self._candidates(self.snapshot.search(vectors[part], k, of_class, RECALL), of_class, own)
                gained = more.unique.sum(1) > near.unique[part].sum(1)
                near = near.refilled(part[gained], more.take(np.flatnonzero(gained)))
                still_short.append(part[~more.sufficient(options)])
            short = np.concatenate(still_short)
        if digests is not None:  # all rows that may be fetched can be copies of the queried file
            for query in short[~near.present[short].any(1)]:
                other = (_halves(self.snapshot.column("digests")) != _halves(digests[[query]])).any(1)
                rest = self.snapshot.prepare_filter(other if of_class.mask is None else of_class.mask & other)
                if len(rest):
                    matches = self.snapshot.search(vectors[[query]], near.matches.k, rest, RECALL)
                    near = near.refilled(np.array([query]), self._candidates(matches, rest, None))
        return near

    def _candidates(
        self, matches: Matches, of_class: PreparedFilter, digests: npt.NDArray[np.void] | None
    ) -> Candidates:
        """Find the copies among the matches of a search in one class."""
        matches = matches.first(min(matches.k, len(of_class)))
        present, copies = np.zeros(matches.rows.shape, bool), dict[int, Mask]()
        for start in range(0, len(matches), CHUNK):
            part = slice(start, start + CHUNK)
            present[part], pairs = self._compare(matches[part], None if digests is None else digests[part])
            copies |= {start + int(query): pairs[query] for query in np.flatnonzero(pairs.any((1, 2)))}
        sources = self.sources[np.maximum(matches.rows, 0)]
        return Candidates(matches, present, copies, sources, matches.k == len(of_class))

    def _compare(self, matches: Matches, own: npt.NDArray[np.void] | None) -> tuple[Mask, Mask]:
        """(queries, n) which matches exist and are not the query; (queries, n, n) which pairs of them are copies."""
        rows = np.maximum(matches.rows, 0)
        digests = _halves(self.snapshot.column("digests")[rows])  # (queries, n, 2)
        has_digest: Mask = np.asarray(digests.any(2))
        present: Mask = np.asarray(matches.rows >= 0)
        if own is not None:
            queried = _halves(own)
            present &= ~((digests == queried[:, None]).all(2) & np.asarray(queried.any(1))[:, None])
        copies: Mask = (digests[:, :, None] == digests[:, None, :]).all(3) & has_digest[:, :, None]
        vectors = self.snapshot.vectors(rows.reshape(-1)).reshape(*rows.shape, -1)
        similarity = vectors @ vectors.transpose(0, 2, 1)
        # stored in half precision, a vector of few dimensions is not quite of unit length
        length = np.sqrt(np.diagonal(similarity, axis1=1, axis2=2))
        copies |= similarity > self.options.duplicate * (length[:, :, None] * length[:, None, :])
        copies &= present[:, :, None] & present[:, None, :] & ~np.eye(matches.k, dtype=bool)
        return present, copies

    def find(self, digest: bytes, most: int = 1) -> npt.NDArray[np.int64]:
        """(n,) positions of the first `most` rows whose file has this digest; none for all zeros (unknown)."""
        order, first = self._by_digest
        wanted = np.frombuffer(digest, np.uint64)
        begin, end = (int(np.searchsorted(first, wanted[0], side)) for side in ("left", "right"))
        rows = order[begin:end] if wanted.any() else order[:0]
        same = (_halves(self.snapshot.column("digests")[rows]) == wanted).all(1)
        return np.asarray(rows[same][:most])

    @cached_property
    def _by_digest(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        """(rows,) positions in the order of the first half of their digests, and these halves."""
        first = _halves(self.snapshot.column("digests"))[:, 0]
        order = np.argsort(first, kind="stable")
        return order, first[order]


def vote(fakes: Candidates, generators: Names) -> tuple[list[str], npt.NDArray[np.float64]]:
    """(queries,) the generator with the most votes among the nearest fakes, and (queries,) its share of the votes.

    However many are of one source; the n-th nearest has the weight 1/n. "" with the share 0 without any fake.

    Parameters
    ----------
    generators : (rows,) of the snapshot, "" for unknown
    """
    nearest = fakes.select(EvidenceOptions(k=VOTERS, per_source=VOTERS)).rows
    names, shares = [""] * len(nearest), np.zeros(len(nearest))
    for query, rows in enumerate(nearest):
        votes: dict[str, float] = {}
        for n, name in enumerate(generators[rows[rows >= 0]].tolist(), 1):
            votes[name] = votes.get(name, 0.0) + 1 / n
        if votes:
            names[query] = max(votes, key=lambda name: votes[name])
            shares[query] = votes[names[query]] / sum(votes.values())
    return names, shares


def without_copies(present: Mask, copies: Mask) -> Mask:
    """(candidates,) True for a candidate of one query that is present and not a copy of a nearer one.

    Parameters
    ----------
    present : (candidates,) bool, candidates nearest first
    copies : (candidates, candidates) bool, which pairs are copies of one image
    """
    nearer = np.tri(len(present), k=-1, dtype=bool)
    return np.asarray(present & ~(copies & nearer & present).any(1))


def select_neighbors(unique: Mask, sources: npt.NDArray[np.int64], options: EvidenceOptions) -> Mask:
    """(queries, candidates) True for the candidates that are evidence: k, unless fewer are unique.

    The nearest of each source, up to its cap, come first; if these are fewer than k, the nearest others follow.

    Parameters
    ----------
    unique : (queries, candidates) bool, not a copy of a nearer one, candidates nearest first
    sources : (queries, candidates) int codes of their sources
    """
    near = unique & (np.cumsum(unique, axis=1) <= WINDOW * options.k)
    nearer = np.tri(unique.shape[1], k=-1, dtype=bool)  # [i, j]: j is nearer than i
    nearer_of_source = ((sources[:, :, None] == sources[:, None, :]) & nearer & near[:, None, :]).sum(2)
    within_cap = near & (nearer_of_source < options.per_source)
    beyond_cap = near & ~within_cap
    lacking = options.k - within_cap.sum(1, keepdims=True)
    first = within_cap & (np.cumsum(within_cap, axis=1) <= options.k)
    return np.asarray(first | (beyond_cap & (np.cumsum(beyond_cap, axis=1) <= lacking)))


def _halves(digests: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
    """(..., 2) uint64 of (...,) V16, which numpy compares in bulk; zeros for unknown."""
    return np.ascontiguousarray(digests).view(np.uint64).reshape(*digests.shape, 2)
