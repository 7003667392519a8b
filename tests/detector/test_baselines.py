"""Each baseline is what its sentence says: against scikit-learn, or by its definition gone through row by row."""

import numpy as np
import pytest
from clipfake.detector.metrics import auc
from clipfake.detector.training.baselines import (
    BASELINES,
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


def drawn(count: int, seed: int = 0, gap: float = 1.5) -> Examples:
    """Fakes lean along the first axis; more of them show dogs, and their files are smaller."""
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


TRAIN, VALIDATION, ASKED = drawn(300), drawn(100, 1), drawn(80, 2)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_finite_and_reproducible(name: str) -> None:
    one, again = (BASELINES[name](TRAIN, VALIDATION, 0)(ASKED) for _ in range(2))
    assert one.shape == (80,)
    assert one.dtype == np.float64
    assert np.isfinite(one).all()
    assert np.array_equal(one, again)
    if name != "majority":
        assert (auc(ASKED.labels, one) or 0) > 0.6


def test_majority_predicts_the_larger_class() -> None:
    for labels, fake in ((np.array([0, 0, 1]), False), (np.array([1, 0, 1]), True)):
        few = Examples.from_arrays(np.zeros((3, DIM)), labels)
        assert (BASELINES["majority"](few, few, 0)(ASKED) > 0).tolist() == [fake] * 80


def test_category_score_is_its_log_odds_and_zero_if_unknown() -> None:
    known = Examples.from_arrays(np.zeros((7, DIM)), np.array([0, 1, 1, 1, 0, 0, 1]), categories=names([*"bbbbcc", ""]))
    queries = Examples.from_arrays(np.zeros((5, DIM)), np.zeros(5, int), categories=names(["b", "c", "", "a", "d"]))
    found = BASELINES["category_only"](known, known, 0)(queries)
    assert found == pytest.approx(np.log([4 / 2, 1 / 3, 2 / 1, 1, 1]))


def test_file_facts_ignore_the_vectors() -> None:
    blind = Examples.from_arrays(np.zeros((300, DIM)), TRAIN.labels, facts=TRAIN.facts)
    score = BASELINES["file_facts"](blind, VALIDATION, 0)
    assert (auc(ASKED.labels, score(ASKED)) or 0) > 0.9
    assert np.array_equal(
        score(ASKED), score(Examples.from_arrays(np.zeros((80, DIM)), ASKED.labels, facts=ASKED.facts))
    )


@pytest.mark.parametrize("k", [1, 3, 9, 20])
def test_neighbor_rule_equals_sorting_all_similarities(k: int) -> None:
    """With copies among the rows, questions that are rows, and a class of fewer than k."""
    vectors = np.concatenate([TRAIN.vectors, TRAIN.vectors[:50]])
    labels = np.concatenate([TRAIN.labels, TRAIN.labels[:50]])
    kept = np.flatnonzero(labels == 0)[: 200 if k < 20 else 7]
    rows = np.sort(np.concatenate([kept, np.flatnonzero(labels == 1)]))
    known = Examples.from_arrays(vectors[rows], labels[rows])
    queries = Examples.from_arrays(np.concatenate([ASKED.vectors, known.vectors[:10]]), np.zeros(90, int))
    similarity = queries.vectors.astype(np.float64) @ known.vectors.astype(np.float64).T
    nearest = [np.sort(similarity[:, known.labels == label])[:, ::-1][:, :k].mean(1) for label in (0, 1)]
    assert neighbor_rule(k)(known, known, 0)(queries) == pytest.approx(nearest[1] - nearest[0], abs=1e-6)


def test_neighbors_do_not_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = neighbors(ASKED.vectors, TRAIN.vectors, 5)
    monkeypatch.setattr("clipfake.detector.training.baselines.SIMILARITIES_IN_MEMORY", 2000)
    cut = neighbors(ASKED.vectors, TRAIN.vectors, 5)
    assert np.array_equal(cut.rows, whole.rows)
    assert cut.mean_similarity() == pytest.approx(whole.mean_similarity())
    assert len(neighbors(ASKED.vectors[:0], TRAIN.vectors, 5)) == 0


def theirs(name: str) -> np.ndarray:
    x, y, queries = (a.astype(np.float64) for a in (TRAIN.vectors, TRAIN.labels, ASKED.vectors))
    if name == "lda":
        return np.asarray(
            LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x, y).decision_function(queries)
        )
    if name == "pca_svm":
        pca = PCA(DIM).fit(x)
        x, queries = pca.transform(x), pca.transform(queries)
    return np.asarray(SVC(gamma="scale").fit(x, y).decision_function(queries))


@pytest.mark.parametrize("name", ["lda", "rbf_svm", "pca_svm"])
def test_baselines_equal_scikit_learn(name: str) -> None:
    assert BASELINES[name](TRAIN, VALIDATION, 0)(ASKED) == pytest.approx(theirs(name), abs=1e-4)


def test_probe_is_logistic_regression_on_centred_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipfake.detector.training.baselines.INVERSE_REGULARIZATION", (0.3,))
    size = TRAIN.vectors.std(0).mean()
    x, queries = ((rows.vectors - TRAIN.vectors.mean(0)) / size for rows in (TRAIN, ASKED))
    model = LogisticRegression(C=0.3, max_iter=2000).fit(x, TRAIN.labels)
    assert linear_probe(TRAIN, VALIDATION, 0)(ASKED) == pytest.approx(model.decision_function(queries), abs=1e-3)
    # and one that goes on to all rows, where all are those that it had: from where it is, nowhere else
    assert linear_probe(TRAIN, VALIDATION, 0, TRAIN)(ASKED) == pytest.approx(model.decision_function(queries), abs=1e-2)


def test_probe_is_invariant_to_scale_and_origin() -> None:
    def moved(rows: Examples) -> Examples:
        return Examples.from_arrays(100 * rows.vectors + 7, rows.labels)

    one = linear_probe(TRAIN, VALIDATION, 0)(ASKED)
    other = linear_probe(moved(TRAIN), moved(VALIDATION), 0)(moved(ASKED))
    assert np.corrcoef(one, other)[0, 1] > 0.9999
    assert other == pytest.approx(one, abs=0.05)


def test_probe_regularization_is_chosen_on_validation() -> None:
    """Where all but one direction is noise, more freedom only learns the noise."""
    rng = np.random.default_rng(0)

    def noisy(count: int) -> Examples:
        labels = np.arange(count) % 2
        vectors = rng.standard_normal((count, 60))
        vectors[:, 0] += 1.5 * labels
        return Examples.from_arrays(vectors, labels)

    train, validation, queries = noisy(80), noisy(2000), noisy(2000)
    found = auc(queries.labels, linear_probe(train, validation, 0)(queries)) or 0

    def of_strength(c: float, monkeypatch: pytest.MonkeyPatch) -> float:
        monkeypatch.setattr("clipfake.detector.training.baselines.INVERSE_REGULARIZATION", (c,))
        return auc(queries.labels, linear_probe(train, validation, 0)(queries)) or 0

    with pytest.MonkeyPatch.context() as patched:
        each = [of_strength(c, patched) for c in (1e-4, 1e-2, 1.0, 100.0)]
    assert max(each) - min(each) > 0.05
    assert found >= max(each) - 0.005


def test_baseline_threshold_is_chosen_on_validation(fit: Fit = BASELINES["lda"]) -> None:
    score = fit(TRAIN, VALIDATION, 0)
    found = evaluate_baseline(lambda rows: score(rows) + 5, VALIDATION, ASKED, 300, "a note")
    predicted = score(VALIDATION) + 5 > found.threshold
    assert (predicted == (VALIDATION.labels == 1)).mean() == found.metrics["validation"].accuracy_oracle
    assert found.metrics["validation"].accuracy_at_validation == found.metrics["validation"].accuracy_oracle
    right = ((score(ASKED) + 5 > found.threshold) == (ASKED.labels == 1)).mean()
    assert found.metrics["test"].accuracy_at_validation == pytest.approx(right)
    assert right > 0.7 > (found.metrics["test"].accuracy or 1)  # at 0 all are called fake
    assert found.to_dict()["fitted_on"] == 300 and found.to_dict()["note"] == "a note"
