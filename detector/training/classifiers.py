"""The classifiers that read the stored vectors: an RBF SVM, with or without principal components, and a linear one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...store.records import Ints, Vectors
from ..head import Classifier
from ..projection import Projection
from .examples import Labelled, batches
from .logistic import fit_logistic
from .svm_training import fit_stream

IDENTITY = Projection("identity", {})
COMPONENTS = 128  # principal components, at most
SVM_C = 1.0  # penalty of a row on the wrong side of an SVM's margin


@dataclass(frozen=True)
class FittedClassifier:
    """A classifier, the projection before it, and its regularization parameter C."""

    projection: Projection
    classifier: Classifier
    c: float

    def decision_function(self, vectors: Vectors) -> npt.NDArray[np.float64]:
        """(n,) decision values of (n, dim) stored vectors, above 0 leans fake."""
        return self.classifier.decision_function(self.projection(vectors))


def fit_classifier(
    name: str, train: Labelled, validation: Labelled, *, c: float | None = None, seed: int = 0, svm_rows: int = 0
) -> FittedClassifier:
    """Fit one of `FITS` on stored vectors, which are read in batches where there are many.

    Parameters
    ----------
    validation : rows that choose C for "logistic"
    c : regularization parameter C (default: `SVM_C` for an SVM, the best on the validation rows for "logistic")
    svm_rows : number of rows that decides whether the SVM is exact or approximate; 0 for that of the training rows
    """
    return FITS[name](train, validation, c, seed, svm_rows or len(train))


def _fit_rbf_svm(train: Labelled, validation: Labelled, c: float | None, seed: int, svm_rows: int) -> FittedClassifier:
    return _fit_svm(IDENTITY, train, SVM_C if c is None else c, seed, svm_rows)


def _fit_pca_svm(train: Labelled, validation: Labelled, c: float | None, seed: int, svm_rows: int) -> FittedClassifier:
    return _fit_svm(principal_components(train), train, SVM_C if c is None else c, seed, svm_rows)


def _fit_logistic(train: Labelled, validation: Labelled, c: float | None, seed: int, svm_rows: int) -> FittedClassifier:
    return FittedClassifier(IDENTITY, *fit_logistic(train, validation, c=c, seed=seed))


FITS: dict[str, Callable[[Labelled, Labelled, float | None, int, int], FittedClassifier]] = {
    "rbf-svm": _fit_rbf_svm,
    "pca-svm": _fit_pca_svm,
    "logistic": _fit_logistic,
}


def _fit_svm(projection: Projection, train: Labelled, c: float, seed: int, svm_rows: int) -> FittedClassifier:
    def projected() -> Iterator[tuple[Vectors, Ints]]:
        for batch, vectors in batches(train):
            yield projection(vectors), train.labels[batch]

    return FittedClassifier(projection, fit_stream(projected, svm_rows, c=c, seed=seed), c)


def principal_components(rows: Labelled, most: int = COMPONENTS) -> Projection:
    """The first principal components of the rows, at most `most`, from sums over the rows."""
    origin = rows.vectors_of([0])[0].astype(np.float64)  # near the mean, so that little is lost in the difference below
    total, square = np.zeros(len(origin)), np.zeros((len(origin),) * 2)
    for _, vectors in batches(rows):
        centred = vectors.astype(np.float64) - origin
        total += centred.sum(0)
        square += centred.T @ centred
    mean = total / len(rows)
    directions = np.linalg.eigh(square / len(rows) - np.outer(mean, mean))[1]  # ascending variance
    kept = directions[:, ::-1][:, : min(most, len(origin), len(rows))].T
    return Projection(
        "pca", {"W": np.ascontiguousarray(kept, np.float32), "b": (-kept @ (mean + origin)).astype(np.float32)}
    )
