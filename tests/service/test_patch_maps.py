"""Maps of patches from an image file to the answer: sessions, the contact sheet, the service and the command line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipfake.detector.head import head_folder
from clipfake.detector.patches.patch_head import PatchHead
from clipfake.detector.patches.planted import PlantedTest
from clipfake.detector.training.fit import fit_detector
from clipfake.detector.training.train import TrainOptions
from clipfake.errors import NotEnoughRows, SpaceMismatch
from clipfake.indexer.decoding.image import decode, thumbnail
from clipfake.indexer.encoders.base import Encoder
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.index import IndexOptions, index
from clipfake.indexer.views.create import encoder_with_views
from clipfake.session import Session
from clipfake.show.images.contact_sheet import SheetEntry, draw_sheet
from clipfake.show.images.patch_overlay import overlay
from clipfake.store.store import Store
from PIL import Image
from tiny_models import SMALL, saved

FIELDS = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32}
MEASURED = PlantedTest(100, 0.95, (0.9, 0.98), 0.9, 0.97)
WIDE = (40, 80)  # height and width of the images: the encoder sees the middle half


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    import transformers

    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(**{**SMALL, "num_hidden_layers": 3}, projection_dim=16)
    folder = saved(
        tmp_path_factory.mktemp("models") / "clip", transformers.CLIPVisionModelWithProjection(vision), FIELDS
    )
    return load_encoder(str(folder), device="cpu")


def write_images(root: Path) -> None:
    """Images of noise; every second line of the fake ones is dark."""
    for name in ("real", "fake"):
        (root / name).mkdir(parents=True)
        for i in range(40):
            pixels = np.random.default_rng(i + 100 * (name == "fake")).integers(0, 256, (*WIDE, 3), np.uint8)
            if name == "fake":
                pixels[::2] //= 4
            Image.fromarray(pixels).save(root / name / f"{i:03d}.png")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Store:
    """A store of patches with a head whose maps may be shown."""
    root = tmp_path_factory.mktemp("maps")
    write_images(root / "images")
    created = Store.create(root / "store", encoder.space)
    index([root / "images"], created, encoder, IndexOptions(views=("tokens", "layers")))
    for name, vectors in (("default", ("main",)), ("both", ("main", "layers"))):
        report = fit_detector(created, name, TrainOptions(classifier="logistic", baselines=()), vectors=vectors)
        assert report.patches is not None and not report.patches.shown  # too few rows for the planted test
        replace(report, patches=replace(report.patches, pixels=MEASURED)).save()
    return created


def fake(store: Store, number: int = 0) -> Path:
    return store.folder.parent / "images" / "fake" / f"{number:03d}.png"


@pytest.mark.parametrize("name", ["default", "both"])
def test_query_has_the_map_of_its_patches(store: Store, encoder: Encoder, name: str) -> None:
    session = Session(store, name, encoder=encoder)
    [(image, verdict)] = session.judge([fake(store)])
    patches = PatchHead.load(head_folder(store.folder, name))
    assert patches is not None and verdict.map is not None  # type: ignore[union-attr]
    with_tokens = encoder_with_views(store, encoder, ["tokens"])
    tokens = with_tokens.split(with_tokens.encode([image.image.pixels]))["tokens"]  # type: ignore[union-attr]
    assert np.allclose(verdict.map.values, patches.decision_function(tokens)[0], atol=1e-4)  # type: ignore[union-attr]
    assert verdict.map.area == pytest.approx((0.25, 0, 0.75, 1), abs=0.02)  # type: ignore[union-attr]
    assert image.vector is not None and image.vector.shape == (session.detector.head.space.dim,)
    [(_, degraded)] = session.judge([fake(store)], check_stability=True)
    assert degraded.map == verdict.map  # type: ignore[union-attr]


def test_stored_patches_are_not_encoded_where_no_map_is_shown(store: Store, encoder: Encoder) -> None:
    session = Session(store, encoder=encoder)
    session.detector = replace(session.detector, patches=replace(session.detector.patches, pixels=None))  # type: ignore[type-var]
    assert session.query_encoder is session.main_encoder
    [(_, verdict)] = session.judge([fake(store)])
    assert verdict.map is not None and verdict.map.values == ()  # type: ignore[union-attr]
    assert verdict.map.note.startswith("No map")  # type: ignore[union-attr]


def test_map_is_drawn_on_the_sheet_only_if_shown(store: Store, encoder: Encoder) -> None:
    session = Session(store, encoder=encoder)
    [(image, verdict)] = session.judge([fake(store)])
    assert image.image is not None
    entry = SheetEntry.of(verdict, image.image.pixels, session.covered)  # type: ignore[arg-type]
    sheet = draw_sheet([entry], session.detector.snapshot.thumbnail)
    hidden = replace(entry, verdict=replace(entry.verdict, map=replace(entry.verdict.map, values=())))  # type: ignore[type-var]
    without = draw_sheet([hidden], session.detector.snapshot.thumbnail)
    assert sheet.height - without.height > 264
    assert np.array_equal(np.asarray(sheet)[:400], np.asarray(without)[:400])
    outside = np.asarray(overlay(Image.new("RGB", (80, 40), "grey"), entry.verdict.map, entry.area))  # type: ignore[arg-type]
    assert (outside[:, :18] == 128).all() and (outside[:, 62:] == 128).all()


def test_service_answers_with_the_map(store: Store, encoder: Encoder) -> None:
    pytest.importorskip("fastapi")
    from clipfake.indexer.batch_encoder import BatchEncoder
    from clipfake.service.app import app
    from fastapi.testclient import TestClient

    session = Session(store, encoder=encoder)
    [(_, verdict)] = session.judge([fake(store)])
    served = app(store, BatchEncoder(session.query_encoder), decode, thumbnail, covered=session.covered)
    headers, content = {"Content-Type": "image/png"}, fake(store).read_bytes()
    with TestClient(served, base_url="http://localhost") as client:
        answer = client.post("/v1/query", content=content, headers=headers).json()["answers"][0]
        vector = client.post("/v1/embed", content=content, headers=headers).json()["answers"][0]["vector"]
    expected = verdict.map.to_dict()  # type: ignore[union-attr]
    assert np.allclose(answer["map"].pop("values"), expected.pop("values"), atol=2e-3)
    assert answer["map"] == expected
    assert len(vector) == encoder.space.dim
    plain = app(store, encoder, decode, thumbnail)
    with TestClient(plain, base_url="http://localhost") as client:  # started before maps could be shown
        assert client.post("/v1/query", content=content, headers=headers).json()["answers"][0]["map"] is None


def test_planted_images_need_files_and_enough_rows(store: Store, encoder: Encoder) -> None:
    with pytest.raises(NotEnoughRows, match="the planted test needs 50"):
        Session(store, encoder=encoder).measure_maps()


def test_patches_of_another_view_are_refused(store: Store, encoder: Encoder) -> None:
    session = Session(store, encoder=encoder)
    other = replace(session.detector.patches.space, fingerprint="f" * 64)  # type: ignore[union-attr]
    patches: Any = replace(session.detector.patches, space=other)  # type: ignore[type-var]
    session.detector = replace(session.detector, patches=patches)
    with pytest.raises(SpaceMismatch, match="tokens"):
        _ = session.query_encoder


def test_command_line_prints_the_map(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    from clipfake.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["query", str(fake(store)), "--store", str(store.folder), "--json"])
    assert not ended.value.code
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["map"]["values"]) == answer["map"]["rows"]
    assert answer["map"]["note"].startswith("A hint")
