"""The classifier is chosen on sources that the compared heads have not seen."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.detector.head import TITLES, Head
from clipfake.detector.training.classifier_choice import (
    CANDIDATES,
    CandidateResult,
    ClassifierChoice,
    choose_classifier,
)
from clipfake.detector.training.examples import Examples
from clipfake.detector.training.fit import fit_detector
from clipfake.detector.training.train import AUTO, TrainingSet, TrainOptions, fit_head, make_split, train
from clipfake.errors import HeadError
from clipfake.show.training_summary import training_summary
from clipfake.store.records import Block, Rows, names
from clipfake.store.snapshot import Snapshot
from clipfake.store.space import Space
from clipfake.store.store import Store
from rich.console import Console

DIM = 6
SPACE = Space("toy", "0" * 64, dim=DIM)
SOURCES = {"camera a": 0, "camera b": 0, "gan a": 1, "gan b": 1, "gan c": 1}


def examples(sources: list[str], rows: int = 40) -> Examples:
    """Rows whose first coordinate is their number; classes differ in the second."""
    labels = np.repeat([SOURCES[source] for source in sources], rows)
    vectors = np.random.default_rng(0).standard_normal((len(labels), DIM)).astype(np.float32)
    vectors[:, 0] = np.arange(len(labels))
    vectors[:, 1] += 2 * labels
    return Examples.from_arrays(vectors, labels, sources=names(np.repeat(sources, rows).tolist()))


def test_candidates_are_all_classifiers() -> None:
    assert set(CANDIDATES) == set(TITLES)


def test_no_compared_head_has_seen_the_source_or_a_copy() -> None:
    train_rows = examples(list(SOURCES))
    files = np.arange(len(train_rows)) % 170  # the first thirty files are stored twice, under two sources
    calls = []

    def fit(name: str, rows: Examples, validation: Examples) -> Any:
        seen = rows.vectors[:, 0].astype(int)
        left_out = set(SOURCES) - set(rows.sources.tolist())
        assert not left_out & set(validation.sources.tolist())

        def score(queries: Examples) -> np.ndarray:
            held = queries.vectors[:, 0].astype(int)
            assert not set(files[seen]) & set(files[held])
            assert left_out <= set(queries.sources.tolist())
            calls.append((name, left_out))
            return np.asarray(queries.vectors[:, 1], np.float64)

        return score

    choice = choose_classifier(fit, train_rows, examples(list(SOURCES), 9), files)
    assert choice is not None
    assert sorted(choice.left_out) == sorted(f"{('real', 'fake')[label]} {name}" for name, label in SOURCES.items())
    for candidate in CANDIDATES:
        left_out = [source for name, group in calls if name == candidate for source in group]
        assert sorted(left_out) == sorted(SOURCES)
    assert choice.chosen == "logistic"  # all have the same scores
    assert 0.8 < choice.results[0].mean < 1


@pytest.mark.parametrize(
    ("aucs", "chosen"),
    [
        ({"logistic": (0.7, 0.8, 0.9), "rbf-svm": (0.7, 0.8, 0.9)}, "logistic"),
        ({"logistic": (0.69, 0.81, 0.89), "rbf-svm": (0.7, 0.8, 0.9)}, "logistic"),  # within a standard error
        (
            {"logistic": (0.68, 0.77, 0.87), "rbf-svm": (0.7, 0.8, 0.9)},
            "rbf-svm",
        ),  # worse on each, however these differ
        ({"triplet-svm": (0.9, 0.9), "pca-svm": (0.8, 0.7)}, "triplet-svm"),
        ({"triplet-svm": (0.9,), "pca-svm": (0.8,)}, "triplet-svm"),
    ],
)
def test_simplest_within_a_standard_error_of_the_best(aucs: dict[str, tuple[float, ...]], chosen: str) -> None:
    choice = ClassifierChoice.of([CandidateResult(*item) for item in aucs.items()], ("real a",), 9)
    assert choice.chosen == chosen
    assert f"The classifier is {chosen}" in choice.sentence
    assert all(f"{name} {np.mean(values):.3f}" in choice.sentence for name, values in aucs.items())
    json.dumps(choice.to_dict(), allow_nan=False)


def test_held_out_rows_decide_between_two_sources() -> None:
    rows = examples(["camera a", "gan a"])

    def fit(name: str, rows: Examples, validation: Examples) -> Any:
        return lambda queries: queries.vectors[:, 1 if name == "triplet-svm" else 2].astype(np.float64)

    choice = choose_classifier(fit, rows, rows, np.arange(len(rows)))
    assert choice is not None and choice.left_out == ()
    assert (choice.chosen, len(choice.results[0].aucs)) == ("triplet-svm", 4)
    assert "on held-out training rows" in choice.sentence


def test_classifier_that_cannot_be_fitted_drops_out() -> None:
    rows = examples(list(SOURCES))

    def fit(name: str, rows: Examples, validation: Examples) -> Any:
        if name != "pca-svm":
            raise HeadError("no")
        return lambda queries: queries.vectors[:, 1].astype(np.float64)

    choice = choose_classifier(fit, rows, rows, np.arange(len(rows)))
    assert choice is not None and [result.name for result in choice.results] == ["pca-svm"]
    one_class = examples(["gan a", "gan b"])
    assert choose_classifier(fit, one_class, one_class, np.arange(len(one_class))) is None


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    store = Store.create(tmp_path_factory.mktemp("choice") / "s", SPACE)
    rng = np.random.default_rng(1)
    with store.writer() as writer:
        for source, label in SOURCES.items():
            vectors = rng.standard_normal((60, DIM)) + 2 * label * np.eye(DIM)[0]
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            made_by = [source if label else ""] * 60
            rows = Rows.make(
                [f"{source}/{i}" for i in range(60)], [label] * 60, sources=[source] * 60, generators=made_by
            )
            writer.append(Block(SPACE, rows, vectors.astype(np.float32)))
    return store.snapshot()


def test_choice_is_on_record(snapshot: Snapshot) -> None:
    options = TrainOptions(baselines=("linear_probe", "pca_svm", "rbf_svm", "majority"))
    assert options.classifier == AUTO
    fitted = fit_detector(snapshot, options=options)
    fitted.save()
    head = Head.load(fitted.folder)
    choice = fitted.trained.choice
    assert choice is not None and head.classifier_name == choice.chosen
    assert json.loads((fitted.folder / "head.json").read_text())["options"]["choice"] == choice.to_dict()
    report = json.loads((fitted.folder / "report.json").read_text())
    assert report["choice"] == choice.to_dict()
    assert report["classifier"] == choice.chosen
    assert report["sentences"][0] == choice.sentence
    assert len(report["choice"]["left_out"]) == 5
    # the head itself is not fitted again as a baseline
    same = {"logistic": "linear_probe", "pca-svm": "pca_svm", "rbf-svm": "rbf_svm", "triplet-svm": ""}[choice.chosen]
    assert set(report["baselines"]) == set(options.baselines) - {same}
    printed = io.StringIO()
    Console(file=printed, width=400).print(training_summary(report))
    assert choice.sentence in printed.getvalue()
    assert f"head: {choice.chosen}" in printed.getvalue()


def test_head_that_is_its_own_baseline_has_the_same_scores(snapshot: Snapshot) -> None:
    for classifier, baseline in (("logistic", "linear_probe"), ("pca-svm", "pca_svm"), ("rbf-svm", "rbf_svm")):
        head = train(snapshot, TrainOptions(classifier=classifier, baselines=()))
        other = train(snapshot, TrainOptions("linear", baselines=(baseline,)))
        assert head.metrics["test"].auc == pytest.approx(other.baselines[baseline].metrics["test"].auc)
        assert head.choice is None


def test_auto_is_resolved_before_fitting(snapshot: Snapshot, tmp_path: Path) -> None:
    split, parts = make_split(snapshot, TrainOptions())
    rows = TrainingSet(snapshot, split, *(Examples.from_snapshot(snapshot, parts[n]) for n in ("train", "validation")))
    with pytest.raises(HeadError, match="unknown classifier to fit 'auto'"):
        fit_head(rows, TrainOptions())
    head, _ = fit_head(rows, TrainOptions(classifier="logistic"))
    again, _ = fit_head(rows, TrainOptions().of_head(head))
    assert again.digest == head.digest
    assert TrainOptions("mlp").of_head(fit_head(rows, TrainOptions("mlp"))[0]).kind == "mlp"
