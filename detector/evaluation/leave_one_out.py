"""The atlas: how a head does on every generator and every real source it has never seen, without fitting it anew.

A ridge head needs only sums over its rows: their number, Σx and Σxxᵀ. Sums of a source are taken off the sums of all,
which is what refitting without it would give. Of the nearest-neighbour rule, neighbours of a left-out source are
dropped, which is what a bank without it would answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ...errors import NotEnoughRows
from ...store.records import FAKE, REAL, Ints, Mask, Vectors
from ...store.search.matches import Matches, Positions
from ...store.search.prepared_filter import PreparedFilter
from ...store.snapshot import Snapshot
from ..metrics import auc, best_threshold
from ..training.examples import subsample
from ..training.triplet import require_choice
from .ridge import batches, by_source, group_sums, ridge, total_of, with_constant

VALIDATION = 4000  # rows, at most and a tenth: they choose thresholds and are in no sum
K = 9  # neighbours of each class
OVER = 8  # times K are fetched, as those of a source will be dropped
ASKED = 6000  # rows that neighbours are looked up for; of those held out, a quarter as many

Kind = Literal["ridge", "knn"]
TITLES: dict[Kind, str] = {"ridge": "A ridge head", "knn": "The nearest-neighbour rule"}


@dataclass(frozen=True)
class PairResult:
    """A generator and a real source that the head had never seen, told apart by it."""

    generator: str
    real: str
    n: int
    auc: float
    accuracy: float  # at the threshold chosen on rows of the others; the mean of both classes' shares of right answers
    oracle: float  # the same at the best threshold for these very rows

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {name: round(getattr(self, name), 4) for name in ("auc", "accuracy", "oracle")}


@dataclass(frozen=True)
class LeaveOneOut:
    """Results for all pairs, and what a random split would have promised."""

    cells: tuple[PairResult, ...]
    generators: tuple[str, ...]
    reals: tuple[str, ...]
    random_auc: float  # of rows held out at random, their sources known
    rows: int
    snapshot: int
    head: Kind = "ridge"

    @property
    def mean_auc(self) -> float:
        """Mean AUC in which each generator and each real source has the same weight."""
        return float(np.mean([cell.auc for cell in self.cells]))

    @property
    def optimism(self) -> float:
        return self.random_auc - self.mean_auc

    @property
    def sentence(self) -> str:
        """Summary in one sentence."""
        worst = min(self.cells, key=lambda cell: cell.auc)
        return (
            f"{TITLES[self.head]}: a random split promises an AUC of {self.random_auc:.3f}; on sources never seen it "
            f"is {self.mean_auc:.3f} on average, an optimism of {self.optimism:.3f}. Worst is {worst.generator} "
            f"against {worst.real}: {worst.auc:.3f}."
        )

    def table(self, what: str = "auc") -> npt.NDArray[np.float64]:
        """(generators, reals) one figure of every cell."""
        found = {(cell.generator, cell.real): getattr(cell, what) for cell in self.cells}
        return np.array([[found[generator, real] for real in self.reals] for generator in self.generators])

    def to_dict(self) -> dict[str, Any]:
        return {
            "head": self.head,
            "snapshot": self.snapshot,
            "rows": self.rows,
            "random_auc": round(self.random_auc, 4),
            "mean_auc": round(self.mean_auc, 4),
            "optimism": round(self.optimism, 4),
            "sentence": self.sentence,
            "cells": [{"head": self.head} | cell.to_dict() for cell in self.cells],
        }


def leave_one_out(snapshot: Snapshot, head: Kind = "ridge", *, seed: int = 0) -> LeaveOneOut:
    """Every generator against every real source, each pair left out of the head that judges it. Reads rows twice.

    A source that holds both classes counts once as a generator and once as a real source.

    Parameters
    ----------
    head : "ridge" scores all rows; "knn", the difference of mean similarities to the `K` nearest fake and real rows,
        at most `ASKED` of them, the same number of each source

    Raises
    ------
    NotEnoughRows
        Fewer than two generators or two real sources: with one left out there is nothing to learn from.
    """
    require_choice(head, "head", get_args(Kind))
    groups, names = by_source(snapshot)
    reals, fakes = ([name for name in names if name[0] == label] for label in (REAL, FAKE))
    if min(len(reals), len(fakes)) < 2:
        raise NotEnoughRows(
            f"to leave one out takes two generators and two real sources; here are {len(fakes)} and {len(reals)}. "
            f"Index another folder of what is missing"
        )
    labels, known = snapshot.column("labels"), np.flatnonzero(groups >= 0)
    held, learned = held_out(groups, seed), groups >= 0
    learned[held] = False
    pairs = [(f, r) for f, g in enumerate(names) if g[0] == FAKE for r, h in enumerate(names) if h[0] == REAL]
    layout = SourceGroups(snapshot, groups, names, pairs, learned, held)
    scores = _ridge_scores(layout) if head == "ridge" else _knn_scores(layout, seed)
    truth, own = labels[scores.held], groups[scores.held]
    return LeaveOneOut(
        tuple(_cell(layout, scores, i, truth, own) for i in range(len(pairs))),
        tuple(name for _, name in fakes),
        tuple(name for _, name in reals),
        auc(truth, scores.validation[:, -1]) or 0.0,
        len(known),
        snapshot.number,
        head,
    )


def held_out(groups: npt.NDArray[np.int64], seed: int) -> Positions:
    """Positions of the rows that choose thresholds: some of every group, but not the only row of one."""
    known = np.flatnonzero(groups >= 0)
    several = known[np.bincount(groups[known])[groups[known]] > 1]
    return subsample(several, groups[several], min(VALIDATION, len(known) // 10), seed)


@dataclass(frozen=True)
class SourceGroups:
    """Assignment of rows to the pairs that are left out."""

    snapshot: Snapshot
    groups: npt.NDArray[np.int64]  # (rows,) which (label, source) a row is of, -1 for rows without a label
    names: list[tuple[int, str]]  # of the groups
    pairs: list[tuple[int, int]]  # a fake group and a real one, left out together
    learned: Mask  # (rows,) with a label, and not held out
    held: npt.NDArray[np.int64]  # positions of rows that choose thresholds

    def members(self, label: int) -> list[int]:
        """The groups of a class."""
        return [g for g, name in enumerate(self.names) if name[0] == label]


@dataclass(frozen=True)
class HeldOutScores:
    """Scores by heads that were fitted without the pairs."""

    # of each group, which is left out: (rows, groups of the other class) by which of them is left out with it
    own: Sequence[npt.NDArray[Any]]
    held: npt.NDArray[np.int64]  # positions
    validation: npt.NDArray[np.float64]  # (held, pairs + 1), the last by the head that nothing was left out of


def _cell(layout: SourceGroups, scores: HeldOutScores, i: int, truth: Ints, own: npt.NDArray[np.int64]) -> PairResult:
    f, r = layout.pairs[i]
    fake = scores.own[f][:, layout.members(REAL).index(r)].astype(np.float64)
    real = scores.own[r][:, layout.members(FAKE).index(f)].astype(np.float64)
    both, labels = np.concatenate([real, fake]), np.repeat([REAL, FAKE], [len(real), len(fake)])
    others = ~np.isin(own, (f, r))
    threshold = 0.0  # which is what the heads themselves aim at
    if len(np.unique(truth[others])) == 2:
        threshold = best_threshold(truth[others], scores.validation[others, i], balanced=True)[0]
    right = ((real <= threshold).mean() + (fake > threshold).mean()) / 2
    names = layout.names[f][1], layout.names[r][1]
    oracle = best_threshold(labels, both, balanced=True)[1]
    return PairResult(*names, len(both), auc(labels, both) or 0.0, float(right), oracle)


def _ridge_scores(layout: SourceGroups) -> HeldOutScores:
    snapshot, groups, pairs = layout.snapshot, layout.groups, layout.pairs
    sums = group_sums(snapshot, np.where(layout.learned, groups, -1), len(layout.names))
    total = {label: total_of([sums[g] for g in layout.members(label)]) for label in (REAL, FAKE)}
    heads = np.stack([ridge(total[REAL] - sums[r], total[FAKE] - sums[f]) for f, r in pairs])
    found: list[list[npt.NDArray[np.float32]]] = [[] for _ in layout.names]
    of_group = [[i for i, pair in enumerate(pairs) if group in pair] for group in range(len(layout.names))]
    for positions, vectors in batches(snapshot, np.flatnonzero(groups >= 0)):
        for group in np.unique(groups[positions]):
            x = with_constant(vectors[groups[positions] == group])
            found[group].append((x @ heads[of_group[group]].T).astype(np.float32))
    validation = with_constant(snapshot.vectors(layout.held)) @ np.vstack([heads, ridge(total[REAL], total[FAKE])]).T
    return HeldOutScores([np.concatenate(parts) for parts in found], layout.held, validation)


def _knn_scores(layout: SourceGroups, seed: int) -> HeldOutScores:
    """One search a row: far more neighbours than are needed, of which those of a left-out source are then dropped.

    The row's own source is left out of the search itself, as most of the nearest would be its.
    """
    snapshot, groups = layout.snapshot, layout.groups
    labels = snapshot.column("labels")
    banks = {label: snapshot.prepare_filter(layout.learned & (labels == label)) for label in (REAL, FAKE)}
    reals, fakes = layout.members(REAL), layout.members(FAKE)
    own = []
    for group, (label, _) in enumerate(layout.names):
        members = np.flatnonzero(groups == group)
        queries = subsample(members, labels[members], max(ASKED // len(layout.names), 1), seed)
        vectors = snapshot.vectors(queries)
        rest = snapshot.prepare_filter(layout.learned & (labels == label) & (groups != group))
        same, other = snapshot.search_each(vectors, OVER * K, [rest, banks[1 - label]], recall=1)
        near = _nearest_without(layout, vectors, same, rest, [-1])
        far = _nearest_without(layout, vectors, other, banks[1 - label], fakes if label == REAL else reals)
        own.append(near - far if label == FAKE else far - near)
    held = subsample(layout.held, groups[layout.held], ASKED // 4, seed)
    vectors = snapshot.vectors(held)
    found = snapshot.search_each(vectors, OVER * K, [banks[REAL], banks[FAKE]], recall=1)
    real = _nearest_without(layout, vectors, found[0], banks[REAL], [*reals, -1])
    fake = _nearest_without(layout, vectors, found[1], banks[FAKE], [*fakes, -1])
    validation = [fake[:, fakes.index(f)] - real[:, reals.index(r)] for f, r in layout.pairs]
    return HeldOutScores(own, held, np.stack([*validation, fake[:, -1] - real[:, -1]], axis=1))


def _nearest_without(
    layout: SourceGroups, vectors: Vectors, found: Matches, bank: PreparedFilter, left_out: list[int]
) -> npt.NDArray[np.float64]:
    """(queries, left_out) mean similarity of the K nearest rows of a bank that are not of a group, for each group."""
    there, group = found.rows >= 0, layout.groups[np.maximum(found.rows, 0)]
    result = np.empty((len(vectors), len(left_out)))
    for i, one in enumerate(left_out):
        kept = there & (group != one)
        kept &= np.cumsum(kept, axis=1) <= K
        result[:, i] = found.mean_similarity(kept)
        short = np.flatnonzero(kept.sum(1) < K)
        if len(short) and found.k < len(bank):  # nearly all that were fetched are of this group: search without it
            where = layout.groups != one
            rest = layout.snapshot.prepare_filter(where if bank.mask is None else where & bank.mask)
            more = layout.snapshot.search(vectors[short], K, rest, recall=1)
            result[short, i] = more.mean_similarity()
    return result
