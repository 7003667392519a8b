"""A head, a bank and their calibration: vectors in, verdicts out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..core.threads import one_core
from ..errors import BadBlock, HeadError, NotEnoughRows
from ..store.concatenated import concatenated_snapshot
from ..store.records import FAKE, LABELS, REAL, Vectors
from ..store.search.matches import Matches, Searcher
from ..store.snapshot import Snapshot
from ..store.store import Store
from .calibration import Calibration
from .evidence import FETCHED, FETCHED_MORE, Bank, Candidates, Evidence, EvidenceOptions
from .head import DEFAULT, Head, head_folder
from .split import PART_NAMES
from .verdict import Answer, Neighbor, StoredCopy, Verdict, VerdictChange, decide, in_conflict, require_stable

FEWER = 5  # witnesses, to see whether the answer hangs on the rest
NEAR = 15  # nearest fakes that vote on the generator
SHARE = 0.5  # of their votes it must have
STORED = 9  # rows of the very file that is asked about, at most: a blank one may be there a thousand times
UNSEEN = 5.0  # percentile below which the generator is called unknown


@dataclass(frozen=True)
class QueryOptions:
    """Options of a query."""

    prior: float = 0.5  # share of fakes among the images one asks about
    error: float = 0.05  # of real and of fake images alike, the share whose truth may be ruled out; not of the answers
    changes: bool = True  # look for what would change the verdict


@dataclass(frozen=True)
class VectorDetector:
    """Judges vectors of one space. Make it with `VectorDetector.load`."""

    head: Head
    bank: Bank
    calibration: Calibration

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
        searcher_for : makes a searcher for the snapshot, see `clipfake.store.backends.remote_search`

        Raises
        ------
        HeadError, SpaceMismatch, NotEnoughRows
            There is no such head, it is of another encoder, or the bank has one class only.
        """
        folder = head_folder(store.folder, name)
        try:
            head, calibration = load_trained(folder)
        except HeadError:  # a training that ended meanwhile may have replaced both
            head, calibration = load_trained(folder)
        snapshot = store if isinstance(store, Snapshot) else store.snapshot()
        return cls.from_trained(snapshot, head, calibration, evidence, searcher_for)

    @classmethod
    def from_trained(
        cls,
        snapshot: Snapshot,
        head: Head,
        calibration: Calibration,
        evidence: EvidenceOptions = EvidenceOptions(),
        searcher_for: Callable[[Snapshot], Searcher] | None = None,
    ) -> VectorDetector:
        """A detector of a head and calibration in memory, with the rows of a snapshot as the bank; see `load`."""
        snapshot = concatenated_snapshot(snapshot, head.vectors)
        if searcher_for:
            snapshot = snapshot.searched_by(searcher_for(snapshot))
        head.space.require(snapshot.space, f"the store {snapshot.folder}")
        return cls(head, Bank.from_snapshot(snapshot, evidence), calibration)

    @property
    def snapshot(self) -> Snapshot:
        """The rows of the bank."""
        return self.bank.snapshot

    def decision_function(
        self, vectors: Vectors, digests: npt.NDArray[np.void] | None = None
    ) -> npt.NDArray[np.float64]:
        """(n,) log-likelihood ratios of (n, dim) unit vectors, above 0 leans fake.

        Parameters
        ----------
        digests : (n,) V16 of the files, if known: a stored row of the same bytes is no evidence
        """
        vectors = np.atleast_2d(vectors)
        margins = self.head.decision_function(vectors)
        return self.calibration.decision_function(margins, self.bank.evidence(vectors, digests).signal)

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
    ) -> list[Verdict]:
        """A verdict for each of (n, dim) unit vectors.

        Parameters
        ----------
        names : (n,) repeated in the answers
        digests : (n,) V16 of the files, zeros for unknown: a stored row of the same bytes is named, but no evidence

        Raises
        ------
        BadBlock
            There are not as many names, vectors and digests, or a vector is not finite.
        SpaceMismatch
            Vectors of another dimension.
        """
        vectors = np.atleast_2d(vectors)
        if len({len(names), len(vectors), len(vectors if digests is None else digests)}) > 1:
            and_digests = "" if digests is None else f" and {len(digests)} digests"
            raise BadBlock(f"{len(names)} names for {len(vectors)} vectors{and_digests}; give one of each an image")
        with one_core():
            margins = self.head.decision_function(vectors)
            times = FETCHED_MORE if options.changes else FETCHED
            candidates = self.bank.candidates(vectors, digests, times=times)
            verdicts = []
            for i, name in enumerate(names):
                own = {label: nearest.take([i]) for label, nearest in candidates.items()}
                case = _Case(
                    vectors[i : i + 1],
                    None if digests is None else digests[i : i + 1],
                    float(margins[i]),
                    own,
                    {label: nearest.witnesses(self.bank.rules) for label, nearest in own.items()},
                )
                verdicts.append(self._verdict(name, case, options))
        return verdicts

    def judge_one(
        self, name: str, vector: Vectors, digest: bytes = b"", options: QueryOptions = QueryOptions()
    ) -> Verdict:
        """A verdict for one (dim,) vector of a file with this BLAKE2b-128 digest."""
        digests = np.frombuffer(digest, "V16") if digest else None
        return self.judge([name], vector[None], digests, options)[0]

    def check_stability(
        self, verdict: Verdict, views: dict[str, Vectors], digest: bytes, options: QueryOptions
    ) -> Verdict:
        """The verdict, or "unsure" if the (dim,) vector of one of the degraded copies gets another one."""
        plain = replace(options, changes=False)
        changes = []
        for degradation, vector in views.items():
            view = self.judge_one(verdict.image, vector, digest, plain)
            changes.append(VerdictChange(degradation, view.verdict, view.score))
        return require_stable(verdict, tuple(changes))

    def _verdict(self, image: str, case: _Case, question: QueryOptions) -> Verdict:
        evidence = Evidence(case.witnesses[REAL], case.witnesses[FAKE])
        answer, score, signals, possible, reasons, percentile = self._read(case.margin, evidence, question)
        neighbors = {"real": self._told(evidence.real), "fake": self._told(evidence.fake)}
        return Verdict(
            image=image,
            verdict=answer,
            score=score,
            probability=float(self.calibration.fake_probability(score, question.prior)),
            prior=question.prior,
            signals=signals,
            conflict=in_conflict(signals),
            possible=tuple(name for name, can in zip(("real", "fake"), possible, strict=True) if can),
            error_rate=question.error,
            reasons=reasons,
            percentile=percentile,
            generator=self._generator(case.candidates[FAKE], percentile) if answer == "fake" else "",
            stored=() if case.digest is None else self._stored(case.digest[0].tobytes()),
            neighbors=neighbors,
            changes=self._changes(case, neighbors, answer, question) if question.changes else (),
        )

    def _read(
        self, margin: float, evidence: Evidence, question: QueryOptions
    ) -> tuple[Answer, float, dict[str, float], tuple[bool, bool], tuple[str, ...], float]:
        calibration = self.calibration
        svm, near = np.array([margin]), evidence.signal
        score = calibration.decision_function(svm, near)
        signals = {"svm": float(calibration.svm(svm)[0]), "neighbors": float(calibration.neighbors(near)[0])}
        [[real, fake]] = calibration.prediction_sets(score, question.error).tolist()
        percentile = float(calibration.percentile(evidence.nearest)[0])
        answer, reasons = decide(signals, (real, fake), percentile, question.error, calibration.least_error)
        return answer, float(score[0]), signals, (real, fake), reasons, percentile

    def _told(self, witnesses: Matches) -> tuple[Neighbor, ...]:
        """The rows of one query's witnesses, in words."""
        snapshot = self.snapshot
        rows = witnesses.rows[0][witnesses.rows[0] >= 0]
        columns = ("keys", "sources", "generators", "categories", "paths")
        columns_of_rows = zip(*(snapshot.column(name)[rows].tolist() for name in columns), strict=True)
        similarity = np.minimum(
            witnesses.similarity[0, : len(rows)], 1.0
        )  # of halves, the product of equals may be a little more
        splits = self.head.split.parts_of(snapshot.column("keys")[rows])
        return tuple(
            Neighbor(key, float(near), source, generator, category, path, PART_NAMES[int(split)], int(row))
            for (key, source, generator, category, path), near, split, row in zip(
                columns_of_rows, similarity, splits, rows, strict=True
            )
        )

    def _stored(self, digest: bytes) -> tuple[StoredCopy, ...]:
        """The rows of a file, in words."""
        rows = self.bank.find(digest, most=STORED)
        columns = (self.snapshot.column(name)[rows].tolist() for name in ("keys", "labels", "sources", "generators"))
        rows_found = zip(*columns, strict=True)
        return tuple(StoredCopy(key, LABELS[label], source, generator) for key, label, source, generator in rows_found)

    def _generator(self, fakes: Candidates, percentile: float) -> str:
        """Vote among the nearest fakes, however many of one source; "unknown" without a clear winner."""
        near = fakes.witnesses(EvidenceOptions(k=NEAR, per_source=NEAR)).rows[0]
        votes = Counter(self.snapshot.column("generators")[near[near >= 0]].tolist())
        if not votes:  # no fake but the asked file itself is stored
            return "unknown"
        [(name, count)] = votes.most_common(1)
        clear = count >= SHARE * votes.total() and percentile >= UNSEEN
        return str(name) if clear and name else "unknown"

    def _changes(
        self, case: _Case, neighbors: dict[str, tuple[Neighbor, ...]], answer: Answer, question: QueryOptions
    ) -> tuple[VerdictChange, ...]:
        """Find what would change the answer: leaving out one source of the neighbours, or using fewer of them."""
        others: list[tuple[str, Evidence]] = []
        rules = self.bank.rules
        if rules.k > FEWER:
            others.append((f"with {FEWER} neighbours of each class", case.evidence(replace(rules, k=FEWER))))
        for source in dict.fromkeys(n.source for found in neighbors.values() for n in found):
            with suppress(NotEnoughRows):  # it is all there is of its class
                others.append((f"without the rows of {source}", self._without(case, source)))
        changes = []
        for what, evidence in others:
            then, score, *_ = self._read(case.margin, evidence, question)
            if then != answer:
                changes.append(VerdictChange(what, then, score))
        return tuple(changes)

    def _without(self, case: _Case, source: str) -> Evidence:
        """The evidence if a source's rows were removed; searched anew only where the candidates at hand do not do."""
        code, rules = self.bank.names.index(source), self.bank.rules
        witnesses = {}
        for label, candidates in case.candidates.items():
            left = candidates
            if (candidates.sources == code).any():
                left = candidates.without(code)
                if not left.enough(rules).all():
                    left = self.bank.without(source).candidates(case.vector, case.digest, [label])[label]
            witnesses[label] = case.witnesses[label] if left is candidates else left.witnesses(rules)
        return Evidence(witnesses[REAL], witnesses[FAKE])


def load_trained(folder: Path) -> tuple[Head, Calibration]:
    """A head and its own calibration; raises HeadError."""
    head = Head.load(folder)
    return head, Calibration.load(folder, head.digest)


@dataclass(frozen=True)
class _Case:
    """One image while it is judged."""

    vector: Vectors  # (1, dim)
    digest: npt.NDArray[np.void] | None  # (1,)
    margin: float  # of the classifier
    candidates: dict[int, Candidates]  # of each class
    witnesses: dict[int, Matches]  # of each class, by the bank's own rules

    def evidence(self, rules: EvidenceOptions) -> Evidence:
        """Under other rules."""
        return Evidence(self.candidates[REAL].witnesses(rules), self.candidates[FAKE].witnesses(rules))
