"""Baselines against scikit-learn, or against their definition applied row by row."""

import numpy as np
import pytest
from clipfake.detector.metrics import auc
from clipfake.detector.training.baseline_names import BASELINE_NAMES, baseline_name
from clipfake.detector.training.baselines import (
    BASELINES,
    NEIGHBORS,
    Fit,
    evaluate_baseline,
    linear_probe,
    neighbor_rule,
    neighbors,
)
from clipfake.detector.training.examples import FACTS, Examples
from clipfake.store.records import names
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

DIM = 10


def random_examples(count: int, seed: int = 0, gap: float = 1.5) -> Examples:
    """Fakes lean along the first axis; more of them show dogs, and their files have fewer bytes per pixel."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.4).astype(int)
    vectors = rng.standard_normal((count, DIM))
    vectors[:, 0] += gap * labels
    shown = np.where(rng.random(count) < 0.3 + 0.4 * labels, "dog", "cat")
    facts = rng.standard_normal((count, len(FACTS))).astype(np.float32)
    facts[:, FACTS.index("bytes per pixel")] -= 3 * labels
    return Examples.from_arrays(
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels, categories=names(shown.tolist()), facts=facts
    )


TRAIN, VALIDATION, QUERIES = random_examples(300), random_examples(100, 1), random_examples(80, 2)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_finite_and_reproducible(name: str) -> None:
    scores, again = (BASELINES[name](TRAIN, VALIDATION, 0)(QUERIES) for _ in range(2))
    assert scores.shape == (80,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert np.array_equal(scores, again)
    if name != "majority":
        assert (auc(QUERIES.labels, scores) or 0) > 0.6


def test_majority_predicts_the_larger_class() -> None:
    for labels, fake in ((np.array([0, 0, 1]), False), (np.array([1, 0, 1]), True)):
        rows = Examples.from_arrays(np.zeros((3, DIM)), labels)
        assert (BASELINES["majority"](rows, rows, 0)(QUERIES) > 0).tolist() == [fake] * 80


def test_category_score_is_its_log_odds_and_zero_if_unknown() -> None:
    train = Examples.from_arrays(np.zeros((7, DIM)), np.array([0, 1, 1, 1, 0, 0, 1]), categories=names([*"bbbbcc", ""]))
    queries = Examples.from_arrays(np.zeros((5, DIM)), np.zeros(5, int), categories=names(["b", "c", "", "a", "d"]))
    scores = BASELINES["category_only"](train, train, 0)(queries)
    assert scores == pytest.approx(np.log([4 / 2, 1 / 3, 2 / 1, 1, 1]))


def test_file_facts_ignore_the_vectors() -> None:
    blind = Examples.from_arrays(np.zeros((300, DIM)), TRAIN.labels, facts=TRAIN.facts)
    score = BASELINES["file_facts"](blind, VALIDATION, 0)
    assert (auc(QUERIES.labels, score(QUERIES)) or 0) > 0.9
    assert np.array_equal(
        score(QUERIES), score(Examples.from_arrays(np.zeros((80, DIM)), QUERIES.labels, facts=QUERIES.facts))
    )


@pytest.mark.parametrize("k", [1, 3, 9, 20])
def test_neighbor_rule_equals_sorting_all_similarities(k: int) -> None:
    """Includes copies among the rows, queries that are rows, and a class of fewer than k rows."""
    vectors = np.concatenate([TRAIN.vectors, TRAIN.vectors[:50]])
    labels = np.concatenate([TRAIN.labels, TRAIN.labels[:50]])
    kept = np.flatnonzero(labels == 0)[: 200 if k < 20 else 7]
    rows = np.sort(np.concatenate([kept, np.flatnonzero(labels == 1)]))
    train = Examples.from_arrays(vectors[rows], labels[rows])
    queries = Examples.from_arrays(np.concatenate([QUERIES.vectors, train.vectors[:10]]), np.zeros(90, int))
    similarity = queries.vectors.astype(np.float64) @ train.vectors.astype(np.float64).T
    nearest = [np.sort(similarity[:, train.labels == label])[:, ::-1][:, :k].mean(1) for label in (0, 1)]
    assert neighbor_rule(k)(train, train, 0)(queries) == pytest.approx(nearest[1] - nearest[0], abs=1e-6)


def test_neighbors_do_not_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = neighbors(QUERIES.vectors, TRAIN.vectors, 5)
    monkeypatch.setattr("clipfake.detector.training.baselines.SIMILARITIES_IN_MEMORY", 2000)
    cut = neighbors(QUERIES.vectors, TRAIN.vectors, 5)
    assert np.array_equal(cut.rows, whole.rows)
    assert cut.mean_similarity() == pytest.approx(whole.mean_similarity())
    assert len(neighbors(QUERIES.vectors[:0], TRAIN.vectors, 5)) == 0


def reference(name: str) -> np.ndarray:
    x, y, queries = (a.astype(np.float64) for a in (TRAIN.vectors, TRAIN.labels, QUERIES.vectors))
    if name == "lda":
        return np.asarray(
            LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x, y).decision_function(queries)
        )
    if name == "pca_svm":
        pca = PCA(DIM).fit(x)
        x, queries = pca.transform(x), pca.transform(queries)
    return np.asarray(SVC(C=10, gamma="scale").fit(x, y).decision_function(queries))


@pytest.mark.parametrize("name", ["lda", "rbf_svm", "pca_svm"])
def test_baselines_equal_scikit_learn(name: str) -> None:
    assert BASELINES[name](TRAIN, VALIDATION, 0)(QUERIES) == pytest.approx(reference(name), abs=1e-3)


def test_probe_is_logistic_regression_on_centred_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipfake.detector.training.logistic.INVERSE_REGULARIZATION", (0.3,))
    size = TRAIN.vectors.std(0).mean()
    x, queries = ((rows.vectors - TRAIN.vectors.mean(0)) / size for rows in (TRAIN, QUERIES))
    model = LogisticRegression(C=0.3, max_iter=2000).fit(x, TRAIN.labels)
    assert linear_probe(TRAIN, VALIDATION, 0)(QUERIES) == pytest.approx(model.decision_function(queries), abs=1e-3)
    # refining on the same rows does not change the probe
    assert linear_probe(TRAIN, VALIDATION, 0, TRAIN)(QUERIES) == pytest.approx(
        model.decision_function(queries), abs=1e-2
    )


def test_probe_is_invariant_to_scale_and_origin() -> None:
    def moved(rows: Examples) -> Examples:
        return Examples.from_arrays(100 * rows.vectors + 7, rows.labels)

    scores = linear_probe(TRAIN, VALIDATION, 0)(QUERIES)
    moved_scores = linear_probe(moved(TRAIN), moved(VALIDATION), 0)(moved(QUERIES))
    assert np.corrcoef(scores, moved_scores)[0, 1] > 0.9999
    assert moved_scores == pytest.approx(scores, abs=0.05)


def test_probe_regularization_is_chosen_on_validation() -> None:
    """If all directions but one are noise, weak regularization overfits."""
    rng = np.random.default_rng(0)

    def noisy(count: int) -> Examples:
        labels = np.arange(count) % 2
        vectors = rng.standard_normal((count, 60))
        vectors[:, 0] += 1.5 * labels
        return Examples.from_arrays(vectors, labels)

    train, validation, queries = noisy(80), noisy(2000), noisy(2000)
    chosen = auc(queries.labels, linear_probe(train, validation, 0)(queries)) or 0

    def with_c(c: float, monkeypatch: pytest.MonkeyPatch) -> float:
        monkeypatch.setattr("clipfake.detector.training.logistic.INVERSE_REGULARIZATION", (c,))
        return auc(queries.labels, linear_probe(train, validation, 0)(queries)) or 0

    with pytest.MonkeyPatch.context() as patched:
        fixed = [with_c(c, patched) for c in (1e-4, 1e-2, 1.0, 100.0)]
    assert max(fixed) - min(fixed) > 0.05
    assert chosen >= max(fixed) - 0.005


def test_baseline_threshold_is_chosen_on_validation(fit: Fit = BASELINES["lda"]) -> None:
    score = fit(TRAIN, VALIDATION, 0)
    result = evaluate_baseline(lambda rows: score(rows) + 5, VALIDATION, QUERIES, 300, "a note")
    predicted = score(VALIDATION) + 5 > result.threshold
    assert (predicted == (VALIDATION.labels == 1)).mean() == result.metrics["validation"].accuracy_oracle
    assert result.metrics["validation"].accuracy_at_validation == result.metrics["validation"].accuracy_oracle
    accuracy = ((score(QUERIES) + 5 > result.threshold) == (QUERIES.labels == 1)).mean()
    assert result.metrics["test"].accuracy_at_validation == pytest.approx(accuracy)
    assert accuracy > 0.7 > (result.metrics["test"].accuracy or 1)  # at threshold 0 all rows are predicted fake
    assert result.to_dict()["fitted_on"] == 300 and result.to_dict()["note"] == "a note"


def test_every_baseline_has_a_name() -> None:
    assert BASELINE_NAMES.keys() | {f"nearest_{k}" for k in NEIGHBORS} == BASELINES.keys()
    for attribute in ("title", "phrase"):
        assert len({getattr(baseline_name(key), attribute) for key in BASELINES}) == len(BASELINES)
