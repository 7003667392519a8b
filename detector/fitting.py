"""Which support vector machine for how many rows: scikit-learn's exact one, or Nyström's."""

from __future__ import annotations

import numpy as np

from ..store.block import Ints, Vectors
from .nystroem import fit_nystroem
from .svm import Svm

EXACT = 60_000  # rows


def fit_svm(vectors: Vectors, labels: Ints, *, c: float = 1.0, seed: int = 0) -> Svm:
    """The exact machine up to `EXACT` rows, above that Nyström's; gamma = 1 / (dim · variance).

    The exact one looks at every pair of rows: twice the rows take four times as long.

    Parameters
    ----------
    vectors : (n, dim)
    labels : (n,) 0 or 1
    c : the price of a row on the wrong side
    """
    gamma = scale_gamma(vectors)
    if len(vectors) > EXACT:
        return fit_nystroem(lambda: [(vectors, labels)], gamma=gamma, c=c, seed=seed)
    from sklearn.svm import SVC

    found = SVC(C=c, kernel="rbf", gamma=gamma, cache_size=1000).fit(vectors, labels)
    return Svm(
        np.asarray(found.support_vectors_, np.float32),
        np.asarray(found.dual_coef_[0], np.float64),
        float(found.intercept_[0]),
        gamma,
    )


def scale_gamma(vectors: Vectors) -> float:
    """scikit-learn's gamma="scale": 1 / (dim · variance of all entries), 1 where there is no variance."""
    variance = float(np.var(np.asarray(vectors, np.float64)))
    return 1.0 / (vectors.shape[1] * variance) if variance > 0 else 1.0
