"""What named vectors gain over the main ones is measured on sources that no compared classifier has seen."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from clipfake.detector.evaluation.leave_one_out import leave_one_out
from clipfake.detector.evaluation.view_gains import HEADS, ViewGain, view_gains
from clipfake.show.evaluation_tables import leave_one_out_table
from clipfake.store.concatenated import concatenated_snapshot
from clipfake.store.named_vectors import named_vectors_writer
from clipfake.store.records import Block, Rows
from clipfake.store.space import Space
from clipfake.store.store import Store
from rich.console import Console

DIM, ROWS = 12, 40
SPACE, OTHER = Space("toy", "0" * 64, DIM), Space("other", "1" * 64, DIM)
SOURCES = {**{f"camera {i}": 0 for i in range(4)}, **{f"gan {i}": 1 for i in range(6)}}


def vectors_of(labels: np.ndarray, rng: np.random.Generator, shift: float) -> np.ndarray:
    """(rows, DIM) unit vectors of noise whose first coordinate tells the classes apart, the better the larger."""
    vectors = rng.standard_normal((len(labels), DIM))
    vectors[:, 0] += shift * labels
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The main vectors tell little, the vectors named good much, and those named noise nothing."""
    rng = np.random.default_rng(0)
    store = Store.create(tmp_path_factory.mktemp("views") / "s", SPACE)
    labels = np.repeat(list(SOURCES.values()), ROWS)
    sources = np.repeat(list(SOURCES), ROWS).tolist()
    with store.writer() as writer:
        rows = Rows.make([f"{s}/{i}" for i, s in enumerate(sources)], labels.tolist(), sources=sources)
        writer.append(Block(SPACE, rows, vectors_of(labels, rng, 1.0)))
    for name, shift in (("good", 3.0), ("noise", 0.0)):
        with named_vectors_writer(store.folder, name, OTHER) as writer:
            writer.put(np.arange(len(labels)), vectors_of(labels, rng, shift))
    return store


@pytest.fixture(scope="module")
def gains(store: Store) -> dict[tuple[tuple[str, ...], str], ViewGain]:
    return {(gain.vectors, gain.head): gain for gain in view_gains(store.snapshot())}


def test_every_view_is_measured_alone_and_beside_main(gains: dict[tuple[tuple[str, ...], str], ViewGain]) -> None:
    vectors = [("good",), ("main", "good"), ("noise",), ("main", "noise")]
    assert sorted(gains) == sorted((names, head) for names in vectors for head in HEADS)
    for gain in gains.values():
        assert sorted(gain.left_out) == sorted(f"{('real', 'fake')[label]} {name}" for name, label in SOURCES.items())


def test_gain_loss_and_neither_are_told_apart(gains: dict[tuple[tuple[str, ...], str], ViewGain]) -> None:
    for head in HEADS:
        assert gains[("good",), head].verdict == "a gain"
        assert gains[("main", "good"), head].gain > 0.1
        assert gains[("noise",), head].verdict == "a loss"
    few = ViewGain(("view",), "rbf_svm", 9, ("fake a", "fake b", "fake c"), (0.8, 0.6, 0.7), (0.7, 0.7, 0.7))
    assert few.interval is not None
    assert few.interval[0] < 0 < few.interval[1]
    assert few.sentence.startswith("view, RBF SVM: mean AUC on 3 left-out sources 0.700 against 0.700 for main alone")
    assert few.sentence.endswith("no gain that can be told from chance.")


def test_interval_is_students_t_over_sources() -> None:
    gain = ViewGain(("view",), "rbf_svm", 9, ("fake a", "fake b", "fake c"), (0.72, 0.73, 0.74), (0.7, 0.7, 0.7))
    assert gain.gain == pytest.approx(0.03)
    assert gain.interval == pytest.approx((0.03 - 4.302653 * 0.01 / 3**0.5, 0.03 + 4.302653 * 0.01 / 3**0.5), abs=1e-6)
    assert gain.verdict == "a gain"
    assert (
        ViewGain(("view",), "rbf_svm", 9, ("fake a",), (0.9,), (0.5,)).verdict == "no gain that can be told from chance"
    )


def test_gain_is_the_same_from_a_head_on_several_vectors(
    store: Store, gains: dict[tuple[tuple[str, ...], str], ViewGain]
) -> None:
    both = concatenated_snapshot(store.snapshot(), ("main", "good"))
    assert [gain.aucs for gain in view_gains(both)] == [gain.aucs for gain in gains.values()]


def test_views_of_too_few_sources_are_passed_over(store: Store, tmp_path: Path) -> None:
    with named_vectors_writer(store.folder, "few", OTHER) as writer:
        of_two = np.array([name in ("camera 0", "gan 0") for name in writer.snapshot.column("sources").tolist()])
        writer.put(np.flatnonzero(of_two), vectors_of(np.zeros(of_two.sum()), np.random.default_rng(1), 0.0))
    measured = {gain.vectors for gain in view_gains(store.snapshot())}
    assert measured == {("good",), ("main", "good"), ("noise",), ("main", "noise")}


def test_gains_are_printed_and_in_the_json(store: Store, gains: dict[tuple[tuple[str, ...], str], ViewGain]) -> None:
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(leave_one_out_table([leave_one_out(store.snapshot())], list(gains.values())))
    text = console.export_text()
    for gain in gains.values():
        assert gain.sentence in text
        content = json.loads(json.dumps(gain.to_dict()))
        assert content["gain"] == round(gain.gain, 4)
        assert list(content["sources"]) == list(gain.left_out)
