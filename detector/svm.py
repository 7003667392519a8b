"""A support vector machine with an RBF kernel, as arrays: asked with numpy, however it was fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.records import Vectors

ROWS_AT_ONCE = 4096  # of a kernel matrix in memory
CACHED = 256  # rows of it at a time that its steps find in the processor's cache


@dataclass(frozen=True)
class Svm:
    """f(x) = Σ weightᵢ exp(-gamma |x - vectorᵢ|²) + intercept, above 0 for fake.

    An exact machine's vectors are its support vectors; a Nyström one's are its landmarks. Both are asked alike.
    """

    vectors: Vectors  # (m, dim)
    weights: npt.NDArray[np.float64]  # (m,)
    intercept: float
    gamma: float

    def decision_function(self, vectors: Vectors) -> npt.NDArray[np.float64]:
        """(n,) decision values of (n, dim) vectors, above 0 leans fake."""
        result = np.empty(len(vectors), np.float64)
        for start in range(0, len(vectors), ROWS_AT_ONCE):
            here = slice(start, start + ROWS_AT_ONCE)
            result[here] = rbf_kernel(vectors[here], self.vectors, self.gamma) @ self.weights + self.intercept
        return result

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays to save, by name."""
        numbers = np.array([self.intercept, self.gamma], np.float64)
        return {"vectors": self.vectors, "weights": self.weights, "intercept_gamma": numbers}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Svm:
        intercept, gamma = arrays["intercept_gamma"].tolist()
        return cls(arrays["vectors"], arrays["weights"], intercept, gamma)


def rbf_kernel(x: Vectors, y: Vectors, gamma: float, dtype: type[np.floating[Any]] = np.float64) -> npt.NDArray[Any]:
    """(n, m) exp(-gamma |x - y|²)."""
    x, y = np.asarray(x, dtype), np.asarray(y, dtype)
    result = np.empty((len(x), len(y)), dtype)
    turned, lengths = np.ascontiguousarray((2 * gamma * y).T, dtype), ((y**2).sum(1) * -gamma).astype(dtype)
    for start in range(0, len(x), CACHED):
        here, rows = result[start : start + CACHED], x[start : start + CACHED]
        np.matmul(rows, turned, out=here)
        here += lengths
        here -= ((rows**2).sum(1) * gamma).astype(dtype)[:, None]
        np.minimum(here, 0, out=here)
        np.exp(here, out=here)
    return result
