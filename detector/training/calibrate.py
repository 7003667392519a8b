"""Calibrate a detector on the signals of rows whose generator neither head nor bank has seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import NotEnoughRows
from ...store.records import FAKE, REAL, Names, distinct
from ...store.search.matches import Positions
from ...store.snapshot import Snapshot
from ..calibration import Calibration, Labels, Scores
from ..evidence import Bank, EvidenceOptions
from ..head import Head
from ..metrics import Metrics, measure
from ..split import TEST, TRAIN, VALIDATION, Split
from ..verdict import format_percent
from .examples import StoredRows, subsample
from .svm_training import EXACT
from .train import TrainingSet, TrainOptions, file_groups, fit_head

FOLDS = 4
MIN_GENERATORS = 3
FITTED_ON = 20_000  # training rows of a fold's head, at most
FITTED_ON_STREAMED = 100_000  # the same for the approximate SVM, whose time grows linearly with the rows
JUDGED = 8_000  # rows to calibrate on, at most


@dataclass(frozen=True)
class SignalTable:
    """Signals of rows that are in neither the head's training set nor the bank."""

    svm: Scores  # (rows,) decision values of the classifier
    neighbors: Scores  # (rows,) signal of the evidence
    nearest: Scores  # (rows,) similarity of the nearest neighbour
    labels: Labels  # (rows,)
    generators: Names  # (rows,) "" for a real row
    folds: npt.NDArray[np.int64]  # (rows,) number of the fold: the rows of a fold have the same head and bank

    def take(self, rows: Any) -> SignalTable:
        """Select rows by position (integers, a slice or a mask)."""
        return SignalTable(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def calibrated(self, held_out: str, seed: int = 0) -> Calibration:
        """Fit a calibration on these rows, where `held_out` is "generators" or "rows"."""
        return Calibration.fit(self.svm, self.neighbors, self.nearest, self.labels, held_out=held_out, seed=seed)

    @classmethod
    def read(cls, head: Head, bank: Bank, positions: Positions, fold: int = 0) -> SignalTable:
        """Compute the signals of rows that are in neither the head's training set nor the bank."""
        snapshot = bank.snapshot
        vectors = snapshot.vectors(positions)
        evidence = bank.evidence(vectors, snapshot.column("digests")[positions])
        return cls(
            head.decision_function(vectors),
            evidence.signal,
            evidence.nearest,
            snapshot.column("labels")[positions],
            snapshot.column("generators")[positions],
            np.full(len(positions), fold),
        )


@dataclass(frozen=True)
class CoverageReport:
    """Measured error rates beside the nominal one."""

    n: int  # number of measured rows
    real: int  # of them real
    fake: int  # of them fake
    calibrated_on: int  # calibration rows of the smaller class
    nominal: float  # nominal error rate
    answered: float  # share of rows whose answer is real or fake, not unsure
    wrong: float | None  # share of these answers that are wrong
    real_excluded: float | None  # share of real rows for which real was ruled out; should be at most `nominal`
    fake_excluded: float | None  # share of fake rows for which fake was ruled out; should be at most `nominal`
    worst: str = ""  # generator for whose rows fake was ruled out most often
    worst_excluded: float | None = None  # how often, as a share of its rows

    @classmethod
    def measure(
        cls, signals: SignalTable, possible: npt.NDArray[np.bool_], nominal: float, calibrated_on: int
    ) -> CoverageReport:
        """Measure the (rows, 2) prediction sets of rows with known labels."""
        labels = signals.labels
        true = possible[np.arange(len(labels)), labels]
        answered = possible.sum(1) == 1
        by_generator = {
            g: float((~true[signals.generators == g]).mean()) for g in set(signals.generators.tolist()) - {""}
        }
        worst = max(by_generator, key=lambda g: (by_generator[g], g), default="")
        return cls(
            n=len(labels),
            real=int((labels == REAL).sum()),
            fake=int((labels == FAKE).sum()),
            calibrated_on=calibrated_on,
            nominal=nominal,
            answered=float(answered.mean()),
            wrong=_share(~true[answered]),
            real_excluded=_share(~true[labels == REAL]),
            fake_excluded=_share(~true[labels == FAKE]),
            worst=str(worst),
            worst_excluded=by_generator.get(worst),
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self, rows: str) -> str:
        """Report the measured rates beside the nominal one, where `rows` says what kind of rows were measured."""
        excluded = {"real": self.real_excluded, "fake": self.fake_excluded}
        rates = ", ".join(f"{rate:.1%} of the {name} rows" for name, rate in excluded.items() if rate is not None)
        text = f"{rows}: {self.answered:.0%} of {self.n:,} rows got an answer"
        if self.wrong is not None:
            text += f", {self.wrong:.1%} of the answers are wrong"
        text += f"; the true class was ruled out for {rates} (nominal {format_percent(self.nominal)})"
        if self.broken:
            text += "; the nominal error rate does not hold for them"
        if self.worst and self.worst_excluded is not None and self.worst_excluded > 2 * self.nominal:
            text += f"; the worst generator is {self.worst}: {self.worst_excluded:.0%}"
        return text + "."

    @property
    def broken(self) -> bool:
        """True if a measured rate exceeds the nominal one by more than chance (one-sided 97.5 %, for each class).

        The measured rate varies by chance with the measured rows and also with the calibration rows, as the nominal
        rate holds on average over calibrations.
        """
        spread = self.nominal * (1 - self.nominal)
        return any(
            rate is not None and rate > self.nominal + 2 * np.sqrt(spread / rows + spread / self.calibrated_on)
            for rate, rows in ((self.real_excluded, self.real), (self.fake_excluded, self.fake))
        )


def _share(wrong: npt.NDArray[np.bool_]) -> float | None:
    return float(wrong.mean()) if len(wrong) else None


@dataclass(frozen=True)
class CalibrationReport:
    """A calibration and its measured quality."""

    calibration: Calibration
    test: Metrics  # of the calibrated score on the head's test rows, which are in neither training set nor bank
    seen: CoverageReport  # on these test rows
    unseen: CoverageReport | None  # on the rows of each generator, left out of head, bank and calibration

    @property
    def sentences(self) -> list[str]:
        """Measured error rates, one sentence each."""
        lines = [self.seen.sentence("Seen generators")]
        if (least := self.calibration.least_error) > self.seen.nominal:
            lines.append(
                f"{self.seen.calibrated_on} held-out rows of a class are too few to answer at an error rate of "
                f"{format_percent(self.seen.nominal)}; index more images, or accept an error rate of "
                f"{format_percent(ceil(1e4 * least) / 1e4)} with `--error`."
            )
        if self.unseen:
            lines.append(self.unseen.sentence("Unseen generators"))
        return lines

    def to_dict(self) -> dict[str, Any]:
        return {
            "held_out": self.calibration.held_out,
            "test": self.test.to_dict(),
            "seen": self.seen.to_dict(),
            "unseen": self.unseen.to_dict() if self.unseen else None,
            "sentences": self.sentences,
        }


def calibrate(
    snapshot: Snapshot,
    head: Head,
    options: TrainOptions = TrainOptions(),
    evidence_options: EvidenceOptions = EvidenceOptions(),
    *,
    error: float = 0.05,
    on_progress: Callable[[str], None] | None = None,
) -> CalibrationReport:
    """Fit the calibration of a head on held-out rows, and measure it.

    With at least three generators, these are divided into at most four folds, and the rows of each fold are scored by a
    head and a bank without them: the calibration then applies to images of unseen generators. With fewer generators,
    the validation rows are used.

    Parameters
    ----------
    options : of training, for the heads of the folds
    error : nominal error rate at which the calibration is measured
    on_progress : called with the name of each step

    Raises
    ------
    NotEnoughRows
        A class has too few held-out rows.
    """
    on_progress = on_progress or (lambda step: None)
    options = options.of_head(head)
    parts = head.split.parts_of(snapshot.column("keys"))
    bank = Bank.from_snapshot(snapshot, evidence_options, where=parts == TRAIN)
    labels = snapshot.column("labels")
    test = SignalTable.read(head, bank, _sample(labels, parts == TEST, options.seed))
    folds = generator_folds(snapshot, parts, options.seed)
    unseen = None
    if folds is None:
        validation = SignalTable.read(head, bank, _sample(labels, parts == VALIDATION, options.seed))
        calibration = validation.calibrated("rows", options.seed)
    else:
        of_folds = []
        for fold in range(int(folds.max()) + 1):
            on_progress(f"calibration, without generators {fold + 1} of {int(folds.max()) + 1}")
            rows = _training_set(snapshot, head.split, folds, fold, options.seed)
            fold_head, _ = fit_head(rows, options, svm_rows=head.split.counts["train"])
            fold_bank = bank.where((folds >= 0) & (folds != fold))
            judged = _sample(labels, folds == fold, options.seed, JUDGED // int(folds.max() + 1))
            of_folds.append(SignalTable.read(fold_head, fold_bank, judged, fold))
        columns = {
            name: np.concatenate([getattr(s, name) for s in of_folds]) for name in SignalTable.__dataclass_fields__
        }
        signals = SignalTable(**columns)
        calibration = signals.calibrated("generators", options.seed)
        unseen = _coverage_of_unseen(signals, error, options.seed)
    scores = calibration.decision_function(test.svm, test.neighbors)
    seen = CoverageReport.measure(test, calibration.prediction_sets(scores, error), error, calibration.rows)
    # the probability depends on the prior: use the share of fakes among the test rows, on which it is measured
    share = float((test.labels == FAKE).mean())
    metrics = measure(test.labels, scores, probabilities=calibration.fake_probability(scores, share))
    return CalibrationReport(replace(calibration, head=head.digest), metrics, seen, unseen)


def generator_folds(snapshot: Snapshot, parts: npt.NDArray[np.int8], seed: int) -> npt.NDArray[np.int64] | None:
    """(rows,) fold of each training or validation row, -1 for other rows; None with too few generators.

    All rows of a generator are in one fold, and the folds are of similar size. Real files are assigned at random, with
    all copies of a file in one fold.
    """
    labels, generators = snapshot.column("labels"), snapshot.column("generators")
    pool = (parts == TRAIN) | (parts == VALIDATION)
    names, _, counts = distinct(generators[pool & (labels == FAKE)])
    if len(names) < MIN_GENERATORS:
        return None
    number = min(FOLDS, len(names))
    rng = np.random.default_rng([seed, 4])
    _, first, file = np.unique(file_groups(snapshot.column("digests")), return_index=True, return_inverse=True)
    folds = np.where(pool, rng.integers(0, number, len(pool))[first[file]], -1)
    load = np.zeros(number, np.int64)
    for i in np.argsort(-counts, kind="stable"):
        lightest = int(load.argmin())
        load[lightest] += counts[i]
        folds[pool & (labels == FAKE) & (generators == names[i])] = lightest
    return folds


def _training_set(snapshot: Snapshot, split: Split, folds: npt.NDArray[np.int64], fold: int, seed: int) -> TrainingSet:
    """The rows on which the head of a fold is fitted: a sample of the other folds."""
    labels, parts = snapshot.column("labels"), split.parts_of(snapshot.column("keys"))
    others = (folds >= 0) & (folds != fold)
    train = np.flatnonzero(others & (parts == TRAIN))
    # The exact and the approximate SVM differ in scale, so a fold's head uses the kind of the head to calibrate.
    limit = FITTED_ON if split.counts["train"] <= EXACT else FITTED_ON_STREAMED
    train = subsample(train, labels[train], limit, seed)
    validation = _sample(labels, others & (parts == VALIDATION), seed)
    if min(np.count_nonzero(labels[validation] == label) for label in (REAL, FAKE)) < 2:
        validation = train  # too few rows; those of the fold itself must stay unseen
    return TrainingSet(snapshot, split, StoredRows(snapshot, train), StoredRows(snapshot, validation))


def _coverage_of_unseen(signals: SignalTable, error: float, seed: int) -> CoverageReport | None:
    """Measure each fold with a calibration fitted on the other folds; None if these have too few rows."""
    possible, fewest = np.zeros((len(signals.labels), 2), bool), len(signals.labels)
    for fold in np.unique(signals.folds):
        in_fold = signals.folds == fold
        try:
            calibration = signals.take(~in_fold).calibrated("generators", seed)
        except NotEnoughRows:
            return None
        scores = calibration.decision_function(signals.svm[in_fold], signals.neighbors[in_fold])
        possible[in_fold] = calibration.prediction_sets(scores, error)
        fewest = min(fewest, calibration.rows)
    return CoverageReport.measure(signals, possible, error, fewest)


def _sample(labels: Labels, where: npt.NDArray[np.bool_], seed: int, most: int = JUDGED) -> Positions:
    positions = np.flatnonzero(where & ((labels == REAL) | (labels == FAKE)))
    return subsample(positions, labels[positions], most, seed)
