"""Leave-one-out: how well a head works on each generator and each real source that it has not seen.

A ridge head is fitted from sums over its rows: their number, Σx and Σxxᵀ. Subtracting the sums of a source gives the
same head as refitting without it. For the nearest-neighbour rule, the neighbours of a left-out source are dropped,
which gives the same score as a bank without it. The classifiers of `train` are fitted again for each pair. An imported
head was trained on none of the rows, and scores all pairs itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ...errors import HeadError, NotEnoughRows
from ...store.records import FAKE, REAL, Mask, Vectors
from ...store.search.matches import Matches, Positions
from ...store.search.prepared_filter import PreparedFilter
from ...store.snapshot import Snapshot
from ..head import Head
from ..metrics import auc, best_threshold
from ..training.classifiers import fit_classifier
from ..training.examples import Examples, subsample
from ..training.triplet import require_choice
from .ridge import batches, by_source, group_sums, ridge, total_of, with_constant

HELD_OUT = 4000  # rows that choose thresholds and are not trained on, at most; never more than a tenth of all rows
K = 9  # neighbours of each class
OVERSAMPLING = 8  # neighbours fetched for each of the K, since those of the left-out source are dropped
QUERIES = 6000  # rows whose neighbours are searched, at most; a quarter as many of the held-out rows

FITTED_ON = 3000  # rows on which a classifier of `train` is fitted for each pair, at most

Kind = Literal["ridge", "knn", "triplet-svm", "rbf-svm", "pca-svm", "logistic", "imported"]
FITTED: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind != "imported")  # to the other sources
TITLES: dict[Kind, str] = {
    "ridge": "A ridge head",
    "knn": "The nearest-neighbour rule",
    "triplet-svm": "A triplet projection and SVM",
    "rbf-svm": "An RBF SVM on the vectors",
    "pca-svm": "Principal components and SVM",
    "logistic": "Logistic regression on the vectors",
    "imported": "The imported head",
}


@dataclass(frozen=True)
class PairResult:
    """How well a head separates a generator and a real source that it has not seen."""

    generator: str
    real: str
    n: int  # number of rows
    auc: float
    accuracy: float  # balanced accuracy at the threshold chosen on rows of the other sources
    oracle: float  # balanced accuracy at the best threshold for these rows: an upper bound

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {name: round(getattr(self, name), 4) for name in ("auc", "accuracy", "oracle")}


@dataclass(frozen=True)
class LeaveOneOut:
    """Results for all pairs of a generator and a real source, beside that of a random split."""

    cells: tuple[PairResult, ...]
    generators: tuple[str, ...]
    reals: tuple[str, ...]
    random_auc: float  # on rows held out at random, whose sources the head has seen
    rows: int
    snapshot: int
    head: Kind = "ridge"

    @property
    def mean_auc(self) -> float:
        """Mean AUC in which each generator and each real source has the same weight."""
        return float(np.mean([cell.auc for cell in self.cells]))

    @property
    def optimism(self) -> float:
        """How much higher the AUC of a random split is."""
        return self.random_auc - self.mean_auc

    @property
    def sentence(self) -> str:
        """Summary in one sentence."""
        worst = min(self.cells, key=lambda cell: cell.auc)
        if self.head == "imported":
            return (
                f"{TITLES[self.head]} was trained on none of these rows: its AUC is {self.mean_auc:.3f} on average "
                f"over pairs of a generator and a real source, and {self.random_auc:.3f} on a sample of all rows. The "
                f"worst pair is {worst.generator} against {worst.real}: {worst.auc:.3f}."
            )
        return (
            f"{TITLES[self.head]}: a random split gives an AUC of {self.random_auc:.3f}, unseen sources give "
            f"{self.mean_auc:.3f} on average, an optimism of {self.optimism:.3f}. The worst pair is {worst.generator} "
            f"against {worst.real}: {worst.auc:.3f}."
        )

    def table(self, metric: str = "auc") -> npt.NDArray[np.float64]:
        """(generators, reals) values of one metric."""
        values = {(cell.generator, cell.real): getattr(cell, metric) for cell in self.cells}
        return np.array([[values[generator, real] for real in self.reals] for generator in self.generators])

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


def leave_one_out(snapshot: Snapshot, head: Kind | Head = "ridge", *, seed: int = 0) -> LeaveOneOut:
    """Score each pair of a generator and a real source by a head that was fitted without both. Reads rows twice.

    A source that holds both classes counts as a generator and as a real source.

    Parameters
    ----------
    head : "ridge" scores all rows; "knn", the difference of the mean similarities to the `K` nearest fake and real
        rows, scores at most `QUERIES` rows, equally many of each source; a classifier of `train` scores the same rows,
        and is fitted for each pair on at most `FITTED_ON` rows, with the default options; an imported head scores the
        same rows

    Raises
    ------
    NotEnoughRows
        There are fewer than two generators or two real sources, so that none can be left out.
    HeadError
        The head is unknown, or was trained on the rows of the pairs.
    SpaceMismatch
        The snapshot has other vectors than the head reads.
    """
    kind: Kind = "imported" if isinstance(head, Head) else head
    if isinstance(head, Head):
        if not head.imported:
            raise HeadError(f"a trained head has seen the sources; name its classifier, {head.classifier_name}")
        head.space.require(snapshot.space, f"the store {snapshot.folder}")
    else:
        require_choice(head, "head", FITTED)
    groups, names = by_source(snapshot)
    reals, fakes = ([name for name in names if name[0] == label] for label in (REAL, FAKE))
    if min(len(reals), len(fakes)) < 2:
        raise NotEnoughRows(
            f"leaving one out needs at least two generators and two real sources, found {len(fakes)} and {len(reals)}; "
            f"index more folders"
        )
    labels = snapshot.column("labels")
    held, trained = held_out(groups, seed), groups >= 0
    trained[held] = False
    pairs = [(f, r) for f, g in enumerate(names) if g[0] == FAKE for r, h in enumerate(names) if h[0] == REAL]
    sources = SourceGroups(snapshot, groups, names, pairs, trained, held)
    if isinstance(head, Head):
        scores = _imported_scores(sources, head, seed)
    elif head == "ridge":
        scores = _ridge_scores(sources)
    else:
        scores = _knn_scores(sources, seed) if head == "knn" else _classifier_scores(sources, head, seed)
    truth = labels[scores.held]
    return LeaveOneOut(
        tuple(_pair_result(sources, scores, i) for i in range(len(pairs))),
        tuple(name for _, name in fakes),
        tuple(name for _, name in reals),
        auc(truth, scores.validation[:, -1]) or 0.0,
        int((groups >= 0).sum()),
        snapshot.number,
        kind,
    )


def held_out(groups: npt.NDArray[np.int64], seed: int) -> Positions:
    """Positions of the rows that choose thresholds: some of every group, except of groups with a single row."""
    labelled = np.flatnonzero(groups >= 0)
    several = labelled[np.bincount(groups[labelled])[groups[labelled]] > 1]
    return subsample(several, groups[several], min(HELD_OUT, len(labelled) // 10), seed)


@dataclass(frozen=True)
class SourceGroups:
    """Rows grouped by class and source, and the pairs of groups that are left out."""

    snapshot: Snapshot
    groups: npt.NDArray[np.int64]  # (rows,) number of each row's group, -1 for rows without a label
    names: list[tuple[int, str]]  # (label, source) of each group
    pairs: list[tuple[int, int]]  # fake group and real group that are left out together
    trained: Mask  # (rows,) True for a row with a label that is not held out
    held: Positions  # rows that choose thresholds

    def members(self, label: int) -> list[int]:
        """The groups of a class."""
        return [g for g, name in enumerate(self.names) if name[0] == label]


@dataclass(frozen=True)
class HeldOutScores:
    """Scores by heads that were fitted without the pairs."""

    # for each group: (rows, groups of the other class) scores of its rows, one column for each left-out partner
    own: Sequence[npt.NDArray[Any]]
    held: Positions
    validation: npt.NDArray[np.float64]  # (held, pairs + 1), the last column by the head without a left-out pair


def _pair_result(sources: SourceGroups, scores: HeldOutScores, i: int) -> PairResult:
    """Measure the head of pair `i` on the rows of the pair."""
    f, r = sources.pairs[i]
    fake = scores.own[f][:, sources.members(REAL).index(r)].astype(np.float64)
    real = scores.own[r][:, sources.members(FAKE).index(f)].astype(np.float64)
    both, labels = np.concatenate([real, fake]), np.repeat([REAL, FAKE], [len(real), len(fake)])
    truth = sources.snapshot.column("labels")[scores.held]
    others = ~np.isin(sources.groups[scores.held], (f, r))
    threshold = 0.0  # the heads' own, if the other sources' rows are of one class
    if len(np.unique(truth[others])) == 2:
        threshold = best_threshold(truth[others], scores.validation[others, i], balanced=True)[0]
    accuracy = ((real <= threshold).mean() + (fake > threshold).mean()) / 2
    names = sources.names[f][1], sources.names[r][1]
    oracle = best_threshold(labels, both, balanced=True)[1]
    return PairResult(*names, len(both), auc(labels, both) or 0.0, float(accuracy), oracle)


def _ridge_scores(sources: SourceGroups) -> HeldOutScores:
    snapshot, groups, pairs = sources.snapshot, sources.groups, sources.pairs
    sums = group_sums(snapshot, np.where(sources.trained, groups, -1), len(sources.names))
    total = {label: total_of([sums[g] for g in sources.members(label)]) for label in (REAL, FAKE)}
    heads = np.stack([ridge(total[REAL] - sums[r], total[FAKE] - sums[f]) for f, r in pairs])
    scores: list[list[npt.NDArray[np.float32]]] = [[] for _ in sources.names]
    pairs_of = [[i for i, pair in enumerate(pairs) if group in pair] for group in range(len(sources.names))]
    for positions, vectors in batches(snapshot, np.flatnonzero(groups >= 0)):
        for group in np.unique(groups[positions]):
            x = with_constant(vectors[groups[positions] == group])
            scores[group].append((x @ heads[pairs_of[group]].T).astype(np.float32))
    validation = with_constant(snapshot.vectors(sources.held)) @ np.vstack([heads, ridge(total[REAL], total[FAKE])]).T
    return HeldOutScores([np.concatenate(parts) for parts in scores], sources.held, validation)


def _knn_scores(sources: SourceGroups, seed: int) -> HeldOutScores:
    """Search once for each row, for more neighbours than needed, then drop those of each left-out source.

    The row's own source is excluded from the search, as most of the nearest rows would belong to it.
    """
    snapshot, groups = sources.snapshot, sources.groups
    labels = snapshot.column("labels")
    banks = {label: snapshot.prepare_filter(sources.trained & (labels == label)) for label in (REAL, FAKE)}
    reals, fakes = sources.members(REAL), sources.members(FAKE)
    own = []
    for group, (label, _) in enumerate(sources.names):
        queries = _queries(sources, group, seed)
        vectors = snapshot.vectors(queries)
        rest = snapshot.prepare_filter(sources.trained & (labels == label) & (groups != group))
        same, other = snapshot.search_each(vectors, OVERSAMPLING * K, [rest, banks[1 - label]], recall=1)
        to_same = _mean_similarity(sources, vectors, same, rest, [-1])
        to_other = _mean_similarity(sources, vectors, other, banks[1 - label], fakes if label == REAL else reals)
        own.append(to_same - to_other if label == FAKE else to_other - to_same)
    held = subsample(sources.held, groups[sources.held], QUERIES // 4, seed)
    vectors = snapshot.vectors(held)
    of_real, of_fake = snapshot.search_each(vectors, OVERSAMPLING * K, [banks[REAL], banks[FAKE]], recall=1)
    real = _mean_similarity(sources, vectors, of_real, banks[REAL], [*reals, -1])
    fake = _mean_similarity(sources, vectors, of_fake, banks[FAKE], [*fakes, -1])
    validation = [fake[:, fakes.index(f)] - real[:, reals.index(r)] for f, r in sources.pairs]
    return HeldOutScores(own, held, np.stack([*validation, fake[:, -1] - real[:, -1]], axis=1))


def _queries(sources: SourceGroups, group: int, seed: int) -> Positions:
    """Positions of the rows of a group that are scored."""
    members = np.flatnonzero(sources.groups == group)
    return subsample(members, sources.groups[members], max(QUERIES // len(sources.names), 1), seed)


def _classifier_scores(sources: SourceGroups, name: str, seed: int) -> HeldOutScores:
    """Fit a classifier once for each pair, on the same rows without the pair's."""
    snapshot, groups = sources.snapshot, sources.groups
    labels = snapshot.column("labels")

    def read(positions: Positions) -> Examples:
        return Examples.from_arrays(snapshot.vectors(positions), labels[positions])

    trained = np.flatnonzero(sources.trained)
    trained = subsample(trained, groups[trained], FITTED_ON, seed)
    held = subsample(sources.held, groups[sources.held], QUERIES // 4, seed)
    train, validation = read(trained), read(held)
    queries = [read(_queries(sources, group, seed)) for group in range(len(sources.names))]
    whole = fit_classifier(name, train, validation, seed=seed)
    own = [
        np.empty((len(rows), len(sources.members(1 - label))))
        for rows, (label, _) in zip(queries, sources.names, strict=True)
    ]
    scores = []
    for f, r in sources.pairs:
        kept, kept_validation = (~np.isin(groups[positions], (f, r)) for positions in (trained, held))
        others = validation.take(kept_validation)
        if min(np.bincount(others.labels, minlength=2)) < 2:
            others = train.take(kept)
        fitted = fit_classifier(name, train.take(kept), others, c=whole.c, seed=seed)
        own[f][:, sources.members(REAL).index(r)] = fitted.decision_function(queries[f])
        own[r][:, sources.members(FAKE).index(f)] = fitted.decision_function(queries[r])
        scores.append(fitted.decision_function(validation))
    return HeldOutScores(own, held, np.stack([*scores, whole.decision_function(validation)], axis=1))


def _imported_scores(sources: SourceGroups, head: Head, seed: int) -> HeldOutScores:
    """Score rows once: which sources are left out makes no difference to a head that was trained on none."""
    snapshot = sources.snapshot
    own = []
    for group, (label, _) in enumerate(sources.names):
        scores = head.decision_function(snapshot.vectors(_queries(sources, group, seed)))
        own.append(np.repeat(scores[:, None], len(sources.members(1 - label)), axis=1))
    held = subsample(sources.held, sources.groups[sources.held], QUERIES // 4, seed)
    validation = head.decision_function(snapshot.vectors(held))
    return HeldOutScores(own, held, np.repeat(validation[:, None], len(sources.pairs) + 1, axis=1))


def _mean_similarity(
    sources: SourceGroups, vectors: Vectors, matches: Matches, bank: PreparedFilter, left_out: list[int]
) -> npt.NDArray[np.float64]:
    """(queries, left_out) mean similarity of the K nearest rows of a bank without each of the groups, -1 for none."""
    exists, groups = matches.rows >= 0, sources.groups[np.maximum(matches.rows, 0)]
    result = np.empty((len(vectors), len(left_out)))
    for i, group in enumerate(left_out):
        kept = exists & (groups != group)
        kept &= np.cumsum(kept, axis=1) <= K
        result[:, i] = matches.mean_similarity(kept)
        short = np.flatnonzero(kept.sum(1) < K)
        if len(short) and matches.k < len(bank):  # nearly all matches are of this group: search again without it
            others = sources.groups != group
            rest = sources.snapshot.prepare_filter(others if bank.mask is None else others & bank.mask)
            more = sources.snapshot.search(vectors[short], K, rest, recall=1)
            result[short, i] = more.mean_similarity()
    return result
