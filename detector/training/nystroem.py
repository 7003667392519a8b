"""An RBF machine for millions of rows: Nyström's features of some landmarks, and a linear machine on top of them.

The kernel between any two rows is taken from their kernels with m landmarks (Williams & Seeger 2000), which gives each
row m numbers; on these a linear machine with squared hinge loss is solved by Newton's method (Keerthi & DeCoste 2005).
Rows are read again for every step, a block at a time: what is in memory does not grow with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.matrix_product import product
from ...errors import NotEnoughRows
from ...store.records import FAKE, REAL, Ints, Vectors
from ..svm import Svm, rbf_kernel

Blocks = Callable[[], Iterable[tuple[Vectors, Ints]]]  # (n, dim) rows with their (n,) labels, anew at every call

LANDMARKS = 1000
ROWS_AT_ONCE = 8192  # whose kernels with the landmarks are in memory
STEPS = 20  # of Newton's method at most; five to eight are usual
CLOSE = 1e-4  # relative change of the weights at which it stops
FIRST = 20_000  # rows, drawn at random, whose machine is where the steps over all rows start from
FAINT = 1e-6  # of the largest eigenvalue: directions below it are rounding errors


def fit_nystroem(blocks: Blocks, *, gamma: float, c: float = 1.0, landmarks: int = LANDMARKS, seed: int = 0) -> Svm:
    """A machine over any number of rows; its `vectors` are the landmarks.

    Parameters
    ----------
    blocks : gives all rows, several times
    gamma : of the kernel exp(-gamma |x - y|²)
    c : the price of a row on the wrong side
    landmarks : half of each class, drawn from the rows

    Raises
    ------
    NotEnoughRows
        The rows are of one class.
    """
    chosen, sample, rows = _drawn(blocks, landmarks, seed)
    values, directions = np.linalg.eigh(rbf_kernel(chosen, chosen, gamma))
    kept = values > FAINT * values[-1]
    whitened = (directions[:, kept] / np.sqrt(values[kept])).astype(np.float32)  # (landmarks, m)

    landmarks_kernel = partial(rbf_kernel, y=chosen, gamma=gamma, dtype=np.float32)

    def kernels(some: Blocks = blocks) -> Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """(n, landmarks) kernels of all rows with the landmarks, and signs."""
        for vectors, labels in some():
            for start in range(0, len(labels), ROWS_AT_ONCE):
                here = slice(start, start + ROWS_AT_ONCE)
                yield landmarks_kernel(vectors[here]), 2 * labels[here].astype(np.float32) - 1

    weights = np.zeros(whitened.shape[1] + 1)
    if rows > 2 * FIRST:  # a step over a sample costs next to nothing, one over all rows reads them all
        weights = _newton(lambda: kernels(lambda: [sample]), whitened, weights, c * rows / len(sample[1]))
    weights = _newton(kernels, whitened, weights, c)
    return Svm(chosen, whitened.astype(np.float64) @ weights[:-1], float(weights[-1]), gamma)


Kernels = Callable[[], Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]]


def _newton(
    kernels: Kernels, whitened: npt.NDArray[np.float32], weights: npt.NDArray[np.float64], c: float
) -> npt.NDArray[np.float64]:
    """(m + 1,) minimiser of |w|²/2 + c Σ max(0, 1 - sign · w·phi)², from some weights on.

    phi are a row's whitened kernels and a constant 1, whose weight is the intercept. A row says something to the step
    only while it is active, that is short of its margin. Few rows change sides from one step to the next, and it is
    these alone whose phi are needed: they are added to the sums over the active rows, or taken out of them.
    """
    import torch

    turned = torch.from_numpy(np.ascontiguousarray(whitened.T))
    free = np.ones(len(weights))
    free[-1] = 1e-8  # the intercept costs nothing
    square, pull = np.diag(free), np.zeros(len(weights))
    active: dict[int, npt.NDArray[np.bool_]] = {}  # by block, since the last step
    best = weights
    least = np.inf
    for _ in range(STEPS):
        cost = 0.5 * float(free @ weights**2)
        on_kernels, intercept = (whitened @ weights[:-1]).astype(np.float32), np.float32(weights[-1])
        for block, (near, sign) in enumerate(kernels()):
            short = 1 - sign * (near @ on_kernels + intercept)
            now = short > 0
            cost += c * float((short[now].astype(np.float64) ** 2).sum())
            before = active.get(block, np.zeros(len(sign), bool))
            active[block] = now
            for side, changed in ((2 * c, now & ~before), (-2 * c, before & ~now)):
                if changed.any():
                    phi = np.ones((np.count_nonzero(changed), len(weights)), np.float32)
                    phi[:, :-1] = product(torch.from_numpy(near[changed]), turned).numpy()
                    square += side * (phi.T @ phi)
                    pull += side * (phi.T @ sign[changed])
        if cost < least:
            least, best = cost, weights
        solved = np.asarray(np.linalg.solve(square, pull), np.float64)
        if np.linalg.norm(solved - weights) <= CLOSE * np.linalg.norm(solved):
            return solved
        # A full step can overshoot from a good place; from the first one on it hardly ever does.
        weights = solved if cost <= least else (best + solved) / 2
    return best


def _drawn(
    blocks: Blocks, landmarks: int, seed: int
) -> tuple[npt.NDArray[np.float32], tuple[npt.NDArray[np.float32], npt.NDArray[Any]], int]:
    """Landmarks, half of each class; some rows with their labels; how many rows there are in all.

    Each row draws a lot, and the lowest are kept: every row is as likely as another, however rows are cut into blocks.
    """
    rng = np.random.default_rng([seed, 6])
    real, fake, sample = (_Lowest(most) for most in (landmarks // 2, landmarks // 2, FIRST))
    rows = 0
    for vectors, labels in blocks():
        rows += len(labels)
        lots = rng.random(len(labels))
        for label, kept in ((REAL, real), (FAKE, fake)):
            kept.add(lots, vectors, labels, np.flatnonzero(labels == label))
        sample.add(lots, vectors, labels, np.arange(len(labels)))
    if not (len(real.lots) and len(fake.lots)):
        raise NotEnoughRows("the rows to train on are of one class; index real and fake images")
    return np.concatenate([real.vectors, fake.vectors]), (sample.vectors, sample.labels), rows


class _Lowest:
    """The rows with the lowest lots so far, lowest first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.lots = np.zeros(0)
        self.vectors = np.zeros((0, 0), np.float32)
        self.labels: npt.NDArray[Any] = np.zeros(0, np.int8)

    def add(self, lots: npt.NDArray[np.float64], vectors: Vectors, labels: Ints, rows: npt.NDArray[np.int64]) -> None:
        """Some of a block's rows."""
        if len(self.lots) == self.most:
            rows = rows[lots[rows] < self.lots[-1]]
        if not len(rows):
            return
        rows = rows[np.argsort(lots[rows])][: self.most]
        both = np.concatenate([self.lots, lots[rows]])
        order = np.argsort(both)[: self.most]
        found = np.asarray(vectors[rows], np.float32)
        self.vectors = np.concatenate([self.vectors, found])[order] if len(self.lots) else found
        self.labels = np.concatenate([self.labels, labels[rows]])[order]
        self.lots = both[order]
