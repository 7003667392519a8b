"""Maps of patches: what is planted is found, and nothing is shown that was not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.detector.detector import VectorDetector
from clipfake.detector.head import head_folder
from clipfake.detector.patches.patch_head import LEAST_AUC, PatchHead
from clipfake.detector.patches.patch_map import PatchMap
from clipfake.detector.patches.patch_training import FOLDS, source_folds
from clipfake.detector.patches.planted import CUT, PlantedTest, compose, halves, measure_planted
from clipfake.detector.patches.planted_images import measure_on_images
from clipfake.detector.training.fit import fit_detector
from clipfake.detector.training.train import TrainOptions
from clipfake.errors import HeadError, NotEnoughRows, SpaceMismatch
from clipfake.store.named_vectors import ViewRecord, create_view, named_vectors_writer
from clipfake.store.records import Block, Rows, names
from clipfake.store.space import Space
from clipfake.store.store import Store
from PIL import Image

SPACE = Space("toy", "0" * 64, dim=4)
GRID, DIM, ROWS = (4, 5), 3, 600
PATCHES = Space("toy", "1" * 64, dim=GRID[0] * GRID[1] * DIM, normalised=False)
FAST = TrainOptions(classifier="logistic", baselines=())
TEST = PlantedTest(200, 0.97, (0.95, 0.98), 0.9, 0.98)


def patches_of(labels: np.ndarray, gap: float, seed: int = 0) -> np.ndarray:
    """(n, rows * columns * dim) patches whose first number is `gap` higher in fakes."""
    patches = np.random.default_rng(seed).standard_normal((len(labels), *GRID, DIM)).astype(np.float32)
    patches[..., 0] += gap * labels[:, None, None]
    return patches.reshape(len(labels), -1)


def store_at(folder: Path, gap: float | None) -> Store:
    """A store of 600 rows of six sources, with patches unless `gap` is None."""
    labels = np.arange(ROWS) % 2
    vectors = np.random.default_rng(1).standard_normal((ROWS, 4)).astype(np.float32)
    vectors[:, 0] += labels
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = Store.create(folder, SPACE)
    rows = Rows.make([f"{i}.png" for i in range(ROWS)], labels, sources=[f"s{i % 6}" for i in range(ROWS)])
    with store.writer() as writer:
        writer.append(Block(SPACE, rows, vectors))
    if gap is not None:
        create_view(folder, "tokens", PATCHES, ViewRecord("tokens", rows=GRID[0], columns=GRID[1]))
        with named_vectors_writer(folder, "tokens", PATCHES) as columns:
            columns.put(np.arange(ROWS), patches_of(labels, gap))
    return store


@pytest.fixture(scope="module")
def separable(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = store_at(tmp_path_factory.mktemp("patches") / "store", gap=2.5)
    fit_detector(store, options=FAST).save()
    return store


@pytest.fixture(scope="module")
def head(separable: Store) -> PatchHead:
    loaded = PatchHead.load(head_folder(separable.folder))
    assert loaded is not None
    return loaded


def judged(store: Store, patches: np.ndarray) -> Any:
    """A verdict of the store's detector with the map of these patches."""
    detector = VectorDetector.load(store)
    [verdict] = detector.judge(["a.png"], np.eye(4, dtype=np.float32)[:1])
    return detector.with_map(verdict, patches, (0.0, 0.25, 1.0, 0.75))


def test_map_finds_the_planted_half(separable: Store, head: PatchHead) -> None:
    assert head.stored is not None and head.stored.auc > 0.99
    assert head.left_out is not None and head.left_out.auc > 0.95
    real, fake = (patches_of(np.array([label]), 2.5, seed=7 + label).reshape(1, *GRID, DIM) for label in (0, 1))
    parts = halves(GRID, np.array([0], np.int8))
    verdict = judged(separable, compose(real, fake, parts).ravel())
    values = np.array(verdict.map.values)
    assert values.shape == GRID
    assert values[parts[0] == 1].mean() > 0 > values[parts[0] == 0].mean()
    written = json.loads(json.dumps(verdict.to_dict()))["map"]
    assert (written["rows"], written["columns"]) == GRID
    assert np.allclose(written["values"], values, atol=1e-3)
    assert written["area"] == [0.0, 0.25, 1.0, 0.75]
    assert written["auc"] == pytest.approx(head.auc, abs=1e-4)
    assert "A hint" in written["note"]
    assert "has not seen" in written["note"]


def test_map_is_not_shown_where_planted_halves_are_not_found(tmp_path: Path) -> None:
    store = store_at(tmp_path / "store", gap=0.1)
    report = fit_detector(store, options=FAST)
    report.save()
    shown = judged(store, patches_of(np.array([1]), 0.1)[0]).map
    assert shown.values == ()
    assert shown.auc < LEAST_AUC
    assert shown.note.startswith("No map of the patches is shown, because swapped halves of images are found with AUC")
    assert any("Maps of the patches" in sentence for sentence in report.sentences)
    assert json.loads(json.dumps(report.to_dict()))["patches"]["shown"] is False


def test_store_without_patches_has_no_map_and_forgets_an_earlier_one(tmp_path: Path, head: PatchHead) -> None:
    store = store_at(tmp_path / "store", gap=None)
    folder = head_folder(store.folder)
    folder.mkdir(parents=True)
    head.save(folder)
    fit_detector(store, options=FAST).save()
    assert not list(folder.glob("patches*"))
    assert judged(store, np.zeros(0, np.float32)).map is None


def test_patch_head_is_deterministic_and_written_as_it_is(separable: Store, head: PatchHead, tmp_path: Path) -> None:
    again = fit_detector(separable, options=FAST).patches
    assert again is not None
    assert again.digest == head.digest
    (tmp_path / "h").mkdir()
    head.save(tmp_path / "h")
    vectors = patches_of(np.array([0, 1]), 2.5)
    loaded = PatchHead.load(tmp_path / "h")
    assert loaded is not None
    assert np.array_equal(loaded.decision_function(vectors), head.decision_function(vectors))
    assert loaded.to_dict() == head.to_dict()


def test_damaged_patch_head_is_refused(head: PatchHead, tmp_path: Path) -> None:
    folder = tmp_path / "h"
    folder.mkdir()
    head.save(folder)
    [arrays] = folder.glob("patches-*.safetensors")
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"\x00")
    with pytest.raises(HeadError, match="was altered"):
        PatchHead.load(folder)
    arrays.unlink()
    with pytest.raises(HeadError, match="train the head again"):
        PatchHead.load(folder)


def test_patches_of_another_size_are_refused(head: PatchHead) -> None:
    with pytest.raises(SpaceMismatch, match="7 numbers"):
        head.decision_function(np.zeros((1, 7), np.float32))


@pytest.mark.parametrize("test", [None, replace(TEST, auc=0.94)], ids=["too few", "excess"])
def test_stored_patches_alone_must_be_clearly_better(head: PatchHead, test: PlantedTest | None) -> None:
    unsure = replace(head, stored=test, pixels=None)
    assert not unsure.shown
    assert unsure.note.startswith("No map")
    assert replace(unsure, pixels=replace(TEST, auc=0.9)).shown  # measured on images, it counts as it is
    assert not replace(head, pixels=replace(TEST, auc=0.899)).shown


@pytest.mark.parametrize("grid", [(7, 7), (4, 5), (1, 2)])
def test_halves_are_equal_and_opposite(grid: tuple[int, int]) -> None:
    left, right = halves(grid, np.array([0, 1], np.int8))
    assert ((left == 1) == (right == 0)).all()
    assert (left == 1).sum() == (right == 1).sum()
    assert ((left == CUT) == (right == CUT)).all()
    assert (left == CUT).any() == (grid[1] % 2 == 1)


def test_map_that_knows_only_left_from_right_finds_nothing() -> None:
    parts = halves((6, 6), (np.arange(200) % 4).astype(np.int8))
    always_left = np.broadcast_to(np.linspace(1, -1, 6), parts.shape) + np.zeros(parts.shape)
    test = measure_planted(always_left.astype(np.float32), parts)
    assert test is not None
    assert test.auc == pytest.approx(0.5, abs=0.01)
    assert test.patch_auc == pytest.approx(0.5, abs=0.01)


def test_too_few_planted_images_measure_nothing() -> None:
    parts = halves((2, 2), np.zeros(3, np.int8))
    assert measure_planted(parts.astype(np.float32), parts) is None


def picture(label: int, number: int) -> np.ndarray:
    """A grey picture of noise; fakes are brighter."""
    noise = np.random.default_rng([label, number]).integers(0, 100, (40, 50, 3))
    return (noise + 60 * label).astype(np.uint8)


def encode(pictures: Any) -> np.ndarray:
    """Patches whose first number is the brightness."""
    cells = np.stack(pictures).reshape(len(pictures), GRID[0], 10, GRID[1], 10, 3).mean((2, 4, 5)) / 40 - 1.5
    return np.repeat(cells[..., None], DIM, 3).reshape(len(pictures), -1).astype(np.float32)


def test_planted_pictures_are_measured(head: PatchHead) -> None:
    labels = np.arange(140) % 2
    measured = measure_on_images(
        head, np.arange(140), labels, lambda row: picture(row % 2, row) if row > 9 else None, encode
    )
    assert measured.pixels is not None
    assert 50 <= measured.pixels.images < 70  # pairs with a file that cannot be read are left out
    assert measured.pixels.auc > 0.99
    assert measured.shown
    assert "planted images" in measured.summary


def test_planted_pictures_need_files(head: PatchHead) -> None:
    with pytest.raises(NotEnoughRows, match="the planted test needs 50"):
        measure_on_images(head, np.arange(200), np.arange(200) % 2, lambda row: None, encode)


def test_folds_keep_sources_whole_and_hold_both_classes() -> None:
    sources = names([f"s{i % 8}" for i in range(80)])
    labels = np.arange(80) % 8 % 2
    folds = source_folds(labels, sources, seed=0)
    assert folds is not None
    assert set(folds.tolist()) == set(range(FOLDS))
    for source in range(8):
        assert len(set(folds[source::8].tolist())) == 1
    assert source_folds(labels[:40] % 2, names(["a", "b"] * 20), seed=0) is None


def test_map_is_drawn_over_its_area_only(tmp_path: Path) -> None:
    from clipfake.show.images.patch_overlay import overlay

    grey = Image.new("RGB", (100, 200), (128, 128, 128))
    drawn = np.asarray(overlay(grey, PatchMap(1, 2, ((-9.0, 1.2),), 0.95, "", (0.0, 0.25, 1.0, 0.75))), int)
    assert (drawn[:50] == 128).all() and (drawn[150:] == 128).all()
    red, blue = drawn[..., 0], drawn[..., 2]
    assert (blue > red)[60:80, 5:30].all()  # leans real
    assert (red > blue)[60:140, 60:].all()  # leans fake
