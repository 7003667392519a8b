"""Heads: saving and loading, exact and approximate SVMs, and errors of impossible training."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.detector.calibration import Calibration
from clipfake.detector.head import Head, head_folder, vector_names_of
from clipfake.detector.projection import FUSIONS, TRIPLET_KINDS, Projection
from clipfake.detector.training.classifiers import principal_components
from clipfake.detector.training.examples import Examples
from clipfake.detector.training.nystroem import fit_nystroem
from clipfake.detector.training.svm_training import fit_svm, scale_gamma
from clipfake.detector.training.train import TrainOptions, train
from clipfake.detector.training.triplet import TripletOptions, draw, fit_projection
from clipfake.detector.vocabulary import Vocabulary
from clipfake.errors import HeadError, NotEnoughRows, SpaceMismatch, Unreadable
from clipfake.store.records import Block, Rows, distinct, names
from clipfake.store.space import Space
from clipfake.store.store import Store

DIM = 12
SPACE = Space("toy", "0" * 64, dim=DIM)


def random_vectors(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of two classes of three clusters each, which no plane separates."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((2, 3, DIM))
    labels = rng.integers(0, 2, count)
    vectors = 1.2 * centres[labels, rng.integers(0, 3, count)] + rng.standard_normal((count, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), labels


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    new_store = Store.create(tmp_path_factory.mktemp("heads") / "s", SPACE)
    vectors, labels = random_vectors(400)
    rows = Rows.make([f"s/{i}" for i in range(400)], labels, sources=["s"] * 400)
    with new_store.writer() as writer:
        writer.append(Block(SPACE, rows, vectors))
    return new_store


@pytest.fixture(scope="module")
def head(store: Store) -> Head:
    return train(
        store.snapshot(), TrainOptions(classifier="triplet-svm", triplet=TripletOptions(epochs=2), baselines=())
    ).head


def test_svm_equals_scikit_learn() -> None:
    from sklearn.svm import SVC

    vectors, labels = random_vectors(300)
    queries, _ = random_vectors(50, seed=1)
    theirs = SVC(C=1.0, kernel="rbf", gamma="scale").fit(vectors, labels).decision_function(queries)
    assert np.allclose(fit_svm(vectors, labels).decision_function(queries), theirs, atol=1e-5)


def in_blocks(vectors: np.ndarray, labels: np.ndarray, size: int):  # type: ignore[no-untyped-def]
    return lambda: ((vectors[i : i + size], labels[i : i + size]) for i in range(0, len(labels), size))


def test_nystroem_with_all_rows_as_landmarks_is_exact() -> None:
    vectors, labels = random_vectors(400)
    queries, labels_of_queries = random_vectors(1000, seed=1)
    exact = fit_svm(vectors, labels).decision_function(queries) > 0
    approximate = (
        fit_nystroem(in_blocks(vectors, labels, 400), gamma=scale_gamma(vectors), landmarks=800).decision_function(
            queries
        )
        > 0
    )
    assert (exact == labels_of_queries).mean() > 0.8
    assert (approximate == exact).mean() > 0.93


def test_nystroem_does_not_depend_on_the_block_size() -> None:
    vectors, labels = random_vectors(500)
    one_block, many_blocks = (
        fit_nystroem(in_blocks(vectors, labels, size), gamma=1.0, landmarks=1000).decision_function(vectors)
        for size in (500, 77)
    )
    assert np.allclose(one_block, many_blocks, atol=1e-2)


def test_nystroem_rejects_one_class() -> None:
    vectors, _ = random_vectors(50)
    with pytest.raises(NotEnoughRows, match="one class"):
        fit_nystroem(in_blocks(vectors, np.ones(50, int), 20), gamma=1.0)


def test_svm_is_approximate_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipfake.detector.training.svm_training.EXACT", 1500)
    vectors, labels = random_vectors(2000)
    svm = fit_svm(vectors, labels)
    assert len(svm.vectors) == 1000
    assert ((svm.decision_function(vectors) > 0) == labels).mean() > 0.8


@pytest.mark.parametrize("kind", TRIPLET_KINDS)
def test_projections_give_128_dimensional_unit_vectors(kind: str) -> None:
    vectors, _ = random_vectors(7)
    texts = random_vectors(7, seed=2)[0]
    projection = Projection.initialize(kind, vectors, seed=3)
    projected = projection(vectors, texts if projection.reads_text else None)
    assert projected.shape == (7, 128)
    assert np.allclose(np.linalg.norm(projected, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("anchor", ["real", "fake", "both"])
def test_triplet_is_an_anchor_a_positive_and_a_negative(anchor: str) -> None:
    rng = np.random.default_rng(0)
    labels, match = rng.integers(0, 2, 200), rng.integers(0, 5, 200)
    triplets = draw(labels, match, anchor, rng)  # type: ignore[arg-type]
    allowed = {"real": {0}, "fake": {1}, "both": {0, 1}}[anchor]
    assert set(labels[triplets.anchor].tolist()) == allowed
    assert (triplets.anchor != triplets.positive).all()
    assert (labels[triplets.anchor] == labels[triplets.positive]).all()
    assert (labels[triplets.anchor] != labels[triplets.negative]).all()
    assert (match[triplets.anchor] == match[triplets.positive]).all()
    assert (match[triplets.anchor] == match[triplets.negative]).all()


def test_too_few_rows_for_a_triplet_are_an_error() -> None:
    vectors, _ = random_vectors(2)
    examples = Examples.from_arrays(vectors, np.array([0, 1]))
    with pytest.raises(HeadError, match="index more images"):
        fit_projection("linear", examples, examples)


def test_equal_rows_are_an_error() -> None:
    alike = Examples.from_arrays(np.tile(random_vectors(1)[0], (40, 1)), np.arange(40) % 2)
    with pytest.raises(HeadError, match="are equal"):
        fit_projection("linear", alike, alike, TripletOptions(epochs=1))


def test_head_round_trip(head: Head, tmp_path: Path) -> None:
    head.save(tmp_path)
    again = Head.load(tmp_path, SPACE)
    queries, _ = random_vectors(20, seed=4)
    assert np.array_equal(again.decision_function(queries), head.decision_function(queries))
    assert json.dumps(again.to_dict()) == json.dumps(head.to_dict())
    with pytest.raises(SpaceMismatch):
        Head.load(tmp_path, Space("other", "1" * 64, DIM))
    with pytest.raises(SpaceMismatch):
        again.decision_function(np.ones((1, DIM + 1), np.float32))


@pytest.mark.parametrize("classifier", ["rbf-svm", "pca-svm", "logistic"])
@pytest.mark.parametrize("limit", [1_000, 200])
def test_head_of_a_plain_classifier_round_trip(
    store: Store, tmp_path: Path, classifier: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("svm_training.EXACT", "logistic.SAMPLE", "examples.ROWS_AT_ONCE"):
        monkeypatch.setattr(f"clipfake.detector.training.{name}", limit)
    trained = train(store.snapshot(), TrainOptions(classifier=classifier, baselines=()))
    auc = trained.metrics["test"].auc
    assert auc is not None and auc > (0.6 if classifier == "logistic" else 0.8)
    trained.head.save(tmp_path)
    again = Head.load(tmp_path, SPACE)
    queries, _ = random_vectors(20, seed=4)
    assert np.array_equal(again.decision_function(queries), trained.head.decision_function(queries))
    assert again.transform(queries).shape == (20, DIM)
    assert (again.digest, again.classifier_name) == (trained.head.digest, classifier)
    assert json.loads((tmp_path / "head.json").read_text())["version"] == 1


def test_head_that_names_no_classifier_is_a_triplet_head(head: Head, tmp_path: Path) -> None:
    replace(head, options={"kind": "linear", "c": 1.0}).save(tmp_path)
    assert Head.load(tmp_path).classifier_name == "triplet-svm"


def test_projection_with_another_classifier_is_an_error() -> None:
    with pytest.raises(HeadError, match="projection mlp belongs to the classifier triplet-svm, found rbf-svm"):
        TrainOptions("mlp", classifier="rbf-svm")
    with pytest.raises(HeadError, match="unknown classifier 'tree'; choose one of triplet-svm, rbf-svm"):
        TrainOptions(classifier="tree")


def test_principal_components_equal_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.decomposition import PCA

    monkeypatch.setattr("clipfake.detector.training.examples.ROWS_AT_ONCE", 70)
    vectors, labels = random_vectors(300)
    shifted = vectors + 5
    ours = principal_components(Examples.from_arrays(shifted, labels), most=4)(shifted)
    theirs = PCA(4, svd_solver="full").fit_transform(shifted.astype(np.float64))
    assert ours * np.sign((ours * theirs).sum(0)) == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("kind", FUSIONS)
def test_text_head_round_trip_keeps_the_categories(head: Head, tmp_path: Path, kind: str) -> None:
    vocabulary = Vocabulary.from_texts(dict(zip(("dog", "cat", "ship"), random_vectors(3, seed=7)[0], strict=True)))
    vectors, labels = random_vectors(60)
    projection = Projection.initialize(kind, vectors, seed=1)
    classifier = fit_svm(projection(vectors, vocabulary.text_vectors(vectors)), labels)
    text_head = replace(head, projection=projection, classifier=classifier, vocabulary=vocabulary)
    text_head.save(tmp_path)
    again = Head.load(tmp_path)
    assert again.vocabulary is not None and again.vocabulary.categories.tolist() == ["cat", "dog", "ship"]
    assert again.digest == text_head.digest != head.digest
    for arguments in ({}, {"mode": "mean"}, {"mode": "given", "categories": ["dog", ""] * 30}):
        assert np.array_equal(
            again.decision_function(vectors, **arguments), text_head.decision_function(vectors, **arguments)
        )
    nearest = vocabulary.vectors[np.argmax(vectors @ vocabulary.vectors.T, axis=1)]
    assert np.array_equal(text_head.transform(vectors), projection(vectors, nearest))
    with pytest.raises(HeadError, match="text vectors of its categories"):
        replace(text_head, vocabulary=None)


def test_saving_a_head_again_removes_the_old_files_only(head: Head, tmp_path: Path) -> None:
    other = replace(head, classifier=replace(head.classifier, intercept=3.0))
    kept = f"calibration-{other.digest[:16]}.json"
    head.save(tmp_path)
    for name in (f"calibration-{head.digest[:16]}.json", "calibration.json", kept, "notes.txt"):
        (tmp_path / name).write_text("{}")
    other.save(tmp_path)
    assert Head.load(tmp_path).digest == other.digest
    [arrays] = tmp_path.glob("*.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([arrays.name, kept, "head.json", "notes.txt"])


def test_digest_identifies_the_decision_function(head: Head) -> None:
    assert replace(head, metrics={"any": 1}, versions={}).digest == head.digest
    weights = head.projection.weights
    for changed in (
        replace(head, classifier=replace(head.classifier, intercept=7.0)),
        replace(head, projection=replace(head.projection, weights={**weights, "b": weights["b"] + 1})),
        replace(head, split=replace(head.split, parts=head.split.parts[::-1].copy())),
    ):
        assert changed.digest != head.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has format version 2, this release reads"),
        ({"format": "another"}, "is not a clipfake head \\(format 'another'\\)"),
        ({"arrays": "../elsewhere.safetensors"}, "no head at"),
        ({"digest": "0" * 32}, "was altered"),
        ({"projection": "cubic"}, "unknown projection 'cubic' with weights W, b"),
        ({"split": {}}, "is not a readable head"),
        ({"threshold": None}, "is not a readable head"),
    ],
)
def test_unreadable_head_says_why(head: Head, tmp_path: Path, change: dict[str, object], message: str) -> None:
    head.save(tmp_path)
    content = json.loads((tmp_path / "head.json").read_text())
    (tmp_path / "head.json").write_text(json.dumps(content | change))
    with pytest.raises(HeadError, match=message):
        Head.load(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", "7"])
def test_file_that_is_no_head_is_rejected(tmp_path: Path, content: str) -> None:
    with pytest.raises(HeadError, match="no head at"):
        Head.load(tmp_path)
    (tmp_path / "head.json").write_text(content)
    with pytest.raises(HeadError, match="not a readable head"):
        Head.load(tmp_path)
    assert vector_names_of(tmp_path) == ("main",)


def test_vector_names_are_known_before_loading_a_head(head: Head, tmp_path: Path) -> None:
    assert vector_names_of(tmp_path) == ("main",)
    for options, columns in (({}, ("main",)), ({"columns": ["main", "other"]}, ("main", "other"))):
        replace(head, options=options).save(tmp_path)
        assert vector_names_of(tmp_path) == columns


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/etc", "a/", "../up"])
def test_head_name_outside_the_folder_is_rejected(tmp_path: Path, name: str) -> None:
    with pytest.raises(HeadError, match="is not a valid name for a head"):
        head_folder(tmp_path, name)
    assert head_folder(tmp_path, "mine-2") == tmp_path / "heads" / "mine-2"


def test_altered_head_is_rejected(head: Head, tmp_path: Path) -> None:
    head.save(tmp_path)
    [arrays] = tmp_path.glob("*.safetensors")
    content = bytearray(arrays.read_bytes())
    content[-1] ^= 1
    arrays.write_bytes(content)
    with pytest.raises(HeadError, match="altered"):
        Head.load(tmp_path)


@pytest.mark.parametrize("error", [errno.EACCES, errno.ECONNRESET, errno.ENODATA], ids=errno.errorcode.get)
@pytest.mark.parametrize("pattern", ["head.json", "head-*.safetensors", "calibration-*.json"])
def test_head_that_cannot_be_read_now_is_not_called_damaged(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, error: int
) -> None:
    head.save(tmp_path)
    (tmp_path / f"calibration-{head.digest[:16]}.json").write_text("{}")
    [unreadable], real = tmp_path.glob(pattern), os.open

    def open_file(path: str | Path, *args: Any, **options: Any) -> int:
        if Path(path) == unreadable:
            raise OSError(error, "no")
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", open_file)
    with pytest.raises(Unreadable, match=rf"{unreadable.name} cannot be read now"):
        Calibration.load(tmp_path, Head.load(tmp_path).digest)


def test_error_of_a_missing_head_names_the_present_ones(head: Head, tmp_path: Path) -> None:
    with pytest.raises(HeadError, match=r"no head at .*default; run `clipfake train` first"):
        Head.load(tmp_path / "default")
    head.save(tmp_path / "linear")
    head.save(tmp_path / "deep")
    (tmp_path / "half").mkdir()  # of an interrupted training
    with pytest.raises(HeadError, match=r"no head at .*default; name one of .* --head: deep, linear$"):
        Head.load(tmp_path / "default")


def test_same_seed_gives_the_same_head(store: Store, head: Head) -> None:
    again = train(
        store.snapshot(), TrainOptions(classifier="triplet-svm", triplet=TripletOptions(epochs=2), baselines=())
    ).head
    assert all(np.array_equal(w, again.projection.weights[n]) for n, w in head.projection.weights.items())


def test_copies_in_the_test_rows_are_counted(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", SPACE)
    vectors, labels = random_vectors(200)
    digests = np.frombuffer(np.random.default_rng(0).bytes(16 * 200), "V16")
    with store.writer() as writer:
        for copy in range(2):
            rows = Rows.make([f"{copy}/{i}" for i in range(200)], labels, sources=["s"] * 200, digests=digests)
            writer.append(Block(SPACE, rows, vectors))
    snapshot, options = (
        store.snapshot(),
        TrainOptions("linear", TripletOptions(epochs=1), recipe="paper", baselines=()),
    )
    trained = train(snapshot, options)
    parts = trained.head.split.parts_of(snapshot.column("keys"))
    part_of_copy = np.concatenate([parts[200:], parts[:200]])
    assert trained.test_copies == int(((parts == 2) & (part_of_copy != 2)).sum()) > 50
    assert f"{trained.test_copies} of 81 test rows are copies of training or validation files" in trained.sentences[0]
    assert trained.to_dict()["test_copies"] == trained.test_copies
    grouped = train(snapshot, replace(options, recipe="grouped"))
    assert (grouped.test_copies, grouped.sentences) == (0, [])


def test_distinct_separates_several_sorted_runs() -> None:
    """numpy's own sort of strings crashed on them."""
    runs = names([f"category-{i:04d}" for _ in range(2) for i in range(1000)])
    values, codes, counts = distinct(runs)
    assert (values[codes] == runs).all()
    assert counts.tolist() == [2] * 1000


def test_nystroem_svm_is_at_a_minimum() -> None:
    from clipfake.detector.training.nystroem import _newton

    rng = np.random.default_rng(0)
    kernels, sign = (
        rng.standard_normal((900, 12)).astype(np.float32),
        np.sign(rng.standard_normal(900)).astype(np.float32),
    )
    kernels[:, 0] += sign
    whitening = rng.standard_normal((12, 5)).astype(np.float32)

    def blocks() -> list[tuple[np.ndarray, np.ndarray]]:
        return [(kernels[i : i + 400], sign[i : i + 400]) for i in range(0, 900, 400)]

    for start in (np.zeros(6), rng.standard_normal(6)):  # rows become active and inactive on the way
        weights = _newton(blocks, whitening, start, 0.7)
        phi = np.pad(kernels.astype(np.float64) @ whitening, ((0, 0), (0, 1)), constant_values=1.0)
        slack = np.maximum(1 - sign * (phi @ weights), 0)
        gradient = np.append(weights[:-1], 0) - 2 * 0.7 * phi.T @ (slack * sign)
        assert slack.any() and not slack.all()
        assert np.abs(gradient).max() < 1e-3 * np.abs(2 * 0.7 * phi.T @ sign).max()
