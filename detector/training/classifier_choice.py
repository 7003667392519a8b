"""Choice of a head's classifier: the one that is best on sources that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import HeadError
from ...store.records import FAKE, REAL, distinct
from ..head import TITLES
from ..metrics import Interval, auc
from .examples import Examples

# Simplest and fastest first: the first that is not clearly worse than the best is chosen.
CANDIDATES = ("logistic", "pca-svm", "rbf-svm", "triplet-svm")
ROWS = 6_000  # training rows on which classifiers are compared, at most
FOLDS = 6  # fits of each classifier, at most
FOLDS_OF_ROWS = 4  # the same where no source can be left out

Scorer = Callable[[Examples], npt.NDArray[np.float64]]
Fit = Callable[[str, Examples, Examples], Scorer]  # a classifier's name, training and validation rows


@dataclass(frozen=True)
class CandidateResult:
    """AUCs of a classifier, one for each left-out source or fold of rows."""

    name: str
    aucs: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean AUC."""
        return float(np.mean(self.aucs))

    @property
    def interval(self) -> Interval | None:
        """95 % confidence interval of the mean AUC over sources; None for a single one."""
        interval = mean_interval(self.aucs)
        return interval and (max(0.0, interval[0]), min(1.0, interval[1]))

    def __str__(self) -> str:
        interval = self.interval
        return f"{self.name} {self.mean:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


@dataclass(frozen=True)
class ClassifierChoice:
    """The chosen classifier, and how all compared."""

    chosen: str
    results: tuple[CandidateResult, ...]  # best first
    left_out: tuple[str, ...]  # names of the left-out sources, "real NAME" or "fake NAME"; () for folds of rows
    rows: int  # number of training rows on which they were compared

    @classmethod
    def of(cls, results: Sequence[CandidateResult], left_out: Sequence[str], rows: int) -> ClassifierChoice:
        """Take the simplest classifier whose mean AUC is at most one standard error below the best.

        The standard error is that of the paired difference from the best, over the sources.
        """
        best = max(results, key=lambda result: result.mean)
        chosen = next(result for result in _simplest_first(results) if _is_tie(best, result))
        ordered = sorted(results, key=lambda result: -result.mean)
        return cls(chosen.name, tuple(ordered), tuple(left_out), rows)

    @property
    def sentence(self) -> str:
        """The choice, its reason, and each classifier's figure with its interval."""
        how = (
            f"on {len(self.left_out)} sources of the training rows, each left out in turn"
            if self.left_out
            else "on held-out training rows, as no class has two sources of which one could be left out"
        )
        best = self.results[0].name
        why = "the best" if best == self.chosen else f"simpler than {best} and within one standard error of it"
        return (
            f"The classifier is {self.chosen} ({TITLES[self.chosen]}), {why} by mean AUC {how}: "
            f"{', '.join(map(str, self.results))}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types."""
        return {
            "chosen": self.chosen,
            "left_out": list(self.left_out),
            "rows": self.rows,
            "results": [
                {
                    "classifier": result.name,
                    "auc": round(result.mean, 6),
                    "interval": result.interval and [round(end, 6) for end in result.interval],
                    "aucs": [round(value, 4) for value in result.aucs],
                }
                for result in self.results
            ],
            "sentence": self.sentence,
        }


def _simplest_first(results: Sequence[CandidateResult]) -> list[CandidateResult]:
    return sorted(results, key=lambda result: CANDIDATES.index(result.name))


def _is_tie(best: CandidateResult, other: CandidateResult) -> bool:
    differences = np.subtract(best.aucs, other.aucs)
    return float(differences.mean()) <= _standard_error(differences)


def _standard_error(values: Any) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Fold:
    """Rows of one fit: those of left-out sources and a share of the others are held out."""

    left_out: tuple[int, ...]  # numbers of the left-out groups
    held: npt.NDArray[np.bool_]  # (rows,) of the left-out groups, or held out at random
    train: npt.NDArray[np.bool_]  # (rows,)


def choose_classifier(
    fit: Fit,
    train: Examples,
    validation: Examples,
    files: npt.NDArray[np.int64],
    *,
    candidates: Sequence[str] = CANDIDATES,
    seed: int = 0,
    on_progress: Callable[[str], None] | None = None,
) -> ClassifierChoice | None:
    """Compare classifiers by `left_out_aucs` and choose one; None if the rows are too few."""
    results, measured = left_out_aucs(fit, train, validation, files, candidates, seed=seed, on_progress=on_progress)
    return ClassifierChoice.of(results, [title for title in measured if title], len(train)) if results else None


def left_out_aucs(
    fit: Fit,
    train: Examples,
    validation: Examples,
    files: npt.NDArray[np.int64],
    candidates: Sequence[str],
    *,
    seed: int = 0,
    on_progress: Callable[[str], None] | None = None,
) -> tuple[list[CandidateResult], list[str]]:
    """AUCs of candidates on left-out sources inside the training rows, and the names of these sources.

    Every source, real or fake, is left out once if its class has another one; at most `FOLDS` heads are fitted, each
    without a few sources. The rows of a left-out source are compared with rows of the other class that are held out at
    random, of sources that the head has seen. Without such sources, held-out rows of both classes are compared, and the
    names are "". A candidate that cannot be fitted to one of the folds drops out. There are no results if the rows are
    too few.

    Parameters
    ----------
    fit : fits a candidate by its name on training and validation rows, and returns its decision function
    files : (rows of train,) numbers that are equal for copies of a file, which are held out together
    """
    groups, names = source_groups(train)
    folds = make_folds(train.labels, groups, names, files, seed)
    aucs: dict[str, list[float]] = {name: [] for name in candidates}
    measured: list[str] = []
    for number, fold in enumerate(folds):
        left_out = [names[g] for g in fold.left_out]
        rows, kept = train.take(fold.train), validation.take(~_of_sources(validation, left_out))
        held = train.take(fold.held)
        pairs = list(_comparisons(held.labels, groups[fold.held], fold.left_out, names))
        if not pairs or len(np.unique(rows.labels)) < 2:
            continue
        if min(np.bincount(kept.labels, minlength=2)) < 2:
            kept = rows
        for name in list(aucs):
            if on_progress:
                on_progress(f"{name} without some sources, {number + 1} of {len(folds)}")
            try:
                scores = fit(name, rows, kept)(held)
            except HeadError:  # it cannot be fitted to so few rows, or to equal ones
                del aucs[name]
                continue
            aucs[name] += [auc(held.labels[pair], scores[pair]) or 0.0 for _, pair in pairs]
        measured += [title for title, _ in pairs]
    return [CandidateResult(name, tuple(values)) for name, values in aucs.items() if values], measured


def mean_interval(values: Sequence[float]) -> Interval | None:
    """95 % confidence interval of the mean of independent values (Student's t); None for a single one."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    mean, half = float(np.mean(values)), float(t.ppf(0.975, len(values) - 1)) * _standard_error(values)
    return mean - half, mean + half


def source_groups(rows: Examples) -> tuple[npt.NDArray[np.int64], list[tuple[int, str]]]:
    """(rows,) number of each row's class and source; (label, source) of each number."""
    sources, codes, _ = distinct(rows.sources)
    used, groups = np.unique(rows.labels.astype(np.int64) * len(sources) + codes, return_inverse=True)
    return groups, [(int(code) // len(sources), str(sources[int(code) % len(sources)])) for code in used]


def make_folds(
    labels: npt.NDArray[np.integer[Any]],
    groups: npt.NDArray[np.int64],
    names: Sequence[tuple[int, str]],
    files: npt.NDArray[np.int64],
    seed: int,
) -> list[Fold]:
    """Divide the sources that can be left out among the folds, evenly by rows, and all files at random."""
    of_class = {label: [g for g, (of, _) in enumerate(names) if of == label] for label in (REAL, FAKE)}
    can_be_left_out = [members for members in of_class.values() if len(members) > 1]
    number = min(FOLDS, max(map(len, can_be_left_out))) if can_be_left_out else FOLDS_OF_ROWS
    sizes = np.bincount(groups, minlength=len(names))
    left_out: list[list[int]] = [[] for _ in range(number)]
    for members in can_be_left_out:
        load = np.zeros(number, np.int64)
        for group in sorted(members, key=lambda g: -sizes[g]):
            lightest = int(load.argmin())
            load[lightest] += sizes[group]
            left_out[lightest].append(group)
    numbers, file = np.unique(files, return_inverse=True)
    fold_of_file = np.random.default_rng([seed, 7]).permutation(np.arange(len(numbers)) % number)
    folds = []
    for fold, without in enumerate(left_out):
        held = np.isin(groups, without) | (fold_of_file[file] == fold)
        train = ~np.isin(file, file[held])  # no copy of a held-out file
        folds.append(Fold(tuple(without), held, train))
    return folds


def _comparisons(
    labels: npt.NDArray[np.integer[Any]],
    groups: npt.NDArray[np.int64],
    left_out: Sequence[int],
    names: Sequence[tuple[int, str]],
) -> Any:
    """Yield a title and the mask of the held-out rows of each comparison that has both classes."""
    seen = ~np.isin(groups, left_out)
    masks = [
        (f"{('real', 'fake')[names[g][0]]} {names[g][1]}", (groups == g) | (seen & (labels != names[g][0])))
        for g in left_out
    ]
    for title, mask in masks or [("", seen)]:
        if len(np.unique(labels[mask])) == 2:
            yield title, mask


def _of_sources(rows: Examples, names: Sequence[tuple[int, str]]) -> npt.NDArray[np.bool_]:
    mask = np.zeros(len(rows), bool)
    for label, source in names:
        mask |= (rows.labels == label) & (rows.sources == source)
    return mask
