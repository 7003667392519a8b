"""A linear classifier as arrays: evaluated with numpy, however it was fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.records import Vectors


@dataclass(frozen=True)
class LinearClassifier:
    """f(x) = weights · x + intercept, above 0 for fake."""

    weights: npt.NDArray[np.float64]  # (dim,)
    intercept: float

    def decision_function(self, vectors: Vectors) -> npt.NDArray[np.float64]:
        """(n,) decision values of (n, dim) vectors, above 0 leans fake."""
        return np.asarray(vectors @ self.weights + self.intercept, np.float64)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays to save, by name."""
        return {"weights": self.weights, "intercept": np.array([self.intercept], np.float64)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> LinearClassifier:
        """Convert back what `arrays` returns."""
        [intercept] = arrays["intercept"].tolist()
        return cls(arrays["weights"], intercept)

    def require_dim(self, dim: int) -> None:
        """Raise ValueError unless it reads vectors of `dim` dimensions."""
        if self.weights.shape != (dim,):
            raise ValueError(f"classifier has weights of shape {self.weights.shape}, expected ({dim},)")
