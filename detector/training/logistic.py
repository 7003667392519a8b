"""Logistic regression on stored vectors: chosen regularization, any number of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...store.records import Vectors
from ..linear import LinearClassifier
from ..metrics import auc
from .examples import Examples, Labelled, batches, sample

INVERSE_REGULARIZATION = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 10.0, 100.0)  # C, tried in turn
PAST_THE_BEST = 0.02  # loss of validation AUC at which no larger C is tried
SAMPLE = 100_000  # training rows in memory; the fit to them is refined on all rows
VALIDATION = 10_000  # validation rows that choose C, at most
NEWTON_STEPS = 8  # over all rows, at most
TOLERANCE = 1e-4  # relative change of the weights at which Newton's method stops


def fit_logistic(
    train: Labelled, validation: Labelled, *, c: float | None = None, seed: int = 0
) -> tuple[LinearClassifier, float]:
    """Logistic regression on the stored vectors (Ojha et al. 2023), and its C.

    Parameters
    ----------
    train : rows to fit on; of more than `SAMPLE`, a sample is fitted first and then refined on all, in batches
    validation : rows that choose C, by their AUC, unless `c` is given
    """
    few = sample(train, SAMPLE, seed)
    return fit_in_memory(few, sample(validation, VALIDATION, seed), c, train if len(few) < len(train) else None)


def fit_in_memory(
    train: Examples, validation: Examples, c: float | None = None, all_rows: Labelled | None = None
) -> tuple[LinearClassifier, float]:
    """The same for rows in memory, refined on `all_rows` if `train` is a sample of them.

    Vectors are centred and divided by one number, so that C means the same for every encoder and the relative scale of
    the directions is kept.
    """
    from sklearn.linear_model import LogisticRegression

    scaling = _Scaling(train.vectors.mean(0), float(train.vectors.std(0).mean()) or 1.0)
    x, x_validation = (scaling(part.vectors) for part in (train, validation))
    best_auc, best_c, weights = -1.0, 1.0, np.zeros(x.shape[1] + 1)
    model = LogisticRegression(warm_start=True, max_iter=2000)
    for tried in INVERSE_REGULARIZATION if c is None else (c,):
        model.set_params(C=tried).fit(x, train.labels)
        validation_auc = auc(validation.labels, x_validation @ model.coef_[0]) or 0.0
        if validation_auc > best_auc:
            best_auc, best_c = validation_auc, tried
            weights = np.append(model.coef_[0].astype(np.float64), float(model.intercept_[0]))
        elif validation_auc < best_auc - PAST_THE_BEST:  # less regularization overfits more, and takes longest
            break
    if all_rows is not None:
        weights = _refine(weights, best_c, all_rows, scaling)
    coefficients = weights[:-1] / scaling.scale
    return LinearClassifier(coefficients, float(weights[-1] - scaling.mean @ coefficients)), best_c


@dataclass(frozen=True)
class _Scaling:
    """Centring of vectors, and division by one number."""

    mean: Vectors  # (dim,)
    scale: float

    def __call__(self, vectors: Vectors) -> Vectors:
        return np.asarray((vectors - self.mean) / np.float32(self.scale))


def _refine(weights: npt.NDArray[np.float64], c: float, rows: Labelled, scaling: _Scaling) -> npt.NDArray[np.float64]:
    """Fit a logistic regression to any number of rows with Newton's method, in batches.

    Parameters
    ----------
    weights : (dim + 1,) initial weights of the scaled vectors, the intercept last
    c : inverse of the regularization strength

    Returns
    -------
    (dim + 1,) float64
    """
    penalty = np.append(np.full(len(weights) - 1, 1 / c), 0.0)  # the intercept is not regularized
    for _ in range(NEWTON_STEPS):
        hessian, gradient = np.diag(penalty), -penalty * weights
        for batch, vectors in batches(rows):
            x = np.pad(scaling(vectors), ((0, 0), (0, 1)), constant_values=1.0)
            predicted = 1 / (1 + np.exp(-np.clip(x @ weights.astype(np.float32), -50, 50)))
            gradient += x.T @ (rows.labels[batch] - predicted).astype(np.float32)
            x *= np.sqrt(predicted * (1 - predicted))[:, None]
            hessian += x.T @ x  # symmetric, so BLAS computes only one half
        step = np.linalg.solve(hessian, gradient)
        weights = weights + step
        if np.linalg.norm(step) <= TOLERANCE * np.linalg.norm(weights):
            break
    return weights
