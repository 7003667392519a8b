"""A head, a bank and their calibration: vectors in, verdicts out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..core.threads import one_core
from ..errors import BadBlock, HeadError, InvalidOption, NotEnoughRows
from ..store.concatenated import concatenated_snapshot
from ..store.records import FAKE, LABELS, REAL, Vectors
from ..store.search.matches import Matches, Searcher
from ..store.snapshot import Snapshot
from ..store.store import Store
from .added_sources import AddedSources
from .calibration import Calibration
from .copies.finder import find_copies
from .evidence import (
    MAJORITY,
    OVERSAMPLING,
    OVERSAMPLING_WITH_CHANGES,
    UNKNOWN_BELOW,
    Bank,
    Candidates,
    Evidence,
    EvidenceOptions,
    vote,
)
from .head import DEFAULT, Head, head_folder
from .patches.patch_head import PatchHead
from .patches.patch_map import WHOLE, Area
from .split import PART_NAMES
from .verdict import (
    Answer,
    Neighbor,
    StoredCopy,
    Verdict,
    VerdictChange,
    decide,
    explain_uneven,
    in_conflict,
    known_labels,
    require_stable,
    settle,
)

FEWER_NEIGHBORS = 5  # of each class, to see whether the verdict depends on the others
STORED_COPIES = 9  # copies that are named, at most: a blank image may be stored a thousand times
CLOSE = 99.0  # percentile of the nearest similarity above which a row without a thumbnail may be a copy


@dataclass(frozen=True)
class QueryOptions:
    """Options of a query."""

    prior: float = 0.5  # expected share of fakes among the queried images
    error: float = 0.05  # nominal share of images like the stored ones, not of answers, whose true class is excluded
    changes: bool = True  # search for what would change the verdict

    def __post_init__(self) -> None:
        """Raise InvalidOption if a share is not between 0 and 1."""
        for name, value in (("prior", self.prior), ("error", self.error)):
            if not 0 < value < 1:  # False for NaN too
                raise InvalidOption(f"{name} must be between 0 and 1, found {value}")


@dataclass(frozen=True)
class VectorDetector:
    """A head, a bank of labelled rows and their calibration: vectors in, verdicts out. Make it with `load`."""

    head: Head
    bank: Bank
    calibration: Calibration
    patches: PatchHead | None = None  # scores the patches of an image, if the store has any

    @classmethod
    def load(
        cls,
        store: Store | Snapshot,
        name: str = DEFAULT,
        evidence: EvidenceOptions = EvidenceOptions(),
        searcher_for: Callable[[Snapshot], Searcher] | None = None,
    ) -> VectorDetector:
        """Load a trained head and its calibration; the rows of the newest snapshot are the bank.

        Parameters
        ----------
        store : a store, or the snapshot of one whose rows are to be the bank
        name : name of the head
        evidence : how many stored neighbours are evidence, and which
        searcher_for : makes a searcher for the snapshot, see `clipfake.store.backends.remote_search`

        Raises
        ------
        HeadError, SpaceMismatch, NotEnoughRows
            There is no such head, it was trained on another encoder's vectors, or the bank has one class only.
        """
        folder = head_folder(store.folder, name)
        try:
            head, calibration, patches = load_trained(folder)
        except HeadError:  # a training that ended meanwhile may have replaced them
            head, calibration, patches = load_trained(folder)
        snapshot = store if isinstance(store, Snapshot) else store.snapshot()
        return cls.from_trained(snapshot, head, calibration, evidence, searcher_for, patches)

    @classmethod
    def from_trained(
        cls,
        snapshot: Snapshot,
        head: Head,
        calibration: Calibration,
        evidence: EvidenceOptions = EvidenceOptions(),
        searcher_for: Callable[[Snapshot], Searcher] | None = None,
        patches: PatchHead | None = None,
    ) -> VectorDetector:
        """Make a detector of a head and calibration in memory, with the rows of a snapshot as the bank; see `load`."""
        snapshot = concatenated_snapshot(snapshot, head.vectors)
        if searcher_for:
            snapshot = snapshot.with_searcher(searcher_for(snapshot))
        head.space.require(snapshot.space, f"the store {snapshot.folder}")
        return cls(head, Bank.from_snapshot(snapshot, evidence), calibration, patches)

    @property
    def snapshot(self) -> Snapshot:
        """The rows of the bank."""
        return self.bank.snapshot

    @cached_property
    def added(self) -> AddedSources:
        """The sources of the bank that the head has never seen."""
        return AddedSources.from_bank(self.bank, self.head)

    @property
    def notice(self) -> str:
        """What the error rate of the verdicts does not cover, "" if it holds for sources that are not stored."""
        return self.calibration.notice

    def decision_function(
        self, vectors: Vectors, digests: npt.NDArray[np.void] | None = None
    ) -> npt.NDArray[np.float64]:
        """(n,) log-likelihood ratios of (n, dim) unit vectors, above 0 leans fake.

        Parameters
        ----------
        digests : (n,) V16 of the files, if known: stored rows of the same bytes are not evidence
        """
        vectors = np.atleast_2d(vectors)
        margins = self.head.decision_function(vectors)
        scores = self.calibration.decision_function(margins, self.bank.evidence(vectors, digests).signal)
        return self.added.adjust(scores, vectors, digests)[0]

    def predict_proba(
        self, vectors: Vectors, digests: npt.NDArray[np.void] | None = None, *, prior: float = 0.5
    ) -> npt.NDArray[np.float64]:
        """(n, 2) probabilities of real and fake of (n, dim) unit vectors, where `prior` is the share of fakes."""
        fake = np.asarray(self.calibration.fake_probability(self.decision_function(vectors, digests), prior))
        return np.column_stack([1 - fake, fake])

    def judge(
        self,
        names: Sequence[str],
        vectors: Vectors,
        digests: npt.NDArray[np.void] | None = None,
        options: QueryOptions = QueryOptions(),
        *,
        thumbnails: Sequence[bytes] | None = None,
    ) -> list[Verdict]:
        """Judge (n, dim) unit vectors: one verdict each, in order.

        Confirmed copies of a known label decide the answer (see `settle`). They are not evidence, so that the score
        speaks without them.

        Parameters
        ----------
        names : (n,) names of the images, repeated in the verdicts
        digests : (n,) V16 of the files, zeros for unknown: stored rows of the same bytes are confirmed copies
        thumbnails : (n,) small JPEGs of the images as indexing makes them, b"" for unknown: they confirm other copies

        Raises
        ------
        BadBlock
            The numbers of names, vectors and digests differ, or a vector is not finite.
        SpaceMismatch
            The vectors have another dimension than the head's.
        """
        vectors = np.atleast_2d(vectors)
        if len({len(names), len(vectors), len(vectors if digests is None else digests)}) > 1:
            and_digests = "" if digests is None else f" and {len(digests)} digests"
            raise BadBlock(f"{len(names)} names for {len(vectors)} vectors{and_digests}; give one of each per image")
        with one_core():
            margins = self.head.decision_function(vectors)
            oversampling = OVERSAMPLING_WITH_CHANGES if options.changes else OVERSAMPLING
            candidates = self.bank.candidates(vectors, digests, oversampling=oversampling)
            verdicts = []
            for i, name in enumerate(names):
                own = {label: nearest.take([i]) for label, nearest in candidates.items()}
                vector, digest = vectors[i : i + 1], None if digests is None else digests[i : i + 1]
                stored, own = self._set_copies_aside(vector, digest, own, thumbnails[i] if thumbnails else b"")
                selected = {label: nearest.select(self.bank.options) for label, nearest in own.items()}
                case = _Case(vector, digest, float(margins[i]), own, selected, stored)
                verdicts.append(self._verdict(name, case, options))
        return verdicts

    def judge_one(
        self, name: str, vector: Vectors, digest: bytes = b"", options: QueryOptions = QueryOptions()
    ) -> Verdict:
        """Judge one (dim,) unit vector of a file with this BLAKE2b-128 digest, empty if unknown."""
        digests = np.frombuffer(digest, "V16") if digest else None
        return self.judge([name], vector[None], digests, options)[0]

    def check_stability(
        self, verdict: Verdict, views: dict[str, Vectors], digest: bytes, options: QueryOptions
    ) -> Verdict:
        """Return the verdict, or "unsure" if a degraded copy of the image gets another one.

        A verdict that stored copies decided stays as it is.

        Parameters
        ----------
        views : name of each degradation -> (dim,) unit vector of the degraded image
        """
        if verdict.settled:
            return verdict
        plain = replace(options, changes=False)
        changes = []
        for degradation, vector in views.items():
            view = self.judge_one(verdict.image, vector, digest, plain)
            changes.append(VerdictChange(degradation, view.verdict, view.score))
        return require_stable(verdict, tuple(changes))

    def with_map(self, verdict: Verdict, patches: Vectors, area: Area = WHOLE) -> Verdict:
        """Return the verdict with a map of the image, or with the reason why none is shown.

        Parameters
        ----------
        patches : (rows * columns * dim,) patches of the image; empty if they were not computed
        area : the part of the image that they cover
        """
        if self.patches is None:
            return verdict
        if not self.patches.shown:
            return replace(verdict, map=self.patches.without_values)
        return replace(verdict, map=self.patches.map_of(patches, area)) if patches.size else verdict

    def _verdict(self, image: str, case: _Case, options: QueryOptions) -> Verdict:
        evidence = Evidence(case.neighbors[REAL], case.neighbors[FAKE])
        reading = self._read(case, evidence, options)
        answer, reasons = settle(case.stored, reading.answer, reading.reasons)
        settled = bool(known_labels(case.stored))
        neighbors = {"real": self._neighbors(evidence.real), "fake": self._neighbors(evidence.fake)}
        return Verdict(
            image=image,
            verdict=answer,
            score=reading.score,
            probability=float(self.calibration.fake_probability(reading.score, options.prior)),
            prior=options.prior,
            signals=reading.signals,
            conflict=in_conflict(reading.signals),
            possible=reading.possible,
            error_rate=options.error,
            reasons=(*reasons, *explain_uneven(neighbors), *self._resembled(case, reading.score)),
            percentile=reading.percentile,
            generator=self._generator(case, reading.percentile) if answer == "fake" else "",
            stored=case.stored,
            neighbors=neighbors,
            changes=self._changes(case, neighbors, answer, options) if options.changes and not settled else (),
            notice=self.notice,
        )

    def _read(self, case: _Case, evidence: Evidence, options: QueryOptions, without: str = "") -> _Reading:
        """Calibrate both signals of one image, add what added sources say, and decide."""
        calibration = self.calibration
        svm, nearest = np.array([case.margin]), evidence.signal
        score = calibration.decision_function(svm, nearest)
        signals = {"svm": float(calibration.svm(svm)[0]), "neighbors": float(calibration.neighbors(nearest)[0])}
        if self.added.names:
            before, query = score, (case.vector, case.digest)
            score, [moved] = self.added.adjust(before, *query, without=without)
            signals["added"] = float(moved)
            sets = self.added.prediction_sets(calibration, before, score, *query, options.error, without=without)
        else:
            sets = calibration.prediction_sets(score, options.error)
        [[real, fake]] = sets.tolist()
        percentile = float(calibration.percentile(evidence.nearest)[0])
        answer, reasons = decide(signals, (real, fake), percentile, options.error, calibration.least_error)
        possible = tuple(name for name, included in (("real", real), ("fake", fake)) if included)
        return _Reading(answer, float(score[0]), signals, possible, reasons, percentile)

    def _neighbors(self, matches: Matches) -> tuple[Neighbor, ...]:
        """The neighbours of one query, described for people."""
        snapshot = self.snapshot
        rows = matches.rows[0][matches.rows[0] >= 0]
        columns = ("keys", "sources", "generators", "categories", "paths")
        described = zip(*(snapshot.column(name)[rows].tolist() for name in columns), strict=True)
        # the product of two equal half-precision vectors may be slightly above 1
        similarity = np.minimum(matches.similarity[0, : len(rows)], 1.0)
        splits = self.head.split.parts_of(snapshot.column("keys")[rows])
        return tuple(
            Neighbor(key, float(near), source, generator, category, path, PART_NAMES[int(split)], int(row))
            for (key, source, generator, category, path), near, split, row in zip(
                described, similarity, splits, rows, strict=True
            )
        )

    def _set_copies_aside(
        self, vector: Vectors, digest: npt.NDArray[np.void] | None, candidates: dict[int, Candidates], thumbnail: bytes
    ) -> tuple[tuple[StoredCopy, ...], dict[int, Candidates]]:
        """The stored copies of one query, and its candidates without the confirmed ones."""
        found = find_copies(self.snapshot, list(candidates.values()), thumbnail, self._is_close)
        confirmed = [copy.row for copy in found if copy.confirmed]
        if confirmed:
            candidates = {
                label: self._without_rows(vector, digest, nearest, label, confirmed)
                for label, nearest in candidates.items()
            }
        files = (
            np.zeros(0, np.int64) if digest is None else self.bank.find(digest[0].tobytes(), most=len(self.snapshot))
        )
        copies = [StoredCopy(*origin) for origin in self._origins(files)]
        for kind in ("picture", "vector"):
            of_kind = [copy for copy in found if copy.confirmed == (kind == "picture")]
            origins = self._origins([copy.row for copy in of_kind])
            copies += [
                StoredCopy(*origin, match=kind, mirrored=copy.mirrored)
                for origin, copy in zip(origins, of_kind, strict=True)
            ]
        return _first_copies(copies), candidates

    def _resembled(self, case: _Case, score: float) -> tuple[str, ...]:
        """Name the added source that moved the score, if one did."""
        name = self.added.resembled(case.vector, case.digest, FAKE if score > 0 else REAL)
        return (f"it resembles the added examples of {name}",) if name else ()

    def _generator(self, case: _Case, percentile: float) -> str:
        """The generator of the copies, an added generator, or a vote among the nearest fakes.

        It is "unknown" without a clear winner.
        """
        if copy := known_labels(case.stored).get("fake"):
            return copy.generator or "unknown"
        [added] = self.added.generators(case.vector, case.digest)
        if added:
            return added
        [name], [share] = vote(case.candidates[FAKE], self.snapshot.column("generators"))
        return name if name and share >= MAJORITY and percentile >= UNKNOWN_BELOW else "unknown"

    def _is_close(self, similarity: float) -> bool:
        """True if a row of this similarity may be a copy."""
        return bool(self.calibration.percentile(np.array([similarity]))[0] > CLOSE)

    def _without_rows(
        self,
        vector: Vectors,
        digest: npt.NDArray[np.void] | None,
        candidates: Candidates,
        label: int,
        rows: Sequence[int],
    ) -> Candidates:
        """The candidates of a class without some rows; it is searched again only if the others do not suffice."""
        remaining = candidates.without_rows(rows)
        if not remaining.sufficient(self.bank.options).all():
            others = np.ones(len(self.snapshot), bool)
            others[candidates.matches.rows[candidates.present & ~remaining.present]] = False
            with suppress(NotEnoughRows):  # the class has no other rows
                return self.bank.where(others).candidates(vector, digest, [label])[label]
        return remaining

    def _origins(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> list[tuple[str, str, str, str]]:
        """Key, label, source and generator of stored rows."""
        at = np.asarray(rows, np.int64)
        columns = (self.snapshot.column(name)[at].tolist() for name in ("keys", "labels", "sources", "generators"))
        return [(key, LABELS[label], source, maker) for key, label, source, maker in zip(*columns, strict=True)]

    def _changes(
        self, case: _Case, neighbors: dict[str, tuple[Neighbor, ...]], answer: Answer, options: QueryOptions
    ) -> tuple[VerdictChange, ...]:
        """Find what would change the answer: leaving out one source of the neighbours, or using fewer of them."""
        variants: list[tuple[str, Evidence, str]] = []
        evidence_options = self.bank.options
        if evidence_options.k > FEWER_NEIGHBORS:
            fewer = case.evidence(replace(evidence_options, k=FEWER_NEIGHBORS))
            variants.append((f"with {FEWER_NEIGHBORS} neighbours of each class", fewer, ""))
        near = [neighbor.source for of_class in neighbors.values() for neighbor in of_class]
        for source in dict.fromkeys([*near, *self.added.names]):
            with suppress(NotEnoughRows):  # the source holds all rows of its class
                variants.append((f"without the rows of {source}", self._without(case, source), source))
        changes = []
        for what, evidence, without in variants:
            reading = self._read(case, evidence, options, without)
            if reading.answer != answer:
                changes.append(VerdictChange(what, reading.answer, reading.score))
        return tuple(changes)

    def _without(self, case: _Case, source: str) -> Evidence:
        """The evidence without the rows of one source; it is searched again only if the candidates do not suffice."""
        code, options = self.bank.source_names.index(source), self.bank.options
        neighbors = {}
        for label, candidates in case.candidates.items():
            if not (candidates.sources == code).any():
                neighbors[label] = case.neighbors[label]
                continue
            remaining = candidates.without(code)
            if not remaining.sufficient(options).all():
                remaining = self.bank.without(source).candidates(case.vector, case.digest, [label])[label]
            neighbors[label] = remaining.select(options)
        return Evidence(neighbors[REAL], neighbors[FAKE])


def load_trained(folder: Path) -> tuple[Head, Calibration, PatchHead | None]:
    """Load a head, its own calibration, and its patch head if it has one; raises HeadError."""
    head = Head.load(folder)
    return head, Calibration.load(folder, head.digest), PatchHead.load(folder)


def _first_copies(copies: list[StoredCopy]) -> tuple[StoredCopy, ...]:
    """The first copies; if only later ones have a known label, the first of these takes the last places."""
    first = copies[:STORED_COPIES]
    missing = [row for row in known_labels(copies).values() if row not in first]
    return tuple(first[: STORED_COPIES - len(missing)] + missing)


@dataclass(frozen=True)
class _Case:
    """One image while it is judged."""

    vector: Vectors  # (1, dim)
    digest: npt.NDArray[np.void] | None  # (1,)
    margin: float  # decision value of the head
    candidates: dict[int, Candidates]  # by label
    neighbors: dict[int, Matches]  # by label, selected by the bank's own options
    stored: tuple[StoredCopy, ...]  # copies of the image

    def evidence(self, options: EvidenceOptions) -> Evidence:
        """Select the evidence by other options."""
        return Evidence(self.candidates[REAL].select(options), self.candidates[FAKE].select(options))


@dataclass(frozen=True)
class _Reading:
    """The answer for one image and what it follows from."""

    answer: Answer
    score: float  # log-likelihood ratio
    signals: dict[str, float]
    possible: tuple[str, ...]  # the prediction set
    reasons: tuple[str, ...]
    percentile: float
