"""Calibrations against counting: by rank, by enumeration and over many repetitions."""

import numpy as np
import pytest
from clipfake.detector.calibration import Calibration, Platt, WeightedScores, logistic, probability
from clipfake.errors import NotEnoughRows
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

IDENTITY = Platt(1.0, 0.0)
few_scores = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)


def with_scores(real: np.ndarray, fake: np.ndarray, nearest: np.ndarray | None = None) -> Calibration:
    """Make a calibration whose score is its first signal, with these held-out scores."""
    nearest = np.linspace(0, 1, 1001) if nearest is None else nearest
    held = WeightedScores.make(real), WeightedScores.make(fake)
    return Calibration(IDENTITY, IDENTITY, (1.0, 0.0), 0.0, *held, nearest)


@settings(max_examples=100, deadline=None)
@given(few_scores, few_scores, st.integers(1, 30))
def test_prediction_sets_equal_counting_rows(real: list[float], fake: list[float], per_cent: int) -> None:
    """p = (rows that conform as little + 1) / (rows + 1), counted row by row; some scores are equal."""
    error, queries = per_cent / 100, np.arange(-5.0, 6.0)
    sets = with_scores(np.array(real), np.array(fake)).prediction_sets(queries, error)
    for score, (can_be_real, can_be_fake) in zip(queries, sets.tolist(), strict=True):
        less_conforming_real = 1 + sum(
            other >= score for other in real
        )  # a real image with a high score conforms little
        less_conforming_fake = 1 + sum(other <= score for other in fake)
        assert can_be_real == (less_conforming_real / (len(real) + 1) > error)
        assert can_be_fake == (less_conforming_fake / (len(fake) + 1) > error)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 19, 20, 99, 250])
@pytest.mark.parametrize("error", [0.001, 0.01, 0.05, 0.1, 0.33])
def test_a_new_row_is_excluded_at_the_nominal_number_of_ranks(rows: int, error: float) -> None:
    """A new row of the class has each of the n + 1 ranks among n rows with equal probability: count the ranks."""
    scores = np.arange(rows + 1) - 0.5  # below all, between any two, above all
    held = np.arange(rows, dtype=float)
    possible = with_scores(held, held).prediction_sets(scores, error)  # type: ignore[arg-type]
    nominal = int(error * (rows + 1) + 1e-9)
    assert (~possible).sum(0).tolist() == [nominal, nominal]


def test_true_class_is_excluded_at_the_nominal_rate() -> None:
    """Draw, fit and predict many times; both classes are drawn anew each time."""
    rng, error, repetitions, excluded = np.random.default_rng(0), 0.1, 250, np.zeros(2, int)
    for _ in range(repetitions):
        labels = np.repeat([0, 1], [39, 20])
        svm, neighbors = (labels * gap + rng.standard_normal(len(labels)) for gap in (1.5, 0.7))
        calibration = Calibration.fit(svm, neighbors, neighbors, labels)
        new = [gap * np.arange(2) + rng.standard_normal(2) for gap in (1.5, 0.7)]  # a real row and a fake one
        excluded += ~np.diagonal(calibration.prediction_sets(calibration.decision_function(*new), error))
    for count, rows in zip(excluded.tolist(), (39, 20), strict=True):
        exact_rate = int(error * (rows + 1) + 1e-9) / (rows + 1)
        assert binomtest(count, repetitions, exact_rate).pvalue > 0.001
        assert binomtest(count, repetitions, error, alternative="greater").pvalue > 0.01


def test_nominal_rate_is_of_all_images_not_of_answers() -> None:
    """Uninformative scores seldom give an answer, and half of these answers are wrong."""
    rng = np.random.default_rng(0)
    calibration = with_scores(rng.standard_normal(5000), rng.standard_normal(5000))
    labels = np.arange(20_000) % 2
    possible = calibration.prediction_sets(rng.standard_normal(20_000), 0.05)
    missed = ~possible[np.arange(20_000), labels]
    assert missed[labels == 0].mean() == pytest.approx(0.05, abs=0.012)
    assert missed[labels == 1].mean() == pytest.approx(0.05, abs=0.012)
    assert possible.sum(1).tolist().count(1) / 20_000 == pytest.approx(0.1, abs=0.02)
    assert missed[possible.sum(1) == 1].mean() == pytest.approx(0.5, abs=0.05)


@settings(max_examples=60, deadline=None)
@given(few_scores, few_scores)
def test_prediction_sets_shrink_with_the_error_rate(real: list[float], fake: list[float]) -> None:
    calibration, queries = with_scores(np.array(real), np.array(fake)), np.arange(-5.0, 6.0)
    sets = np.stack([calibration.prediction_sets(queries, error) for error in np.linspace(0.01, 0.9, 40)])
    assert (sets[1:] <= sets[:-1]).all()
    only = sets & (sets.sum(2, keepdims=True) == 1)  # sets that give an answer
    assert (only.any(0).sum(1) <= 1).all()


def test_least_error_is_the_smallest_rate_that_excludes() -> None:
    for rows in range(1, 60):
        calibration = with_scores(np.arange(rows + 3.0), np.arange(float(rows)))
        assert calibration.rows == rows
        far_away = np.array([-1e9])
        least = calibration.least_error
        assert not calibration.prediction_sets(far_away, least)[0, 1]
        assert calibration.prediction_sets(far_away, least * 0.999)[0, 1]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=300), st.floats(-1, 1, width=16))
def test_percentile_is_the_share_of_less_similar_rows(nearest: list[float], query: float) -> None:
    labels = np.arange(40) % 2
    held_out_nearest = np.resize(nearest, 40 * (1 + len(nearest) // 40))
    targets = np.resize(labels, len(held_out_nearest))
    calibration = Calibration.fit(targets * 1.0, targets * 1.0, held_out_nearest, targets)  # type: ignore[arg-type]
    result = calibration.percentile(np.array([query]))[0]
    tolerance = 100 / len(held_out_nearest) + 0.2  # the share is interpolated between rows and kept in 1001 steps
    assert (
        100 * (held_out_nearest < query).mean() - tolerance
        <= result
        <= 100 * (held_out_nearest <= query).mean() + tolerance
    )


def test_percentile_is_0_or_100_beyond_all_rows() -> None:
    nearest = np.linspace(-1, 1, 1001)
    result = with_scores(np.zeros(1), np.zeros(1), nearest).percentile(np.array([-1.1, -1.0, 0.5001, 1.1]))
    assert result == pytest.approx([0, 0, 75, 100], abs=0.1)


def two_signals(rows: int, gaps: tuple[float, float], share: float = 0.5, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    labels = (np.arange(rows) < share * rows).astype(int)
    svm, neighbors = (gap * (labels - 0.5) + rng.standard_normal(rows) for gap in gaps)
    return svm, neighbors, labels


def test_independent_signals_add_up() -> None:
    """The log-likelihood ratio of normal densities at distance gap is gap · x; those of independent signals add up."""
    gaps = (1.5, 0.6)
    svm, neighbors, labels = two_signals(40_000, gaps)
    calibration = Calibration.fit(svm, neighbors, neighbors, labels)
    queries = np.array([[-1.0, 2.0], [0.0, 0.0], [2.0, -1.0], [1.0, 1.0]])
    assert np.allclose(calibration.decision_function(*queries.T), queries @ gaps, atol=0.12)
    assert np.allclose(calibration.svm(queries[:, 0]), gaps[0] * queries[:, 0], atol=0.1)
    assert np.allclose(calibration.neighbors(queries[:, 1]), gaps[1] * queries[:, 1], atol=0.1)


def test_share_of_held_out_fakes_does_not_shift_scores() -> None:
    """A log-likelihood ratio does not depend on the class frequencies."""
    svm, neighbors, labels = two_signals(60_000, (1.5, 0.6), share=0.02)
    calibration = Calibration.fit(svm, neighbors, neighbors, labels)
    assert abs(calibration.decision_function(np.zeros(1), np.zeros(1))[0]) < 0.1


def test_scale_of_a_signal_does_not_matter() -> None:
    svm, neighbors, labels = two_signals(400, (1.5, 0.6))
    calibration = Calibration.fit(svm, neighbors, neighbors, labels)
    rescaled = Calibration.fit(svm * 1e-4, neighbors * 1e3, neighbors, labels)
    assert np.allclose(
        calibration.decision_function(svm, neighbors),
        rescaled.decision_function(svm * 1e-4, neighbors * 1e3),
        atol=1e-2,
    )


def test_signal_with_negative_weight_is_left_out() -> None:
    """In a joint fit, the pure noise would get a negative weight: its evidence would count against its class."""
    rng = np.random.default_rng(0)
    labels, noise = np.arange(2000) % 2, rng.standard_normal(2000)
    good = labels + noise + 0.3 * rng.standard_normal(2000)
    for signals, kept in (((good, noise), 0), ((noise, good), 1)):
        weights, offset = logistic(np.column_stack(signals), labels)
        [alone], same = logistic(good[:, None], labels)
        assert weights[1 - kept] == 0
        assert (weights[kept], offset) == pytest.approx((alone, same), rel=1e-3)


def test_constant_signal_gets_no_weight() -> None:
    svm, _, labels = two_signals(400, (1.5, 0))
    calibration = Calibration.fit(svm, np.full(400, 7.0), svm, labels)
    assert np.allclose(calibration.neighbors(np.array([7.0])), 0, atol=1e-6)
    assert np.allclose(calibration.decision_function(svm, np.full(400, 7.0)), calibration.svm(svm), atol=0.1)


@pytest.mark.parametrize(("real", "fake"), [(10_000, 1), (9, 10_000), (10_000, 9), (0, 50), (50, 0), (0, 0)])
def test_class_with_too_few_rows_is_named(real: int, fake: int) -> None:
    labels = np.repeat([0, 1], [real, fake])
    with pytest.raises(NotEnoughRows, match=f"found {real} real and {fake} fake;"):
        Calibration.fit(*[np.zeros(len(labels))] * 3, labels)  # type: ignore[arg-type, call-arg]


def test_ten_rows_of_a_class_are_enough() -> None:
    labels = np.repeat([0, 1], [10_000, 10])
    signal = 6.0 * labels + np.random.default_rng(0).standard_normal(len(labels))
    calibration = Calibration.fit(signal, signal, signal, labels)
    assert [calibration.real.rows, calibration.fake.rows] == pytest.approx([10_000, 10])
    assert calibration.least_error == pytest.approx(1 / 11)
    # 10,000 real rows limit the probability to 10,001 / 10,002, ten fake rows to 1 / 12
    assert calibration.fake_probability(50.0, 0.5) == pytest.approx(10_001 / 10_002)
    assert calibration.fake_probability(-50.0, 0.5) == pytest.approx(1 / 12)
    assert (np.diff(calibration.decision_function(np.linspace(-5, 5, 9), np.zeros(9))) > 0).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(1, 4)), min_size=1, max_size=12), st.integers(-5, 5))
def test_a_row_of_weight_two_counts_as_two_rows(rows: list[tuple[int, int]], query: int) -> None:
    """The shares are those of repeated rows; the number of rows is the effective one, thus smaller."""
    scores, weights = (np.array(column, float) for column in zip(*rows, strict=True))
    weighted, repeated = (
        WeightedScores.make(scores, weights),
        WeightedScores.make(np.repeat(scores, weights.astype(int))),
    )
    at = np.array([float(query)])
    for name in ("at_or_above", "at_or_below"):
        one, other = ((getattr(held, name)(at)[0] * (held.rows + 1) - 1) / held.rows for held in (weighted, repeated))
        assert one == pytest.approx(other, abs=1e-9)
    assert 1 - 1e-9 <= weighted.rows <= len(rows) + 1e-9
    assert WeightedScores.make(scores).rows == pytest.approx(len(rows))


def test_rows_of_more_weight_decide_the_line() -> None:
    """Two groups of rows disagree on the zero; the fit follows their weights."""
    rng = np.random.default_rng(0)
    labels = np.arange(4000) % 2
    shift = np.where(np.arange(4000) < 2000, 0.0, 3.0)
    signal = 2.0 * labels + shift + 0.5 * rng.standard_normal(4000)
    zero = {}
    for group, first in (("first", 1.0), ("second", 1e-3)):
        weights = np.where(shift == 0, first, 1.001 - first)
        line = Platt.fit(signal, labels, weights)
        zero[group] = -line.offset / line.slope
    assert zero["first"] == pytest.approx(1.0, abs=0.2)
    assert zero["second"] == pytest.approx(4.0, abs=0.2)


def test_probability_of_an_extreme_score_is_zero_or_one() -> None:
    assert probability(np.array([-1e300, 0.0, 1e300]), 0.25) == pytest.approx([0, 0.25, 1])
