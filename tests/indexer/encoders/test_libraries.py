"""Models of timm and open_clip with random weights: vectors are those of the library and its own preprocessing.

`make test` runs this file a second time, with the libraries on PYTHONPATH. Tests of names and preprocessing need none.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import clipfake
import numpy as np
import numpy.typing as npt
import pytest
import torch
from clipfake.errors import EncoderError, MissingExtra
from clipfake.indexer.decoding.image import Pixels
from clipfake.indexer.encoders.external import open_clip_models, timm_models
from clipfake.indexer.encoders.external.hub_weights import HubWeights
from clipfake.indexer.encoders.hub import ensure_available
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.encoders.resize import crop_start
from clipfake.indexer.encoders.torch_encoder import TorchEncoder
from library_imports import import_libraries
from PIL import Image
from safetensors.torch import load_file, save_file

MISSING = import_libraries()
needs_libraries = pytest.mark.skipif(bool(MISSING), reason=MISSING)
TIMM_MODELS = {  # tiny versions, by arguments of timm
    "mobilenetv3_small_100": {},
    "resnet18": {},
    "vit_small_patch14_dinov2": {"img_size": 56, "depth": 2, "embed_dim": 48, "num_heads": 2},
    "vit_small_patch16_dinov3": {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 2},
    "vit_base_patch16_siglip_224": {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 2},
    "vit_pe_core_tiny_patch16_384": {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 2},
}
CLIP: Mapping[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
PERCEPTION = {
    **CLIP,
    "vision_cfg": {
        "image_size": 384,
        "timm_model_name": "vit_pe_core_tiny_patch16_384",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "linear",
    },
    "custom_text": True,
}
SQUASH = {"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}


def images() -> list[Pixels]:
    shapes = [(64, 64), (200, 301), (503, 320), (90, 400), (101, 131)]
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), np.uint8) for height, width in shapes]
    return [
        np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
        for small, (height, width) in zip(noise, shapes, strict=True)
    ]


def varied(model: Any) -> None:
    """Change all weights, so that no two features are alike."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)


def timm_folder(folder: Path, architecture: str, arguments: Mapping[str, Any]) -> Path:
    """Save a model as timm does for the hub."""
    import timm

    model = timm.create_model(architecture, **arguments)
    varied(model)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architecture": architecture, "num_classes": model.num_classes, "model_args": dict(arguments)}
    side = arguments.get("img_size")
    sizes = {"input_size": [3, side, side], "fixed_input_size": True} if side else {}
    kept = {key: value for key, value in model.pretrained_cfg.items() if key not in ("hf_hub_id", "url", "num_classes")}
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": kept | sizes}))
    save_file({name: weight.contiguous() for name, weight in model.state_dict().items()}, folder / "model.safetensors")
    return folder


def open_clip_folder(folder: Path, config: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> Path:
    """Save a model as open_clip does for the hub."""
    import open_clip
    from clipfake.indexer.encoders.external.library_model import quiet_logging

    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": dict(config), "preprocess_cfg": dict(preprocessing)}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    with quiet_logging():
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    varied(model)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def unit(features: torch.Tensor) -> npt.NDArray[np.float32]:
    return torch.nn.functional.normalize(features).numpy()


def compare(name: str, model: Callable[[torch.Tensor], torch.Tensor], transform: Callable[[Any], torch.Tensor]) -> None:
    """Compare pixels and vectors of an encoder with those of the library."""
    encoder = load_encoder(name, device="cpu", precision="float32")
    assert isinstance(encoder, TorchEncoder)
    pixels = torch.stack([transform(Image.fromarray(image)) for image in images()])
    ours = torch.cat([encoder.inputs([image]) for image in images()])
    level = 1 / 255 / min(encoder.preprocess.std)
    assert float((pixels - ours).abs().max()) < 1.01 * level
    assert float((pixels - ours).abs().mean()) < 1e-3 * level
    with torch.inference_mode():
        expected = unit(model(pixels))
    vectors = encoder.encode(images())
    apart = np.linalg.norm(expected[:, None] - expected, axis=2)[~np.eye(len(expected), dtype=bool)].min()
    assert np.linalg.norm(vectors - expected, axis=1).max() < 0.05 * apart  # of the two images most alike


@needs_libraries
@pytest.mark.parametrize("architecture", TIMM_MODELS)
def test_vectors_are_those_of_timm(architecture: str, tmp_path: Path) -> None:
    import timm

    folder = timm_folder(tmp_path, architecture, TIMM_MODELS[architecture])
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    compare(f"timm:{folder}", model, transform)


@needs_libraries
@pytest.mark.parametrize(
    "config, preprocessing", [(CLIP, {}), ({**CLIP, "quick_gelu": True}, {}), (PERCEPTION, SQUASH)]
)
def test_vectors_are_those_of_open_clip(config: Any, preprocessing: Any, tmp_path: Path) -> None:
    import open_clip

    folder = open_clip_folder(tmp_path, config, preprocessing)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    compare(f"open_clip:{folder}", model.eval().encode_image, transform)


@needs_libraries
def test_texts_are_those_of_open_clip(tmp_path: Path) -> None:
    import open_clip

    folder = open_clip_folder(tmp_path, CLIP, {})
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    texts = ["leaves", "a photo of a red car on a street"]
    with torch.inference_mode():
        expected = unit(model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(texts)))
    encoder = load_encoder(f"open_clip:{folder}", device="cpu")
    assert encoder.has_text
    assert np.allclose(encoder.encode_texts(texts), expected, atol=1e-5)


@needs_libraries
def test_random_weights_of_a_name_are_repeatable() -> None:
    encoders = [load_encoder(f"untrained:{seed}:timm:mobilenetv3_small_050", device="cpu") for seed in (1, 1, 2)]
    first, again, other = (encoder.space for encoder in encoders)
    assert first == again != other
    assert first.encoder == "untrained:1:timm:mobilenetv3_small_050"
    assert np.array_equal(encoders[0].encode(images()), encoders[1].encode(images()))


@needs_libraries
def test_store_of_a_timm_model_is_indexed_and_opened_again(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for number, image in enumerate(images()):
        Image.fromarray(image).save(tmp_path / f"real/{number}.png")
    name, store = "untrained:0:timm:mobilenetv3_small_050", tmp_path / "store"
    assert clipfake.index([tmp_path / "real"], store, encoder=name).added == 5
    embedded = list(clipfake.Session(store).embed([tmp_path / "real"]))
    stored = clipfake.Store.open(store).snapshot().vectors()
    assert np.allclose(np.stack([image.vector for image in embedded if image.vector is not None]), stored, atol=2e-3)


@needs_libraries
def test_architecture_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    """The same weights with another activation give other vectors."""
    plain = open_clip_folder(tmp_path / "plain", CLIP, {})
    quick = open_clip_folder(tmp_path / "quick", {**CLIP, "quick_gelu": True}, {})
    assert (
        load_file(plain / "open_clip_model.safetensors").keys()
        == load_file(shutil.copy(plain / "open_clip_model.safetensors", quick)).keys()
    )
    fingerprints = {load_encoder(f"open_clip:{folder}", device="cpu").space.fingerprint for folder in (plain, quick)}
    assert len(fingerprints) == 2
    moved = Path(shutil.move(plain, tmp_path / "moved"))
    assert load_encoder(f"open_clip:{moved}", device="cpu").space.fingerprint in fingerprints


@needs_libraries
@pytest.mark.parametrize("library", ["timm", "open_clip"])
def test_incomplete_weights_are_refused(library: str, tmp_path: Path) -> None:
    if library == "timm":
        file = timm_folder(tmp_path, "resnet18", {}) / "model.safetensors"
    else:
        file = open_clip_folder(tmp_path, CLIP, {}) / "open_clip_model.safetensors"
    weights = load_file(file)
    del weights["layer1.0.conv1.weight" if library == "timm" else "visual.conv1.weight"]
    save_file(weights, file)
    with pytest.raises(EncoderError, match=r"cannot be loaded.*conv1\.weight"):
        load_encoder(f"{library}:{tmp_path}", device="cpu")
    file.unlink()
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_encoder(f"{library}:{tmp_path}", device="cpu")


@needs_libraries
@pytest.mark.parametrize(
    "name, found",
    [
        ("timm:no_such_model", "has no model no_such_model"),
        ("timm:resnet18.no_such_tag", r"has no model resnet18\.no_such_tag"),
        ("untrained:0:timm:naflexvit_base_patch16_siglip.v2_webli", "any aspect ratio"),
        ("open_clip:ViT-B-33/openai", "has no model ViT-B-33"),
        ("open_clip:ViT-B-32/no_such_tag", r"no weights no_such_tag of ViT-B-32.*laion2b_s34b_b79k"),
        ("open_clip:ViT-B-32", "names no weights"),
    ],
)
def test_unknown_or_unsupported_names_are_refused(name: str, found: str) -> None:
    with pytest.raises(EncoderError, match=found):
        load_encoder(name, device="cpu")


@needs_libraries
def test_weights_are_read_from_the_cache_and_not_downloaded_for_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    name = "timm:mobilenetv3_small_050.lamb_in1k"
    with pytest.raises(EncoderError, match=rf"--encoder {name}.*hf download timm/mobilenetv3_small_050\.lamb_in1k"):
        ensure_available(name, trusted=False)
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050")
    snapshot = tmp_path / "models--timm--mobilenetv3_small_050.lamb_in1k/snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("c" * 40)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    encoder = load_encoder(name, device="cpu", trusted=False)
    assert isinstance(encoder, TorchEncoder) and encoder.space.encoder == name
    model.reset_classifier(0)
    with torch.inference_mode():
        expected = unit(model.eval()(torch.cat([encoder.inputs([image]) for image in images()])))
    assert np.allclose(encoder.encode(images()), expected, atol=1e-5)


def test_preprocessing_is_that_of_the_library() -> None:
    values = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    timm_config = {"input_size": (3, 224, 224), "crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic"}
    centre = timm_models.preprocess_of(timm_config | values)
    assert (centre.short, centre.crop, centre.half_even) == (248, 224, True)
    squash = timm_models.preprocess_of(timm_config | values | {"crop_mode": "squash", "crop_pct": 1.0})
    assert (squash.height, squash.width, squash.crop) == (224, 224, 0)
    with pytest.raises(EncoderError, match="crop_mode border"):
        timm_models.preprocess_of(timm_config | values | {"crop_mode": "border"})
    clip = {"size": (256, 256), "resize_mode": "shortest", "interpolation": "bilinear", **values}
    assert open_clip_models.preprocess_of(clip).filter == "bilinear"
    with pytest.raises(EncoderError, match="resize_mode longest"):
        open_clip_models.preprocess_of(clip | {"resize_mode": "longest"})


@pytest.mark.parametrize("length", range(224, 240))
def test_crop_starts_where_torchvision_starts_it(length: int) -> None:
    assert crop_start(length, 224, half_even=True) == int(round((length - 224) / 2.0))  # noqa: RUF046 - as written there
    assert crop_start(length, 224) == (length - 224) // 2


def test_safetensors_are_looked_for_first() -> None:
    assert HubWeights.preferring_safetensors("a/b", "open_clip_pytorch_model.bin").names == (
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_pytorch_model.bin",
    )
    assert HubWeights.preferring_safetensors("a/b", "ViT-B_16.npz").names == ("ViT-B_16.npz",)


@pytest.mark.skipif(not MISSING, reason="the libraries are installed")
@pytest.mark.parametrize("name", ["timm:resnet18", "untrained:0:timm:resnet18", "open_clip:ViT-B-32/openai"])
def test_library_that_is_not_installed_is_named(name: str) -> None:
    extra = "timm" if "timm" in name else "open-clip"
    with pytest.raises(MissingExtra, match=rf"pip install 'clipfake\[{extra}\]'"):
        load_encoder(name, device="cpu")


def test_live_run_has_the_libraries() -> None:
    """`make test` sets the variable for the run that must not skip."""
    assert not (MISSING and os.environ.get("CLIPFAKE_TEST_LIBRARIES"))
