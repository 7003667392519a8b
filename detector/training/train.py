"""Train a head and the baselines on a snapshot of the store, and measure them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import HeadError
from ...store.records import FAKE, Names, Vectors, distinct
from ...store.search.matches import Positions
from ...store.snapshot import Snapshot
from ..comparison import Comparison, mcnemar
from ..head import LEFT_OUT, TRIPLET_SVM, Head
from ..head import TITLES as CLASSIFIERS
from ..metrics import Metrics, best_threshold, measure
from ..projection import FUSIONS, TRIPLET_KINDS
from ..split import PARTS, RECIPES, Split, choose
from ..vocabulary import MODES, Mode, Vocabulary
from .baseline_names import baseline_name
from .baselines import BASELINES, BaselineResult, evaluate_baseline, linear_probe
from .classifier_choice import CANDIDATES, ClassifierChoice, Scorer, choose_classifier
from .classifier_choice import ROWS as CHOICE_ROWS
from .classifiers import FittedClassifier, fit_classifier, fit_triplet_svm
from .examples import Examples, Labelled, StoredRows, subsample
from .triplet import TripletEpoch, TripletOptions, require_choice

ROWS_AT_ONCE = 16_384  # rows scored at a time
AUTO = "auto"  # the classifier is chosen by its results on left-out sources
SIMPLEST = "logistic"  # classifier if there are too few rows to choose by
SAME_AS = {"rbf-svm": "rbf_svm", "pca-svm": "pca_svm", "logistic": "linear_probe"}  # classifier -> the same baseline
BASELINE_ROWS = {  # maximum number of rows for the baselines, by part
    "train": 100_000,  # the linear probe is refined on all rows
    "validation": 10_000,
    "test": 20_000,  # the head is measured on all rows
}


@dataclass(frozen=True)
class TrainOptions:
    """Options of training: what to train, and on which rows."""

    kind: str = ""  # projection of "triplet-svm", which it implies: one of TRIPLET_KINDS; "" for linear
    triplet: TripletOptions = field(default_factory=TripletOptions)
    c: float | None = None  # regularization parameter C (default: see `classifiers.fit_classifier`)
    sources: Sequence[str] = ()  # use rows of these sources only; empty for all
    balanced: bool = False  # use as many real as fake rows
    recipe: str = "grouped"  # of the split, see `Split.make`
    seed: int = 0
    baselines: Sequence[str] = field(default_factory=lambda: tuple(BASELINES))
    classifier: str = AUTO  # one of CLASSIFIERS, or AUTO for the best of them on left-out sources

    def __post_init__(self) -> None:
        require_choice(self.kind or "linear", "kind", TRIPLET_KINDS)
        require_choice(self.classifier, "classifier", (*CLASSIFIERS, AUTO))
        if self.kind and self.classifier not in (TRIPLET_SVM, AUTO):
            raise HeadError(
                f"the projection {self.kind} belongs to the classifier {TRIPLET_SVM}, found {self.classifier}; "
                f"leave out the kind, or use {TRIPLET_SVM}"
            )
        require_choice(self.recipe, "recipe", RECIPES)
        for name in self.baselines:
            require_choice(name, "baseline", BASELINES)

    @property
    def classifier_name(self) -> str:
        """Name of the classifier to fit; AUTO if it is to be chosen. A projection implies "triplet-svm"."""
        return TRIPLET_SVM if self.kind else self.classifier

    def of_head(self, head: Head) -> TrainOptions:
        """These options with the classifier and C of a head, to fit more heads like it."""
        return replace(self, classifier=head.classifier_name, c=head.options.get("c"))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sources": list(self.sources), "baselines": list(self.baselines)}


@dataclass(frozen=True)
class TrainReport:
    """A head, its metrics, and its comparison with the baselines."""

    head: Head
    metrics: dict[str, Metrics]  # by part: "train", "validation" and "test"
    baselines: dict[str, BaselineResult]
    log: list[TripletEpoch]
    against_probe: Comparison | None  # McNemar's test on the same test rows; None without a linear probe
    best: str = ""  # the baseline with the highest validation AUC
    categories: dict[Mode, Metrics] = field(
        default_factory=dict
    )  # of a head that reads text: on the test rows, by mode
    test_copies: int = 0  # test rows whose file is also a training or validation row
    choice: ClassifierChoice | None = None  # how the classifier was chosen, if it was

    @property
    def sentences(self) -> list[str]:
        """Summary, one sentence for each finding."""
        lines = [self.choice.sentence] if self.choice else []
        if self.test_copies:
            lines.append(
                f"{self.test_copies:,} of {self.metrics['test'].n:,} test rows are copies of training or validation "
                f"files, which makes every metric look better; `--split grouped` keeps copies in one part."
            )
        if self.against_probe is not None:
            lines.append(self.against_probe.sentence("The head", baseline_name("linear_probe").phrase))
        if self.best:
            head, other = self.metrics["test"].auc, self.baselines[self.best].metrics["test"].auc
            if head is not None and other is not None and other > head:
                lines.append(
                    f"The head is worse than the best baseline, {baseline_name(self.best).phrase}: "
                    f"test AUC {head:.3f} against {other:.3f}, on sources that both have seen."
                )
        return lines

    def to_dict(self) -> dict[str, Any]:
        return {
            "head": {name: metrics.to_dict() for name, metrics in self.metrics.items()},
            "categories": {mode: metrics.to_dict() for mode, metrics in self.categories.items()},
            "baselines": {name: baseline.to_dict() for name, baseline in self.baselines.items()},
            "against_linear_probe": self.against_probe.to_dict() if self.against_probe else None,
            "best_baseline": self.best or None,
            "classifier": self.head.classifier_name,
            "choice": self.choice.to_dict() if self.choice else None,
            "test_copies": self.test_copies,
            "sentences": self.sentences,
            "epochs": [epoch.to_dict() for epoch in self.log],
            "snapshot": self.head.snapshot,
            "split": self.head.split.to_dict(),
            "seed": self.head.split.seed,
            "options": dict(self.head.options),
        }


Progress = Callable[[str], None]  # called with the name of each step


def train(
    snapshot: Snapshot, options: TrainOptions = TrainOptions(), on_progress: Progress | None = None
) -> TrainReport:
    """Split the rows, fit a head and the baselines, and measure them. Reads the store only.

    The head is fitted and measured on all rows, whose vectors are read in batches. The baselines hold their vectors in
    memory and use `BASELINE_ROWS` at most; the linear probe is refined on all training rows.

    Parameters
    ----------
    on_progress : called with the name of each step

    Raises
    ------
    NotEnoughRows
        The rows hold one class only, or too few of one.
    HeadError
        An option is unknown, no triplet can be drawn, the projection collapsed, or a text vector is missing.
    """
    on_progress = on_progress or (lambda step: None)
    split, parts = make_split(snapshot, options)
    labels = snapshot.column("labels")
    train_rows, validation_rows = (StoredRows(snapshot, parts[name]) for name in ("train", "validation"))
    choice = None
    if options.classifier_name == AUTO:
        choice = compare_classifiers(snapshot, parts, options, on_progress)
        options = replace(options, classifier=choice.chosen if choice else SIMPLEST)
    head, log = fit_head(TrainingSet(snapshot, split, train_rows, validation_rows), options, on_progress)
    on_progress("scores")
    scores = {name: decision_values(head, snapshot, positions) for name, positions in parts.items()}
    threshold = best_threshold(labels[parts["validation"]], scores["validation"])[0]
    metrics = {name: measure(labels[parts[name]], scores[name], chosen=threshold) for name in parts}
    head = replace(head, threshold=threshold, metrics={name: m.to_dict() for name, m in metrics.items()})
    categories: dict[Mode, Metrics] = {}
    for mode in MODES if head.vocabulary is not None else ():
        on_progress(f"scores with the category {mode}")
        by_mode = scores["test"] if mode == "zero-shot" else decision_values(head, snapshot, parts["test"], mode)
        categories[mode] = measure(labels[parts["test"]], by_mode, chosen=threshold)

    if choice:
        head = replace(head, options={**head.options, "choice": choice.to_dict()})
    if options.sources:
        stored = distinct(snapshot.column("sources"))[0].tolist()
        head = replace(head, options={**head.options, LEFT_OUT: sorted({*stored} - {*options.sources})})
    baselines, tested = _evaluate_baselines(snapshot, parts, options, on_progress) if options.baselines else ({}, None)
    best = max(baselines, key=lambda name: baselines[name].metrics["validation"].auc or 0.0, default="")
    against_probe = None
    if tested is not None and "linear_probe" in baselines:
        fake = labels[tested] == FAKE
        head_scores = scores["test"][np.searchsorted(parts["test"], tested)]
        against_probe = mcnemar((head_scores > 0) == fake, (baselines["linear_probe"].test_scores > 0) == fake)
    return TrainReport(
        head, metrics, baselines, log, against_probe, best, categories, count_test_copies(snapshot, parts), choice
    )


def compare_classifiers(
    snapshot: Snapshot,
    parts: Mapping[str, Positions],
    options: TrainOptions,
    on_progress: Progress | None = None,
    candidates: Sequence[str] = CANDIDATES,
) -> ClassifierChoice | None:
    """Compare classifiers on a sample of the training rows, and choose one; see `choose_classifier`."""
    labels = snapshot.column("labels")
    chosen = {
        name: subsample(parts[name], labels[parts[name]], most, options.seed)
        for name, most in (("train", CHOICE_ROWS), ("validation", CHOICE_ROWS // 4))
    }
    train_rows, validation = (Examples.from_snapshot(snapshot, positions) for positions in chosen.values())
    files = file_groups(snapshot.column("digests")[chosen["train"]])

    def fit(name: str, rows: Examples, others: Examples) -> Scorer:
        fitted = fit_classifier(name, rows, others, c=options.c, seed=options.seed, triplet=options.triplet)
        return fitted.decision_function

    return choose_classifier(
        fit, train_rows, validation, files, candidates=candidates, seed=options.seed, on_progress=on_progress
    )


def _evaluate_baselines(
    snapshot: Snapshot, parts: Mapping[str, Positions], options: TrainOptions, on_progress: Progress
) -> tuple[dict[str, BaselineResult], Positions]:
    """Fit and measure the baselines; also returns the positions of the test rows they are measured on."""
    on_progress("rows for the baselines")
    labels = snapshot.column("labels")
    used = {name: subsample(parts[name], labels[parts[name]], BASELINE_ROWS[name], options.seed) for name in parts}
    examples = {name: Examples.from_snapshot(snapshot, positions) for name, positions in used.items()}
    train_rows, validation, test = (examples[name] for name in ("train", "validation", "test"))
    note = ""
    if len(used["test"]) < len(parts["test"]):
        note = f"measured on {len(used['test']):,} of {len(parts['test']):,} test rows, drawn at random"
    results = {}
    for name in options.baselines:
        if name == SAME_AS.get(options.classifier_name):
            continue  # it is the head itself
        on_progress(baseline_name(name).phrase)
        fitted_on = len(train_rows)
        if name == "linear_probe" and len(train_rows) < len(parts["train"]):
            fitted_on = len(parts["train"])
            scorer = linear_probe(train_rows, validation, options.seed, StoredRows(snapshot, parts["train"]))
        else:
            scorer = BASELINES[name](train_rows, validation, options.seed)
        results[name] = evaluate_baseline(scorer, validation, test, fitted_on, note)
    return results, used["test"]


@dataclass(frozen=True)
class TrainingSet:
    """The rows that a head is fitted on."""

    snapshot: Snapshot
    split: Split  # saved with the head
    train: Labelled
    validation: Labelled  # for early stopping


def fit_head(
    rows: TrainingSet, options: TrainOptions, on_progress: Progress | None = None, *, svm_rows: int = 0
) -> tuple[Head, list[TripletEpoch]]:
    """Fit the classifier that the options name, not AUTO; the head has no threshold or metrics yet.

    Parameters
    ----------
    svm_rows : number of rows that decides whether the SVM is exact or approximate; 0 for that of the training rows
    """
    on_progress = on_progress or (lambda step: None)
    name = options.classifier_name
    if name != TRIPLET_SVM:
        require_choice(name, "classifier to fit", CLASSIFIERS)
        on_progress(CLASSIFIERS[name])
        fitted = fit_classifier(name, rows.train, rows.validation, c=options.c, seed=options.seed, svm_rows=svm_rows)
        return _head(rows, options, fitted), []
    kind = options.kind or "linear"
    vocabulary = Vocabulary.from_texts(rows.snapshot.texts) if kind in FUSIONS else None
    fitted = fit_triplet_svm(
        rows.train,
        rows.validation,
        options.triplet,
        kind=kind,
        texts=None if vocabulary is None else partial(_text_vectors, vocabulary),
        c=options.c,
        seed=options.seed,
        svm_rows=svm_rows,
        on_epoch=lambda e: on_progress(
            f"triplets, epoch {e.epoch}: loss {e.loss:.4f}, validation {e.validation_loss:.4f}"
        ),
    )
    return _head(rows, options, fitted, vocabulary), list(fitted.log)


def _head(
    rows: TrainingSet, options: TrainOptions, fitted: FittedClassifier, vocabulary: Vocabulary | None = None
) -> Head:
    return Head(
        rows.snapshot.space,
        rows.snapshot.number,
        rows.split,
        fitted.projection,
        fitted.classifier,
        vocabulary=vocabulary,
        options=options.to_dict() | {"classifier": options.classifier_name, "c": fitted.c},
    )


def _text_vectors(vocabulary: Vocabulary, vectors: Vectors, categories: Names) -> Vectors:
    return vocabulary.text_vectors(vectors, "given", categories)


def make_split(snapshot: Snapshot, options: TrainOptions) -> tuple[Split, dict[str, Positions]]:
    """Split the rows that the options select; also returns the positions of each part, ascending."""
    labels = snapshot.column("labels")
    chosen = choose(
        labels, snapshot.column("sources"), only=options.sources, balanced=options.balanced, seed=options.seed
    )
    groups = file_groups(snapshot.column("digests")[chosen]) if options.recipe == "grouped" else None
    keys = snapshot.column("keys")[chosen]
    split = Split.make(keys, labels[chosen], recipe=options.recipe, seed=options.seed, groups=groups)
    parts = split.parts_of(keys)
    return split, {name: chosen[parts == part] for name, part in PARTS.items()}


def count_test_copies(snapshot: Snapshot, parts: Mapping[str, Positions]) -> int:
    """Count the test rows whose file is also in another part."""
    files = file_groups(snapshot.column("digests"))
    trained = np.concatenate([files[parts[name]] for name in ("train", "validation")])
    return int(np.isin(files[parts["test"]], trained).sum())


def file_groups(digests: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """(rows,) numbers that are equal for files with the same bytes; a row without a digest has its own.

    Parameters
    ----------
    digests : (rows,) V16
    """
    halves = np.ascontiguousarray(digests).view("<u8").reshape(-1, 2)
    groups = np.unique(halves[:, 0], return_inverse=True)[1].astype(np.int64)
    unknown = ~halves.any(axis=1)
    groups[unknown] = len(groups) + np.arange(unknown.sum())
    return groups


def decision_values(
    head: Head, snapshot: Snapshot, positions: Positions, mode: Mode = "zero-shot"
) -> npt.NDArray[np.float64]:
    """(n,) decision values of the rows of a snapshot, whose vectors are read in batches."""
    categories = snapshot.column("categories") if mode == "given" else None
    scores = [np.zeros(0)]
    for start in range(0, len(positions), ROWS_AT_ONCE):
        batch = positions[start : start + ROWS_AT_ONCE]
        of_batch = None if categories is None else categories[batch]
        scores.append(head.decision_function(snapshot.vectors(batch), mode=mode, categories=of_batch))
    return np.concatenate(scores)
