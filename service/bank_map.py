"""Two-dimensional map of the bank: its rows and the queries on the first two principal components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..detector.detector import VectorDetector
from ..store.records import FAKE, REAL, Vectors

MAX_POINTS = 1500  # half of each class
SEED = 0


@dataclass(frozen=True)
class BankMap:
    """Principal component analysis of the head's projection of a sample of the bank. Make it with `BankMap.of`."""

    points: npt.NDArray[np.float64]  # (rows, 2)
    labels: npt.NDArray[np.int8]  # (rows,)
    sources: npt.NDArray[np.int64]  # (rows,) index into `names`
    names: tuple[str, ...]
    centre: npt.NDArray[np.float64]  # (dim,) mean of the projected rows
    axes: npt.NDArray[np.float64]  # (dim, 2)
    explained: tuple[float, float]  # share of the variance along each axis

    @classmethod
    def of(cls, detector: VectorDetector, max_points: int = MAX_POINTS) -> BankMap:
        """Compute the map of a detector's bank. Deterministic."""
        bank, rng = detector.bank, np.random.default_rng(SEED)
        samples = []
        for label in (REAL, FAKE):
            rows = np.flatnonzero(bank.members & (bank.labels == label))
            samples.append(np.sort(rng.permutation(rows)[: max_points // 2]))
        positions = np.concatenate(samples)
        projected = detector.head.transform(bank.snapshot.vectors(positions)).astype(np.float64)
        centre = projected.mean(0)
        _, singular_values, components = np.linalg.svd(projected - centre, full_matrices=False)
        variance = np.append(singular_values**2, [0.0, 0.0])  # padded, since one row has one component
        shares = variance / max(float(variance.sum()), 1e-12)
        axes = np.zeros((projected.shape[1], 2))
        axes[:, : min(2, len(components))] = components[:2].T
        points = (projected - centre) @ axes
        codes, sources = np.unique(bank.sources[positions], return_inverse=True)
        names = tuple(bank.source_names[code] for code in codes)
        explained = (float(shares[0]), float(shares[1]))
        return cls(points, bank.labels[positions], sources, names, centre, axes, explained)

    def place(self, detector: VectorDetector, vectors: Vectors) -> npt.NDArray[np.float64]:
        """(n, 2) map coordinates of (n, dim) vectors."""
        return np.asarray((detector.head.transform(vectors) - self.centre) @ self.axes)

    def to_dict(self) -> dict[str, Any]:
        return {
            "points": np.round(self.points, 4).tolist(),
            "labels": self.labels.tolist(),
            "sources": self.sources.tolist(),
            "names": list(self.names),
            "explained": [round(share, 4) for share in self.explained],
        }
