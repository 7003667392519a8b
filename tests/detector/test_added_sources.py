"""Sources that are added after training move the scores of what resembles them, at once and undoably."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clipfake.detector.added_sources import AddedSources, Direction
from clipfake.detector.detector import QueryOptions, VectorDetector
from clipfake.detector.training.attribution import measure_attribution, open_set_classification_rate
from clipfake.detector.training.calibrate import calibrate
from clipfake.detector.training.train import TrainOptions, train
from clipfake.store.filter import Filter
from clipfake.store.records import Block, Rows
from clipfake.store.space import Space
from clipfake.store.store import Store

SPACE = Space("toy", "0" * 64, dim=16)
SOURCES = {"camera_a": 0, "camera_b": 0, "gan_a": 1, "gan_b": 1, "new_gan": 1, "new_camera": 0}


def vectors(source: str, number: int, seed: int = 0) -> np.ndarray:
    """(number, 16) unit vectors around the direction of their source; new_gan lies among the cameras, for the head."""
    index = list(SOURCES).index(source)
    centre = 0.7 * np.eye(16)[index + 2]
    centre[0] = 1.5 * (source in ("gan_a", "gan_b", "new_camera")) - 0.7
    drawn = centre + 0.35 * np.random.default_rng([seed, index]).standard_normal((number, 16))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)  # type: ignore[no-any-return]


def block(source: str, number: int, seed: int = 0) -> Block:
    rows = Rows.make(
        [f"{source}/{seed}-{i}" for i in range(number)],
        [SOURCES[source]] * number,
        sources=[source] * number,
        generators=[source if SOURCES[source] else ""] * number,
        digests=np.frombuffer(np.random.default_rng([seed, 7, len(source)]).bytes(16 * number), "V16"),
    )
    return Block(SPACE, rows, vectors(source, number, seed))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "s", SPACE)
    with store.writer() as writer:
        for source in ("camera_a", "camera_b", "gan_a", "gan_b"):
            writer.append(block(source, 80))
    options = TrainOptions(classifier="logistic", baselines=())
    head = train(store.snapshot(), options).head
    folder = store.folder / "heads" / "default"
    calibrate(store.snapshot(), head, options).calibration.save(folder)
    head.save(folder)
    return store


def add(store: Store, source: str, number: int) -> VectorDetector:
    with store.writer() as writer:
        writer.append(block(source, number))
    return VectorDetector.load(store)


@pytest.mark.parametrize("source", ["new_gan", "new_camera"])
def test_ten_images_of_a_new_source_move_its_others(source: str, store: Store) -> None:
    queries, sign = vectors(source, 60, seed=5), 2 * SOURCES[source] - 1
    before = VectorDetector.load(store).decision_function(queries)
    after = add(store, source, 10).decision_function(queries)
    assert np.mean(sign * (after - before)) > 1
    others = np.concatenate([vectors(name, 60, seed=5) for name in ("camera_a", "gan_a")])
    moved = VectorDetector.load(store).added.adjust(np.zeros(120), others)[1]
    assert (abs(moved) < 0.5).mean() > 0.85


def test_removing_an_added_source_restores_the_very_scores(store: Store) -> None:
    queries = np.concatenate([vectors(source, 20, seed=5) for source in SOURCES])
    with_camera = add(store, "new_camera", 8).decision_function(queries)
    assert not np.array_equal(add(store, "new_gan", 10).decision_function(queries), with_camera)
    store.delete(Filter(source="new_gan"), "bank remove new_gan")
    assert np.array_equal(VectorDetector.load(store).decision_function(queries), with_camera)


def test_verdict_names_the_added_generator(store: Store) -> None:
    detector = add(store, "new_gan", 20)
    verdicts = detector.judge(["x"] * 40, vectors("new_gan", 40, seed=5))
    assert np.mean([verdict.signals["added"] > 0 for verdict in verdicts]) > 0.9
    named = [verdict for verdict in verdicts if "it resembles the added examples of new_gan" in verdict.reasons]
    assert len(named) > 25
    fakes = [verdict.generator for verdict in verdicts if verdict.verdict == "fake"]
    assert fakes.count("new_gan") > 0.8 * len(fakes) > 0
    known = detector.added.generators(vectors("gan_a", 40, seed=5))
    assert known.count("new_gan") <= 8


@pytest.mark.parametrize("error", [0.05, 0.2])
def test_true_class_is_ruled_out_for_few_more_images(store: Store, error: float) -> None:
    """The calibration knows nothing of added sources, so they may rule out little by themselves."""
    options = QueryOptions(error=error, changes=False)
    add(store, "new_gan", 20)
    detector = add(store, "new_camera", 20)
    without = VectorDetector(detector.head, detector.bank, detector.calibration)
    vars(without)["added"] = AddedSources()
    for source in ("camera_a", "camera_b", "gan_a", "gan_b"):
        true, queries = "fake" if SOURCES[source] else "real", vectors(source, 400, seed=5)
        both = [each.judge(["x"] * 400, queries, options=options) for each in (without, detector)]
        excluded = [np.mean([true not in verdict.possible for verdict in verdicts]) for verdicts in both]
        assert excluded[1] <= excluded[0] + 0.2 * error + 0.02
        assert [verdict.score for verdict in both[0]] != [verdict.score for verdict in both[1]]


def test_added_image_says_nothing_about_itself(store: Store) -> None:
    detector = add(store, "new_gan", 3)
    added = block("new_gan", 3)
    alone, both = (detector.added.adjust(np.zeros(3), added.vectors, d)[1] for d in (added.rows.digests, None))
    assert (alone < both).all()
    ours = Block(SPACE, Rows.make(["z"], [1], sources=["z"], digests=added.rows.digests[:1]), added.vectors[:1])
    with store.writer() as writer:
        writer.append(ours)
    assert VectorDetector.load(store).added.names == ("new_gan",)  # one image is too few


def test_examples_without_digests_are_not_their_own_evidence() -> None:
    background, examples = vectors("camera_a", 200), vectors("new_gan", 5)
    unknown, drawn = np.zeros(5, "V16"), np.frombuffer(np.random.default_rng(0).bytes(80), "V16")
    fitted = [Direction.fit(examples, d, background, np.eye(16, dtype=np.float32)) for d in (unknown, drawn)]
    assert fitted[0] is not None and fitted[1] is not None
    assert fitted[0].center == fitted[1].center


def test_known_sources_and_too_few_rows_add_nothing(store: Store) -> None:
    detector = VectorDetector.load(store)
    assert AddedSources.from_bank(detector.bank, detector.head).names == ()
    assert "added" not in detector.judge(["x"], vectors("gan_a", 1, seed=5))[0].signals
    with store.writer() as writer:
        writer.append(block("gan_a", 10, seed=3))  # more of a source that the head knows
    assert VectorDetector.load(store).added.names == ()
    assert add(store, "new_gan", 2).added.names == ()


def test_source_that_was_left_out_of_training_is_not_added(store: Store) -> None:
    with store.writer() as writer:
        writer.append(block("new_gan", 20))
    options = TrainOptions(classifier="logistic", baselines=(), sources=("camera_a", "camera_b", "gan_a", "gan_b"))
    head = train(store.snapshot(), options).head
    bank = VectorDetector.load(store).bank
    assert AddedSources.from_bank(bank, head).names == ()
    assert AddedSources.from_bank(bank, replace(head, options={})).names == ("new_gan",)


def test_attribution_is_measured_on_test_rows(store: Store) -> None:
    detector = VectorDetector.load(store)
    report = measure_attribution(store.snapshot(), detector.head, detector.calibration)
    assert report is not None and report.generators == 2
    assert report.right is not None and report.right > 0.8
    assert report.n == 32  # a fifth of 160 fakes
    assert "one of 2 was named" in report.sentence
    assert 0 < report.oscr <= 1


def test_oscr_is_one_only_if_unknown_rows_are_less_sure() -> None:
    right, sure, unsure = np.ones(4, bool), np.full(4, 0.9), np.full(5, 0.2)
    assert open_set_classification_rate(sure, right, unsure) == 1
    assert open_set_classification_rate(unsure[:4], right, sure) == 0
    assert open_set_classification_rate(sure, ~right, unsure) == 0
