"""Triplet mining, projections and their training against the definitions."""

import numpy as np
import pytest
from clipfake.detector.projection import FUSIONS, Projection
from clipfake.detector.training.examples import Examples
from clipfake.detector.training.triplet import (
    TripletEpoch,
    TripletOptions,
    Triplets,
    distances,
    draw,
    fit_projection,
    match_numbers,
    mine,
    reject_collapsed,
)
from clipfake.errors import HeadError
from clipfake.store.records import names

B = 40  # triplets of a batch


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances, rows and pools of a batch as in `fit_projection`: anchors, positives, negatives."""
    rng = np.random.default_rng(3)
    row_pool = rng.integers(0, 6, 90)  # 2 * match + label of 90 rows
    anchors = rng.permutation(np.flatnonzero(row_pool % 2 == 0))[:B]
    positives = [rng.choice(np.setdiff1d(np.flatnonzero(row_pool == row_pool[a]), [a])) for a in anchors]
    negatives = [rng.choice(np.flatnonzero(row_pool == row_pool[a] ^ 1)) for a in anchors]
    rows = np.concatenate([anchors, positives, negatives])
    points = rng.normal(size=(90, 5))[rows]
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    return distance, rows, row_pool[rows]


def allowed_partners(batch: tuple[np.ndarray, np.ndarray, np.ndarray], position: int) -> tuple[list[int], list[int]]:
    """Positions in the batch that may be the positive, and the negative, of the anchor at a position."""
    _, rows, pool = batch
    positives = [i for i in range(len(rows)) if pool[i] == pool[position] and rows[i] != rows[position]]
    return positives, [i for i in range(len(rows)) if pool[i] == pool[position] ^ 1]


def test_batch_hard_takes_farthest_positive_and_nearest_negative(batch: tuple[np.ndarray, ...]) -> None:
    distance, rows, pool = batch
    mined = mine(distance, rows, pool, "batch-hard")
    for position, (positive, negative) in enumerate(zip(mined.positive, mined.negative, strict=True)):
        positives, negatives = allowed_partners(batch, position)  # type: ignore[arg-type]
        assert distance[position, positive] == max(distance[position, positives])
        assert positive in positives
        assert distance[position, negative] == min(distance[position, negatives])
        assert negative in negatives


def test_semihard_takes_the_nearest_negative_beyond_the_positive(batch: tuple[np.ndarray, ...]) -> None:
    distance, rows, pool = batch
    mined = mine(distance, rows, pool, "semihard")
    semihard_count = 0
    for position, (positive, negative) in enumerate(zip(mined.positive, mined.negative, strict=True)):
        assert positive == B + position  # the positive that was drawn
        _, negatives = allowed_partners(batch, position)  # type: ignore[arg-type]
        beyond = [i for i in negatives if distance[position, i] > distance[position, positive]]
        if beyond:
            assert distance[position, negative] == min(distance[position, beyond])
        else:
            assert negative == 2 * B + position
            semihard_count += 1
        assert negative in negatives
    assert semihard_count < B


def test_random_mining_keeps_the_drawn_triplets(batch: tuple[np.ndarray, ...]) -> None:
    mined = mine(*batch, "random")  # type: ignore[call-arg, arg-type]
    assert np.array_equal(mined.positive, B + np.arange(B))
    assert np.array_equal(mined.negative, 2 * B + np.arange(B))


def test_distances_are_euclidean() -> None:
    points = np.random.default_rng(0).normal(size=(6, 4))
    positive, negative = distances(points, Triplets(np.array([0, 1]), np.array([2, 3]), np.array([4, 5])))
    assert positive == pytest.approx(
        [np.sqrt(((points[0] - points[2]) ** 2).sum()), np.sqrt(((points[1] - points[3]) ** 2).sum())]
    )
    assert negative[1] == pytest.approx(np.sqrt(((points[1] - points[5]) ** 2).sum()))


@pytest.mark.parametrize("kind", ["linear", "mlp", *FUSIONS])
def test_projection_computes_its_formula(kind: str) -> None:
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(5, 12)), rng.normal(size=(5, 12))
    drawn = Projection.initialize(kind, x, dim=7, seed=2)
    w = {name: rng.normal(size=array.shape).astype(np.float32) for name, array in drawn.weights.items()}
    for i, (image, text) in enumerate(zip(x, t, strict=True)):
        u = w["W"] @ image + w["b"]
        if kind == "mlp":
            z = w["U"] @ np.maximum(u, 0) + w["c"]
        elif kind == "sum":
            z = u + w["V"] @ text + w["c"]
        elif kind == "product":
            z = u * (w["V"] @ text + w["c"])
        elif kind == "concat":  # one matrix over both, 1024 -> 128 for CLIP
            z = np.hstack([w["W"], w["V"]]) @ np.concatenate([image, text]) + w["b"]
        elif kind == "triple":  # [u; v; u * v] side by side, 384 -> 128
            v = w["V"] @ text + w["c"]
            z = np.hstack([w["U"], w["T"], w["S"]]) @ np.concatenate([u, v, u * v]) + w["d"]
        else:
            z = u
        result = Projection(kind, w)(x, t if kind in FUSIONS else None)[i]
        assert np.allclose(result, z / np.linalg.norm(z), atol=1e-5)


def test_collapsed_projection_is_an_error() -> None:
    triplets = draw(np.array([0, 0, 1, 1]), np.zeros(4, np.int64), "both", np.random.default_rng(0))
    point = np.tile(np.float32([0.6, 0.8]), (4, 1))  # type: ignore[arg-type]
    with pytest.raises(HeadError, match="collapsed"):
        reject_collapsed(point, triplets)
    reject_collapsed(np.eye(4, dtype=np.float32), triplets)


def examples(count: int, seed: int = 0) -> Examples:
    """Rows whose class is one direction and whose category is another direction of larger variance."""
    rng = np.random.default_rng(seed)
    labels, category = rng.integers(0, 2, count), rng.integers(0, 3, count)
    vectors = 0.3 * rng.standard_normal((count, 8))
    vectors[:, 0] += labels
    vectors[np.arange(count), 3 + category] += 2
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    categories = names([f"category {number}" for number in category])
    return Examples.from_arrays(
        vectors, labels, categories=categories, sources=names([f"source {number}" for number in labels])
    )


def loss_of(projection: Projection, rows: Examples, options: TripletOptions, seed: int) -> float:
    """Mean loss over the fixed triplets of validation rows, computed one by one."""
    match = match_numbers(rows, options.match)
    fixed = draw(rows.labels, match, options.anchor, np.random.default_rng([seed, 2]))
    z = projection(rows.vectors).astype(np.float64)
    losses = [
        max(0.0, float(np.linalg.norm(z[a] - z[p]) - np.linalg.norm(z[a] - z[n])) + options.margin)
        for a, p, n in zip(fixed.anchor, fixed.positive, fixed.negative, strict=True)
    ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    "options",
    [
        TripletOptions(epochs=4, batch=32),
        TripletOptions(epochs=4, batch=32, mining="semihard", anchor="both", match="category", margin=0.4),
        TripletOptions(epochs=4, batch=32, mining="batch-hard", anchor="fake"),
    ],
)
def test_training_lowers_the_loss_and_logs_it(options: TripletOptions) -> None:
    train, validation = examples(300), examples(200, 1)
    results: list[TripletEpoch] = []
    best, log = fit_projection("linear", train, validation, options, seed=5, on_epoch=results.append)
    assert results == log
    lowest = min(epoch.validation_loss for epoch in log)
    assert loss_of(best, validation, options, 5) == pytest.approx(lowest, abs=1e-5)
    start = Projection.initialize("linear", train.vectors, seed=5)
    assert lowest < 0.9 * loss_of(start, validation, options, 5)
    for epoch in log:
        assert 0 < epoch.active_share <= 1 and epoch.active_loss is not None
        assert epoch.active_loss * epoch.active_share == pytest.approx(epoch.loss, rel=1e-4)
        assert epoch.loss >= epoch.positive_distance - epoch.negative_distance + options.margin - 1e-6
        assert 1 <= epoch.effective_rank <= 8


def test_early_stopping_returns_the_best_weights() -> None:
    """With random labels, training can only overfit."""
    rng = np.random.default_rng(0)
    train, validation = (
        Examples.from_arrays(examples(count, seed).vectors, rng.integers(0, 2, count))
        for seed, count in enumerate((100, 150))
    )
    options = TripletOptions(epochs=40, patience=2, batch=16, learning_rate=0.02)
    best, log = fit_projection("linear", train, validation, options, seed=3)
    losses = [epoch.validation_loss for epoch in log]
    assert [epoch.epoch for epoch in log] == list(range(1, len(log) + 1))
    assert len(log) == losses.index(min(losses)) + 1 + 2 < 30
    assert loss_of(best, validation, options, 3) == pytest.approx(min(losses), abs=1e-5)
    assert losses[-1] > min(losses) + 1e-3


def test_loss_without_steps_is_that_of_the_drawn_triplets() -> None:
    train, validation = examples(120), examples(80, 1)
    options = TripletOptions(epochs=1, batch=50, learning_rate=0.0, margin=0.3)
    projection, [epoch] = fit_projection("linear", train, validation, options, seed=2)
    drawn = draw(train.labels, match_numbers(train, "none"), "real", np.random.default_rng([2, 1]))
    positive, negative = distances(projection(train.vectors), drawn)
    losses = np.maximum(positive - negative + 0.3, 0)
    assert epoch.loss == pytest.approx(losses.mean(), abs=1e-5)
    assert epoch.active_share == pytest.approx((losses > 0).mean(), abs=1e-2)
    assert epoch.positive_distance == pytest.approx(positive.mean(), abs=1e-5)
    assert epoch.negative_distance == pytest.approx(negative.mean(), abs=1e-5)


def test_each_anchor_is_drawn_once_with_equally_likely_partners() -> None:
    labels, match = np.array([0, 0, 0, 1, 1, 0, 1, 0]), np.array([0, 0, 0, 0, 0, 1, 1, 2])
    rng = np.random.default_rng(0)
    draws = [draw(labels, match, "both", rng) for _ in range(3000)]
    assert all(
        sorted(triplets.anchor.tolist()) == [0, 1, 2, 3, 4] for triplets in draws
    )  # 5 and 6 have no positive, 7 no negative
    assert len({tuple(triplets.anchor.tolist()) for triplets in draws}) == 120  # in every order
    for anchor, positives, negatives in (
        (0, [1, 2], [3, 4]),
        (2, [0, 1], [3, 4]),
        (3, [4], [0, 1, 2]),
        (4, [3], [0, 1, 2]),
    ):
        positions = [int(np.flatnonzero(triplets.anchor == anchor)[0]) for triplets in draws]
        for partners, allowed in (
            (
                [int(triplets.positive[position]) for triplets, position in zip(draws, positions, strict=True)],
                positives,
            ),
            (
                [int(triplets.negative[position]) for triplets, position in zip(draws, positions, strict=True)],
                negatives,
            ),
        ):
            counts = np.array([partners.count(row) for row in allowed])
            assert counts.sum() == 3000
            assert np.abs(counts - 3000 / len(allowed)).max() < 130


def test_impossible_or_unknown_triplet_options_are_named() -> None:
    with pytest.raises(HeadError, match="no real row has both a positive and a negative with the same source"):
        fit_projection("linear", examples(60), examples(40, 1), TripletOptions(match="source"))
    with pytest.raises(HeadError, match="no labelled row has both"):
        fit_projection("linear", examples(60), examples(40, 1), TripletOptions(match="source", anchor="both"))
    for wrong in ({"anchor": "nobody"}, {"match": "name"}, {"mining": "gold"}):
        with pytest.raises(HeadError, match=r"unknown (anchor|match|mining) '\w+'; choose one of"):
            TripletOptions(**wrong)  # type: ignore[arg-type]
