"""Views: vectors from within the encoder and from crops, stored in the pass of the main vector."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipfake.detector.training.fit import fit_detector
from clipfake.detector.training.train import TrainOptions
from clipfake.errors import Damaged, EncoderError, InvalidOption, NotEnoughRows, SpaceMismatch, StoreError
from clipfake.indexer.add_vectors import add_vectors, add_view
from clipfake.indexer.embedding import embed_images
from clipfake.indexer.encoders.base import Encoder, PlainEncoder, unit
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.encoders.torch_encoder import TorchEncoder
from clipfake.indexer.index import IndexOptions, index
from clipfake.indexer.shard_inbox import commit
from clipfake.indexer.views.create import create_views, encoder_with_views, views_of
from clipfake.indexer.views.crops import PixelsWithCrops, cut
from clipfake.indexer.views.kinds import parse_views
from clipfake.indexer.views.view_encoder import grid_of, with_views
from clipfake.indexer.views.whitening import Whitening
from clipfake.session import Session
from clipfake.store.maintenance.repair import repair
from clipfake.store.maintenance.verify import verify
from clipfake.store.named_vectors import open_named_vectors
from clipfake.store.store import Store
from PIL import Image as Pillow
from tiny_models import SMALL, saved

VIEWS = ("layers", "crops", "raw", "pooled", "tokens")
CLIP_FIELDS = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32}


def clip(folder: Path, seed: int = 0) -> Path:
    """Save a tiny CLIP with three blocks."""
    import transformers

    torch.manual_seed(seed)
    text = {**SMALL, "vocab_size": 50, "max_position_embeddings": 8}
    config = transformers.CLIPConfig(
        vision_config={**SMALL, "num_hidden_layers": 3}, text_config=text, projection_dim=16
    )
    return saved(folder, transformers.CLIPModel(config), CLIP_FIELDS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> Encoder:
    return load_encoder(str(checkpoint), device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 40 x 48 pixels: real ones, and fake ones with stripes."""
    root = tmp_path_factory.mktemp("images")
    for name in ("real", "fake"):
        (root / name).mkdir()
        for i in range(40):
            pixels = np.random.default_rng(i + 100 * (name == "fake")).integers(0, 256, (10, 12, 3), np.uint8)
            pixels = pixels.repeat(4, 0).repeat(4, 1)
            if name == "fake":
                pixels[::2] //= 2
            Pillow.fromarray(pixels).save(root / name / f"{i:03d}.png")
    return root


def stored(store: Store, name: str) -> dict[str, np.ndarray]:
    """key -> vector of this name."""
    snapshot = store.snapshot()
    vectors = open_named_vectors(store.folder, name).vectors(snapshot, np.arange(len(snapshot)))
    return dict(zip(snapshot.column("keys").tolist(), vectors, strict=True))


def indexed(folder: Path, at: Path, encoder: Encoder, **options: Any) -> Store:
    store = Store.create(at, encoder.space)
    index([folder], store, encoder, IndexOptions(**options))
    return store


def pictures(height: int = 40, width: int = 60) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8) for i in range(3)]


def statistics(hidden: torch.Tensor, prefix: int) -> torch.Tensor:
    """What a view of layers is fitted to, of one block, written from its definition."""
    if hidden.ndim == 4:
        values = hidden.double().flatten(2)
        return torch.cat([values.mean(2), values.std(2, correction=0)], 1)
    if prefix:
        return torch.cat([hidden[:, 0], hidden[:, prefix:].mean(1)], 1)
    values = hidden.double()
    return torch.cat([values.mean(1), values.std(1, correction=0)], 1)


def siglip() -> Any:
    import transformers

    text = {**SMALL, "vocab_size": 50, "max_position_embeddings": 8}
    return transformers.SiglipModel(transformers.SiglipConfig(vision_config=dict(SMALL), text_config=text))


def mobilenet() -> Any:
    import transformers

    return transformers.MobileNetV1Model(transformers.MobileNetV1Config(image_size=32, depth_multiplier=0.25))


def transformer(kind: str, **more: Any) -> Callable[[], Any]:
    def build() -> Any:
        import transformers

        return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**SMALL, **more))

    return build


@pytest.mark.parametrize(
    ("build", "prefix"),
    [
        (siglip, 0),
        (mobilenet, 0),
        (transformer("Dinov2"), 1),
        (transformer("Dinov2WithRegisters", num_register_tokens=3), 4),
        (transformer("DINOv3ViT", num_register_tokens=2), 3),
        (transformer("ViT"), 1),
    ],
    ids=["siglip", "mobilenet", "dinov2", "registers", "dinov3", "vit"],
)
def test_layers_are_statistics_of_the_hidden_states(build: Callable[[], Any], prefix: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build().eval()
    encoder = load_encoder(str(saved(tmp_path, model)), device="cpu")
    assert isinstance(encoder, TorchEncoder)
    raw = with_views(encoder, {"layers": ("layers", None)})
    with torch.inference_mode():
        pixels = encoder.inputs(pictures())
        vision = getattr(model, "vision_model", model)
        hidden = vision(pixel_values=pixels, output_hidden_states=True).hidden_states
    blocks = hidden if encoder.space.encoder.endswith("mobilenet") else hidden[-len(_blocks(vision)) :]
    expected = torch.cat([statistics(of_block, prefix).float() for of_block in blocks], 1).numpy()
    found = raw.split(raw.encode(pictures()))
    assert np.allclose(found["layers"], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert np.allclose(found["main"], encoder.encode(pictures()), atol=1e-6)


def _blocks(model: torch.nn.Module) -> torch.nn.ModuleList:
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=lambda blocks: sum(weight.numel() for weight in blocks.parameters()))


def test_layers_of_clip_are_those_of_the_hidden_states(checkpoint: Path, encoder: Encoder) -> None:
    import transformers

    assert isinstance(encoder, TorchEncoder)
    raw = with_views(encoder, {"layers": ("layers", None)})
    model = transformers.CLIPVisionModel.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        output = model(pixel_values=encoder.inputs(pictures()), output_hidden_states=True)
    *blocks, last = output.hidden_states[1:]
    expected = torch.cat([*(statistics(of_block, 1) for of_block in blocks), last[:, 0]], 1).numpy()
    found = raw.split(raw.encode(pictures()))["layers"]
    assert np.allclose(found, expected, atol=1e-5)


def test_raw_pooled_and_main_agree(encoder: Encoder) -> None:
    assert isinstance(encoder, TorchEncoder)
    found = with_views(encoder, {name: (name, None) for name in ("raw", "pooled")})
    vectors = found.split(found.encode(pictures()))
    projection = encoder.vision_model.visual_projection.weight.detach().numpy()  # type: ignore[union-attr, operator]
    assert np.allclose(vectors["pooled"] @ projection.T, vectors["raw"], atol=1e-5)
    assert np.allclose(unit(vectors["raw"]), vectors["main"], atol=1e-6)
    assert not np.allclose(np.linalg.norm(vectors["raw"], axis=1), 1, atol=0.05)
    assert not found.spaces["raw"].same(found.spaces["main"])


def test_pooled_needs_a_projection(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="projection"):
        with_views(load_encoder(str(saved(tmp_path, siglip())), device="cpu"), {"pooled": ("pooled", None)})


def test_encoders_outside_torch_have_no_views() -> None:
    with pytest.raises(EncoderError, match="torch or OpenVINO"):
        with_views(PlainEncoder(), {"raw": ("raw", None)})


@pytest.mark.parametrize("size", [(40, 60), (32, 32), (33, 47), (20, 50), (7, 9)])
def test_crops_are_those_of_torchvision(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (*size, 3), np.uint8)
    centre, *corners = cut(pixels, (32, 32), 5)
    top, left = round((size[0] - 32) / 2), round((size[1] - 32) / 2)
    for y, x in [(0, 0), (31, 31), (16, 9), (8, 20)]:  # of the crop
        inside = 0 <= y + top < size[0] and 0 <= x + left < size[1]
        if min(size) >= 32:
            assert np.array_equal(centre[y, x], pixels[y + top, x + left])
        elif size == (20, 50):  # padded by 6 rows above and below, then the centre of the width
            assert np.array_equal(centre[y, x], pixels[y - 6, x + 9] if 6 <= y < 26 else [0, 0, 0])
        else:
            assert centre[y, x].any() == inside or size == (7, 9)
    if min(size) >= 32:
        h, w = size
        expected = [pixels[:32, :32], pixels[:32, w - 32 :], pixels[h - 32 :, :32], pixels[h - 32 :, w - 32 :]]
        assert all(map(np.array_equal, corners, expected))


def test_crops_come_from_the_full_size(encoder: Encoder) -> None:
    found = with_views(encoder, {name: (name, None) for name in ("crops", "crops5")})
    [pixels] = pictures(700, 900)[:1]
    small = found.shrink(pixels)
    assert isinstance(small, PixelsWithCrops)
    assert small.shape == encoder.shrink(pixels).shape != pixels.shape
    crops = with_views(encoder, {"raw": ("raw", None)}).encode(cut(pixels, (32, 32), 5))[:, 16:]
    vectors = found.split(found.encode([small]))
    assert np.allclose(vectors["crops"], crops[:1], atol=1e-5)
    assert np.allclose(vectors["crops5"], crops.mean(0), atol=1e-5)
    assert np.allclose(vectors["main"], encoder.encode([pixels]), atol=1e-6)
    [embedded] = embed_images(found, [pixels])
    assert embedded.vector is not None
    assert np.allclose(found.split(embedded.vector[None])["crops"], crops[:1], atol=1e-5)


def test_tokens_are_patches_row_by_row(encoder: Encoder) -> None:
    raw = with_views(encoder, {"tokens": ("tokens", None)})
    grid = grid_of(raw)
    assert (grid.rows, grid.columns, grid.channels) == (4, 4, (32, 32))
    pixels = np.zeros((32, 32, 3), np.uint8)
    changed = pixels.copy()
    changed[8:16, 24:32] = 255  # the patch of row 1, column 3
    values = raw.split(raw.encode([pixels, changed]))["tokens"].reshape(2, 4, 4, 64)
    difference = np.abs(values[1] - values[0])[..., :32].sum(2)  # in the first of the blocks
    assert np.unravel_index(difference.argmax(), (4, 4)) == (1, 3)


def test_whitened_rows_are_uncorrelated() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((400, 6)) @ rng.standard_normal((6, 30)) + 5).astype(np.float32)
    rows = np.hstack([rows, np.full((400, 2), 3, np.float32)])  # constants have no direction
    for some in (rows, rows[:20].repeat(3, 0)):
        whitening = Whitening.fit(some)
        result = (some - whitening.mean) @ whitening.components
        assert whitening.dim == 6
        assert np.allclose(result.T @ result / len(some), np.eye(6), atol=0.02)
    again = Whitening.from_bytes(Whitening.fit(rows).to_bytes(), "file", 32)
    assert again.digest == Whitening.fit(rows).digest
    wide = rng.standard_normal((30, 200)).astype(np.float32)
    assert Whitening.fit(wide).dim == 15
    with pytest.raises(NotEnoughRows, match="at least 16 images, found 3"):
        Whitening.fit(rows[:3])
    with pytest.raises(NotEnoughRows, match="all equal"):
        Whitening.fit(np.ones((20, 4), np.float32))
    for content in (b"", b"\x10" + bytes(7) + b"{" * 16, Whitening.fit(rows).to_bytes()):
        with pytest.raises(Damaged):
            Whitening.from_bytes(content, "file", 33)


def test_index_stores_views_in_the_same_pass(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    store = indexed(folder, tmp_path / "s", encoder, views=VIEWS, rows_per_shard=30)
    plain = indexed(folder, tmp_path / "plain", encoder)
    assert np.array_equal(store.snapshot().vectors(), plain.snapshot().vectors())
    assert set(views_of(store)) == set(VIEWS)
    with_all = encoder_with_views(store, encoder, VIEWS)
    paths = dict(zip(*(store.snapshot().column(name).tolist() for name in ("keys", "paths")), strict=True))
    for name in VIEWS:
        vectors = stored(store, name)
        assert len(vectors) == 80 and not np.isnan(np.stack(list(vectors.values()))).any()
        for key in list(paths)[::25]:
            [image] = embed_images(with_all, [paths[key]])
            assert image.vector is not None
            assert np.allclose(vectors[key], with_all.split(image.vector[None])[name][0], rtol=2e-3, atol=2e-3)
    assert verify(store.folder).sound
    column = open_named_vectors(store.folder, "tokens")
    assert column.view is not None and (column.view.rows, column.view.columns) == (4, 4)


def test_layers_are_whitened_statistics(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    store = indexed(folder, tmp_path / "s", encoder, views=("layers",))
    paths = store.snapshot().column("paths").tolist()
    raw = with_views(encoder, {"layers": ("layers", None)})
    pixels = [np.asarray(Pillow.open(path).convert("RGB")) for path in paths]
    statistics = raw.split(raw.encode(pixels))["layers"]
    assert np.linalg.norm(statistics, axis=1).std() > 1e-3  # not scaled: whitening is not of directions
    whitening = Whitening.fit(statistics)
    whitened = (statistics - whitening.mean) @ whitening.components
    assert np.allclose(whitened.mean(0), 0, atol=1e-3) and np.allclose(whitened.std(0), 1, atol=0.01)
    found = np.stack(list(stored(store, "layers").values()))
    assert found.shape == whitened.shape
    assert np.allclose(found @ found.T, unit(whitened) @ unit(whitened).T, atol=0.02)


def test_further_runs_make_the_views_of_the_store(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    store = indexed(folder / "real", tmp_path / "s", encoder, views=("layers", "raw"))
    space = open_named_vectors(store.folder, "layers").space
    index([folder / "fake"], store, encoder)
    assert not np.isnan(np.stack(list(stored(store, "layers").values()))).any()
    assert open_named_vectors(store.folder, "layers").space == space
    assert len(store.snapshot()) == 80


def test_add_view_gives_what_indexing_gives(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    store = indexed(folder, tmp_path / "s", encoder)
    report = add_view(store, "crops", encoder)
    assert (report.added, report.missing) == (80, 0)
    assert add_view(store, "layers", encoder).added == 80
    assert add_view(store, "layers", encoder).known == 80
    other = indexed(folder, tmp_path / "other", encoder, views=("layers", "crops"))
    expected, found = stored(other, "crops"), stored(store, "crops")
    assert all(np.allclose(found[key], expected[key], rtol=2e-3, atol=2e-3) for key in expected)
    spaces = [open_named_vectors(of.folder, "layers").space for of in (store, other)]
    assert spaces[0].same(spaces[1])  # fitted to the same images


def test_parts_and_workers_store_the_same_views(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    whole = indexed(folder, tmp_path / "whole", encoder, views=("layers", "crops"))
    store = Store.create(tmp_path / "parts", encoder.space)
    for part in range(2):
        index([folder], store, encoder, IndexOptions(views=("layers", "crops"), part=(part, 2), rows_per_shard=7))
    commit(store)
    assert len(store.snapshot()) == 80
    for name in ("layers", "crops"):
        expected, found = stored(whole, name), stored(store, name)
        assert all(np.allclose(found[key], expected[key], rtol=2e-3, atol=2e-3) for key in expected)


def test_relabelled_and_changed_rows_keep_their_views(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    import shutil

    images = tmp_path / "images"
    shutil.copytree(folder, images)
    store = indexed(images, tmp_path / "s", encoder, views=("raw",))
    before = stored(store, "raw")
    (images / "real" / "000.png").rename(images / "fake" / "000.png")  # another key; and a changed file
    Pillow.fromarray(pictures()[2]).save(images / "real" / "001.png")
    index([images], store, encoder)
    snapshot = store.snapshot()
    main = dict(zip(snapshot.column("keys").tolist(), snapshot.vectors(), strict=True))
    after = stored(store, "raw")
    assert all(np.allclose(unit(after[key][None])[0], main[key], atol=2e-3) for key in after)
    assert sum(not np.array_equal(after[key], before[key]) for key in before) == 2


def test_views_that_cannot_be_used_are_refused(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    store = indexed(folder, tmp_path / "s", encoder, views=("layers",))
    other = load_encoder(str(clip(tmp_path / "clip", seed=1)), device="cpu")
    with pytest.raises(SpaceMismatch):
        add_view(store, "layers", other)
    with pytest.raises(SpaceMismatch, match="the view layers"):
        encoder_with_views(store, other, ["layers"])
    with pytest.raises(InvalidOption, match="unknown view 'pixels'"):
        parse_views("main,pixels")
    add_vectors(store, "raw", other)
    with pytest.raises(StoreError, match="not a view"):
        encoder_with_views(store, encoder, ["raw"])
    file = store.folder / "columns" / "layers" / "view.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(Damaged, match=r"view\.safetensors was altered"):
        index([folder], store, encoder)
    assert any("view.safetensors" in str(problem) for problem in verify(store.folder).problems)
    [action] = repair(store.folder).actions
    assert "add-vectors layers" in action.what
    assert verify(store.folder).sound and views_of(store) == ()
    assert add_view(store, "layers", encoder).added == len(store.snapshot())


def test_what_an_encoder_lacks_is_refused_before_fitting(tmp_path: Path) -> None:
    encoder = load_encoder(str(saved(tmp_path / "model", siglip())), device="cpu")
    store = Store.create(tmp_path / "s", encoder.space)

    def images(number: int) -> Any:
        raise AssertionError("images were listed")

    with pytest.raises(EncoderError, match="projection"):
        create_views(store, encoder, ["layers", "pooled"], images)


def test_too_few_images_create_no_view(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", encoder.space)
    with pytest.raises(NotEnoughRows, match="at least 16 images, found 5"):
        index([folder], store, encoder, IndexOptions(views=("layers",), limit=5))
    assert views_of(store) == () and len(store.snapshot()) == 0
    create_views(store, encoder, ["raw"], lambda number: [])
    assert views_of(store) == ("raw",)


def test_query_by_a_head_on_views(folder: Path, checkpoint: Path, encoder: Encoder, tmp_path: Path) -> None:
    store = indexed(folder, tmp_path / "s", encoder, views=("layers", "crops"))
    report = fit_detector(
        store, vectors=("main", "layers", "crops"), options=TrainOptions(classifier="logistic", baselines=())
    )
    report.save()
    session = Session(store.folder, encoder=encoder)
    for image, verdict in session.judge([folder / "fake" / "000.png", folder / "real" / "000.png"]):
        assert verdict.to_dict()["verdict"] == Path(image.name).parent.name
        assert image.vector is not None and image.vector.shape == (session.detector.head.space.dim,)


def test_index_command_makes_views_and_names_rows_without(
    folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from clipfake.cli import main

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--store", str(tmp_path / "s")])
        return int(end.value.code or 0), capsys.readouterr().err

    real, fake = str(folder / "real"), str(folder / "fake")
    assert run("index", "--folders", real, "--encoder", str(checkpoint), "--device", "cpu")[0] == 0
    code, message = run("index", "--folders", fake, "--views", "main,layers", "--device", "cpu")
    assert code == 0 and "40 rows have no vector layers" in message
    code, message = run("index", "--folders", fake, "--views", "main,pixels", "--device", "cpu")
    assert code != 0 and "unknown view 'pixels'" in message
    assert run("store", "add-vectors", "layers", "--device", "cpu")[0] == 0
    code, message = run("index", "--folders", real, "--device", "cpu")
    assert code == 0 and "no vector" not in message
