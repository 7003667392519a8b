"""Training from disk in batches gives the same head as in memory, and never holds all vectors."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clipfake.detector.svm import Svm
from clipfake.detector.training.baselines import NEIGHBORS, linear_probe, neighbor_rule, neighbors
from clipfake.detector.training.calibrate import calibrate
from clipfake.detector.training.examples import Examples, StoredRows
from clipfake.detector.training.nystroem import fit_nystroem
from clipfake.detector.training.svm_training import fit_stream, fit_svm, scale_gamma
from clipfake.detector.training.train import TrainingSet, TrainOptions, decision_values, fit_head, make_split, train
from clipfake.detector.training.triplet import TripletOptions
from clipfake.show.training_summary import training_summary
from clipfake.store.records import Block, Rows
from clipfake.store.snapshot import Snapshot
from clipfake.store.space import Space
from clipfake.store.store import Store
from rich.console import Console

DIM = 12
SPACE = Space("toy", "0" * 64, dim=DIM)
CATEGORIES = ("cat", "dog", "ship")


def random_vectors(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of two classes of three clusters each."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((2, 3, DIM))
    labels = rng.integers(0, 2, count)
    vectors = 1.2 * centres[labels, rng.integers(0, 3, count)] + rng.standard_normal((count, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), labels


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """600 rows in six shards, with text vectors."""
    store = Store.create(tmp_path_factory.mktemp("streaming") / "s", SPACE)
    vectors, labels = random_vectors(600)
    texts = dict(zip(CATEGORIES, random_vectors(3, seed=5)[0], strict=True))
    with store.writer(rows_per_shard=100) as writer:
        for start in range(0, 600, 100):
            rows_of_shard = slice(start, start + 100)
            shown = [CATEGORIES[i % 3] for i in range(100)]
            rows = Rows.make(
                [f"s/{start + i}" for i in range(100)], labels[rows_of_shard], sources=["s"] * 100, categories=shown
            )
            writer.append(Block(SPACE, rows, vectors[rows_of_shard], texts=texts))
    return store.snapshot()


@pytest.mark.parametrize("kind", ["linear", "sum"])
@pytest.mark.parametrize("exact", [True, False])
def test_streamed_and_in_memory_training_give_the_same_head(
    snapshot: Snapshot, kind: str, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfake.detector.training.svm_training.EXACT", 60_000 if exact else 100)
    options = TrainOptions(kind, TripletOptions(epochs=2), baselines=())
    split, parts = make_split(snapshot, options)
    heads = [
        fit_head(TrainingSet(snapshot, split, *(rows(snapshot, parts[n]) for n in ("train", "validation"))), options)[0]
        for rows in (StoredRows, Examples.from_snapshot)
    ]
    streamed, whole = heads
    assert all(np.array_equal(w, whole.projection.weights[n]) for n, w in streamed.projection.weights.items())
    assert isinstance(streamed.classifier, Svm) and isinstance(whole.classifier, Svm)
    assert np.array_equal(streamed.classifier.vectors, whole.classifier.vectors)
    assert np.array_equal(streamed.classifier.weights, whole.classifier.weights)


def test_training_never_reads_more_than_a_batch(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = (
        "training.examples.ROWS_AT_ONCE",
        "training.train.ROWS_AT_ONCE",
        "training.svm_training.EXACT",
    )
    for name in limits:
        monkeypatch.setattr(f"clipfake.detector.{name}", 50)
    limit_of_parts = dict.fromkeys(("train", "validation", "test"), 50)
    monkeypatch.setattr("clipfake.detector.training.train.BASELINE_ROWS", limit_of_parts)
    monkeypatch.setattr("clipfake.detector.training.triplet.READ_AHEAD", 1)
    read = Snapshot.vectors
    read_sizes = []

    def counted(self: Snapshot, positions: object = None, **how: object) -> object:
        vectors = read(self, positions, **how)  # type: ignore[arg-type]
        read_sizes.append(len(vectors))
        return vectors

    monkeypatch.setattr(Snapshot, "vectors", counted)
    options = TrainOptions(
        classifier="triplet-svm", triplet=TripletOptions(epochs=1, batch=16), baselines=("linear_probe", "lda")
    )
    trained = train(snapshot, options)
    assert max(read_sizes) <= 51  # at most 50 rows, and one more where a share is rounded up
    assert trained.metrics["train"].n == 420  # all rows nevertheless
    assert trained.baselines["lda"].fitted_on <= 51
    assert trained.baselines["linear_probe"].fitted_on == 420
    assert "of 120 test rows" in trained.baselines["linear_probe"].note
    assert trained.against_probe is not None


def test_read_ahead_changes_nothing(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TrainOptions(classifier="triplet-svm", triplet=TripletOptions(epochs=1, batch=16), baselines=())
    head = train(snapshot, options).head
    monkeypatch.setattr("clipfake.detector.training.triplet.READ_AHEAD", 3)
    other = train(snapshot, options).head
    assert all(np.array_equal(w, other.projection.weights[n]) for n, w in head.projection.weights.items())


def test_warm_start_from_a_sample_gives_the_same_svm(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = random_vectors(3000)

    def blocks() -> list[tuple[np.ndarray, np.ndarray]]:
        return [(vectors[i : i + 700], labels[i : i + 700]) for i in range(0, 3000, 700)]

    cold = fit_nystroem(blocks, gamma=1.0, landmarks=200).decision_function(vectors)
    monkeypatch.setattr("clipfake.detector.training.nystroem.SAMPLE", 500)
    warm = fit_nystroem(blocks, gamma=1.0, landmarks=200).decision_function(vectors)
    assert np.abs(warm - cold).max() < 0.02
    assert ((warm > 0) == (cold > 0)).mean() > 0.998


def test_gamma_depends_on_all_blocks() -> None:
    vectors, labels = random_vectors(500)
    shifted = vectors + 3
    assert scale_gamma(shifted) == pytest.approx(1 / (DIM * shifted.astype(np.float64).var()))
    assert scale_gamma(np.full((40, 3), 0.1, np.float32)) == 1.0
    cut = fit_stream(lambda: ((shifted[i : i + 90], labels[i : i + 90]) for i in range(0, 500, 90)), 500)
    assert np.allclose(cut.decision_function(shifted), fit_svm(shifted, labels).decision_function(shifted), atol=1e-6)


def test_linear_probe_is_refined_on_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = random_vectors(4000)
    all_rows = Examples.from_arrays(vectors, labels)
    sample, validation, test = (
        all_rows.take(slice(0, 400)),
        Examples.from_arrays(*random_vectors(200, 1)),
        Examples.from_arrays(*random_vectors(300, 2)),
    )
    monkeypatch.setattr("clipfake.detector.training.logistic.INVERSE_REGULARIZATION", (1.0,))
    monkeypatch.setattr("clipfake.detector.training.examples.ROWS_AT_ONCE", 700)
    refined, on_sample, on_all = (
        linear_probe(*rows)(test)
        for rows in ((sample, validation, 0, all_rows), (sample, validation, 0), (all_rows, validation, 0))
    )
    # vectors are scaled by the deviation of the sample, so that C = 1 is not exactly the same
    assert np.abs(refined - on_all).max() < 0.02 < np.abs(on_sample - on_all).max()


def test_one_search_serves_every_k(monkeypatch: pytest.MonkeyPatch) -> None:
    train_rows, queries = Examples.from_arrays(*random_vectors(200)), Examples.from_arrays(*random_vectors(50, 1))
    expected = [neighbor_rule(k)(train_rows, queries, 0)(queries.take(slice(0, 50))) for k in NEIGHBORS]
    calls = []
    monkeypatch.setattr(
        "clipfake.detector.training.baselines.neighbors",
        lambda *fields: calls.append(fields) or neighbors(*fields),  # type: ignore[func-returns-value]
    )
    scores = [neighbor_rule(k)(train_rows, queries, 0)(queries) for k in NEIGHBORS]
    assert len(calls) == 2  # one among real rows, one among fake rows
    assert all(np.array_equal(score, other) for score, other in zip(scores, expected, strict=True))


def test_text_head_is_measured_in_every_mode(snapshot: Snapshot) -> None:
    trained = train(snapshot, TrainOptions("sum", TripletOptions(epochs=2), baselines=()))
    assert set(trained.to_dict()["categories"]) == {"zero-shot", "given", "mean"}
    assert trained.categories["zero-shot"] == trained.metrics["test"]
    report = trained.to_dict() | {
        "saved": "here",
        "detector": {"test": trained.to_dict()["head"]["test"], "sentences": []},
    }
    printed = io.StringIO()
    Console(file=printed, width=120).print(training_summary(report))
    assert all(f"{mode}: " in printed.getvalue() for mode in ("zero-shot", "given", "mean"))
    _, parts = make_split(snapshot, TrainOptions("sum"))
    scores = decision_values(trained.head, snapshot, parts["test"], "given")
    expected = trained.head.decision_function(
        snapshot.vectors(parts["test"]), mode="given", categories=snapshot.column("categories")[parts["test"]]
    )
    assert np.allclose(scores, expected)
    assert not np.allclose(scores, decision_values(trained.head, snapshot, parts["test"], "mean"))
    assert (
        train(
            snapshot, TrainOptions(classifier="triplet-svm", triplet=TripletOptions(epochs=1), baselines=())
        ).to_dict()["categories"]
        == {}
    )


def test_folds_use_the_kind_of_svm_of_the_calibrated_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(tmp_path / "s", SPACE)
    vectors, labels = random_vectors(400)
    made_by = [f"gan-{i % 3}" if label else "" for i, label in enumerate(labels)]
    rows = Rows.make([f"s/{i}" for i in range(400)], labels, sources=["s"] * 400, generators=made_by)
    with store.writer() as writer:
        writer.append(Block(SPACE, rows, vectors))
    options = TrainOptions(classifier="triplet-svm", triplet=TripletOptions(epochs=1), baselines=())
    head = train(store.snapshot(), options).head
    fitted = []
    monkeypatch.setattr(
        "clipfake.detector.training.svm_training.fit_nystroem",
        lambda *a, **k: fitted.append(k) or fit_nystroem(*a, **k),  # type: ignore[func-returns-value]
    )
    calibrate(store.snapshot(), head, options)
    assert not fitted
    # below the head's rows, above those of a fold
    monkeypatch.setattr("clipfake.detector.training.svm_training.EXACT", 250)
    steps: list[str] = []
    calibrate(store.snapshot(), head, options, on_progress=steps.append)
    assert len(fitted) == len(steps) > 0


def test_stored_rows_equal_rows_in_memory(snapshot: Snapshot, tmp_path: Path) -> None:
    positions = np.array([599, 3, 301])
    stored, whole = StoredRows(snapshot, positions), Examples.from_snapshot(snapshot, positions)
    for name in ("labels", "categories", "sources"):
        assert getattr(stored, name).tolist() == getattr(whole, name).tolist()
    assert np.array_equal(stored.vectors_of([2, 0]), whole.vectors_of([2, 0]))
    assert replace(stored, positions=positions[:1]).labels.tolist() == whole.labels[:1].tolist()
