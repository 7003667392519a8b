"""Metrics equal reference implementations, and are None where undefined."""

import itertools
import json
import math

import numpy as np
import pytest
from clipfake.detector.comparison import mcnemar
from clipfake.detector.metrics import Confusion, RocCurve, auc, auc_interval, best_threshold, measure, newcombe, wilson
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

# scores are multiples of 1/4 in a narrow range, so most examples hold ties
rows_of_any_classes = st.lists(st.tuples(st.integers(0, 1), st.integers(-8, 8)), max_size=60)
rows_of_both_classes = rows_of_any_classes.filter(lambda rows: len({label for label, _ in rows}) == 2)


def test_confusion_matrix_of_the_paper_gives_its_table() -> None:
    paper = Confusion(tn=3686, fp=315, fn=337, tp=3663)

    def percent(values: dict[str, float | None]) -> list[float]:
        return [round(100 * float(values[name] or 0), 2) for name in ("real", "fake")]

    assert round(100 * float(paper.accuracy or 0), 2) == 91.85
    assert percent(paper.precision) == [91.62, 92.08]
    assert percent(paper.recall) == [92.13, 91.57]
    assert percent(paper.f1) == [91.87, 91.83]


@settings(max_examples=60, deadline=None)
@given(rows_of_both_classes)
def test_metrics_equal_scikit_learn(rows: list[tuple[int, int]]) -> None:
    labels, scores = np.array([r[0] for r in rows]), np.array([r[1] / 4 for r in rows])
    probability = 1 / (1 + np.exp(-scores))
    metrics = measure(labels, scores, probabilities=probability)
    assert metrics.auc == pytest.approx(roc_auc_score(labels, scores))
    assert metrics.ap == pytest.approx(average_precision_score(labels, scores))
    assert metrics.brier == pytest.approx(brier_score_loss(labels, probability))
    for measured, theirs in (
        (metrics.precision, precision_score),
        (metrics.recall, recall_score),
        (metrics.f1, f1_score),
    ):
        for label, name in enumerate(("real", "fake")):
            value = theirs(labels, scores > 0, pos_label=label, zero_division=np.nan)
            assert measured[name] == (None if np.isnan(value) else pytest.approx(value))
    assert metrics.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, scores > 0))
    assert (metrics.n, metrics.real, metrics.fake) == (len(rows), int((labels == 0).sum()), int((labels == 1).sum()))
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    curve = RocCurve.from_predictions(labels, scores)
    assert np.allclose(curve.fpr, fpr) and np.allclose(curve.tpr, tpr)
    assert metrics.tpr_at_fpr_1 == pytest.approx(tpr[fpr <= 0.01].max())
    assert metrics.tpr_at_fpr_5 == pytest.approx(tpr[fpr <= 0.05].max())
    # false-positive and false-negative rate are equal there, on the line between two points of the curve
    assert metrics.eer is not None
    after = int(np.argmax(fpr + tpr >= 1 - 1e-9))
    (left, low), (right, high) = (fpr[after - 1], tpr[after - 1]), (fpr[after], tpr[after])
    assert left - 1e-9 <= metrics.eer <= right + 1e-9 and low - 1e-9 <= 1 - metrics.eer <= high + 1e-9
    assert (metrics.eer - left) * (high - low) == pytest.approx((1 - metrics.eer - low) * (right - left))


@settings(max_examples=60, deadline=None)
@given(rows_of_any_classes)
def test_counts_and_brier_score_equal_their_definitions(rows: list[tuple[int, int]]) -> None:
    labels, scores = np.array([r[0] for r in rows], int), np.array([r[1] / 4 for r in rows])
    fake, predicted, probabilities = labels == 1, scores > 0, 1 / (1 + np.exp(-scores))
    metrics = measure(labels, scores, probabilities=probabilities)
    expected = [fake_rows & predicted_rows for fake_rows in (~fake, fake) for predicted_rows in (~predicted, predicted)]
    counts = metrics.confusion
    assert [counts.tn, counts.fp, counts.fn, counts.tp] == [int(mask.sum()) for mask in expected]
    if rows:
        assert metrics.brier == pytest.approx(np.mean((probabilities - labels) ** 2), rel=1e-14)
        assert metrics.accuracy == (fake == predicted).mean()
    else:
        assert metrics.brier is None and metrics.accuracy is None


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
def test_no_threshold_beats_the_balanced_oracle(rows: list[tuple[int, int]]) -> None:
    labels, scores = np.array([r[0] for r in rows]), np.array([r[1] / 4 for r in rows])
    threshold, share = best_threshold(labels, scores, balanced=True)
    assert measure(labels, scores, threshold=threshold).balanced_accuracy == pytest.approx(share)
    tried = [
        ((scores[labels == 1] > cut).mean() + (scores[labels == 0] <= cut).mean()) / 2
        for cut in np.arange(-2.5, 2.5, 0.125)
    ]
    assert share >= max(tried) - 1e-12


def test_undefined_metrics_are_none_and_valid_json() -> None:
    one_class = measure(np.zeros(5, int), np.linspace(-1, 1, 5))
    assert (one_class.auc, one_class.ap, one_class.eer, one_class.tpr_at_fpr_1) == (None, None, None, None)
    assert one_class.recall == {"real": 0.6, "fake": None, "macro": None}
    no_rows = measure(np.zeros(0, int), np.zeros(0))
    assert (no_rows.n, no_rows.accuracy, no_rows.accuracy_oracle, no_rows.brier) == (0, None, None, None)
    for metrics in (one_class, no_rows):
        json.dumps(metrics.to_dict(), allow_nan=False)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 100])
def test_wilson_equals_scipy(n: int) -> None:
    for hits in range(n + 1):
        theirs = binomtest(hits, n).proportion_ci(0.95, method="wilson")
        assert wilson(hits, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_equals_a_published_example() -> None:
    low, high = wilson(3686 + 3663, 8001) or (0, 0)
    assert (round(100 * low, 1), round(100 * high, 1)) == (91.2, 92.4)
    assert wilson(0, 0) is None


@pytest.mark.parametrize(
    ("real", "fake", "gap", "wider", "true"),
    [
        (60, 60, 1.0, 1.0, 0.76025),  # the true AUC is Φ(gap / √(1 + wider²))
        (200, 200, 0.0, 2.0, 0.5),
        (10, 10, 3.3, 1.0, 0.99018),  # a perfect sample AUC although the true one is below 1
        (500, 5, 2.5, 1.0, 0.96145),
        (5, 500, 2.5, 2.0, 0.86823),
        (3, 3, 1.0, 1.0, 0.76025),
        (2, 2, 4.0, 1.0, 0.99766),
    ],
)
def test_auc_interval_has_its_nominal_coverage(real: int, fake: int, gap: float, wider: float, true: float) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [real, fake])
    draws = [rng.normal(gap * labels, np.where(labels == 1, wider, 1.0)) for _ in range(250)]
    inside = [low <= true <= high for low, high in (auc_interval(labels, s) or (1, 0) for s in draws)]
    assert np.mean(inside) >= 0.92
    assert np.mean([auc(labels, s) for s in draws]) == pytest.approx(true, abs=0.03)


def test_auc_interval_narrows_with_more_rows() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for rows in (100, 400, 1600):
        labels = np.arange(rows) % 2
        low, high = auc_interval(labels, rng.normal(size=rows) + labels) or (0, 0)
        widths.append(high - low)
    assert 1.7 < widths[0] / widths[1] < 2.3 and 1.7 < widths[1] / widths[2] < 2.3
    assert 0.02 < widths[2] < 0.06


@settings(max_examples=40, deadline=None)
@given(rows_of_both_classes)
def test_auc_interval_equals_delong_over_all_pairs(rows: list[tuple[int, int]]) -> None:
    labels, scores = np.array([r[0] for r in rows]), np.array([float(r[1]) for r in rows])
    real, fake = scores[labels == 0], scores[labels == 1]
    interval = auc_interval(labels, scores)
    if min(len(real), len(fake)) < 2:
        assert interval is None
        return
    assert interval is not None
    won = (fake[:, None] > real) + 0.5 * (fake[:, None] == real)
    half = 1.959964 * np.sqrt(won.mean(1).var(ddof=1) / len(fake) + won.mean(0).var(ddof=1) / len(real))
    low, high = newcombe(won.mean(), len(fake), len(real))
    assert interval[0] == pytest.approx(max(0.0, min(won.mean() - half, low)), abs=1e-6)
    assert interval[1] == pytest.approx(min(1.0, max(won.mean() + half, high)), abs=1e-6)
    turned = auc_interval(1 - labels, scores) or (0, 0)  # with the other class as the positive one
    assert (1 - turned[1], 1 - turned[0]) == pytest.approx(interval, abs=1e-6)


@pytest.mark.parametrize(("m", "n"), [(2, 2), (3, 40), (40, 3), (1000, 1000)])
@pytest.mark.parametrize("area", [0.0, 0.2, 0.5, 0.97, 1.0])
def test_newcombe_interval_holds_every_compatible_area(area: float, m: int, n: int) -> None:
    """Reference: Hanley and McNeil's variance of exponential scores, with the mean class size for both sizes."""
    low, high = newcombe(area, m, n)
    true = np.linspace(0.0005, 0.9995, 1000)
    both_above, one_above_both, rows = true / (2 - true), 2 * true**2 / (1 + true), (m + n) / 2
    variance = (true * (1 - true) + (rows - 1) * (both_above + one_above_both - 2 * true**2)) / (m * n)
    near = true[(true - area) ** 2 <= 1.959964**2 * variance]
    assert (low, high) == pytest.approx((near[0], near[-1]), abs=0.0011)


def test_mcnemar_counts_only_discordant_rows() -> None:
    correct = np.array([True] * 90 + [False] * 10)
    better = mcnemar(correct, np.array([True] * 70 + [False] * 30))
    assert (better.only_first, better.only_second, better.difference) == (20, 0, pytest.approx(0.2))  # type: ignore[comparison-overlap]
    assert better.p == pytest.approx(2 * 0.5**20)
    assert better.sentence("the head", "the linear probe").startswith(
        "the head is significantly better than the linear probe: "
    )
    same = mcnemar(correct, correct)
    assert same.p == 1 and "does not differ" in same.sentence("the head", "the probe")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 60)), min_size=1, max_size=40))
def test_calibration_error_equals_a_loop_over_the_bins(rows: list[tuple[int, int]]) -> None:
    labels, predicted = (
        np.array([r[0] for r in rows]),
        np.array([r[1] / 60 for r in rows]),
    )  # including the ends of bins
    expected = 0.0
    for k in range(15):
        inside = [i for i, (_, p) in enumerate(rows) if 4 * k <= p < 4 * (k + 1) or (k == 14 and p == 60)]
        if inside:
            expected += len(inside) / len(rows) * abs(predicted[inside].mean() - labels[inside].mean())
    metrics = measure(labels, predicted, probabilities=predicted)
    assert metrics.ece == pytest.approx(expected)
    assert metrics.brier == pytest.approx(np.mean([(p / 60 - label) ** 2 for label, p in rows]))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_metrics_of_up_to_three_rows_are_defined_or_none(n: int) -> None:
    for labels in itertools.product((0, 1), repeat=n):
        for scores in itertools.product((-1.0, 0.0, 1.0), repeat=n):
            metrics = measure(np.array(labels), np.array(scores), probabilities=np.array(scores) / 2 + 0.5)
            json.dumps(metrics.to_dict(), allow_nan=False)
            both = len(set(labels)) == 2
            for value in (metrics.auc, metrics.ap, metrics.eer, metrics.tpr_at_fpr_1, metrics.balanced_accuracy):
                assert (value is not None) == both
            assert metrics.intervals["auc"] is None
            assert metrics.accuracy_oracle is not None and metrics.accuracy is not None
            assert metrics.accuracy_oracle >= metrics.accuracy
            if both:
                assert metrics.auc == pytest.approx(roc_auc_score(labels, scores))


def test_metrics_with_one_fake_among_ten_thousand_rows() -> None:
    labels, scores = np.repeat([0, 1], [10_000, 1]), np.append(np.linspace(-1, 0, 10_000), -0.2)
    metrics = measure(labels, scores)
    assert metrics.auc == pytest.approx(0.8, abs=1e-3)
    assert metrics.intervals["auc"] is None and metrics.intervals["recall_fake"] == pytest.approx((0, 0.7935), abs=1e-3)
    assert metrics.accuracy_oracle == 10_000 / 10_001  # by predicting real for all rows
    threshold, share = best_threshold(labels, scores, balanced=True)
    assert scores[-1] > threshold
    assert share == pytest.approx(0.9, abs=1e-3)


def test_non_finite_scores_are_rejected() -> None:
    with pytest.raises(ValueError, match="1 of 3 scores are NaN or infinite"):
        measure(np.array([0, 1, 1]), np.array([0.0, np.nan, 1.0]))


def test_calibration_error_is_the_gap_to_the_observed_share() -> None:
    labels = np.array([0, 1] * 50)
    assert measure(labels, np.zeros(100), probabilities=np.full(100, 0.8)).ece == pytest.approx(0.3)
    assert measure(labels, np.zeros(100), probabilities=np.full(100, 0.5)).ece == pytest.approx(0)


def test_accuracy_is_measured_at_three_thresholds() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([1.0, 2.0, 3.0, 4.0])
    metrics = measure(labels, scores, chosen=1.5)
    assert (metrics.accuracy, metrics.accuracy_at_validation, metrics.accuracy_oracle) == (0.5, 0.75, 1.0)


@pytest.mark.parametrize(("only_first", "only_second"), [(0.02, 0.02), (0.1, 0.02), (0.3, 0.05), (0.25, 0.25)])
def test_difference_interval_has_its_nominal_coverage(only_first: float, only_second: float) -> None:
    """Sum over all outcomes of twenty rows, weighted by their probability."""
    covered, rows = 0.0, 20
    for first in range(rows + 1):
        for second in range(rows + 1 - first):
            chance = multinomial.pmf(
                [first, second, rows - first - second], rows, [only_first, only_second, 1 - only_first - only_second]
            )
            correct, other_correct = np.zeros((2, rows), bool)
            correct[:first] = other_correct[first : first + second] = True
            comparison = mcnemar(correct, other_correct)
            assert comparison.difference == (first - second) / rows
            assert comparison.p == pytest.approx(exact_p(first, second))
            low, high = comparison.interval
            covered += chance * (low <= only_first - only_second <= high)
    assert covered >= 0.94


def exact_p(first: int, second: int) -> float:
    """Two-sided p-value of a fair coin: the probability of an outcome at least as uneven."""
    tosses = first + second
    outcomes = sum(math.comb(tosses, k) for k in range(tosses + 1) if abs(2 * k - tosses) >= abs(first - second))
    return float(outcomes / 2**tosses)


def test_agreement_on_ten_rows_does_not_prove_equality() -> None:
    correct = np.arange(10) < 8
    low, high = mcnemar(correct, correct).interval
    assert low == -high < -0.15
    three_better = mcnemar(np.ones(10, bool), np.arange(10) < 7)
    assert three_better.p > 0.05 and three_better.interval[0] < 0
    assert mcnemar(correct[:0], correct[:0]).p == 1
