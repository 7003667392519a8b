"""A support vector machine with an RBF kernel, as arrays: evaluated with numpy, however it was fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.records import Vectors

ROWS_AT_ONCE = 4096  # rows of the kernel matrix in memory
ROWS_IN_CACHE = 256  # rows of it computed at a time, few enough for the processor's cache


@dataclass(frozen=True)
class Svm:
    """f(x) = Σ weightᵢ exp(-gamma |x - vectorᵢ|²) + intercept, above 0 for fake.

    The vectors of an exact machine are its support vectors, those of a Nyström approximation its landmarks.
    """

    vectors: Vectors  # (m, dim)
    weights: npt.NDArray[np.float64]  # (m,)
    intercept: float
    gamma: float

    def decision_function(self, vectors: Vectors) -> npt.NDArray[np.float64]:
        """(n,) decision values of (n, dim) vectors, above 0 leans fake."""
        result = np.empty(len(vectors), np.float64)
        for start in range(0, len(vectors), ROWS_AT_ONCE):
            piece = slice(start, start + ROWS_AT_ONCE)
            result[piece] = rbf_kernel(vectors[piece], self.vectors, self.gamma) @ self.weights + self.intercept
        return result

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays to save, by name."""
        scalars = np.array([self.intercept, self.gamma], np.float64)
        return {"vectors": self.vectors, "weights": self.weights, "intercept_gamma": scalars}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Svm:
        """Convert back what `arrays` returns."""
        intercept, gamma = arrays["intercept_gamma"].tolist()
        return cls(arrays["vectors"], arrays["weights"], intercept, gamma)

    def require_dim(self, dim: int) -> None:
        """Raise ValueError unless it reads vectors of `dim` dimensions and its kernel has a width."""
        rows = len(self.weights)
        if self.weights.ndim != 1 or self.vectors.shape != (rows, dim) or not rows:
            raise ValueError(
                f"classifier has vectors of shape {self.vectors.shape} and weights of shape {self.weights.shape}, "
                f"expected (m, {dim}) and (m,)"
            )
        if not self.gamma > 0:
            raise ValueError(f"gamma must be above 0, found {self.gamma}")


def rbf_kernel(x: Vectors, y: Vectors, gamma: float, dtype: type[np.floating[Any]] = np.float64) -> npt.NDArray[Any]:
    """(n, m) exp(-gamma |x - y|²) of (n, dim) x and (m, dim) y."""
    x, y = np.asarray(x, dtype), np.asarray(y, dtype)
    result = np.empty((len(x), len(y)), dtype)
    y_scaled, y_norms = np.ascontiguousarray((2 * gamma * y).T, dtype), ((y**2).sum(1) * -gamma).astype(dtype)
    for start in range(0, len(x), ROWS_IN_CACHE):
        block, rows = result[start : start + ROWS_IN_CACHE], x[start : start + ROWS_IN_CACHE]
        np.matmul(rows, y_scaled, out=block)
        block += y_norms
        block -= ((rows**2).sum(1) * gamma).astype(dtype)[:, None]
        np.minimum(block, 0, out=block)
        np.exp(block, out=block)
    return result
