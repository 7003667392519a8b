"""Fitting of a support vector machine: scikit-learn's SVC for few rows, a Nyström approximation for many."""

from __future__ import annotations

import numpy as np

from ...store.records import Ints, Vectors
from ..svm import Svm, rbf_kernel
from .nystroem import Blocks, fit_nystroem

EXACT = 60_000  # rows up to which the exact SVM is fitted
KERNEL_IN_MEMORY = 8_192  # rows up to which all kernel values (512 MiB) are one matrix product, several times as fast
NARROW = 256  # dimensions beyond which the exact SVM takes minutes with more rows than that, and is not fitted
ROWS_AT_ONCE = 16_384


def fit_svm(vectors: Vectors, labels: Ints, *, c: float = 1.0, seed: int = 0) -> Svm:
    """Fit the exact SVM, or for many rows its Nyström approximation (see `is_exact`); gamma = 1 / (dim · variance).

    The time of the exact SVM grows with the square of the number of rows.

    Parameters
    ----------
    vectors : (n, dim)
    labels : (n,) 0 or 1
    c : penalty of a row on the wrong side of its margin
    """
    return fit_stream(lambda: [(vectors, labels)], len(vectors), c=c, seed=seed)


def fit_stream(blocks: Blocks, rows: int, *, c: float = 1.0, seed: int = 0) -> Svm:
    """Fit as `fit_svm` does, from `rows` rows in blocks. For an approximation, only one block is in memory."""
    gamma, dim = _scale_gamma(blocks)
    if not is_exact(rows, dim):
        return fit_nystroem(blocks, gamma=gamma, c=c, seed=seed)
    from sklearn.svm import SVC

    read = list(blocks())
    vectors, labels = (np.concatenate([block[i] for block in read]) for i in (0, 1))
    if len(labels) <= KERNEL_IN_MEMORY:
        svc = SVC(C=c, kernel="precomputed").fit(rbf_kernel(vectors, vectors, gamma), labels)
    else:
        svc = SVC(C=c, kernel="rbf", gamma=gamma, cache_size=1000).fit(vectors, labels)
    return Svm(
        np.asarray(vectors[svc.support_], np.float32),
        np.asarray(svc.dual_coef_[0], np.float64),
        float(svc.intercept_[0]),
        gamma,
    )


def is_exact(rows: int, dim: int) -> bool:
    """True if the SVM on so many rows of so many dimensions is exact, False if it is approximate."""
    return rows <= (EXACT if dim <= NARROW else min(EXACT, KERNEL_IN_MEMORY))


def scale_gamma(vectors: Vectors) -> float:
    """scikit-learn's gamma="scale": 1 / (dim · variance of all entries), 1 without variance."""
    return _scale_gamma(lambda: [(vectors, np.zeros(0, np.int8))])[0]


def _scale_gamma(blocks: Blocks) -> tuple[float, int]:
    """Gamma, and the number of dimensions."""
    count, total, squares, dim, origin = 0, 0.0, 0.0, 1, None
    for vectors, _ in blocks():
        for start in range(0, len(vectors), ROWS_AT_ONCE):
            batch = np.asarray(vectors[start : start + ROWS_AT_ONCE], np.float64)
            origin = (
                float(batch.flat[0]) if origin is None else origin
            )  # so that equal entries have exactly no variance
            batch = batch - origin
            count, dim = count + batch.size, batch.shape[1]
            total += float(batch.sum())
            squares += float((batch**2).sum())
    variance = squares / max(count, 1) - (total / max(count, 1)) ** 2
    return (1.0 / (dim * variance) if variance > 0 else 1.0), dim
