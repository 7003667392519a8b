"""An RBF SVM for millions of rows: a linear SVM on Nyström features.

The kernel of any two rows is approximated from their kernels with m landmarks (Williams & Seeger 2000), which gives
each row m features. On these, a linear SVM with squared hinge loss is fitted by Newton's method (Keerthi & DeCoste
2005). Rows are read again at every step, a block at a time, so memory does not grow with their number.
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

Blocks = Callable[
    [], Iterable[tuple[Vectors, Ints]]
]  # (n, dim) rows with their (n,) labels, from the start at each call

LANDMARKS = 1000
ROWS_AT_ONCE = 8192  # rows whose kernels with the landmarks are in memory
NEWTON_STEPS = 20  # at most; five to eight are usual
TOLERANCE = 1e-4  # relative change of the weights at which Newton's method stops
SAMPLE = 20_000  # rows drawn at random, whose weights are the starting point for all rows
MIN_EIGENVALUE = 1e-6  # relative to the largest: directions below are rounding errors


def fit_nystroem(blocks: Blocks, *, gamma: float, c: float = 1.0, landmarks: int = LANDMARKS, seed: int = 0) -> Svm:
    """Fit an SVM to any number of rows; its `vectors` are the landmarks.

    Parameters
    ----------
    blocks : iterates over all rows; called several times
    gamma : of the kernel exp(-gamma |x - y|²)
    c : penalty of a row on the wrong side of its margin
    landmarks : number of landmarks, drawn from the rows, half of each class

    Raises
    ------
    NotEnoughRows
        The rows are of one class.
    """
    landmark_vectors, sample, rows = _draw(blocks, landmarks, seed)
    values, directions = np.linalg.eigh(rbf_kernel(landmark_vectors, landmark_vectors, gamma))
    kept = values > MIN_EIGENVALUE * values[-1]
    whitening = (directions[:, kept] / np.sqrt(values[kept])).astype(np.float32)  # (landmarks, m)

    landmarks_kernel = partial(rbf_kernel, y=landmark_vectors, gamma=gamma, dtype=np.float32)

    def kernels(of_blocks: Blocks = blocks) -> Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """(n, landmarks) kernels of all rows with the landmarks, and signs."""
        for vectors, labels in of_blocks():
            for start in range(0, len(labels), ROWS_AT_ONCE):
                batch = slice(start, start + ROWS_AT_ONCE)
                yield landmarks_kernel(vectors[batch]), 2 * labels[batch].astype(np.float32) - 1

    weights = np.zeros(whitening.shape[1] + 1)
    if rows > 2 * SAMPLE:  # a step over the sample is cheap, a step over all rows reads them all
        weights = _newton(lambda: kernels(lambda: [sample]), whitening, weights, c * rows / len(sample[1]))
    weights = _newton(kernels, whitening, weights, c)
    return Svm(landmark_vectors, whitening.astype(np.float64) @ weights[:-1], float(weights[-1]), gamma)


Kernels = Callable[[], Iterable[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]]


def _newton(
    kernels: Kernels, whitening: npt.NDArray[np.float32], weights: npt.NDArray[np.float64], c: float
) -> npt.NDArray[np.float64]:
    """(m + 1,) minimizer of |w|²/2 + c Σ max(0, 1 - sign · w·phi)², starting from some weights.

    phi are a row's whitened kernels and a constant 1, whose weight is the intercept. A row contributes to the step only
    while it is active, that is, within its margin. Few rows become active or inactive from one step to the next, and
    only for these is phi computed: they are added to the sums over the active rows, or subtracted from them.
    """
    import torch

    whitening_t = torch.from_numpy(np.ascontiguousarray(whitening.T))
    penalty = np.ones(len(weights))
    penalty[-1] = 1e-8  # the intercept is not regularized
    hessian, gradient = np.diag(penalty), np.zeros(len(weights))
    active: dict[int, npt.NDArray[np.bool_]] = {}  # by block, at the last step
    best = weights
    lowest_cost = np.inf
    for _ in range(NEWTON_STEPS):
        cost = 0.5 * float(penalty @ weights**2)
        kernel_weights, intercept = (whitening @ weights[:-1]).astype(np.float32), np.float32(weights[-1])
        for block, (kernel, sign) in enumerate(kernels()):
            slack = 1 - sign * (kernel @ kernel_weights + intercept)
            now = slack > 0
            cost += c * float((slack[now].astype(np.float64) ** 2).sum())
            before = active.get(block, np.zeros(len(sign), bool))
            active[block] = now
            for factor, changed in ((2 * c, now & ~before), (-2 * c, before & ~now)):
                if changed.any():
                    phi = np.ones((np.count_nonzero(changed), len(weights)), np.float32)
                    phi[:, :-1] = product(torch.from_numpy(kernel[changed]), whitening_t).numpy()
                    hessian += factor * (phi.T @ phi)
                    gradient += factor * (phi.T @ sign[changed])
        if cost < lowest_cost:
            lowest_cost, best = cost, weights
        solution = np.asarray(np.linalg.solve(hessian, gradient), np.float64)
        if np.linalg.norm(solution - weights) <= TOLERANCE * np.linalg.norm(solution):
            return solution
        # a full step from a good starting point may overshoot; from the second step on it hardly ever does
        weights = solution if cost <= lowest_cost else (best + solution) / 2
    return best


def _draw(
    blocks: Blocks, landmarks: int, seed: int
) -> tuple[npt.NDArray[np.float32], tuple[npt.NDArray[np.float32], npt.NDArray[Any]], int]:
    """Landmarks, half of each class; a sample of rows with their labels; the number of all rows.

    Each row gets a random number and those with the lowest are kept, so that each row is equally likely to be drawn
    whatever the block size.
    """
    rng = np.random.default_rng([seed, 6])
    real, fake, sample = (_Reservoir(size) for size in (landmarks // 2, landmarks // 2, SAMPLE))
    rows = 0
    for vectors, labels in blocks():
        rows += len(labels)
        priorities = rng.random(len(labels))
        for label, reservoir in ((REAL, real), (FAKE, fake)):
            reservoir.add(priorities, vectors, labels, np.flatnonzero(labels == label))
        sample.add(priorities, vectors, labels, np.arange(len(labels)))
    if not (len(real.priorities) and len(fake.priorities)):
        raise NotEnoughRows("training needs real and fake rows, found one class only; index images of the other class")
    return np.concatenate([real.vectors, fake.vectors]), (sample.vectors, sample.labels), rows


class _Reservoir:
    """The rows with the lowest random priorities so far, lowest first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.priorities = np.zeros(0)
        self.vectors = np.zeros((0, 0), np.float32)
        self.labels: npt.NDArray[Any] = np.zeros(0, np.int8)

    def add(
        self, priorities: npt.NDArray[np.float64], vectors: Vectors, labels: Ints, rows: npt.NDArray[np.int64]
    ) -> None:
        """Offer the rows at some positions of a block."""
        if len(self.priorities) == self.size:
            rows = rows[priorities[rows] < self.priorities[-1]]
        if not len(rows):
            return
        rows = rows[np.argsort(priorities[rows])][: self.size]
        merged = np.concatenate([self.priorities, priorities[rows]])
        order = np.argsort(merged)[: self.size]
        added = np.asarray(vectors[rows], np.float32)
        self.vectors = np.concatenate([self.vectors, added])[order] if len(self.priorities) else added
        self.labels = np.concatenate([self.labels, labels[rows]])[order]
        self.priorities = merged[order]
