"""The bank as a flat picture: its rows, and a query among them, on their two main axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..detector.detector import VectorDetector
from ..store.records import FAKE, REAL, Vectors

MOST = 1500  # rows shown, as many of each class
SEED = 0


@dataclass(frozen=True)
class BankMap:
    """A principal component analysis of the head's projection of some rows. Make it with `BankMap.of`."""

    points: npt.NDArray[np.float64]  # (rows, 2)
    labels: npt.NDArray[np.int8]  # (rows,)
    sources: npt.NDArray[np.int64]  # (rows,) index into `names`
    names: tuple[str, ...]
    centre: npt.NDArray[np.float64]  # (dim,) of the projected rows
    axes: npt.NDArray[np.float64]  # (dim, 2)
    explained: tuple[float, float]  # share of the variance along each axis

    @classmethod
    def of(cls, detector: VectorDetector, most: int = MOST) -> BankMap:
        """The map of a detector's bank, the same one for the same bank."""
        bank, rng = detector.bank, np.random.default_rng(SEED)
        chosen = []
        for label in (REAL, FAKE):
            rows = np.flatnonzero(bank.members & (bank.labels == label))
            chosen.append(np.sort(rng.permutation(rows)[: most // 2]))
        positions = np.concatenate(chosen)
        projected = detector.head.transform(bank.snapshot.vectors(positions)).astype(np.float64)
        centre = projected.mean(0)
        _, spread, axes = np.linalg.svd(projected - centre, full_matrices=False)
        variance = np.append(spread**2, [0.0, 0.0])  # one row has no spread
        shares = variance / max(float(variance.sum()), 1e-12)
        flat = np.zeros((projected.shape[1], 2))
        flat[:, : min(2, len(axes))] = axes[:2].T
        points = (projected - centre) @ flat
        shown = bank.sources[positions]
        codes, sources = np.unique(shown, return_inverse=True)
        names = tuple(bank.source_names[code] for code in codes)
        explained = (float(shares[0]), float(shares[1]))
        return cls(points, bank.labels[positions], sources, names, centre, flat, explained)

    def place(self, detector: VectorDetector, vectors: Vectors) -> npt.NDArray[np.float64]:
        """(n, 2) where (n, dim) stored or asked vectors lie."""
        return np.asarray((detector.head.transform(vectors) - self.centre) @ self.axes)

    def to_dict(self) -> dict[str, Any]:
        return {
            "points": np.round(self.points, 4).tolist(),
            "labels": self.labels.tolist(),
            "sources": self.sources.tolist(),
            "names": list(self.names),
            "explained": [round(share, 4) for share in self.explained],
        }
