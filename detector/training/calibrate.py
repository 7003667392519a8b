"""Calibrate a detector on rows that neither head nor bank has seen: rows of stored sources, and left-out sources.

The rows of stored sources show how well the detector knows what it has seen, the left-out sources how it errs on what
it has not. A calibration on the first alone is too sure of new sources, one on the second alone answers nothing: left
out, a source is often judged by what else its images show. Both are fitted together, and measured apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import NotEnoughRows
from ...store.records import FAKE, LABELS, REAL, Mask, Names, distinct
from ...store.search.matches import Positions
from ...store.snapshot import Snapshot
from ..calibration import Calibration, Labels, Scores
from ..evidence import Bank, EvidenceOptions
from ..head import Head
from ..metrics import Metrics, auc, measure
from ..split import TEST, TRAIN, VALIDATION
from ..svm import Svm
from ..verdict import format_percent
from .coverage import ENOUGH_ROWS, ENOUGH_SOURCES, CoverageReport, SourceCoverage, UnseenClass
from .examples import StoredRows, subsample
from .svm_training import is_exact
from .train import TrainingSet, TrainOptions, file_groups, fit_head

CLASSES = {label: LABELS[label] for label in (REAL, FAKE)}
FOLDS = 4  # of sources that are left out together
SEEN_FOLDS = 5  # of rows, where the validation rows are too few
ENOUGH = 1_000  # validation rows of each class with which no further heads are fitted for the seen rows
FITTED_ON = 8_000  # training rows of a fold's head, at most
FITTED_ON_STREAMED = 100_000  # the same for the approximate SVM, whose time grows linearly with the rows
MOST_CALIBRATIONS = 20  # of each class, to measure the left-out sources; more sources share one
MOST_NAMED = 10  # sources worse than chance, in a sentence
JUDGED = 8_000  # seen rows to calibrate on, at most, and as many of left-out sources
# Weights of the left-out sources in a calibration, chosen with the groups of benchmarks.unseen. Of a few groups every
# score is wrong and a larger weight is better, on the others the scores become too cautious: for probabilities .05 is
# in between. In the prediction sets, real was wrongly ruled out for half as many images at .2 as at 0.
LINE_SHARE = 0.05  # for slopes and offsets
SET_SHARE = 0.2  # for the prediction sets


@dataclass(frozen=True)
class SignalTable:
    """Signals of rows that are in neither the head's training set nor the bank."""

    svm: Scores  # (rows,) decision values of the classifier
    neighbors: Scores  # (rows,) signal of the evidence
    nearest: Scores  # (rows,) similarity of the nearest neighbour
    labels: Labels  # (rows,)
    sources: Names  # (rows,) the generator of a fake row if it is known, else the source
    unseen: Mask  # (rows,) True if head and bank had no row of the source

    def take(self, rows: Any) -> SignalTable:
        """Select rows by position (integers, a slice or a mask)."""
        return SignalTable(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def concatenate(cls, tables: Sequence[SignalTable]) -> SignalTable:
        """Put the rows of several tables one after the other."""
        return cls(*(np.concatenate([getattr(table, field.name) for table in tables]) for field in fields(cls)))

    def calibrated(self, line_share: float = LINE_SHARE, set_share: float = SET_SHARE) -> Calibration:
        """Fit a calibration in which rows of left-out sources have a share of the weight of their class.

        All left-out sources of a class count the same. The seen rows count the same in the prediction sets, whose error
        rate is one of rows; for slopes and offsets their sources do, too, which fits new sources better.

        Parameters
        ----------
        line_share, set_share : shares of the left-out sources for slopes and offsets, and for the prediction sets
        """
        line, sets = (np.zeros(len(self.labels)) for _ in range(2))
        for label in (REAL, FAKE):
            seen, unseen = ((self.labels == label) & which for which in (~self.unseen, self.unseen))
            of_seen, of_unseen = _equal_sources(self.sources[seen]), _equal_sources(self.sources[unseen])
            shares = np.array([line_share, set_share])
            if not unseen.any() or not seen.any():
                shares[:] = unseen.any()
            line[seen], line[unseen] = (1 - shares[0]) * of_seen, shares[0] * of_unseen
            sets[seen], sets[unseen] = (1 - shares[1]) / max(seen.sum(), 1), shares[1] * of_unseen
        kept = sets > 0
        rows = self.take(kept)
        return Calibration.fit(
            rows.svm, rows.neighbors, rows.nearest, rows.labels, line_weights=line[kept], set_weights=sets[kept]
        )

    @classmethod
    def read(cls, head: Head, bank: Bank, positions: Positions, *, unseen: bool = False) -> SignalTable:
        """Compute the signals of rows that are in neither the head's training set nor the bank."""
        snapshot = bank.snapshot
        vectors = snapshot.vectors(positions)
        evidence = bank.evidence(vectors, snapshot.column("digests")[positions])
        return cls(
            head.decision_function(vectors),
            evidence.signal,
            evidence.nearest,
            snapshot.column("labels")[positions],
            source_names(snapshot)[positions],
            np.full(len(positions), unseen),
        )


def source_names(snapshot: Snapshot) -> Names:
    """(rows,) the generator of a fake row if it is known, else the source."""
    generators, sources = snapshot.column("generators"), snapshot.column("sources")
    by_generator = (snapshot.column("labels") == FAKE) & (generators != "")
    return np.asarray(np.where(by_generator, generators, sources))


def _equal_sources(sources: Names) -> Scores:
    """(rows,) weights with the sum 1 that are the same for every source."""
    _, codes, counts = distinct(sources)
    return np.asarray(1 / counts[codes] / max(len(counts), 1))


@dataclass(frozen=True)
class CalibrationReport:
    """A calibration and its measured quality."""

    calibration: Calibration
    test: Metrics  # of the calibrated score on the head's test rows, which are in neither training set nor bank
    seen: CoverageReport  # on these test rows
    unseen: CoverageReport | None  # on left-out sources, which are in neither head, bank nor calibration
    stored: dict[str, int]  # number of sources by class, "real" and "fake"
    signals: SignalTable  # the rows that were calibrated on

    @property
    def classes(self) -> list[UnseenClass]:
        """How the verdicts of each class did on left-out sources."""
        nominal = self.seen.nominal
        return [UnseenClass.of(label, self.stored[label], self.unseen, nominal) for label in ("real", "fake")]

    @property
    def inverted(self) -> list[SourceCoverage]:
        """The left-out sources whose rows are ranked worse than chance."""
        sources = self.unseen.sources if self.unseen else ()
        worse = (s for s in sources if s.auc is not None and s.auc < 0.5 and s.n >= ENOUGH_ROWS)
        return sorted(worse, key=lambda source: source.auc or 0.0)

    @property
    def notice(self) -> str:
        """What the nominal error rate does not cover: a sentence for every answer, "" if there is nothing to say."""
        notices = " and ".join(of_class.notice for of_class in self.classes if of_class.notice)
        nominal = format_percent(self.seen.nominal)
        return f"Known limits: for sources that are not stored, {notices}; the nominal rate is {nominal}." * bool(
            notices
        )

    @property
    def sentences(self) -> list[str]:
        """Measured error rates, one sentence each."""
        lines = [self.seen.sentence()]
        if (least := self.calibration.least_error) > self.seen.nominal:
            lines.append(
                f"{self.seen.calibrated_on} held-out rows of a class are too few to answer at an error rate of "
                f"{format_percent(self.seen.nominal)}; index more images, or accept an error rate of "
                f"{format_percent(ceil(1e4 * least) / 1e4)} with `--error`."
            )
        if self.inverted:
            named = ", ".join(f"{source.name} (AUC {source.auc:.2f})" for source in self.inverted[:MOST_NAMED])
            more = len(self.inverted) - MOST_NAMED
            lines.append(f"Worse than chance when left out: {named}{f' and {more:,} more' * (more > 0)}.")
        return lines + [of_class.sentence for of_class in reversed(self.classes)]

    def to_dict(self) -> dict[str, Any]:
        return {
            "test": self.test.to_dict(),
            "seen": self.seen.to_dict(),
            "unseen": self.unseen.to_dict() if self.unseen else None,
            "classes": [
                {**asdict(c), "excluded": c.excluded, "answered": c.answered, "unknown": c.unknown}
                for c in self.classes
            ],
            "notice": self.notice,
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
    """Fit the calibration of a head on rows that it has not seen, and measure it.

    The seen rows are the validation rows or, if these are too few, the training and validation rows in five folds, each
    scored by a head and a bank without it (cross-conformal prediction; Vovk 2015). The rows of left-out sources are
    scored by at most four heads and banks, each without a part of the real and of the fake sources. An imported head
    was trained on no row, so that it scores all of them itself.

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
    options = options if head.imported else options.of_head(head)
    parts = head.split.parts_of(snapshot.column("keys"))
    bank = Bank.from_snapshot(snapshot, evidence_options, where=parts == TRAIN)
    labels = snapshot.column("labels")
    test = SignalTable.read(head, bank, _sample(labels, parts == TEST, options.seed))
    folds = _Folds(snapshot, head, bank, options, on_progress)
    validation = parts == VALIDATION
    if min((validation & (labels == label)).sum() for label in (REAL, FAKE)) >= ENOUGH:
        seen = SignalTable.read(head, bank, _sample(labels, validation, options.seed))
    else:
        seen = SignalTable.concatenate(folds.signals("", row_folds(snapshot, parts, options.seed), unseen=False))
    signals = SignalTable.concatenate([seen, *folds.signals("sources ", source_folds(snapshot, parts), unseen=True)])
    unseen = _coverage_of_unseen(signals, error) if signals.unseen.any() else None
    calibration = signals.calibrated()
    scores = calibration.decision_function(test.svm, test.neighbors)
    coverage = CoverageReport.measure(test.labels, calibration.prediction_sets(scores, error), error, calibration.rows)
    # the probability depends on the prior: use the share of fakes among the test rows, on which it is measured
    share = float((test.labels == FAKE).mean())
    metrics = measure(test.labels, scores, probabilities=calibration.fake_probability(scores, share))
    pool = (parts == TRAIN) | (parts == VALIDATION)
    names = source_names(snapshot)
    stored = {name: len(distinct(names[pool & (labels == label)])[0]) for label, name in CLASSES.items()}
    report = CalibrationReport(calibration, metrics, coverage, unseen, stored, signals)
    return replace(report, calibration=replace(calibration, head=head.digest, notice=report.notice))


@dataclass(frozen=True)
class _Folds:
    """Heads and banks without some of the rows, which they then score."""

    snapshot: Snapshot
    head: Head
    bank: Bank
    options: TrainOptions
    on_progress: Callable[[str], None]

    def signals(self, what: str, folds: npt.NDArray[np.int64], *, unseen: bool) -> list[SignalTable]:
        """Score the rows of each fold by a head and a bank without it.

        A fold is left out of the result if a class would have no other rows: all of them may be copies of its files.

        Parameters
        ----------
        what : what is left out, for the progress display
        folds : (rows,) number of the fold of each row, -1 for a row that is never left out, -2 for one that is not used
        unseen : the folds hold whole sources
        """
        number = int(folds.max()) + 1
        labels = self.snapshot.column("labels")
        files = file_groups(self.snapshot.column("digests"))
        tables = []
        for fold in range(number):
            self.on_progress(f"calibration, without {what}{fold + 1} of {number}")
            # copies of a left-out file that belong to another source are left out, too
            others = (folds > -2) & (folds != fold) & ~np.isin(files, files[folds == fold])
            if len(np.unique(labels[others & self.bank.members])) < 2:
                continue
            fold_head = self.head  # if it is imported, it has seen no row of the store
            if not self.head.imported:
                rows = self._training_set(others)
                fold_head, _ = fit_head(rows, self.options, svm_rows=self.head.split.counts["train"])
            judged = _sample(labels, folds == fold, self.options.seed, JUDGED // number)
            tables.append(SignalTable.read(fold_head, self.bank.where(others), judged, unseen=unseen))
        return tables

    def _training_set(self, others: Mask) -> TrainingSet:
        """The rows on which the head of a fold is fitted: a sample of those that are not left out."""
        snapshot, split, seed = self.snapshot, self.head.split, self.options.seed
        labels, parts = snapshot.column("labels"), split.parts_of(snapshot.column("keys"))
        train = np.flatnonzero(others & (parts == TRAIN))
        # The exact and the approximate SVM differ in scale, so a fold's head uses the kind of the head to calibrate.
        classifier = self.head.classifier
        exact = isinstance(classifier, Svm) and is_exact(split.counts["train"], classifier.vectors.shape[1])
        train = subsample(train, labels[train], FITTED_ON if exact else FITTED_ON_STREAMED, seed)
        validation = _sample(labels, others & (parts == VALIDATION), seed)
        if min(np.count_nonzero(labels[validation] == label) for label in (REAL, FAKE)) < 2:
            validation = train  # too few rows; those of the fold itself must stay unseen
        return TrainingSet(snapshot, split, StoredRows(snapshot, train), StoredRows(snapshot, validation))


def row_folds(snapshot: Snapshot, parts: npt.NDArray[np.int8], seed: int) -> npt.NDArray[np.int64]:
    """(rows,) fold of each training or validation row, -2 for other rows; all copies of a file are in one fold."""
    pool = np.flatnonzero((parts == TRAIN) | (parts == VALIDATION))
    labels = snapshot.column("labels")[pool]
    _, first, file = np.unique(file_groups(snapshot.column("digests")[pool]), return_index=True, return_inverse=True)
    shuffled = np.random.default_rng([seed, 4]).permutation(len(first))
    by_label = shuffled[np.argsort(labels[first][shuffled], kind="stable")]
    fold_of_file = np.empty(len(first), np.int64)
    fold_of_file[by_label] = np.arange(len(first)) % SEEN_FOLDS
    folds = np.full(len(snapshot), -2)
    folds[pool] = fold_of_file[file]
    return folds


def source_folds(snapshot: Snapshot, parts: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """(rows,) fold in which the source of a training or validation row is left out, -2 for rows of other parts.

    All rows of a source and class are in one fold. With at least three sources of each class, a fold holds real and
    fake sources; with fewer it holds those of one class. The only source of a class is never left out: its fold is -1.
    """
    labels, names = snapshot.column("labels"), source_names(snapshot)
    pool = (parts == TRAIN) | (parts == VALIDATION)
    folds = np.where(pool, -1, -2).astype(np.int64)
    sizes = {}
    for label in CLASSES:
        of_class = pool & (labels == label)
        found, _, counts = distinct(names[of_class])
        sizes[label] = dict(zip(found.tolist(), counts.tolist(), strict=True))
    together = min(len(of_class) for of_class in sizes.values()) >= ENOUGH_SOURCES
    first = 0
    for label, of_class in sizes.items():
        number = min(FOLDS, len(of_class))
        if number < 2:
            continue
        load = np.zeros(number, np.int64)
        for name, size in sorted(of_class.items(), key=lambda item: (-item[1], item[0])):
            lightest = int(load.argmin())
            load[lightest] += size
            folds[pool & (labels == label) & (names == name)] = first + lightest
        if not together:
            first += number
    return folds


def _coverage_of_unseen(signals: SignalTable, error: float) -> CoverageReport | None:
    """Measure each left-out source with a calibration fitted without it; None if that has too few rows."""
    possible, fewest, sources = np.zeros((len(signals.labels), 2), bool), len(signals.labels), []
    names, codes, _ = distinct(signals.sources)
    for label in CLASSES:
        left_out = np.unique(codes[signals.unseen & (signals.labels == label)])
        for group in np.array_split(left_out, min(len(left_out), MOST_CALIBRATIONS)) if len(left_out) else []:
            own = np.isin(codes, group) & (signals.labels == label)
            try:
                calibration = signals.take(~own).calibrated()
            except NotEnoughRows:
                return None
            fewest = min(fewest, calibration.rows)
            others = _scores(calibration, signals, ~signals.unseen & (signals.labels != label))
            for code in group.tolist():
                rows = own & (codes == code) & signals.unseen
                scores = _scores(calibration, signals, rows)
                possible[rows] = calibration.prediction_sets(scores, error)
                sources.append(_source_coverage(str(names[code]), label, scores, others, possible[rows]))
    unseen = signals.unseen
    return CoverageReport.measure(signals.labels[unseen], possible[unseen], error, fewest, tuple(sources))


def _source_coverage(
    name: str, label: int, scores: Scores, others: Scores, possible: npt.NDArray[np.bool_]
) -> SourceCoverage:
    """The verdicts on the rows of a source, and its AUC against seen rows of the other class."""
    truth = np.repeat([label, 1 - label], [len(scores), len(others)])
    area = auc(truth, np.concatenate([scores, others]))
    answered, excluded = (possible.sum(1) == 1).mean(), (~possible[:, label]).mean()
    return SourceCoverage(name, CLASSES[label], len(scores), area, float(answered), float(excluded))


def _scores(calibration: Calibration, signals: SignalTable, rows: Mask) -> Scores:
    return calibration.decision_function(signals.svm[rows], signals.neighbors[rows])


def _sample(labels: Labels, where: npt.NDArray[np.bool_], seed: int, most: int = JUDGED) -> Positions:
    positions = np.flatnonzero(where & ((labels == REAL) | (labels == FAKE)))
    return subsample(positions, labels[positions], most, seed)
