"""The atlas: how a linear head does on every generator and every real source it has never seen, in one pass.

A ridge head needs only sums over its rows: their number, Σx and Σxxᵀ. Sums of a source are taken off the sums of all,
which is what refitting without it would give. Both classes weigh the same, whatever their numbers, which makes the
direction Fisher's discriminant with a ridge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.block import FAKE, REAL, distinct
from ..store.errors import NotEnoughRows
from ..store.snapshot import Snapshot
from .examples import thinned
from .metrics import auc, best_threshold

RIDGE = 1e-2  # of the mean square of a coordinate
VALIDATION = 4000  # rows, at most and a tenth: they choose thresholds and are in no sum
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Cell:
    """A generator and a real source that the head had never seen, told apart by it."""

    generator: str
    real: str
    n: int
    auc: float
    accuracy: float  # at the threshold chosen on rows of the others; the mean of both classes' shares of right answers
    oracle: float  # the same at the best threshold for these very rows

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {name: round(getattr(self, name), 4) for name in ("auc", "accuracy", "oracle")}


@dataclass(frozen=True)
class Atlas:
    """All cells, and what a random split would have promised."""

    cells: tuple[Cell, ...]
    generators: tuple[str, ...]
    reals: tuple[str, ...]
    random_auc: float  # of rows held out at random, their sources known
    rows: int
    snapshot: int

    @property
    def mean_auc(self) -> float:
        """Each generator, each real source as much as another."""
        return float(np.mean([cell.auc for cell in self.cells]))

    @property
    def optimism(self) -> float:
        return self.random_auc - self.mean_auc

    @property
    def sentence(self) -> str:
        """What to take home."""
        worst = min(self.cells, key=lambda cell: cell.auc)
        return (
            f"A random split promises an AUC of {self.random_auc:.3f}; on sources never seen it is {self.mean_auc:.3f} "
            f"on average, an optimism of {self.optimism:.3f}. Worst is {worst.generator} against {worst.real}: "
            f"{worst.auc:.3f}."
        )

    def table(self, what: str = "auc") -> npt.NDArray[np.float64]:
        """(generators, reals) one figure of every cell."""
        found = {(cell.generator, cell.real): getattr(cell, what) for cell in self.cells}
        return np.array([[found[generator, real] for real in self.reals] for generator in self.generators])

    def as_json(self) -> dict[str, Any]:
        return {
            "snapshot": self.snapshot,
            "rows": self.rows,
            "random_auc": round(self.random_auc, 4),
            "mean_auc": round(self.mean_auc, 4),
            "optimism": round(self.optimism, 4),
            "sentence": self.sentence,
            "cells": [cell.as_json() for cell in self.cells],
        }


@dataclass(frozen=True)
class Sums:
    """What a ridge head needs to know of some rows; the last coordinate of each is a constant 1."""

    n: int
    square: npt.NDArray[np.float64]  # (dim + 1, dim + 1) Σxxᵀ

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.n + other.n, self.square + other.square)

    def __sub__(self, other: Sums) -> Sums:
        return Sums(self.n - other.n, self.square - other.square)

    @classmethod
    def of(cls, vectors: npt.NDArray[Any]) -> Sums:
        """Of (rows, dim) vectors."""
        x = extended(vectors)
        return cls(len(x), x.T @ x)


def extended(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(rows, dim + 1) with the constant."""
    return np.pad(np.asarray(vectors, np.float64), ((0, 0), (0, 1)), constant_values=1.0)


def ridge(real: Sums, fake: Sums) -> npt.NDArray[np.float64]:
    """(dim + 1,) weights of the least-squares head for -1 real, +1 fake, each class weighing a half."""
    square = real.square / real.n + fake.square / fake.n
    pull = fake.square[-1] / fake.n - real.square[-1] / real.n
    dim = len(square) - 1
    square = square + np.diag(np.append(np.full(dim, RIDGE * np.trace(square[:dim, :dim]) / dim), 0.0))
    return np.asarray(np.linalg.solve(square, pull), np.float64)


def atlas(snapshot: Snapshot, *, seed: int = 0) -> Atlas:
    """Every generator against every real source, each pair left out of the head that judges it. Reads rows twice.

    A source that holds both classes counts once as a generator and once as a real source.

    Raises
    ------
    NotEnoughRows
        Fewer than two generators or two real sources: with one left out there is nothing to learn from.
    """
    labels = snapshot.column("labels")
    groups, names = _groups(snapshot)
    reals, fakes = ([name for name in names if name[0] == label] for label in (REAL, FAKE))
    if min(len(reals), len(fakes)) < 2:
        raise NotEnoughRows(
            f"{len(fakes)} generators and {len(reals)} real sources; two of each are needed to leave one out. "
            f"Index another folder of what is missing"
        )
    known = np.flatnonzero(groups >= 0)
    held = thinned(known, labels[known], min(VALIDATION, len(known) // 10), seed)
    held_out = np.zeros(len(groups), bool)
    held_out[held] = True
    sums = [Sums(0, np.zeros((snapshot.space.dim + 1,) * 2)) for _ in names]
    for positions, vectors in _pieces(snapshot, np.flatnonzero((groups >= 0) & ~held_out)):
        for group in np.unique(groups[positions]):
            sums[group] = sums[group] + Sums.of(vectors[groups[positions] == group])
    total = {label: _total(sums, names, label) for label in (REAL, FAKE)}
    if min(one.n for one in sums) == 0:
        raise NotEnoughRows("a source has hardly any rows; index more of it or leave it out")
    pairs = [(f, r) for f, g in enumerate(names) if g[0] == FAKE for r, h in enumerate(names) if h[0] == REAL]
    heads = np.stack([ridge(total[REAL] - sums[r], total[FAKE] - sums[f]) for f, r in pairs])
    scores: list[list[npt.NDArray[np.float32]]] = [[] for _ in names]  # of each group, by the heads it was left out of
    of_group = [[i for i, pair in enumerate(pairs) if group in pair] for group in range(len(names))]
    for positions, vectors in _pieces(snapshot, known):
        for group in np.unique(groups[positions]):
            x = extended(vectors[groups[positions] == group])
            scores[group].append((x @ heads[of_group[group]].T).astype(np.float32))
    whole = [np.concatenate(parts) for parts in scores]
    validation = extended(snapshot.vectors(held)) @ np.vstack([heads, ridge(total[REAL], total[FAKE])]).T
    cells = []
    for i, (f, r) in enumerate(pairs):
        fake, real = (whole[group][:, of_group[group].index(i)].astype(np.float64) for group in (f, r))
        both, truth = np.concatenate([real, fake]), np.repeat([REAL, FAKE], [len(real), len(fake)])
        others = ~np.isin(groups[held], (f, r))
        threshold = best_threshold(labels[held][others], validation[others, i])[0]
        right = ((real <= threshold).mean() + (fake > threshold).mean()) / 2
        cells.append(
            Cell(names[f][1], names[r][1], len(both), auc(truth, both) or 0.0, float(right), _oracle(real, fake))
        )
    return Atlas(
        tuple(cells),
        tuple(name for _, name in fakes),
        tuple(name for _, name in reals),
        auc(labels[held], validation[:, -1]) or 0.0,
        len(known),
        snapshot.number,
    )


def _groups(snapshot: Snapshot) -> tuple[npt.NDArray[np.int64], list[tuple[int, str]]]:
    """(rows,) which (label, source) a row is of, -1 for rows without a label, and what these are."""
    labels = snapshot.column("labels").astype(np.int64)
    sources, which, _ = distinct(snapshot.column("sources"))
    code = np.where((labels == REAL) | (labels == FAKE), labels * len(sources) + which, -1)
    found = np.unique(code[code >= 0])
    names = [(int(one) // len(sources), str(sources[int(one) % len(sources)])) for one in found]
    return np.where(code >= 0, np.searchsorted(found, code), -1), names


def _pieces(
    snapshot: Snapshot, positions: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    for start in range(0, len(positions), ROWS_AT_ONCE):
        piece = positions[start : start + ROWS_AT_ONCE]
        yield piece, snapshot.vectors(piece)


def _total(sums: list[Sums], names: list[tuple[int, str]], label: int) -> Sums:
    first, *others = (one for one, name in zip(sums, names, strict=True) if name[0] == label)
    for other in others:
        first = first + other
    return first


def _oracle(real: npt.NDArray[np.float64], fake: npt.NDArray[np.float64]) -> float:
    """The highest mean of both classes' shares of right answers that any threshold gives."""
    cuts = np.concatenate([real, fake])
    right = np.searchsorted(np.sort(real), cuts, side="right") / len(real)
    return float((right + 1 - np.searchsorted(np.sort(fake), cuts, side="right") / len(fake)).max() / 2)
