"""What a hard triplet is, and what each projection computes, by their definitions."""

import numpy as np
import pytest
from clipfake.detector.projection import FUSIONS, Projection
from clipfake.detector.triplet import Triplets, distances, draw, mine, reject_collapsed
from clipfake.store.errors import HeadError

B = 40  # triplets of a batch


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances, rows and pools of a batch as `fit_projection` makes it: anchors, their mates, their opposites."""
    rng = np.random.default_rng(3)
    row_pool = rng.integers(0, 6, 90)  # 2 * match + label of 90 rows
    anchors = rng.permutation(np.flatnonzero(row_pool % 2 == 0))[:B]
    mates = [rng.choice(np.setdiff1d(np.flatnonzero(row_pool == row_pool[a]), [a])) for a in anchors]
    opposites = [rng.choice(np.flatnonzero(row_pool == row_pool[a] ^ 1)) for a in anchors]
    rows = np.concatenate([anchors, mates, opposites])
    points = rng.normal(size=(90, 5))[rows]
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    return distance, rows, row_pool[rows]


def brute(batch: tuple[np.ndarray, np.ndarray, np.ndarray], place: int) -> tuple[list[int], list[int]]:
    """Places of the batch that may be a mate, and that may be an opposite, of the anchor at a place."""
    _, rows, pool = batch
    mates = [i for i in range(len(rows)) if pool[i] == pool[place] and rows[i] != rows[place]]
    return mates, [i for i in range(len(rows)) if pool[i] == pool[place] ^ 1]


def test_batch_hard_takes_the_farthest_mate_and_the_nearest_opposite(batch: tuple[np.ndarray, ...]) -> None:
    distance, rows, pool = batch
    found = mine(distance, rows, pool, "batch-hard")
    for place, (positive, negative) in enumerate(zip(found.positive, found.negative, strict=True)):
        mates, opposites = brute(batch, place)  # type: ignore[arg-type]
        assert distance[place, positive] == max(distance[place, mates])
        assert positive in mates
        assert distance[place, negative] == min(distance[place, opposites])
        assert negative in opposites


def test_semihard_takes_the_nearest_opposite_beyond_the_mate(batch: tuple[np.ndarray, ...]) -> None:
    distance, rows, pool = batch
    found = mine(distance, rows, pool, "semihard")
    kept = 0
    for place, (positive, negative) in enumerate(zip(found.positive, found.negative, strict=True)):
        assert positive == B + place  # the drawn one
        _, opposites = brute(batch, place)  # type: ignore[arg-type]
        beyond = [i for i in opposites if distance[place, i] > distance[place, positive]]
        if beyond:
            assert distance[place, negative] == min(distance[place, beyond])
        else:
            assert negative == 2 * B + place
            kept += 1
        assert negative in opposites
    assert kept < B


def test_random_takes_what_was_drawn(batch: tuple[np.ndarray, ...]) -> None:
    found = mine(*batch, "random")  # type: ignore[call-arg, arg-type]
    assert np.array_equal(found.positive, B + np.arange(B))
    assert np.array_equal(found.negative, 2 * B + np.arange(B))


def test_distances_are_euclidean() -> None:
    points = np.random.default_rng(0).normal(size=(6, 4))
    positive, negative = distances(points, Triplets(np.array([0, 1]), np.array([2, 3]), np.array([4, 5])))
    assert positive == pytest.approx(
        [np.sqrt(((points[0] - points[2]) ** 2).sum()), np.sqrt(((points[1] - points[3]) ** 2).sum())]
    )
    assert negative[1] == pytest.approx(np.sqrt(((points[1] - points[5]) ** 2).sum()))


@pytest.mark.parametrize("kind", ["linear", "mlp", *FUSIONS])
def test_a_projection_computes_its_formula(kind: str) -> None:
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(5, 12)), rng.normal(size=(5, 12))
    drawn = Projection.draw(kind, x, dim=7, seed=2)
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
        told = Projection(kind, w)(x, t if kind in FUSIONS else None)[i]
        assert np.allclose(told, z / np.linalg.norm(z), atol=1e-5)


def test_a_projection_of_one_point_is_an_error() -> None:
    triplets = draw(np.array([0, 0, 1, 1]), np.zeros(4, np.int64), "both", np.random.default_rng(0))
    point = np.tile(np.float32([0.6, 0.8]), (4, 1))
    with pytest.raises(HeadError, match="collapsed"):
        reject_collapsed(point, triplets)
    reject_collapsed(np.eye(4, dtype=np.float32), triplets)
