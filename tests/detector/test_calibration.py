"""What a calibration promises, against what can be counted: by rank, by enumeration and over many repetitions."""

import numpy as np
import pytest
from clipfake.detector.calibration import Calibration, Platt, logistic, probability
from clipfake.errors import NotEnoughRows
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

ASIS = Platt(1.0, 0.0)
few_scores = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)


def reading(real: np.ndarray, fake: np.ndarray, nearest: np.ndarray | None = None) -> Calibration:
    """A calibration whose score is its first signal, with these held-out scores."""
    nearest = np.linspace(0, 1, 1001) if nearest is None else nearest
    return Calibration(ASIS, ASIS, (1.0, 0.0), 0.0, np.sort(real), np.sort(fake), nearest, "rows")


@settings(max_examples=100, deadline=None)
@given(few_scores, few_scores, st.integers(1, 30))
def test_prediction_sets_equal_counting_rows(real: list[float], fake: list[float], per_cent: int) -> None:
    """p = (rows at least as strange + itself) / (rows + itself), counted one by one, equal scores among them."""
    error, queries = per_cent / 100, np.arange(-5.0, 6.0)
    found = reading(np.array(real), np.array(fake)).prediction_sets(queries, error)
    for score, (can_be_real, can_be_fake) in zip(queries, found.tolist(), strict=True):
        stranger_real = 1 + sum(one >= score for one in real)  # a high score is strange for a real picture
        stranger_fake = 1 + sum(one <= score for one in fake)
        assert can_be_real == (stranger_real / (len(real) + 1) > error)
        assert can_be_fake == (stranger_fake / (len(fake) + 1) > error)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 19, 20, 99, 250])
@pytest.mark.parametrize("error", [0.001, 0.01, 0.05, 0.1, 0.33])
def test_a_new_row_is_excluded_at_the_nominal_number_of_ranks(rows: int, error: float) -> None:
    """If it is one of them, it is as likely to stand in any of the n + 1 places among n rows: so count the places."""
    places = np.arange(rows + 1) - 0.5  # below all, between any two, above all
    held = np.arange(rows, dtype=float)
    possible = reading(held, held).prediction_sets(places, error)  # type: ignore[arg-type]
    promised = int(error * (rows + 1) + 1e-9)
    assert (~possible).sum(0).tolist() == [promised, promised]


def test_true_class_is_excluded_at_the_nominal_rate() -> None:
    """Both classes anew each time, from the fit to the answer; what the fit learns must not count against the rows."""
    rng, error, repeated, wronged = np.random.default_rng(0), 0.1, 250, np.zeros(2, int)
    for _ in range(repeated):
        labels = np.repeat([0, 1], [78, 40])  # of each half: 39 and 20 scores are kept
        svm, near = (labels * gap + rng.standard_normal(len(labels)) for gap in (1.5, 0.7))
        calibration = Calibration.fit(svm, near, near, labels, held_out="rows", seed=int(rng.integers(1000)))
        new = [gap * np.arange(2) + rng.standard_normal(2) for gap in (1.5, 0.7)]  # a real row and a fake one
        wronged += ~np.diagonal(calibration.prediction_sets(calibration.decision_function(*new), error))
    for times, rows in zip(wronged.tolist(), (39, 20), strict=True):
        exactly = int(error * (rows + 1) + 1e-9) / (rows + 1)
        assert binomtest(times, repeated, exactly).pvalue > 0.001
        assert binomtest(times, repeated, error, alternative="greater").pvalue > 0.01


def test_nominal_rate_is_of_all_images_not_of_answers() -> None:
    """Scores that know nothing: seldom an answer, as was promised, but then it is anybody's guess."""
    rng = np.random.default_rng(0)
    calibration = reading(rng.standard_normal(5000), rng.standard_normal(5000))
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
    calibration, queries = reading(np.array(real), np.array(fake)), np.arange(-5.0, 6.0)
    sets = np.stack([calibration.prediction_sets(queries, error) for error in np.linspace(0.01, 0.9, 40)])
    assert (sets[1:] <= sets[:-1]).all()
    only = sets & (sets.sum(2, keepdims=True) == 1)  # where one answer is given
    assert (only.any(0).sum(1) <= 1).all()


def test_least_error_is_the_smallest_rate_that_excludes() -> None:
    for rows in range(1, 60):
        calibration = reading(np.arange(rows + 3.0), np.arange(float(rows)))
        assert calibration.rows == rows
        far_away = np.array([-1e9])
        least = calibration.least_error
        assert not calibration.prediction_sets(far_away, least)[0, 1]
        assert calibration.prediction_sets(far_away, least * 0.999)[0, 1]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=300), st.floats(-1, 1, width=16))
def test_percentile_is_the_share_of_less_similar_rows(nearest: list[float], queries: float) -> None:
    labels = np.arange(40) % 2
    seen = np.resize(nearest, 40 * (1 + len(nearest) // 40))
    many = np.resize(labels, len(seen))
    calibration = Calibration.fit(many * 1.0, many * 1.0, seen, many, held_out="rows")  # type: ignore[arg-type]
    result = calibration.percentile(np.array([queries]))[0]
    room = 100 / len(seen) + 0.2  # between two rows the share runs straight, and it is kept in 1001 steps
    assert 100 * (seen < queries).mean() - room <= result <= 100 * (seen <= queries).mean() + room


def test_percentile_is_0_or_100_beyond_all_rows() -> None:
    nearest = np.linspace(-1, 1, 1001)
    result = reading(np.zeros(1), np.zeros(1), nearest).percentile(np.array([-1.1, -1.0, 0.5001, 1.1]))
    assert result == pytest.approx([0, 0, 75, 100], abs=0.1)


def two_signals(rows: int, gaps: tuple[float, float], share: float = 0.5, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    labels = (np.arange(rows) < share * rows).astype(int)
    svm, near = (gap * (labels - 0.5) + rng.standard_normal(rows) for gap in gaps)
    return svm, near, labels


def test_independent_signals_add_up() -> None:
    """Of normal densities a gap apart the log-likelihood ratio is gap · x, and of independent ones the sum of both."""
    gaps = (1.5, 0.6)
    svm, near, labels = two_signals(40_000, gaps)
    calibration = Calibration.fit(svm, near, near, labels, held_out="rows")
    queries = np.array([[-1.0, 2.0], [0.0, 0.0], [2.0, -1.0], [1.0, 1.0]])
    assert np.allclose(calibration.decision_function(*queries.T), queries @ gaps, atol=0.12)
    assert np.allclose(calibration.svm(queries[:, 0]), gaps[0] * queries[:, 0], atol=0.1)
    assert np.allclose(calibration.neighbors(queries[:, 1]), gaps[1] * queries[:, 1], atol=0.1)


def test_share_of_held_out_fakes_does_not_shift_scores() -> None:
    """A log-likelihood ratio is what the picture says, whatever the others are."""
    svm, near, labels = two_signals(60_000, (1.5, 0.6), share=0.02)
    calibration = Calibration.fit(svm, near, near, labels, held_out="rows")
    assert abs(calibration.decision_function(np.zeros(1), np.zeros(1))[0]) < 0.1


def test_scale_of_a_signal_does_not_matter() -> None:
    svm, near, labels = two_signals(400, (1.5, 0.6))
    one = Calibration.fit(svm, near, near, labels, held_out="rows")
    other = Calibration.fit(svm * 1e-4, near * 1e3, near, labels, held_out="rows")
    assert np.allclose(one.decision_function(svm, near), other.decision_function(svm * 1e-4, near * 1e3), atol=1e-2)


def test_signal_with_negative_weight_is_left_out() -> None:
    """Read together, the pure noise would have a weight below 0: evidence would count against itself."""
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
    calibration = Calibration.fit(svm, np.full(400, 7.0), svm, labels, held_out="rows")
    assert np.allclose(calibration.neighbors(np.array([7.0])), 0, atol=1e-6)
    assert np.allclose(calibration.decision_function(svm, np.full(400, 7.0)), calibration.svm(svm), atol=0.1)


@pytest.mark.parametrize(("real", "fake"), [(10_000, 1), (9, 10_000), (10_000, 9), (0, 50), (50, 0), (0, 0)])
def test_class_with_too_few_rows_is_named(real: int, fake: int) -> None:
    labels = np.repeat([0, 1], [real, fake])
    with pytest.raises(NotEnoughRows, match=f"found {real} real and {fake} fake;"):
        Calibration.fit(*[np.zeros(len(labels))] * 3, labels, held_out="rows")  # type: ignore[arg-type, misc]


def test_ten_rows_of_a_class_are_enough() -> None:
    labels = np.repeat([0, 1], [10_000, 10])
    signal = 6.0 * labels + np.random.default_rng(0).standard_normal(len(labels))
    calibration = Calibration.fit(signal, signal, signal, labels, held_out="rows")
    assert (len(calibration.real), len(calibration.fake)) == (5000, 5)
    assert calibration.least_error == pytest.approx(1 / 6)
    # one of five thousand is learned of real rows, and no more than one in six of fake ones
    assert calibration.fake_probability(50.0, 0.5) == pytest.approx(5001 / 5002)
    assert calibration.fake_probability(-50.0, 0.5) == pytest.approx(1 / 7)
    assert (np.diff(calibration.decision_function(np.linspace(-5, 5, 9), np.zeros(9))) > 0).all()


def test_fitted_rows_and_kept_scores_are_disjoint() -> None:
    svm, near, labels = two_signals(200, (1.5, 0.6))
    for seed in range(3):
        calibration = Calibration.fit(svm, near, near, labels, held_out="rows", seed=seed)
        scores = calibration.decision_function(svm, near)
        assert (len(calibration.real), len(calibration.fake)) == (50, 50)
        assert np.isclose(calibration.real[:, None], scores[labels == 0]).any(1).all()
        assert np.isclose(calibration.fake[:, None], scores[labels == 1]).any(1).all()
    assert len({tuple(Calibration.fit(svm, near, near, labels, held_out="rows", seed=s).real) for s in (0, 0, 1)}) == 2


def test_probability_of_an_extreme_score_is_zero_or_one() -> None:
    assert probability(np.array([-1e300, 0.0, 1e300]), 0.25) == pytest.approx([0, 0.25, 1])
