"""Measures are the field's: equal to the reference implementations, and None where undefined."""

import json

import numpy as np
import pytest
from clipfake.detector.comparison import mcnemar
from clipfake.detector.metrics import Confusion, Curve, auc, auc_interval, best_threshold, measure, wilson
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score, roc_curve

rows_of_both_classes = st.lists(st.tuples(st.integers(0, 1), st.integers(-8, 8)), min_size=2, max_size=60).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


def test_the_papers_confusion_matrix_gives_the_papers_table() -> None:
    paper = Confusion(tn=3686, fp=315, fn=337, tp=3663)

    def percent(values: dict[str, float | None]) -> list[float]:
        return [round(100 * float(values[name] or 0), 2) for name in ("real", "fake")]

    assert round(100 * float(paper.accuracy or 0), 2) == 91.85
    assert percent(paper.precision) == [91.62, 92.08]
    assert percent(paper.recall) == [92.13, 91.57]
    assert percent(paper.f1) == [91.87, 91.83]


@settings(max_examples=60, deadline=None)
@given(rows_of_both_classes)
def test_measures_equal_the_reference(rows: list[tuple[int, int]]) -> None:
    labels, scores = np.array([r[0] for r in rows]), np.array([r[1] / 4 for r in rows])
    probability = 1 / (1 + np.exp(-scores))
    found = measure(labels, scores, probabilities=probability)
    assert found.auc == pytest.approx(roc_auc_score(labels, scores))
    assert found.ap == pytest.approx(average_precision_score(labels, scores))
    assert found.brier == pytest.approx(brier_score_loss(labels, probability))
    assert found.f1["fake"] == pytest.approx(f1_score(labels, scores > 0, zero_division=0))
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    curve = Curve.of(labels, scores)
    assert np.allclose(curve.fpr, fpr) and np.allclose(curve.tpr, tpr)
    assert found.tpr_at_fpr_5 == pytest.approx(tpr[fpr <= 0.05].max())


@settings(max_examples=60, deadline=None)
@given(rows_of_both_classes)
def test_no_threshold_beats_the_oracle(rows: list[tuple[int, int]]) -> None:
    labels, scores = np.array([r[0] for r in rows]), np.array([r[1] / 4 for r in rows])
    threshold, accuracy = best_threshold(labels, scores)
    assert ((scores > threshold) == (labels == 1)).mean() == pytest.approx(accuracy)
    tried = [((scores > cut) == (labels == 1)).mean() for cut in np.arange(-2.5, 2.5, 0.125)]
    assert accuracy >= max(tried) - 1e-12


@settings(max_examples=60, deadline=None)
@given(rows_of_both_classes)
def test_no_threshold_beats_the_balanced_oracle_where_classes_count_alike(rows: list[tuple[int, int]]) -> None:
    labels, scores = np.array([r[0] for r in rows]), np.array([r[1] / 4 for r in rows])
    threshold, share = best_threshold(labels, scores, balanced=True)
    assert measure(labels, scores, threshold=threshold).balanced_accuracy == pytest.approx(share)
    tried = [measure(labels, scores, threshold=cut).balanced_accuracy or 0 for cut in np.arange(-2.5, 2.5, 0.125)]
    assert share >= max(tried) - 1e-12


def test_what_is_undefined_is_none_and_the_json_is_standard() -> None:
    one_class = measure(np.zeros(5, int), np.linspace(-1, 1, 5))
    assert (one_class.auc, one_class.ap, one_class.eer, one_class.tpr_at_fpr_1) == (None, None, None, None)
    assert one_class.recall == {"real": 0.6, "fake": None, "macro": None}
    none = measure(np.zeros(0, int), np.zeros(0))
    assert (none.n, none.accuracy, none.accuracy_oracle, none.brier) == (0, None, None, None)
    for metrics in (one_class, none):
        json.dumps(metrics.as_json(), allow_nan=False)


def test_wilson_agrees_with_the_published_example() -> None:
    low, high = wilson(3686 + 3663, 8001) or (0, 0)
    assert (round(100 * low, 1), round(100 * high, 1)) == (91.2, 92.4)
    assert wilson(0, 0) is None


def test_the_auc_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    draws = [rng.normal(size=120) + labels for _ in range(400)]  # the true AUC is Φ(1/√2)
    inside = [low <= 0.76025 <= high for low, high in (auc_interval(labels, s) or (0, 0) for s in draws)]
    assert 0.92 <= np.mean(inside) <= 0.98
    assert np.mean([auc(labels, s) for s in draws]) == pytest.approx(0.76, abs=0.01)


def test_intervals_by_group_are_wider_where_rows_repeat() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    scores = rng.normal(size=60) + labels
    alone = measure(labels, scores).intervals["auc"] or (0, 0)
    repeated = measure(np.tile(labels, 9), np.tile(scores, 9)).intervals["auc"] or (0, 0)
    by_group = measure(np.tile(labels, 9), np.tile(scores, 9), groups=np.tile(np.arange(60), 9)).intervals["auc"]
    low, high = by_group or (0, 0)
    assert repeated[1] - repeated[0] < 0.5 * (alone[1] - alone[0])  # copies pretend to be evidence
    assert high - low == pytest.approx(alone[1] - alone[0], rel=0.25)


def test_mcnemar_counts_only_the_rows_that_tell_two_heads_apart() -> None:
    right = np.array([True] * 90 + [False] * 10)
    better = mcnemar(right, np.array([True] * 70 + [False] * 30))
    assert (better.only_first, better.only_second, better.difference) == (20, 0, pytest.approx(0.2))
    assert better.p == pytest.approx(2 * 0.5**20)
    assert better.sentence("the head", "the linear probe").startswith("the head beats the linear probe beyond chance")
    same = mcnemar(right, right)
    assert same.p == 1 and "does not differ" in same.sentence("the head", "the probe")


def test_calibration_error_is_the_gap_between_said_and_found() -> None:
    labels = np.array([0, 1] * 50)
    assert measure(labels, np.zeros(100), probabilities=np.full(100, 0.8)).ece == pytest.approx(0.3)
    assert measure(labels, np.zeros(100), probabilities=np.full(100, 0.5)).ece == pytest.approx(0)


def test_accuracy_is_told_at_three_thresholds() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([1.0, 2.0, 3.0, 4.0])
    found = measure(labels, scores, chosen=1.5)
    assert (found.accuracy, found.accuracy_at_validation, found.accuracy_oracle) == (0.5, 0.75, 1.0)
