"""Baselines that a head must beat to be worth having, from the majority class to an RBF SVM on raw vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from ...store.records import FAKE, REAL, Vectors, distinct
from ...store.search.matches import Matches, nearest
from ..metrics import Metrics, auc, best_threshold, measure
from ..projection import Projection
from .examples import Examples, Labelled, batches
from .svm_training import fit_svm

Scorer = Callable[[Examples], npt.NDArray[np.float64]]  # (rows,) scores, above 0 leans fake
Fit = Callable[[Examples, Examples, int], Scorer]  # of training rows, validation rows and a seed

NEIGHBORS = (1, 3, 5, 9)
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 10.0, 100.0)  # C of the linear probe
STEPS, CLOSE = 8, 1e-4  # over all rows at most, and the relative change at which they end
CELLS = 2**25  # similarities in memory at a time


@dataclass(frozen=True)
class BaselineResult:
    """A baseline's scores on the rows that the head is measured on."""

    metrics: dict[str, Metrics]  # of "validation" and "test"
    test_scores: npt.NDArray[np.float64]  # (test rows,)
    threshold: float  # chosen on validation
    fitted_on: int  # training rows
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        report: dict[str, Any] = {name: metrics.to_dict() for name, metrics in self.metrics.items()}
        return report | {"fitted_on": self.fitted_on} | ({"note": self.note} if self.note else {})


def majority(train: Examples, validation: Examples, seed: int) -> Scorer:
    """The more frequent class of the training rows, whatever the picture."""
    fake = float((train.labels == FAKE).mean())
    return lambda rows: np.full(len(rows), fake - 0.5)


def category_only(train: Examples, validation: Examples, seed: int) -> Scorer:
    """The log-odds of fake in the picture's category, one row of each class added (Laplace)."""
    known, which, _ = distinct(train.categories)
    fake = np.bincount(which, train.labels == FAKE, len(known)) + 1
    real = np.bincount(which, train.labels == REAL, len(known)) + 1
    odds = np.log(fake / real)

    def score(rows: Examples) -> npt.NDArray[np.float64]:
        place = np.minimum(np.searchsorted(known, rows.categories), len(known) - 1)
        return np.where(known[place] == rows.categories, odds[place], 0.0)

    return score


def file_facts(train: Examples, validation: Examples, seed: int) -> Scorer:
    """Boosted trees on format, size, JPEG quality and bytes per pixel: how much the files alone give away."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    # no early stopping: it would hold back training rows by a split of its own
    trees = HistGradientBoostingClassifier(max_iter=100, max_leaf_nodes=15, early_stopping=False, random_state=seed)
    trees.fit(train.facts, train.labels)
    return lambda queries: np.asarray(trees.decision_function(queries.facts), np.float64)


def linear_probe(train: Examples, validation: Examples, seed: int, everyone: Labelled | None = None) -> Scorer:
    """Logistic regression on the stored vectors (Ojha et al. 2023), as strong as validation AUC likes it best.

    Where `train` are only some of the rows there are, `everyone` are all: they are gone through a piece at a time, from
    what the some have taught.

    Vectors are centred and divided by one number, so that C means the same for every encoder while the directions
    keep their proportions.
    """
    from sklearn.linear_model import LogisticRegression

    middle = train.vectors.mean(0)
    size = float(train.vectors.std(0).mean()) or 1.0
    x, held = ((part.vectors - middle) / size for part in (train, validation))
    best: tuple[float, Any, float, float] = (-1.0, None, 0.0, 1.0)
    model = LogisticRegression(warm_start=True, max_iter=2000)
    for strength in STRENGTHS:
        model.set_params(C=strength).fit(x, train.labels)
        found = auc(validation.labels, held @ model.coef_[0]) or 0.0
        if found > best[0]:
            best = (found, model.coef_[0].astype(np.float64), float(model.intercept_[0]), strength)
        elif found < best[0] - 0.02:  # past the best: less and less regularised only overfits, and takes longest
            break
    _, weights, intercept, strength = best
    if everyone is not None:
        weights, intercept = _refine(weights, intercept, strength, everyone, middle, size)
    return lambda queries: np.asarray((queries.vectors - middle) @ (weights / size) + intercept, np.float64)


def _refine(
    weights: npt.NDArray[np.float64], intercept: float, strength: float, rows: Labelled, middle: Vectors, size: float
) -> tuple[npt.NDArray[np.float64], float]:
    """Newton's method for a logistic regression over any number of rows, from where fewer rows had led."""
    dim = len(weights)
    now = np.append(weights, intercept)
    free = np.append(np.full(dim, 1 / strength), 0.0)  # the intercept costs nothing
    for _ in range(STEPS):
        square, pull = np.diag(free), -free * now
        for here, vectors in batches(rows):
            x = np.pad((vectors - middle) / np.float32(size), ((0, 0), (0, 1)), constant_values=1.0)
            predicted = 1 / (1 + np.exp(-np.clip(x @ now.astype(np.float32), -50, 50)))
            pull += x.T @ (rows.labels[here] - predicted).astype(np.float32)
            x *= np.sqrt(predicted * (1 - predicted))[:, None]
            square += x.T @ x  # a matrix with itself, of which BLAS computes one half
        step = np.linalg.solve(square, pull)
        now = now + step
        if np.linalg.norm(step) <= CLOSE * np.linalg.norm(now):
            break
    return now[:dim], float(now[dim])


def neighbor_rule(k: int) -> Fit:
    """Mean similarity to the k nearest fake rows minus that to the k nearest real ones (Ojha et al. 2023)."""

    def fit(train: Examples, validation: Examples, seed: int) -> Scorer:
        def score(rows: Examples) -> npt.NDArray[np.float64]:
            real, fake = _nearest_of_both_classes(train, rows, max(k, *NEIGHBORS))
            return fake.first(k).mean_similarity() - real.first(k).mean_similarity()

        return score

    return fit


# What was found is kept as long as those who asked and were asked, so that one search serves every k.
_found: WeakKeyDictionary[Examples, WeakKeyDictionary[Examples, tuple[Matches, Matches]]] = WeakKeyDictionary()


def _nearest_of_both_classes(train: Examples, rows: Examples, k: int) -> tuple[Matches, Matches]:
    """The k nearest real and the k nearest fake training rows."""
    known = _found.setdefault(train, WeakKeyDictionary())
    if rows not in known or known[rows][0].k < k:
        real, fake = (neighbors(rows.vectors, train.vectors[train.labels == label], k) for label in (REAL, FAKE))
        known[rows] = real, fake
    return known[rows]


def neighbors(queries: Vectors, bank: Vectors, k: int) -> Matches:
    """The k nearest of (rows, dim) for (n, dim) queries, without a similarity matrix of all with all."""
    positions = np.arange(len(bank), dtype=np.int64)
    size = max(1, CELLS // max(len(bank), 1))
    found = [nearest(queries[start : start + size], bank, positions, k) for start in range(0, len(queries), size)]
    if not found:
        return Matches.none(0, k)
    return Matches(np.concatenate([m.rows for m in found]), np.concatenate([m.similarity for m in found]))


def lda(train: Examples, validation: Examples, seed: int) -> Scorer:
    """Fisher's linear discriminant with Ledoit and Wolf's shrinkage."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    model.fit(train.vectors.astype(np.float64), train.labels)
    return lambda queries: np.asarray(model.decision_function(queries.vectors.astype(np.float64)), np.float64)


def pca_svm(train: Examples, validation: Examples, seed: int) -> Scorer:
    """128 principal components, then the head's own kind of SVM: what a projection that never saw a label gives."""
    from sklearn.decomposition import PCA

    dim = min(128, train.vectors.shape[1], len(train))
    pca = PCA(dim, svd_solver="covariance_eigh").fit(train.vectors.astype(np.float64))
    svm = fit_svm(pca.transform(train.vectors), train.labels)
    return lambda queries: svm.decision_function(pca.transform(queries.vectors))


def random_svm(train: Examples, validation: Examples, seed: int) -> Scorer:
    """The head before its first training step: the same random projection, then the same SVM."""
    projection = Projection.initialize("linear", train.vectors, seed=seed)
    svm = fit_svm(projection(train.vectors), train.labels)
    return lambda queries: svm.decision_function(projection(queries.vectors))


def rbf_svm(train: Examples, validation: Examples, seed: int) -> Scorer:
    """An RBF machine on the stored vectors themselves."""
    svm = fit_svm(train.vectors, train.labels)
    return lambda queries: svm.decision_function(queries.vectors)


BASELINES: dict[str, Fit] = {
    "majority": majority,
    "category_only": category_only,
    "file_facts": file_facts,
    "linear_probe": linear_probe,
    **{f"nearest_{k}": neighbor_rule(k) for k in NEIGHBORS},
    "lda": lda,
    "pca_svm": pca_svm,
    "random_svm": random_svm,
    "rbf_svm": rbf_svm,
}


def evaluate_baseline(
    scorer: Scorer, validation: Examples, test: Examples, fitted_on: int, note: str = ""
) -> BaselineResult:
    """Measure a fitted baseline: its threshold from validation, its figures on both."""
    scores = {"validation": scorer(validation), "test": scorer(test)}
    threshold = best_threshold(validation.labels, scores["validation"])[0]
    metrics = {
        name: measure(part.labels, scores[name], chosen=threshold)
        for name, part in (("validation", validation), ("test", test))
    }
    return BaselineResult(metrics, scores["test"], threshold, fitted_on, note)
