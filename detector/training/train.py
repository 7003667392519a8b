"""Train a head with its metrics on a snapshot of the store, and the baselines beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ...store.records import Ints, Names, Vectors
from ...store.search.matches import Positions
from ...store.snapshot import Snapshot
from ..comparison import Comparison, mcnemar
from ..head import Head
from ..metrics import Metrics, best_threshold, measure
from ..projection import FUSIONS, KINDS, Projected
from ..split import PARTS, RECIPES, Split, choose
from ..vocabulary import MODES, Mode, Vocabulary
from .baseline_names import baseline_name
from .baselines import BASELINES, BaselineResult, evaluate_baseline, linear_probe
from .examples import Examples, Labelled, StoredRows, subsample
from .svm_training import fit_stream
from .triplet import Texts, TripletEpoch, TripletOptions, fit_projection, projected_batches, require_choice

ROWS_AT_ONCE = 16_384  # scored in one go
LEARNED = 100_000  # rows a baseline learns from, at most; the linear probe ends with all
CHOSEN = 10_000  # validation rows that choose a baseline's strength and threshold, at most
COMPARED = 20_000  # test rows a baseline is measured on, at most; the head is measured on all


@dataclass(frozen=True)
class TrainOptions:
    """Options of training: what to train, and on which rows."""

    kind: str = "linear"  # of projection: linear or mlp on the image; sum, product, concat or triple on image and text
    triplet: TripletOptions = field(default_factory=TripletOptions)
    c: float = 1.0  # of the SVM
    sources: Sequence[str] = ()  # rows of these only; all for none
    balanced: bool = False  # as many real as fake rows
    recipe: str = ""  # of the split; "" for the paper's own
    seed: int = 0
    baselines: Sequence[str] = field(default_factory=lambda: tuple(BASELINES))

    def __post_init__(self) -> None:
        require_choice(self.kind, "kind", KINDS)
        require_choice(self.recipe or "paper", "recipe", RECIPES)
        for name in self.baselines:
            require_choice(name, "baseline", BASELINES)

    @property
    def split_recipe(self) -> str:
        """The paper's image + text pipeline splits a little differently from its image-only one."""
        return self.recipe or ("paper-text" if self.kind in FUSIONS else "paper")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sources": list(self.sources), "baselines": list(self.baselines)}


@dataclass(frozen=True)
class TrainReport:
    """A head, its figures, and what it is worth beside the baselines."""

    head: Head
    metrics: dict[str, Metrics]  # of "train", "validation" and "test"
    baselines: dict[str, BaselineResult]
    log: list[TripletEpoch]
    against_probe: Comparison | None  # McNemar on the same test rows; None without a linear probe
    best: str = ""  # the baseline with the highest validation AUC
    categories: dict[Mode, Metrics] = field(default_factory=dict)  # on text: test, by where a category comes from
    test_copies: int = 0  # test rows whose file is a training or validation row too

    @property
    def sentences(self) -> list[str]:
        """Summary, one sentence for each finding."""
        lines = []
        if self.test_copies:
            lines.append(
                f"{self.test_copies:,} of {self.metrics['test'].n:,} test rows are files that were trained with too, "
                f"which flatters every figure; `--split grouped` keeps copies on one side."
            )
        if self.against_probe is not None:
            lines.append(self.against_probe.sentence("The head", baseline_name("linear_probe").phrase))
        if self.best:
            head, other = self.metrics["test"].auc, self.baselines[self.best].metrics["test"].auc
            if head is not None and other is not None and other > head:
                lines.append(
                    f"The head falls below the best baseline, {baseline_name(self.best).phrase}: "
                    f"test AUC {head:.3f} against {other:.3f}."
                )
        return lines

    def to_dict(self) -> dict[str, Any]:
        return {
            "head": {name: metrics.to_dict() for name, metrics in self.metrics.items()},
            "categories": {mode: metrics.to_dict() for mode, metrics in self.categories.items()},
            "baselines": {name: baseline.to_dict() for name, baseline in self.baselines.items()},
            "against_linear_probe": self.against_probe.to_dict() if self.against_probe else None,
            "best_baseline": self.best or None,
            "test_copies": self.test_copies,
            "sentences": self.sentences,
            "epochs": [epoch.to_dict() for epoch in self.log],
            "snapshot": self.head.snapshot,
            "split": self.head.split.to_dict(),
            "seed": self.head.split.seed,
            "options": dict(self.head.options),
        }


Progress = Callable[[str], None]


def train(snapshot: Snapshot, options: TrainOptions = TrainOptions(), progress: Progress | None = None) -> TrainReport:
    """Split, fit the projection and its classifier, measure both and the baselines. Reads the store only.

    Projection and classifier learn from all training rows, and are measured on all rows, whose vectors are read a piece
    at a time. Baselines hold theirs in memory: they learn from `LEARNED` rows at most and are compared on `COMPARED`;
    the linear probe goes on to all, as sums suffice for it.

    Parameters
    ----------
    progress : told what is being done, in a few words

    Raises
    ------
    NotEnoughRows
        The rows hold one class only, or too few of one.
    HeadError
        An unknown option, no triplet as asked, a collapsed projection, or no text vectors for image and text.
    """
    on_progress = progress or (lambda what: None)
    split, parts = make_split(snapshot, options)
    labels = snapshot.column("labels")
    learning, choosing = (StoredRows(snapshot, parts[name]) for name in ("train", "validation"))
    head, log = fit_head(snapshot, split, learning, choosing, options, on_progress)
    on_progress("scores")
    scores = {name: decision_values(head, snapshot, positions) for name, positions in parts.items()}
    threshold = best_threshold(labels[parts["validation"]], scores["validation"])[0]
    metrics = {name: measure(labels[parts[name]], scores[name], chosen=threshold) for name in parts}
    head = replace(head, threshold=threshold, metrics={name: m.to_dict() for name, m in metrics.items()})
    categories: dict[Mode, Metrics] = {}
    for mode in MODES if head.vocabulary is not None else ():
        on_progress(f"scores with the category {mode}")
        found = scores["test"] if mode == "zero-shot" else decision_values(head, snapshot, parts["test"], mode)
        categories[mode] = measure(labels[parts["test"]], found, chosen=threshold)

    baselines, against_probe = {}, None
    if options.baselines:
        on_progress("rows for the baselines")
        most = {"train": LEARNED, "validation": CHOSEN, "test": COMPARED}
        some = {name: subsample(parts[name], labels[parts[name]], most[name], options.seed) for name in parts}
        examples = {name: Examples.from_snapshot(snapshot, positions) for name, positions in some.items()}
        note = ""
        if len(some["test"]) < len(parts["test"]):
            note = f"measured on {len(some['test']):,} of {len(parts['test']):,} test rows, drawn at random"
    for name in options.baselines:
        on_progress(baseline_name(name).phrase)
        known = examples["train"], examples["validation"], options.seed
        streamed = name == "linear_probe" and len(examples["train"]) < len(learning)
        scorer = linear_probe(*known, learning) if streamed else BASELINES[name](*known)
        fitted_on = len(learning) if streamed else len(examples["train"])
        baselines[name] = evaluate_baseline(scorer, examples["validation"], examples["test"], fitted_on, note)
    best = max(baselines, key=lambda name: baselines[name].metrics["validation"].auc or 0.0, default="")
    if "linear_probe" in baselines:
        test = examples["test"].labels
        heads = scores["test"][np.searchsorted(parts["test"], some["test"])]
        against_probe = mcnemar((heads > 0) == test, (baselines["linear_probe"].test_scores > 0) == test)
    return TrainReport(
        head, metrics, baselines, log, against_probe, best, categories, count_test_copies(snapshot, parts)
    )


def fit_head(
    snapshot: Snapshot,
    split: Split,
    learning: Labelled,
    choosing: Labelled,
    options: TrainOptions,
    progress: Progress | None = None,
    *,
    stands_for: int = 0,
) -> tuple[Head, list[TripletEpoch]]:
    """A head from the rows it learns from and those that choose when to stop; its split is only noted down.

    Parameters
    ----------
    stands_for : rows of the head whose place it takes, so that its machine is of the same kind; 0 for its own
    """
    on_progress = progress or (lambda what: None)
    vocabulary = Vocabulary.from_texts(snapshot.texts) if options.kind in FUSIONS else None
    texts: Texts | None = None
    if vocabulary is not None:
        texts = partial(_given, vocabulary)
    projection, log = fit_projection(
        options.kind,
        learning,
        choosing,
        options.triplet,
        texts=texts,
        seed=options.seed,
        on_epoch=lambda e: on_progress(
            f"triplets, epoch {e.epoch}: loss {e.loss:.4f}, validation {e.validation_loss:.4f}"
        ),
    )
    on_progress("support vector machine")

    def projected() -> Iterator[tuple[Projected, Ints]]:
        for here, points in projected_batches(projection, learning, texts):
            yield points, learning.labels[here]

    classifier = fit_stream(projected, stands_for or len(learning), c=options.c, seed=options.seed)
    head = Head(
        snapshot.space,
        snapshot.number,
        split,
        projection,
        classifier,
        vocabulary=vocabulary,
        options=options.to_dict(),
    )
    return head, log


def _given(vocabulary: Vocabulary, vectors: Vectors, categories: Names) -> Vectors:
    return vocabulary.text_vectors(vectors, "given", categories)


def make_split(snapshot: Snapshot, options: TrainOptions) -> tuple[Split, dict[str, Positions]]:
    """The split of a snapshot's chosen rows, and the positions of each part, ascending."""
    labels = snapshot.column("labels")
    chosen = choose(
        labels, snapshot.column("sources"), only=options.sources, balanced=options.balanced, seed=options.seed
    )
    groups = file_groups(snapshot.column("digests")[chosen]) if options.split_recipe == "grouped" else None
    keys = snapshot.column("keys")[chosen]
    split = Split.make(keys, labels[chosen], recipe=options.split_recipe, seed=options.seed, groups=groups)
    parts = split.parts_of(keys)
    return split, {name: chosen[parts == part] for name, part in PARTS.items()}


def count_test_copies(snapshot: Snapshot, parts: Mapping[str, Positions]) -> int:
    """Count the test rows whose file is in another part too."""
    files = file_groups(snapshot.column("digests"))
    known = np.concatenate([files[parts[name]] for name in ("train", "validation")])
    return int(np.isin(files[parts["test"]], known).sum())


def file_groups(digests: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """(rows,) numbers that are equal for files of the same bytes; a row without a digest stands alone.

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
    """(n,) the head's scores of rows of a snapshot, read a piece at a time."""
    categories = snapshot.column("categories") if mode == "given" else None
    found = [np.zeros(0)]
    for start in range(0, len(positions), ROWS_AT_ONCE):
        piece = positions[start : start + ROWS_AT_ONCE]
        given = None if categories is None else categories[piece]
        found.append(head.decision_function(snapshot.vectors(piece), mode=mode, categories=given))
    return np.concatenate(found)
