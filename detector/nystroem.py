"""An RBF machine for millions of rows: Nyström's features of some landmarks, and a linear machine on top of them.

The kernel between any two rows is taken from their kernels with m landmarks (Williams & Seeger 2000), which gives each
row m numbers; on these a linear machine with squared hinge loss is solved by Newton's method (Keerthi & DeCoste 2005).
Rows are read again for every step, a block at a time: what is in memory does not grow with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from ..store.block import Ints, Vectors
from ..store.errors import NotEnoughRows
from .svm import Svm, kernel

Blocks = Callable[[], Iterable[tuple[Vectors, Ints]]]  # (n, dim) rows with their (n,) labels, anew at every call

LANDMARKS = 1000
ROWS_AT_ONCE = 8192  # whose features are in memory
STEPS = 20  # of Newton's method at most; five to eight are usual
CLOSE = 1e-4  # relative change of the weights at which it stops
FAINT = 1e-6  # of the largest eigenvalue: directions below it are rounding errors


def fit_nystroem(blocks: Blocks, *, gamma: float, c: float = 1.0, landmarks: int = LANDMARKS, seed: int = 0) -> Svm:
    """A machine over any number of rows; its `vectors` are the landmarks.

    Parameters
    ----------
    blocks : gives all rows, several times
    gamma : of the kernel exp(-gamma |x - y|²)
    c : the price of a row on the wrong side
    landmarks : as many of each class, drawn from the rows

    Raises
    ------
    NotEnoughRows
        The rows are of one class.
    """
    chosen = _landmarks(blocks, landmarks, seed)
    values, directions = np.linalg.eigh(kernel(chosen, chosen, gamma))
    kept = values > FAINT * values[-1]
    whitened = (directions[:, kept] / np.sqrt(values[kept])).astype(np.float32)  # (landmarks, m)

    def features() -> Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """(n, m + 1) features, the last one constant, and signs."""
        for vectors, labels in blocks():
            for start in range(0, len(labels), ROWS_AT_ONCE):
                here = slice(start, start + ROWS_AT_ONCE)
                phi = kernel(vectors[here], chosen, gamma, np.float32) @ whitened
                yield np.pad(phi, ((0, 0), (0, 1)), constant_values=1.0), 2 * labels[here].astype(np.float32) - 1

    weights = _newton(features, whitened.shape[1] + 1, c)
    return Svm(chosen, whitened.astype(np.float64) @ weights[:-1], float(weights[-1]), gamma)


Features = Callable[[], Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]]


def _newton(features: Features, dim: int, c: float) -> npt.NDArray[np.float64]:
    """(dim,) minimiser of |w|²/2 + c Σ max(0, 1 - sign · w·phi)², the last weight being free."""
    free = np.ones(dim)
    free[-1] = 1e-8  # the constant's weight is the intercept, which costs nothing
    weights: npt.NDArray[np.float64] = np.zeros(dim)
    best = weights
    least = np.inf
    for _ in range(STEPS):
        square, pull, cost = np.diag(free), np.zeros(dim), 0.5 * float(free @ weights**2)
        for phi, sign in features():
            short = 1 - sign * (phi @ weights.astype(np.float32))
            active = short > 0
            cost += c * float((short[active].astype(np.float64) ** 2).sum())
            some = phi[active]
            square += 2 * c * (some.T @ some)
            pull += 2 * c * (some.T @ sign[active])
        if cost < least:
            least, best = cost, weights
        solved = np.asarray(np.linalg.solve(square, pull), np.float64)
        if np.linalg.norm(solved - weights) <= CLOSE * np.linalg.norm(solved):
            return solved
        # A full step can overshoot from a good place; from the first one on it hardly ever does.
        weights = solved if cost <= least else (best + solved) / 2
    return best


def _landmarks(blocks: Blocks, wanted: int, seed: int) -> npt.NDArray[np.float32]:
    """(wanted, dim) rows, half of each class, every row of a class as likely as another (reservoir sampling)."""
    rng = np.random.default_rng([seed, 6])
    kept: list[list[tuple[float, npt.NDArray[np.float32]]]] = [[], []]
    for vectors, labels in blocks():
        lots = rng.random(len(labels))
        for label in (0, 1):
            rows = np.flatnonzero(labels == label)
            rows = rows[np.argsort(lots[rows])][: wanted // 2]
            both = [*kept[label], *((float(lots[i]), np.array(vectors[i], np.float32)) for i in rows)]
            kept[label] = sorted(both, key=lambda one: one[0])[: wanted // 2]
    if not (kept[0] and kept[1]):
        raise NotEnoughRows("the rows to train on are of one class; index real and fake images")
    return np.stack([vector for one in kept for _, vector in one])
