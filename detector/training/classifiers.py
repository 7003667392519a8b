"""Fitting of every classifier of a head, with the projection before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...store.records import Ints
from ..head import TRIPLET_SVM, Classifier
from ..projection import Projected, Projection
from .examples import Labelled, batches, reject_equal
from .logistic import fit_logistic
from .svm_training import fit_stream
from .triplet import Texts, TripletEpoch, TripletOptions, fit_projection, projected_batches

IDENTITY = Projection("identity", {})
COMPONENTS = 128  # principal components, at most
TRIPLET_C = 1.0  # penalty of a row on the wrong side of the margin, of the source paper's SVM
# The same of SVMs on stored vectors. On sources left out of minifact and morefact, 10 gives both a mean AUC that is .01
# higher than with 1, about one standard error (`benchmarks.detector.classifiers`); more than 10 changes nothing.
SVM_C = 10.0


@dataclass(frozen=True)
class FittedClassifier:
    """A classifier, the projection before it, and its regularization parameter C."""

    projection: Projection
    classifier: Classifier
    c: float
    log: tuple[TripletEpoch, ...] = ()  # of a projection trained with triplets

    def decision_function(self, rows: Labelled) -> npt.NDArray[np.float64]:
        """(rows,) decision values of rows, above 0 leans fake; not for a projection that reads text."""
        scores = [self.classifier.decision_function(self.projection(vectors)) for _, vectors in batches(rows)]
        return np.concatenate(scores) if scores else np.zeros(0)


def fit_classifier(
    name: str,
    train: Labelled,
    validation: Labelled,
    *,
    c: float | None = None,
    seed: int = 0,
    svm_rows: int = 0,
    triplet: TripletOptions = TripletOptions(),
) -> FittedClassifier:
    """Fit a classifier by its name, one of `head.TITLES`. Vectors are read in batches where there are many rows.

    Parameters
    ----------
    validation : rows that end the training of "triplet-svm" and choose C of "logistic"
    c : regularization parameter C (default: `TRIPLET_C` or `SVM_C`; of "logistic", the best on the validation rows)
    svm_rows : number of rows that decides whether the SVM is exact or approximate; 0 for that of the training rows
    triplet : options of "triplet-svm"

    Raises
    ------
    HeadError
        All vectors are equal, no triplet can be drawn, or the projection collapsed.
    """
    if name == TRIPLET_SVM:
        return fit_triplet_svm(train, validation, triplet, c=c, seed=seed, svm_rows=svm_rows)
    reject_equal(train)
    if name == "logistic":
        return FittedClassifier(IDENTITY, *fit_logistic(train, validation, c=c, seed=seed))
    projection = principal_components(train) if name == "pca-svm" else IDENTITY
    return _with_svm(projection, train, SVM_C if c is None else c, seed, svm_rows)


def fit_triplet_svm(
    train: Labelled,
    validation: Labelled,
    options: TripletOptions,
    *,
    kind: str = "linear",
    texts: Texts | None = None,
    c: float | None = None,
    seed: int = 0,
    svm_rows: int = 0,
    on_epoch: Callable[[TripletEpoch], None] | None = None,
) -> FittedClassifier:
    """Fit a projection with the triplet loss, then an SVM: the source paper's head. See `fit_projection`."""
    projection, log = fit_projection(kind, train, validation, options, texts=texts, seed=seed, on_epoch=on_epoch)
    c = TRIPLET_C if c is None else c
    return _with_svm(projection, train, c, seed, svm_rows, texts, tuple(log))


def _with_svm(
    projection: Projection,
    train: Labelled,
    c: float,
    seed: int,
    svm_rows: int,
    texts: Texts | None = None,
    log: tuple[TripletEpoch, ...] = (),
) -> FittedClassifier:
    def projected() -> Iterator[tuple[Projected, Ints]]:
        for batch, vectors in projected_batches(projection, train, texts):
            yield vectors, train.labels[batch]

    svm = fit_stream(projected, svm_rows or len(train), c=c, seed=seed)
    return FittedClassifier(projection, svm, c, log)


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
