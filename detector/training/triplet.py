"""Training of a projection with the triplet loss.

The loss pulls an anchor nearer to a row of its own class, the positive, than to one of the other class, the negative,
by a margin.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ...errors import HeadError
from ...store.records import FAKE, REAL, Ints, Names, Vectors, distinct
from ..projection import Projected, Projection, effective_rank, forward
from .examples import Labelled, batches, reject_equal

Anchor = Literal["real", "fake", "both"]
Match = Literal["none", "category", "source"]
Mining = Literal["random", "semihard", "batch-hard"]
ANCHORS = {"real": (REAL,), "fake": (FAKE,), "both": (REAL, FAKE)}

READ_AHEAD = 32  # batches whose rows are read together: from many shards, few rows cost as much as many
COLLAPSED = 1e-3  # mean distance on the unit sphere below which all rows are one point


@dataclass(frozen=True)
class TripletOptions:
    """Options of the source paper's loss and loop.

    What the paper does not state is set to fit its curves (margin, patience) or to what is usual.
    """

    anchor: Anchor = "real"
    match: Match = "none"  # what the rows of a triplet have in common (Kanwal 2023, Liang 2023: content)
    mining: Mining = "random"
    margin: float = 0.2
    batch: int = 128  # triplets
    epochs: int = 20  # at most
    patience: int = 3  # epochs without a better validation loss
    learning_rate: float = 1e-3
    dim: int = 128  # dimension of the projected vectors

    def __post_init__(self) -> None:
        require_choice(self.anchor, "anchor", ANCHORS)
        require_choice(self.match, "match", get_args(Match))
        require_choice(self.mining, "mining", get_args(Mining))


def require_choice(value: str, option: str, choices: Collection[str]) -> None:
    """Raise HeadError unless the value of an option is one of its choices."""
    if value not in choices:
        raise HeadError(f"unknown {option} {value!r}; choose one of {', '.join(choices)}")


@dataclass(frozen=True)
class Triplets:
    """Triplets as positions of rows."""

    anchor: npt.NDArray[np.int64]  # (triplets,)
    positive: npt.NDArray[np.int64]  # another row of the anchor's class
    negative: npt.NDArray[np.int64]  # a row of the other class

    def __len__(self) -> int:
        return len(self.anchor)

    def take(self, part: slice) -> Triplets:
        return Triplets(self.anchor[part], self.positive[part], self.negative[part])


@dataclass(frozen=True)
class TripletEpoch:
    """Statistics of one pass over the anchors."""

    epoch: int
    loss: float  # mean over all triplets, while training
    active_loss: float | None  # mean over the triplets with a positive loss; None if there are none
    active_share: float  # share of the triplets with a positive loss
    positive_distance: float  # mean d(anchor, positive)
    negative_distance: float  # mean d(anchor, negative)
    validation_loss: float  # over the fixed validation triplets
    effective_rank: float  # of the projected validation rows

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Texts = Callable[[Vectors, Names], Vectors]  # (n, dim) text vectors for (n, dim) image vectors of (n,) categories


def match_numbers(examples: Labelled, match: Match) -> npt.NDArray[np.int64]:
    """(rows,) numbers that are equal for rows that may form a triplet."""
    if match == "none":
        return np.zeros(len(examples), np.int64)
    column = examples.categories if match == "category" else examples.sources
    return distinct(column)[1].astype(np.int64)


def draw(labels: Ints, match: npt.NDArray[np.int64], anchor: Anchor, rng: np.random.Generator) -> Triplets:
    """Draw one random triplet for each anchor that has a positive and a negative of its match, in random order.

    Parameters
    ----------
    labels, match : (rows,)
    """
    pool = 2 * match + labels  # rows of equal class and match
    order = np.argsort(pool, kind="stable")
    starts = np.searchsorted(pool[order], np.arange(2 * int(match.max(initial=0)) + 3))
    counts = np.diff(starts)
    rank = np.empty(len(pool), np.int64)  # a row's position in its pool
    rank[order] = np.arange(len(pool)) - starts[pool[order]]

    anchors = np.flatnonzero(np.isin(labels, ANCHORS[anchor]))
    anchors = anchors[(counts[pool[anchors]] > 1) & (counts[pool[anchors] ^ 1] > 0)]
    anchors = rng.permutation(anchors)
    positives, negatives = pool[anchors], pool[anchors] ^ 1
    positive = (rng.random(len(anchors)) * (counts[positives] - 1)).astype(np.int64)
    positive += positive >= rank[anchors]  # skip the anchor itself
    negative = (rng.random(len(anchors)) * counts[negatives]).astype(np.int64)
    return Triplets(anchors, order[starts[positives] + positive], order[starts[negatives] + negative])


def mine(
    distance: npt.NDArray[np.floating[Any]], rows: npt.NDArray[np.int64], pool: npt.NDArray[np.int64], mining: Mining
) -> Triplets:
    """Select harder positives and negatives for the triplets of one batch from the rows of the batch.

    Parameters
    ----------
    distance : (3b, 3b) between the rows of b triplets: the anchors, then the positives, then the negatives
    rows : (3b,) the row at each position of the batch; a row may occur several times
    pool : (3b,) 2 * match + label

    Returns
    -------
    Triplets
        Positions 0 … 3b-1 in the batch, one triplet for each anchor.
    """
    b = len(rows) // 3
    anchor, positive, negative = np.arange(3 * b, dtype=np.int64).reshape(3, b)
    is_negative = pool[:b, None] ^ 1 == pool[None]
    if mining == "batch-hard":
        is_positive = (pool[:b, None] == pool[None]) & (rows[:b, None] != rows[None])
        positive = np.where(is_positive, distance[:b], -np.inf).argmax(1)
        negative = np.where(is_negative, distance[:b], np.inf).argmin(1)
    elif mining == "semihard":  # the nearest that is farther than the positive (Schroff et al. 2015)
        farther = is_negative & (distance[:b] > distance[anchor, positive][:, None])
        negative = np.where(farther.any(1), np.where(farther, distance[:b], np.inf).argmin(1), negative)
    return Triplets(anchor, positive, negative)


def distances(projected: Vectors, triplets: Triplets) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """(triplets,) Euclidean distances from anchor to positive and from anchor to negative."""
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
    """Train until the loss on fixed validation triplets stops falling; the best weights are returned.

    Triplets are drawn from all rows. Only the vectors of a few batches and the projected validation rows are in memory.

    Parameters
    ----------
    kind : a kind of projection, one of `projection.TRIPLET_KINDS`
    texts : for a fusion, function that returns the text vectors
    on_epoch : called after every epoch

    Raises
    ------
    HeadError
        No triplet can be drawn with these options, all vectors are equal, or the projection collapsed to one point.
    """
    import torch

    rng = np.random.default_rng([seed, 1])
    match = match_numbers(train, options.match)
    fixed = draw(
        validation.labels, match_numbers(validation, options.match), options.anchor, np.random.default_rng([seed, 2])
    )
    if not len(fixed) or not len(draw(train.labels, match, options.anchor, np.random.default_rng(seed))):
        raise _no_triplets(len(train), len(validation), options)
    mean = _mean(train)
    reject_equal(train)
    best = Projection.initialize(kind, mean[None], dim=options.dim, seed=seed)
    weights = {name: torch.from_numpy(w.copy()).requires_grad_() for name, w in best.weights.items()}
    adam = torch.optim.Adam(list(weights.values()), lr=options.learning_rate)
    log: list[TripletEpoch] = []
    lowest, waited = np.inf, 0
    for number in range(1, options.epochs + 1):
        statistics = []
        triplets = draw(train.labels, match, options.anchor, rng)
        for rows, x, t in _batches(train, triplets, options.batch, texts):
            z = forward(kind, weights, torch.from_numpy(x), None if t is None else torch.from_numpy(t))
            pool = 2 * match[rows] + train.labels[rows]
            loss, ap, an = _triplet_loss(z, rows, pool, options)
            adam.zero_grad()
            loss.mean().backward()
            adam.step()
            statistics.append(torch.stack([loss, ap, an]).detach().numpy())
        current = Projection(kind, {name: w.detach().numpy().copy() for name, w in weights.items()})
        projected = project(current, validation, texts)
        epoch = _epoch(number, np.concatenate(statistics, axis=1), projected, fixed, options.margin)
        log.append(epoch)
        if on_epoch:
            on_epoch(epoch)
        if epoch.validation_loss < lowest:
            lowest, waited, best = epoch.validation_loss, 0, current
        else:
            waited += 1
        if waited >= options.patience or not np.isfinite(epoch.validation_loss):
            break
    reject_collapsed(project(best, validation, texts), fixed)
    return best, log


def _triplet_loss(
    z: Any, rows: npt.NDArray[np.int64], pool: npt.NDArray[np.int64], options: TripletOptions
) -> tuple[Any, Any, Any]:
    """(b,) tensors of one batch: loss, distances from anchor to positive and from anchor to negative.

    Parameters
    ----------
    z : (3b, dim) tensor of the projected anchors, positives and negatives
    rows, pool : (3b,), see `mine`
    """
    import torch

    if options.mining == "random":
        a, p, n = z.chunk(3)
    else:
        distance = torch.cdist(z.detach(), z.detach()).numpy()
        mined = mine(distance, rows, pool, options.mining)
        a, p, n = z[mined.anchor], z[mined.positive], z[mined.negative]
    # the small number keeps the gradient of the root finite where two rows are equal
    ap, an = (((a - other).square().sum(1) + 1e-12).sqrt() for other in (p, n))
    return torch.relu(ap - an + options.margin), ap, an


def _no_triplets(train_rows: int, validation_rows: int, options: TripletOptions) -> HeadError:
    if options.match == "none":
        return HeadError(
            f"no triplet can be drawn from {train_rows} training and {validation_rows} validation rows: each part "
            f"needs two rows of a class and one of the other; index more images"
        )
    return HeadError(
        f"no triplet can be drawn: no {options.anchor if options.anchor != 'both' else 'labelled'} row has both a "
        f"positive and a negative with the same {options.match}; match by something that real and fake rows share, or "
        f"use --match none"
    )


def reject_collapsed(projected: Vectors, triplets: Triplets) -> None:
    """Raise HeadError if (n, dim) projected rows all lie on one point."""
    positive, negative = distances(projected, triplets)
    if not (positive.mean() > COLLAPSED or negative.mean() > COLLAPSED):
        raise HeadError(
            f"the projection collapsed: real and fake rows lie {negative.mean():.1e} apart on the unit sphere, so "
            f"the head cannot separate them; train with mining 'random' or 'semihard', or with a smaller learning rate"
        )


def projected_batches(projection: Projection, rows: Labelled, texts: Texts | None) -> Iterator[tuple[slice, Projected]]:
    """Yield the positions and projected vectors of all rows in order, in batches."""
    for batch, vectors in batches(rows):
        yield batch, projection(vectors, texts(vectors, rows.categories[batch]) if texts else None)


def project(projection: Projection, rows: Labelled, texts: Texts | None) -> Projected:
    """(rows, 128) projected vectors of all rows."""
    return np.concatenate([projected for _, projected in projected_batches(projection, rows, texts)])


def _batches(
    train: Labelled, triplets: Triplets, size: int, texts: Texts | None
) -> Iterator[tuple[npt.NDArray[np.int64], Vectors, Vectors | None]]:
    """Yield the (3b,) rows of b triplets, anchors, positives, then negatives, with their vectors and text vectors."""
    for first in range(0, len(triplets), size * READ_AHEAD):
        chunk = triplets.take(slice(first, first + size * READ_AHEAD))
        rows = np.concatenate([chunk.anchor, chunk.positive, chunk.negative])
        vectors = np.asarray(train.vectors_of(rows), np.float32)
        text_vectors = np.asarray(texts(vectors, train.categories[rows]), np.float32) if texts else None
        positions = np.arange(len(rows)).reshape(3, -1)
        for start in range(0, len(chunk), size):
            batch = positions[:, start : start + size].reshape(-1)
            yield rows[batch], vectors[batch], None if text_vectors is None else text_vectors[batch]


def _mean(rows: Labelled) -> npt.NDArray[np.float32]:
    """(dim,) mean vector of all rows."""
    return np.asarray(sum(v.sum(0, dtype=np.float64) for _, v in batches(rows)) / len(rows), np.float32)


def _epoch(
    number: int,
    statistics: npt.NDArray[np.float32],  # (3, triplets): loss, d(a, p), d(a, n)
    projected: Vectors,  # validation rows
    fixed: Triplets,  # validation triplets
    margin: float,
) -> TripletEpoch:
    loss, ap, an = statistics.astype(np.float64)
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
