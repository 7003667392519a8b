"""Training a projection with the triplet loss: an anchor nearer to its own class than to the other, by a margin."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ...errors import HeadError
from ...store.records import FAKE, REAL, Ints, Names, Vectors, distinct
from ..projection import Projected, Projection, effective_rank, forward
from .examples import Labelled, batches

Anchor = Literal["real", "fake", "both"]
Match = Literal["none", "category", "source"]
Mining = Literal["random", "semihard", "batch-hard"]
ANCHORS = {"real": (REAL,), "fake": (FAKE,), "both": (REAL, FAKE)}

READ_AHEAD = 32  # batches whose rows are read in one go: gathered from many shards, few rows cost as much as many
ALIKE = 1e-6  # in every coordinate of a unit vector: float32's rounding
COLLAPSED = 1e-3  # mean distance on the unit sphere below which all rows are one point


@dataclass(frozen=True)
class TripletOptions:
    """The source paper's loss and loop; where it is silent, what fits its curves (margin, patience) or is usual."""

    anchor: Anchor = "real"
    match: Match = "none"  # what positive and negative share with the anchor (Kanwal 2023, Liang 2023: content)
    mining: Mining = "random"
    margin: float = 0.2
    batch: int = 128  # triplets
    epochs: int = 20  # at most
    patience: int = 3  # epochs without a better validation loss
    learning_rate: float = 1e-3
    dim: int = 128  # of the projection

    def __post_init__(self) -> None:
        require_choice(self.anchor, "anchor", ANCHORS)
        require_choice(self.match, "match", get_args(Match))
        require_choice(self.mining, "mining", get_args(Mining))


def require_choice(name: str, what: str, names: Collection[str]) -> None:
    """Raise HeadError unless `name` is one of `names`."""
    if name not in names:
        raise HeadError(f"{what} {name!r} is unknown; choose one of {', '.join(names)}")


@dataclass(frozen=True)
class Triplets:
    """Rows by position, one triplet each place."""

    anchor: npt.NDArray[np.int64]  # (triplets,)
    positive: npt.NDArray[np.int64]  # another row of the anchor's class
    negative: npt.NDArray[np.int64]  # a row of the other class

    def __len__(self) -> int:
        return len(self.anchor)

    def take(self, which: slice) -> Triplets:
        return Triplets(self.anchor[which], self.positive[which], self.negative[which])


@dataclass(frozen=True)
class TripletEpoch:
    """Statistics of one pass over the anchors."""

    epoch: int
    loss: float  # mean over all triplets, while training
    active_loss: float | None  # mean over those not yet satisfied; None if all are
    active_share: float
    positive_distance: float  # mean d(anchor, positive)
    negative_distance: float  # mean d(anchor, negative)
    validation_loss: float  # over the fixed validation triplets
    effective_rank: float  # of the projected validation rows

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Texts = Callable[[Vectors, Names], Vectors]  # (n, dim) the text vectors beside (n, dim) vectors of (n,) categories


def match_numbers(examples: Labelled, match: Match) -> npt.NDArray[np.int64]:
    """(rows,) numbers that are equal where rows may stand in one triplet."""
    if match == "none":
        return np.zeros(len(examples), np.int64)
    column = examples.categories if match == "category" else examples.sources
    return distinct(column)[1].astype(np.int64)


def draw(labels: Ints, match: npt.NDArray[np.int64], anchor: Anchor, rng: np.random.Generator) -> Triplets:
    """One random triplet for every anchor that has a mate and an opposite of its match, in random order.

    Parameters
    ----------
    labels, match : (rows,)
    """
    pool = 2 * match + labels  # rows that may stand for one another
    order = np.argsort(pool, kind="stable")
    starts = np.searchsorted(pool[order], np.arange(2 * int(match.max(initial=0)) + 3))
    counts = np.diff(starts)
    rank = np.empty(len(pool), np.int64)  # a row's place in its pool
    rank[order] = np.arange(len(pool)) - starts[pool[order]]

    anchors = np.flatnonzero(np.isin(labels, ANCHORS[anchor]))
    anchors = anchors[(counts[pool[anchors]] > 1) & (counts[pool[anchors] ^ 1] > 0)]
    anchors = rng.permutation(anchors)
    mates, opposites = pool[anchors], pool[anchors] ^ 1
    mate = (rng.random(len(anchors)) * (counts[mates] - 1)).astype(np.int64)
    mate += mate >= rank[anchors]  # anyone but the anchor itself
    opposite = (rng.random(len(anchors)) * counts[opposites]).astype(np.int64)
    return Triplets(anchors, order[starts[mates] + mate], order[starts[opposites] + opposite])


def mine(
    distance: npt.NDArray[np.floating[Any]], rows: npt.NDArray[np.int64], pool: npt.NDArray[np.int64], mining: Mining
) -> Triplets:
    """Harder positives and negatives for the triplets of one batch, from the batch's own rows.

    Parameters
    ----------
    distance : (3b, 3b) between the rows of b triplets: the anchors, then the positives, then the negatives
    rows : (3b,) which row stands at each place, for a row may stand at several
    pool : (3b,) 2 * match + label

    Returns
    -------
    Triplets
        Of places 0 … 3b-1, one an anchor.
    """
    b = len(rows) // 3
    anchor, positive, negative = np.arange(3 * b, dtype=np.int64).reshape(3, b)
    opposite = pool[:b, None] ^ 1 == pool[None]
    if mining == "batch-hard":
        mate = (pool[:b, None] == pool[None]) & (rows[:b, None] != rows[None])
        positive = np.where(mate, distance[:b], -np.inf).argmax(1)
        negative = np.where(opposite, distance[:b], np.inf).argmin(1)
    elif mining == "semihard":  # farther than the positive, but as little as possible (Schroff et al. 2015)
        farther = opposite & (distance[:b] > distance[anchor, positive][:, None])
        negative = np.where(farther.any(1), np.where(farther, distance[:b], np.inf).argmin(1), negative)
    return Triplets(anchor, positive, negative)


def distances(projected: Vectors, triplets: Triplets) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """(triplets,) Euclidean distances anchor to positive and anchor to negative."""
    a = projected[triplets.anchor]
    return (
        np.linalg.norm(a - projected[triplets.positive], axis=1),
        np.linalg.norm(a - projected[triplets.negative], axis=1),
    )


def fit_projection(
    kind: str,
    train: Labelled,
    validation: Labelled,
    options: TripletOptions = TripletOptions(),
    *,
    texts: Texts | None = None,
    seed: int = 0,
    on_epoch: Callable[[TripletEpoch], None] | None = None,
) -> tuple[Projection, list[TripletEpoch]]:
    """Train until the loss over fixed validation triplets no longer falls; the best weights are given back.

    Triplets are drawn from all rows. Of the vectors, those of a few batches are in memory; of the validation rows, what
    they are projected to.

    Parameters
    ----------
    kind : a kind of projection, see `projection.KINDS`
    texts : for a fusion, where text vectors come from
    told : called after every epoch

    Raises
    ------
    HeadError
        No triplet can be made as asked, the vectors are all alike, or the projection collapsed to one point.
    """
    import torch

    rng = np.random.default_rng([seed, 1])
    match = match_numbers(train, options.match)
    fixed = draw(
        validation.labels, match_numbers(validation, options.match), options.anchor, np.random.default_rng([seed, 2])
    )
    if not len(fixed) or not len(draw(train.labels, match, options.anchor, np.random.default_rng(seed))):
        if options.match == "none":
            raise HeadError(
                f"no triplet can be made of {len(train)} training and {len(validation)} validation rows: each part "
                f"needs two rows of a class and one of the other; index more images"
            )
        raise HeadError(
            f"no triplet can be made: no {options.anchor if options.anchor != 'both' else 'labelled'} row has both "
            f"a mate and an opposite with the same {options.match}; match by something that real and fake rows share, "
            f"or use --match none"
        )
    mean = _mean(train)
    reject_alike(train, mean)
    best = Projection.initialize(kind, mean[None], dim=options.dim, seed=seed)
    weights = {name: torch.from_numpy(w.copy()).requires_grad_() for name, w in best.weights.items()}
    adam = torch.optim.Adam(list(weights.values()), lr=options.learning_rate)
    log: list[TripletEpoch] = []
    lowest, waited = np.inf, 0
    for number in range(1, options.epochs + 1):
        seen = []
        triplets = draw(train.labels, match, options.anchor, rng)
        for rows, x, t in _batches(train, triplets, options.batch, texts):
            z = forward(kind, weights, torch.from_numpy(x), None if t is None else torch.from_numpy(t))
            if options.mining == "random":
                a, p, n = z.chunk(3)
            else:
                apart = torch.cdist(z.detach(), z.detach()).numpy()
                mined = mine(apart, rows, 2 * match[rows] + train.labels[rows], options.mining)
                a, p, n = z[mined.anchor], z[mined.positive], z[mined.negative]
            # the small number keeps the root's slope finite where two rows are equal
            ap, an = (((a - other).square().sum(1) + 1e-12).sqrt() for other in (p, n))
            loss = torch.relu(ap - an + options.margin)
            adam.zero_grad()
            loss.mean().backward()  # type: ignore[no-untyped-call]
            adam.step()
            seen.append(torch.stack([loss, ap, an]).detach().numpy())
        now = Projection(kind, {name: w.detach().numpy().copy() for name, w in weights.items()})
        projected = project(now, validation, texts)
        epoch = _epoch(number, np.concatenate(seen, axis=1), projected, fixed, options.margin)
        log.append(epoch)
        if on_epoch:
            on_epoch(epoch)
        if epoch.validation_loss < lowest:
            lowest, waited, best = epoch.validation_loss, 0, now
        else:
            waited += 1
        if waited >= options.patience or not np.isfinite(epoch.validation_loss):
            break
    reject_collapsed(project(best, validation, texts), fixed)
    return best, log


def reject_collapsed(projected: Vectors, triplets: Triplets) -> None:
    """Raise HeadError if (n, dim) projected rows all lie on one point."""
    positive, negative = distances(projected, triplets)
    if not (positive.mean() > COLLAPSED or negative.mean() > COLLAPSED):
        raise HeadError(
            f"the projection collapsed: real and fake rows lie {negative.mean():.1e} apart on the unit sphere, so "
            f"nothing can be told from it. Train with mining 'random' or 'semihard', or a smaller learning rate"
        )


def reject_alike(rows: Labelled, mean: npt.NDArray[np.float32]) -> None:
    """Raise HeadError if all vectors are the (dim,) mean: a projection would spread their rounding over the sphere."""
    if all(float(np.abs(vectors - mean).max(initial=0)) < ALIKE for _, vectors in batches(rows)):
        raise HeadError(f"the vectors of all {len(rows)} training rows are alike; index with another encoder")


def projected_batches(projection: Projection, rows: Labelled, texts: Texts | None) -> Iterator[tuple[slice, Projected]]:
    """Iterate over the projected vectors of all rows, a piece at a time, with the positions of the rows."""
    for here, vectors in batches(rows):
        yield here, projection(vectors, texts(vectors, rows.categories[here]) if texts else None)


def project(projection: Projection, rows: Labelled, texts: Texts | None) -> Projected:
    """(rows, 128) what all rows are projected to."""
    result = np.empty((len(rows), projection.dim), np.float32)
    for here, projected in projected_batches(projection, rows, texts):
        result[here] = projected
    return result


def _batches(
    train: Labelled, triplets: Triplets, size: int, texts: Texts | None
) -> Iterator[tuple[npt.NDArray[np.int64], Vectors, Vectors | None]]:
    """(3b,) rows of b triplets, anchors, positives, negatives, with their vectors and texts."""
    for first in range(0, len(triplets), size * READ_AHEAD):
        some = triplets.take(slice(first, first + size * READ_AHEAD))
        rows = np.concatenate([some.anchor, some.positive, some.negative])
        vectors = np.asarray(train.vectors_of(rows), np.float32)
        beside = np.asarray(texts(vectors, train.categories[rows]), np.float32) if texts else None
        places = np.arange(len(rows)).reshape(3, -1)
        for start in range(0, len(some), size):
            here = places[:, start : start + size].reshape(-1)
            yield rows[here], vectors[here], None if beside is None else beside[here]


def _mean(rows: Labelled) -> npt.NDArray[np.float32]:
    """(dim,) of all rows' vectors."""
    return np.asarray(sum(v.sum(0, dtype=np.float64) for _, v in batches(rows)) / len(rows), np.float32)


def _epoch(
    number: int,
    seen: npt.NDArray[np.float32],  # (3, triplets): loss, d(a, p), d(a, n)
    projected: Vectors,  # the validation rows
    fixed: Triplets,
    margin: float,
) -> TripletEpoch:
    loss, ap, an = seen.astype(np.float64)
    positive, negative = distances(projected, fixed)
    return TripletEpoch(
        epoch=number,
        loss=float(loss.mean()),
        active_loss=float(loss[loss > 0].mean()) if (loss > 0).any() else None,
        active_share=float((loss > 0).mean()),
        positive_distance=float(ap.mean()),
        negative_distance=float(an.mean()),
        validation_loss=float(np.maximum(positive - negative + margin, 0).mean()),
        effective_rank=effective_rank(projected),
    )
