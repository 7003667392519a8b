"""The benchmark of verdicts on left-out sources, on a small store and against figures worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
from clipfake.benchmarks.unseen import COVERAGES, SHARES, area_under_risk, cllr, equal_weights, risk_at, run
from clipfake.store.records import Block, Rows, names
from clipfake.store.space import Space
from clipfake.store.store import Store

SPACE = Space("toy", "0" * 64, dim=8)
SOURCES = {"camera a": 0, "camera b": 0, "gan a": 1, "gan b": 1}


def test_risk_is_the_share_of_wrong_answers_among_the_most_confident() -> None:
    confidence, wrong = np.arange(10.0, 0, -1), np.zeros(10, bool)
    wrong[-2:] = True  # the two least confident answers of ten
    weights = np.full(10, 0.1)
    assert risk_at(confidence, wrong, weights) == pytest.approx([0] * 8 + [1 / 9, 2 / 10])
    assert area_under_risk(confidence, wrong, weights) == pytest.approx((1 / 9 + 2 / 10) / 10)
    assert area_under_risk(confidence[::-1].copy(), wrong, weights) > 0.2


def test_cost_of_a_ratio_that_says_nothing_is_one_bit() -> None:
    labels, weights = np.array([0, 0, 1], np.int8), np.full(3, 1 / 3)
    assert cllr(np.zeros(3), labels, weights) == pytest.approx(1)
    assert cllr(np.array([-9.0, -9.0, 9.0]), labels, weights) < 0.001
    assert cllr(np.array([9.0, 9.0, -9.0]), labels, weights) > 10


def test_every_source_of_a_class_weighs_the_same() -> None:
    labels = np.array([0, 0, 0, 1, 1], np.int8)
    weights = equal_weights(names(["a", "a", "b", "c", "c"]), labels)
    assert weights == pytest.approx([1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 4])


def test_sources_are_left_out_and_measured(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    store = Store.create(tmp_path / "s", SPACE)
    with store.writer() as writer:
        for source, label in SOURCES.items():
            vectors = rng.standard_normal((60, 8)) + 3 * label * np.eye(8)[0]
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            rows = Rows.make(
                [f"{source}/{i}" for i in range(60)],
                [label] * 60,
                sources=[source] * 60,
                generators=[source if label else ""] * 60,
            )
            writer.append(Block(SPACE, rows, vectors.astype(np.float32)))
    steps: list[str] = []
    result = run(store.snapshot(), classifier="logistic", groups=[("camera a", "gan a")], on_progress=steps.append)
    assert steps == [*(f"without {name}" for name in SOURCES), "without camera a, gan a"]
    assert result["sources"].keys() == SOURCES.keys()
    for source in result["sources"].values():
        assert source["n"] == 60 and source["auc"]["clipfake"] > 0.8
        assert source["real"] + source["fake"] + source["unsure"] == pytest.approx(1, abs=1e-3)
    assert len(result["one source left out"]["clipfake"]["risk_by_coverage"]) == len(COVERAGES)
    assert result["groups"]["camera a+gan a"]["auc"]["clipfake"] > 0.8
    assert list(result["share of left-out sources in the calibration"]) == [f"{share}" for share in SHARES]
