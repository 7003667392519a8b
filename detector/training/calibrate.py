"""Calibrate on unseen data: both signals of rows whose generator neither head nor bank has seen."""

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
from .train import TrainOptions, file_groups, fit_head

FOLDS = 4
LEAST_GENERATORS = 3
FITTED_ON = 20_000  # rows a fold's head learns from, at most
FITTED_ON_STREAMED = 100_000  # the same where the machine is one for many rows, whose time grows no faster than they do
JUDGED = 8_000  # rows to calibrate with, at most


@dataclass(frozen=True)
class SignalTable:
    """Signals that a head and a bank give to rows they have not seen."""

    svm: Scores  # (rows,) the classifier's decision values
    neighbors: Scores  # (rows,) the evidence's signal
    nearest: Scores  # (rows,) similarity of the nearest witness
    labels: Labels  # (rows,)
    generators: Names  # (rows,) "" for a real row
    folds: npt.NDArray[np.int64]  # (rows,) judged together, by one head and bank

    def take(self, rows: Any) -> SignalTable:
        """Select some of the rows."""
        return SignalTable(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def calibrated(self, held_out: str, seed: int = 0) -> Calibration:
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

    n: int
    real: int  # of these rows
    fake: int
    calibrated_on: int  # rows of the class that has fewer
    nominal: float  # the rate of error asked for
    answered: float  # share of rows that got real or fake
    wrong: float | None  # share of the answers that were wrong
    real_excluded: float | None  # share of real rows for which real was ruled out; promised: `nominal`
    fake_excluded: float | None  # share of fake rows for which fake was ruled out; promised: `nominal`
    worst: str = ""  # the generator whose rows fare worst
    worst_excluded: float | None = None

    @classmethod
    def measure(
        cls, signals: SignalTable, possible: npt.NDArray[np.bool_], nominal: float, calibrated_on: int
    ) -> CoverageReport:
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

    def sentence(self, where: str) -> str:
        """The promise and what was measured, side by side, and whether it broke."""
        seen = {"real": self.real_excluded, "fake": self.fake_excluded}
        rates = ", ".join(f"{rate:.1%} of the {name} rows" for name, rate in seen.items() if rate is not None)
        text = f"{where}: an answer for {self.answered:.0%} of {self.n:,} rows"
        if self.wrong is not None:
            text += f", {self.wrong:.1%} of the answers wrong"
        text += f"; the truth was ruled out for {rates}"
        text += f" (promised {format_percent(self.nominal)})"
        if self.broken:
            text += "; the promise does not hold there"
        if self.worst and self.worst_excluded is not None and self.worst_excluded > 2 * self.nominal:
            text += f", worst for {self.worst}: {self.worst_excluded:.0%}"
        return text + "."

    @property
    def broken(self) -> bool:
        """True if the measured rate exceeds the nominal one beyond chance (one-sided, 97.5 %, for each class).

        By chance it differs with the rows that are measured and, as the promise holds on average over calibrations,
        with those that were calibrated on.
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
    """A calibration with what it was measured to be worth."""

    calibration: Calibration
    test: Metrics  # of the detector's own score on the head's test rows, which neither head nor bank had seen
    seen: CoverageReport  # on these test rows
    unseen: CoverageReport | None  # on generators left out of head, bank and calibration in turn

    @property
    def sentences(self) -> list[str]:
        lines = [self.seen.sentence("Generators that were seen")]
        if (least := self.calibration.least_error) > self.seen.nominal:
            lines.append(
                f"{self.seen.calibrated_on} held-out rows of a class are too few to answer at an error rate of "
                f"{format_percent(self.seen.nominal)}; index more images, or accept "
                f"{format_percent(ceil(1e4 * least) / 1e4)} (`--error`)."
            )
        if self.unseen:
            lines.append(self.unseen.sentence("Generators never seen"))
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
    rules: EvidenceOptions = EvidenceOptions(),
    *,
    error: float = 0.05,
    progress: Callable[[str], None] | None = None,
) -> CalibrationReport:
    """Learn what the two signals are worth together, on rows that were held out.

    With three generators or more, each is left out in turn of a head and a bank of its own (four folds at most), so
    that the verdict is calibrated for a generator nobody has seen. With fewer, the validation rows are used.

    Raises
    ------
    NotEnoughRows
        Too few held-out rows of a class.
    """
    on_progress = progress or (lambda what: None)
    parts = head.split.parts_of(snapshot.column("keys"))
    train = Bank.from_snapshot(snapshot, rules, where=parts == TRAIN)
    labels = snapshot.column("labels")
    test = SignalTable.read(head, train, _sample(labels, parts == TEST, options.seed))
    folds = generator_folds(snapshot, parts, options.seed)
    unseen = None
    if folds is None:
        validation = SignalTable.read(head, train, _sample(labels, parts == VALIDATION, options.seed))
        calibration = validation.calibrated("rows", options.seed)
    else:
        pieces = []
        for fold in range(int(folds.max()) + 1):
            on_progress(f"calibration, without generators {fold + 1} of {int(folds.max()) + 1}")
            pieces.append(_signals_of_fold(snapshot, head.split, parts, folds, fold, options, rules))
        columns = {
            name: np.concatenate([getattr(s, name) for s in pieces]) for name in SignalTable.__dataclass_fields__
        }
        signals = SignalTable(**columns)
        calibration = signals.calibrated("generators", options.seed)
        unseen = _coverage_of_unseen(signals, error, options.seed)
    scores = calibration.decision_function(test.svm, test.neighbors)
    seen = CoverageReport.measure(test, calibration.prediction_sets(scores, error), error, calibration.rows)
    # A probability is true for one share of fakes; that of the test rows, for it is on them that it is tried.
    share = float((test.labels == FAKE).mean())
    metrics = measure(test.labels, scores, probabilities=calibration.fake_probability(scores, share))
    return CalibrationReport(replace(calibration, head=head.digest), metrics, seen, unseen)


def generator_folds(snapshot: Snapshot, parts: npt.NDArray[np.int8], seed: int) -> npt.NDArray[np.int64] | None:
    """(rows,) the fold of each training or validation row, -1 for others; None with too few generators.

    All rows of a generator are in one fold, the folds about alike in size; real rows are dealt out at random, those of
    one file together.
    """
    labels, generators = snapshot.column("labels"), snapshot.column("generators")
    pool = (parts == TRAIN) | (parts == VALIDATION)
    names, _, counts = distinct(generators[pool & (labels == FAKE)])
    if len(names) < LEAST_GENERATORS:
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


def _signals_of_fold(
    snapshot: Snapshot,
    split: Split,
    parts: npt.NDArray[np.int8],
    folds: npt.NDArray[np.int64],
    fold: int,
    options: TrainOptions,
    rules: EvidenceOptions,
) -> SignalTable:
    """The signals of one fold's rows by a head and a bank made of the others."""
    labels = snapshot.column("labels")
    inside = (folds >= 0) & (folds != fold)
    bank = Bank.from_snapshot(snapshot, rules, where=inside & (parts == TRAIN))
    learning = np.flatnonzero(inside & (parts == TRAIN))
    rows = split.counts["train"]
    learning = subsample(learning, labels[learning], FITTED_ON if rows <= EXACT else FITTED_ON_STREAMED, options.seed)
    choosing = _sample(labels, inside & (parts == VALIDATION), options.seed)
    if min(np.count_nonzero(labels[choosing] == label) for label in (REAL, FAKE)) < 2:
        choosing = learning  # too few rows to choose by; the fold's own must not choose, they are to be new to it
    # A machine of the other kind would speak on another scale than the head whose verdicts are calibrated.
    held = StoredRows(snapshot, learning), StoredRows(snapshot, choosing)
    head, _ = fit_head(snapshot, split, *held, options, stands_for=rows)
    judged = _sample(labels, folds == fold, options.seed, JUDGED // int(folds.max() + 1))
    return SignalTable.read(head, bank, judged, fold)


def _coverage_of_unseen(signals: SignalTable, error: float, seed: int) -> CoverageReport | None:
    """Read each fold with a calibration fitted on the other folds, so that its generators are new to everything."""
    possible, fewest = np.zeros((len(signals.labels), 2), bool), len(signals.labels)
    for fold in np.unique(signals.folds):
        here = signals.folds == fold
        try:
            other = signals.take(~here).calibrated("generators", seed)
        except NotEnoughRows:
            return None
        scores = other.decision_function(signals.svm[here], signals.neighbors[here])
        possible[here] = other.prediction_sets(scores, error)
        fewest = min(fewest, other.rows)
    return CoverageReport.measure(signals, possible, error, fewest)


def _sample(labels: Labels, where: npt.NDArray[np.bool_], seed: int, most: int = JUDGED) -> Positions:
    positions = np.flatnonzero(where & ((labels == REAL) | (labels == FAKE)))
    return subsample(positions, labels[positions], most, seed)
