"""Baselines that a head must beat to be worth having, from the majority class to an RBF SVM on raw vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from ...store.concatenated import concatenate
from ...store.records import FAKE, REAL, TextIndex, Vectors, distinct
from ...store.search.matches import Matches, nearest
from ..metrics import Metrics, best_threshold, measure
from ..projection import Projection
from .classifiers import fit_classifier
from .examples import Examples, Labelled
from .logistic import fit_in_memory
from .svm_training import fit_svm

Scorer = Callable[[Examples], npt.NDArray[np.float64]]  # (rows,) scores, above 0 leans fake
Fit = Callable[[Examples, Examples, int], Scorer]  # of training rows, validation rows and a seed

NEIGHBORS = (1, 3, 5, 9)
SIMILARITIES_IN_MEMORY = 2**25


@dataclass(frozen=True)
class BaselineResult:
    """A baseline's scores on the rows that the head is measured on."""

    metrics: dict[str, Metrics]  # by part: "validation" and "test"
    test_scores: npt.NDArray[np.float64]  # (test rows,)
    threshold: float  # chosen on validation
    fitted_on: int  # number of training rows
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        report: dict[str, Any] = {name: metrics.to_dict() for name, metrics in self.metrics.items()}
        return report | {"fitted_on": self.fitted_on} | ({"note": self.note} if self.note else {})


def majority(train: Examples, validation: Examples, seed: int) -> Scorer:
    """Predict the more frequent class of the training rows for every image."""
    fake = float((train.labels == FAKE).mean())
    return lambda rows: np.full(len(rows), fake - 0.5)


def category_only(train: Examples, validation: Examples, seed: int) -> Scorer:
    """Score an image by the log-odds of fake in its category, with one row of each class added (Laplace)."""
    known, codes, _ = distinct(train.categories)
    fake = np.bincount(codes, train.labels == FAKE, len(known)) + 1
    real = np.bincount(codes, train.labels == REAL, len(known)) + 1
    log_odds = np.append(np.log(fake / real), 0.0)  # the last one is of unknown categories
    index = TextIndex(known)
    return lambda rows: np.asarray(log_odds[index.find(rows.categories)])


def file_facts(train: Examples, validation: Examples, seed: int) -> Scorer:
    """Boosted trees on format, size, JPEG quality and bytes per pixel: what the files reveal without their pixels."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    # no early stopping: it would hold out some of the training rows
    trees = HistGradientBoostingClassifier(max_iter=100, max_leaf_nodes=15, early_stopping=False, random_state=seed)
    trees.fit(train.facts, train.labels)
    return lambda queries: np.asarray(trees.decision_function(queries.facts), np.float64)


def linear_probe(train: Examples, validation: Examples, seed: int, all_rows: Labelled | None = None) -> Scorer:
    """Logistic regression on the stored vectors (Ojha et al. 2023); C is chosen by validation AUC.

    Parameters
    ----------
    all_rows : all training rows if `train` is a sample of them: the fit to the sample is refined on them, in batches
    """
    classifier, _ = fit_in_memory(train, validation, all_rows=all_rows)
    return lambda queries: classifier.decision_function(queries.vectors)


def neighbor_rule(k: int) -> Fit:
    """Mean similarity to the k nearest fake rows minus that to the k nearest real ones (Ojha et al. 2023)."""

    def fit(train: Examples, validation: Examples, seed: int) -> Scorer:
        def score(rows: Examples) -> npt.NDArray[np.float64]:
            real, fake = _nearest_of_both_classes(train, rows, max(k, *NEIGHBORS))
            return fake.first(k).mean_similarity() - real.first(k).mean_similarity()

        return score

    return fit


# Cached for as long as both sets of rows exist, so that one search serves every k.
_matches: WeakKeyDictionary[Examples, WeakKeyDictionary[Examples, tuple[Matches, Matches]]] = WeakKeyDictionary()


def _nearest_of_both_classes(train: Examples, rows: Examples, k: int) -> tuple[Matches, Matches]:
    """The k nearest real and the k nearest fake training rows."""
    cached = _matches.setdefault(train, WeakKeyDictionary())
    if rows not in cached or cached[rows][0].k < k:
        queries, bank = concatenate([rows.vectors]), concatenate([train.vectors])  # of unit length, if they were not
        real, fake = (neighbors(queries, bank[train.labels == label], k) for label in (REAL, FAKE))
        cached[rows] = real, fake
    return cached[rows]


def neighbors(queries: Vectors, bank: Vectors, k: int) -> Matches:
    """The k nearest of (rows, dim) for (n, dim) queries, without the whole similarity matrix in memory."""
    positions = np.arange(len(bank), dtype=np.int64)
    size = max(1, SIMILARITIES_IN_MEMORY // max(len(bank), 1))
    parts = [nearest(queries[start : start + size], bank, positions, k) for start in range(0, len(queries), size)]
    if not parts:
        return Matches.none(0, k)
    return Matches(np.concatenate([m.rows for m in parts]), np.concatenate([m.similarity for m in parts]))


def lda(train: Examples, validation: Examples, seed: int) -> Scorer:
    """Fisher's linear discriminant with Ledoit-Wolf shrinkage."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    model.fit(train.vectors.astype(np.float64), train.labels)
    return lambda queries: np.asarray(model.decision_function(queries.vectors.astype(np.float64)), np.float64)


def pca_svm(train: Examples, validation: Examples, seed: int) -> Scorer:
    """128 principal components, then an SVM as in the head: a projection that is fitted without labels."""
    return fit_classifier("pca-svm", train, validation, seed=seed).decision_function


def random_svm(train: Examples, validation: Examples, seed: int) -> Scorer:
    """The head before its first training step: the same random projection, then the same SVM."""
    projection = Projection.initialize("linear", train.vectors, seed=seed)
    svm = fit_svm(projection(train.vectors), train.labels)
    return lambda queries: svm.decision_function(projection(queries.vectors))


def rbf_svm(train: Examples, validation: Examples, seed: int) -> Scorer:
    """An RBF SVM on the stored vectors."""
    return fit_classifier("rbf-svm", train, validation, seed=seed).decision_function


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
    """Choose the threshold of a fitted baseline on the validation rows and measure it on both parts."""
    scores = {"validation": scorer(validation), "test": scorer(test)}
    threshold = best_threshold(validation.labels, scores["validation"])[0]
    metrics = {
        name: measure(part.labels, scores[name], chosen=threshold)
        for name, part in (("validation", validation), ("test", test))
    }
    return BaselineResult(metrics, scores["test"], threshold, fitted_on, note)
