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
from .head import Head, columns_of, head_folder
from .split import PART_NAMES
from .verdict import Answer, Neighbor, StoredCopy, Verdict, VerdictChange, decide, in_conflict, steadied

FEWER = 5  # witnesses, to see whether the answer hangs on the rest
NEAR = 15  # nearest fakes that vote on the generator
SHARE = 0.5  # of their votes it must have
STORED = 9  # rows of the very file that is asked about, at most: a blank one may be there a thousand times
UNSEEN = 5.0  # percentile below which the generator is called unknown


@dataclass(frozen=True)
class QueryOptions:
    """How one asks."""

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
        store: Store,
        name: str = "default",
        rules: EvidenceOptions = EvidenceOptions(),
        elsewhere: Callable[[Snapshot], Searcher] | None = None,
    ) -> VectorDetector:
        """The newest snapshot's rows as the bank, and a trained head.

        Parameters
        ----------
        elsewhere : makes a searcher for the snapshot, see `clipfake.store.backends.remote_search`

        Raises
        ------
        HeadError, SpaceMismatch, NotEnoughRows
            There is no such head, it is of another encoder, or the bank has one class only.
        """
        folder = head_folder(store.folder, name)
        try:
            head, calibration = _trained(folder)
        except HeadError:  # perhaps a training that ended meanwhile has put others in their place
            head, calibration = _trained(folder)
        snapshot = concatenated_snapshot(store.snapshot(), columns_of(folder))
        if elsewhere:
            snapshot = snapshot.searched_by(elsewhere(snapshot))
        head.space.require(snapshot.space, f"the store {store.folder}")
        return cls(head, Bank.of(snapshot, rules), calibration)

    @property
    def snapshot(self) -> Snapshot:
        return self.bank.snapshot

    def score(self, vectors: Vectors, digests: npt.NDArray[np.void] | None = None) -> npt.NDArray[np.float64]:
        """(n,) log-likelihood ratios, above 0 leans fake."""
        return self.calibration.score(self.head.score(vectors), self.bank.evidence(vectors, digests).signal)

    def judge(
        self,
        images: Sequence[str],
        vectors: Vectors,
        digests: npt.NDArray[np.void] | None = None,
        question: QueryOptions = QueryOptions(),
    ) -> list[Verdict]:
        """A verdict for each of (n, dim) unit vectors.

        Parameters
        ----------
        images : (n,) names to repeat in the answer
        digests : (n,) V16 of the files: a stored row of the same bytes does not testify, but is named

        Raises
        ------
        BadBlock
            There are not as many names, vectors and digests, or a vector is not finite.
        SpaceMismatch
            Vectors of another dimension.
        """
        vectors = np.atleast_2d(vectors)
        if len({len(images), len(vectors), len(vectors if digests is None else digests)}) > 1:
            told = "" if digests is None else f" and {len(digests)} digests"
            raise BadBlock(f"{len(images)} names for {len(vectors)} vectors{told}; give every image one of each")
        with one_core():
            margins = self.head.score(vectors)
            candidates = self.bank.candidates(vectors, digests, times=FETCHED_MORE if question.changes else FETCHED)
            verdicts = []
            for i, image in enumerate(images):
                own = {label: found.of([i]) for label, found in candidates.items()}
                case = _Case(
                    vectors[i : i + 1],
                    None if digests is None else digests[i : i + 1],
                    float(margins[i]),
                    own,
                    {label: found.witnesses(self.bank.rules) for label, found in own.items()},
                )
                verdicts.append(self._verdict(image, case, question))
        return verdicts

    def judge_one(
        self, image: str, vector: Vectors, digest: bytes = b"", question: QueryOptions = QueryOptions()
    ) -> Verdict:
        """A verdict for one (dim,) vector of a file with this BLAKE2b-128 digest."""
        digests = np.frombuffer(digest, "V16") if digest else None
        return self.judge([image], vector[None], digests, question)[0]

    def steady(self, verdict: Verdict, views: dict[str, Vectors], digest: bytes, question: QueryOptions) -> Verdict:
        """The verdict, or unsure if it changes for one of the (dim,) vectors of degraded copies."""
        plain = replace(question, changes=False)
        told = []
        for what, vector in views.items():
            view = self.judge_one(verdict.image, vector, digest, plain)
            told.append(VerdictChange(what, view.verdict, view.score))
        return steadied(verdict, tuple(told))

    def _verdict(self, image: str, case: _Case, question: QueryOptions) -> Verdict:
        evidence = Evidence(case.witnesses[REAL], case.witnesses[FAKE])
        answer, score, signals, possible, reasons, percentile = self._read(case.margin, evidence, question)
        neighbors = {"real": self._told(evidence.real), "fake": self._told(evidence.fake)}
        return Verdict(
            image=image,
            verdict=answer,
            score=score,
            probability=float(self.calibration.probability(score, question.prior)),
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
        told = self.calibration
        svm, near = np.array([margin]), evidence.signal
        score = told.score(svm, near)
        signals = {"svm": float(told.svm(svm)[0]), "neighbors": float(told.neighbors(near)[0])}
        [[real, fake]] = told.possible(score, question.error).tolist()
        percentile = float(told.percentile(evidence.nearest)[0])
        answer, reasons = decide(signals, (real, fake), percentile, question.error, told.least_error)
        return answer, float(score[0]), signals, (real, fake), reasons, percentile

    def _told(self, witnesses: Matches) -> tuple[Neighbor, ...]:
        """The rows of one query's witnesses, in words."""
        snapshot = self.snapshot
        rows = witnesses.rows[0][witnesses.rows[0] >= 0]
        columns = ("keys", "sources", "generators", "categories", "paths")
        told = zip(*(snapshot.column(name)[rows].tolist() for name in columns), strict=True)
        similarity = np.minimum(
            witnesses.similarity[0, : len(rows)], 1.0
        )  # of halves, the product of equals may be a little more
        splits = self.head.split.of(snapshot.column("keys")[rows])
        return tuple(
            Neighbor(key, float(near), source, generator, category, path, PART_NAMES[int(split)], int(row))
            for (key, source, generator, category, path), near, split, row in zip(
                told, similarity, splits, rows, strict=True
            )
        )

    def _stored(self, digest: bytes) -> tuple[StoredCopy, ...]:
        """The rows of a file, in words."""
        rows = self.bank.find(digest, most=STORED)
        columns = (self.snapshot.column(name)[rows].tolist() for name in ("keys", "labels", "sources", "generators"))
        told = zip(*columns, strict=True)
        return tuple(StoredCopy(key, LABELS[label], source, generator) for key, label, source, generator in told)

    def _generator(self, fakes: Candidates, percentile: float) -> str:
        """By a vote of the nearest fakes, however many of one source; "unknown" without a clear winner."""
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
        """What would change the answer: leaving out one source of the witnesses, or asking fewer of them."""
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


def _trained(folder: Path) -> tuple[Head, Calibration]:
    """A head, and the calibration that belongs to it; raises HeadError."""
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
