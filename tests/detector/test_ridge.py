"""The ridge head against scikit-learn, and its sums with unlabelled rows and any batch size."""

import numpy as np
import pytest
from clipfake.detector.evaluation.ridge import (
    RIDGE,
    RidgeSums,
    by_source,
    decision_values,
    group_sums,
    ridge,
    total_of,
    with_constant,
)
from clipfake.store.records import Block, Rows
from clipfake.store.snapshot import Snapshot
from clipfake.store.space import Space
from clipfake.store.store import Store
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

DIM = 6
SPACE = Space("toy", "0" * 64, dim=DIM)


def random_vectors(count: int, label: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng([seed, label]).standard_normal((count, DIM)) * np.arange(1, DIM + 1)
    vectors[:, :2] += label
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("reals", "fakes"), [(300, 300), (40, 900), (1000, 1), (1, 2)])
def test_ridge_equals_scikit_learn_with_balanced_classes(reals: int, fakes: int) -> None:
    real, fake = random_vectors(reals, 0), random_vectors(fakes, 1)
    x, y = np.concatenate([real, fake]).astype(np.float64), np.repeat([-1.0, 1.0], [reals, fakes])
    weight = np.repeat([1 / reals, 1 / fakes], [reals, fakes])
    strength = RIDGE * (weight[:, None] * x**2).sum() / DIM
    theirs = Ridge(alpha=strength, solver="cholesky").fit(x, y, sample_weight=weight)
    weights = ridge(RidgeSums.from_vectors(real), RidgeSums.from_vectors(fake))
    assert np.allclose(weights, [*theirs.coef_, theirs.intercept_], atol=1e-8)


def test_direction_is_that_of_fisher() -> None:
    real, fake = random_vectors(4000, 0), random_vectors(500, 1)
    lda = LinearDiscriminantAnalysis(solver="lsqr", priors=[0.5, 0.5])
    lda.fit(np.concatenate([real, fake]).astype(np.float64), np.repeat([0, 1], [4000, 500]))
    ours = ridge(RidgeSums.from_vectors(real), RidgeSums.from_vectors(fake))[:-1]
    assert ours @ lda.coef_[0] / np.linalg.norm(ours) / np.linalg.norm(lda.coef_) > 0.99


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """One source of both classes and one of each class, all with some unlabelled rows."""
    store = Store.create(tmp_path_factory.mktemp("ridge") / "s", SPACE)
    sources = ["both"] * 30 + ["camera"] * 20 + ["gan"] * 10
    labels = [0, 1, -1] * 10 + [0] * 15 + [-1] * 5 + [1] * 8 + [-1] * 2
    rows = Rows.make([f"{i}" for i in range(60)], labels, sources=sources)
    with store.writer() as writer:
        writer.append(Block(SPACE, rows, np.concatenate([random_vectors(40, 0), random_vectors(20, 1)])))
    return store.snapshot()


def test_rows_are_grouped_by_class_and_source(snapshot: Snapshot) -> None:
    groups, names = by_source(snapshot)
    assert names == [(0, "both"), (0, "camera"), (1, "both"), (1, "gan")]
    columns = zip(snapshot.column("labels").tolist(), snapshot.column("sources").tolist(), strict=True)
    for group, (label, source) in zip(groups.tolist(), columns, strict=True):
        assert group == (-1 if label == -1 else names.index((label, source)))


@pytest.mark.parametrize("at_once", [1, 7, 8192])
def test_sums_and_scores_do_not_depend_on_the_batch_size(
    snapshot: Snapshot, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfake.detector.evaluation.ridge.ROWS_AT_ONCE", at_once)
    groups, names = by_source(snapshot)
    sums = group_sums(snapshot, groups, len(names))
    for group, of_group in enumerate(sums):
        whole = RidgeSums.from_vectors(snapshot.vectors(np.flatnonzero(groups == group)))
        assert of_group.n == whole.n == (groups == group).sum()
        assert np.allclose(of_group.square, whole.square)
    total = total_of(sums)
    assert total.n == 43
    assert np.allclose((total - sums[0]).square, total_of(sums[1:]).square)
    weights, queries = np.arange(DIM + 1.0), np.array([59, 0, 7, 7])
    assert np.allclose(decision_values(snapshot, queries, weights), with_constant(snapshot.vectors(queries)) @ weights)
    assert np.allclose(
        decision_values(snapshot, queries, weights), snapshot.vectors(queries) @ weights[:-1] + weights[-1]
    )
    assert decision_values(snapshot, queries[:0], weights).shape == (0,)
