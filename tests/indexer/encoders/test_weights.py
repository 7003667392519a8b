"""Weights that are missing, left over, misshapen, renamed or not finite, on every way of loading a checkpoint."""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipfake.errors import EncoderError
from clipfake.indexer.decoding.image import Pixels
from clipfake.indexer.encoders.checkpoint_rules.weight_names import WeightNames, common_prefix
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.encoders.torch_encoder import TorchEncoder
from clipfake.simulated.standin_encoder import build_standin
from safetensors.torch import load_file, save_file
from tiny_models import FIELDS, SMALL, saved

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    import transformers

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("checkpoints")
    depth = {**SMALL, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8] * 4}
    dpt = transformers.DPTConfig(**depth, fusion_hidden_size=8, reassemble_factors=[4, 2, 1, 0.5])
    return {
        "clip": build_standin(root),
        "vit": saved(root / "vit", transformers.ViTModel(transformers.ViTConfig(**SMALL))),
        "classifier": saved(root / "cls", transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL))),
        "beit": saved(root / "beit", transformers.BeitForImageClassification(transformers.BeitConfig(**SMALL))),
        "mae": saved(root / "mae", transformers.ViTMAEModel(transformers.ViTMAEConfig(**SMALL))),
        "depth": saved(
            root / "dpt",
            transformers.DPTForDepthEstimation(dpt),
            {**FIELDS, "image_processor_type": "DPTImageProcessor"},
        ),
    }


@pytest.fixture
def checkpoint(checkpoints: Mapping[str, Path], tmp_path: Path) -> Callable[..., str]:
    """Copies a checkpoint and changes its weights; returns its encoder's name."""

    def changed(kind: str, change: Callable[[Weights], Weights] = dict, store: str = "safetensors") -> str:
        folder = Path(shutil.copytree(checkpoints[kind], tmp_path / f"{kind}{len(list(tmp_path.iterdir()))}"))
        weights = {name: weight.clone() for name, weight in change(load_file(folder / "model.safetensors")).items()}
        (folder / "model.safetensors").unlink()
        if store == "bin":
            torch.save(weights, folder / "pytorch_model.bin")
        elif store == "shards":
            files = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(sorted(weights))}
            for file in set(files.values()):
                part = {name: weight for name, weight in weights.items() if files[name] == file}
                save_file(part, folder / file, metadata={"format": "pt"})
            (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
        else:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return f"depth:{folder}" if kind == "depth" else str(folder)

    return changed


def images(count: int = 2) -> list[Pixels]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 40, 50, 3), np.uint8))


def layer_of(weights: Weights, number: int) -> list[str]:
    return [name for name in weights if f".{number}." in name and "text_model" not in name]


def without_half(weights: Weights) -> Weights:
    kept = sorted(weights)[: len(weights) // 2]
    return {name: weights[name] for name in kept}


def without_one(weights: Weights) -> Weights:
    return {name: weight for name, weight in weights.items() if name != layer_of(weights, 1)[0]}


def with_a_layer_more(weights: Weights) -> Weights:
    last = max(number for number in range(9) if layer_of(weights, number))
    more = {name.replace(f".{last}.", f".{last + 1}."): weights[name] for name in layer_of(weights, last)}
    return weights | more


def with_an_unknown_weight(weights: Weights) -> Weights:
    return weights | {"adapter.weight": torch.ones(3)}


def with_another_shape(weights: Weights) -> Weights:
    name = next(name for name in layer_of(weights, 1) if name.endswith("bias"))
    return weights | {name: weights[name][:-1]}


def with_nan(weights: Weights) -> Weights:
    name = layer_of(weights, 1)[0]
    return weights | {name: torch.full_like(weights[name], torch.nan)}


def with_prefix(weights: Weights, prefix: str = "module.") -> Weights:
    return {prefix + name: weight for name, weight in weights.items()}


CHANGES = [
    (without_half, "missing"),
    (without_one, "1 weight is missing"),
    (with_a_layer_more, "not in the model"),
    (with_an_unknown_weight, "adapter.weight"),
    (with_another_shape, "of another shape"),
    (with_nan, "NaN"),
    (with_prefix, "begins with 'module.'"),
    (partial(with_prefix, prefix="_orig_mod."), "begins with '_orig_mod.'"),
    (partial(with_prefix, prefix="backbone."), "begins with 'backbone.'"),
]


@pytest.mark.parametrize("kind", ["clip", "vit", "classifier", "depth"])
@pytest.mark.parametrize("change, text", CHANGES)
def test_checkpoint_with_wrong_weights_is_refused(checkpoint: Any, kind: str, change: Any, text: str) -> None:
    with pytest.raises(EncoderError, match=text) as raised:
        load_encoder(checkpoint(kind, change), device="cpu")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["clip", "vit", "depth"])
@pytest.mark.parametrize("store", ["bin", "shards"])
def test_wrong_weights_are_refused_in_other_files(checkpoint: Any, kind: str, store: str) -> None:
    fingerprint = load_encoder(checkpoint(kind, dict, store), device="cpu").space.fingerprint
    assert fingerprint == load_encoder(checkpoint(kind), device="cpu").space.fingerprint
    with pytest.raises(EncoderError, match="1 weight is missing"):
        load_encoder(checkpoint(kind, without_one, store), device="cpu")


def test_incomplete_text_model_gives_no_vectors(checkpoint: Any) -> None:
    def without_a_text_weight(weights: Weights) -> Weights:
        return {name: weight for name, weight in weights.items() if name != "text_model.final_layer_norm.weight"}

    encoder = load_encoder(checkpoint("clip", without_a_text_weight), device="cpu")
    with pytest.raises(EncoderError, match="1 weight is missing"):
        encoder.encode_texts(["leaves"])


def test_checkpoint_without_text_model_has_no_texts(checkpoint: Any) -> None:
    def vision_only(weights: Weights) -> Weights:
        return {name: weight for name, weight in weights.items() if name.startswith(("vision_model", "visual_"))}

    encoders = [load_encoder(checkpoint("clip", vision_only, store), device="cpu") for store in ("safetensors", "bin")]
    assert not any(encoder.has_text for encoder in encoders)
    assert encoders[0].space.fingerprint == encoders[1].space.fingerprint


@pytest.mark.parametrize("kind", ["clip", "vit", "depth"])
@pytest.mark.parametrize("store", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_quantised_weights_are_refused(checkpoint: Any, kind: str, store: str, dtype: torch.dtype) -> None:
    def quantised(weights: Weights) -> Weights:
        return {name: weight.to(dtype) for name, weight in weights.items()}

    with pytest.raises(EncoderError, match=str(dtype)):
        load_encoder(checkpoint(kind, quantised, store), device="cpu")


@pytest.mark.parametrize("kind", ["clip", "vit"])
def test_single_file_goes_before_an_index_of_parts(checkpoint: Any, kind: str) -> None:
    """As in transformers: parts may be left over from before they were joined, or their index alone."""
    single = checkpoint(kind)
    both, index_only = (
        checkpoint(kind, lambda weights: {name: weight * 2 for name, weight in weights.items()}, "shards")
        for _ in range(2)
    )
    for part in Path(index_only).glob("model-*.safetensors"):
        part.unlink()
    for folder in (both, index_only):
        shutil.copy(Path(single, "model.safetensors"), folder)
        assert load_encoder(folder, device="cpu").space.fingerprint == (
            load_encoder(single, device="cpu").space.fingerprint
        )


def test_half_of_a_pooler_is_refused_and_none_is_not(checkpoint: Any) -> None:
    def without(start: str) -> Callable[[Weights], Weights]:
        return lambda weights: {name: weight for name, weight in weights.items() if not name.startswith(start)}

    with pytest.raises(EncoderError, match=r"1 weight is missing \(pooler\.dense\.bias\)"):
        load_encoder(checkpoint("vit", without("pooler.dense.bias")), device="cpu")
    load_encoder(checkpoint("vit", without("pooler.")), device="cpu")


def test_pooler_that_a_classifier_has_may_not_be_missing(checkpoint: Any) -> None:
    def without_pooler(weights: Weights) -> Weights:
        return {name: weight for name, weight in weights.items() if ".pooler." not in name}

    load_encoder(checkpoint("beit"), device="cpu")
    with pytest.raises(EncoderError, match=r"2 weights are missing \(pooler\.layernorm\.bias"):
        load_encoder(checkpoint("beit", without_pooler), device="cpu")


def test_head_of_a_classifier_is_not_needed(checkpoint: Any, checkpoints: Mapping[str, Path]) -> None:
    """Its pooler is missing, too: the features are the class token, the same in every process."""
    import transformers

    first, again = (load_encoder(str(checkpoints["classifier"]), device="cpu") for _ in range(2))
    assert isinstance(first, TorchEncoder)
    assert first.space == again.space
    assert np.array_equal(first.encode(images()), again.encode(images()))
    model = transformers.ViTModel.from_pretrained(checkpoints["classifier"], add_pooling_layer=False).eval()
    with torch.inference_mode():
        expected = model(first.inputs(images())).last_hidden_state[:, 0].numpy()
    assert np.allclose(first.encode(images()), expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_layer_that_dpt_never_calls_may_be_missing(checkpoint: Any) -> None:
    def without_layer(weights: Weights) -> Weights:
        return {name: weight for name, weight in weights.items() if "layers.0.residual_layer1" not in name}

    name = checkpoint("depth", without_layer)
    first, again, whole = (load_encoder(one, device="cpu") for one in (name, name, checkpoint("depth")))
    assert first.space == again.space
    assert np.array_equal(first.encode(images()), whole.encode(images()))


def test_model_with_random_features_is_refused(checkpoint: Any) -> None:
    def random(weights: Weights) -> Weights:  # the class token of a new model is 0 whatever is masked
        return {name: torch.randn_like(weight) for name, weight in weights.items()}

    with pytest.raises(EncoderError, match="other features for the same image"):
        load_encoder(checkpoint("mae", random), device="cpu")


@pytest.mark.parametrize("kind", ["clip", "vit"])
def test_model_of_one_size_refuses_varying_sizes(checkpoint: Any, kind: str) -> None:
    name = checkpoint(kind)
    fields = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "do_center_crop": False}
    (Path(name) / "preprocessor_config.json").write_text(json.dumps(fields))
    with pytest.raises(EncoderError, match=r"depends on the image|other sizes"):
        load_encoder(name, device="cpu")


@pytest.mark.parametrize("kind", ["convnext", "depth"])
def test_model_of_any_size_encodes_images_of_all_shapes(kind: str, tmp_path: Path) -> None:
    import transformers

    fields: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 64}}
    if kind == "depth":
        sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 14}
        backbone = transformers.Dinov2Config(**sizes, out_indices=[1, 2, 3, 4], reshape_hidden_states=False)
        neck = {"reassemble_hidden_size": 32, "neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}
        anything = transformers.DepthAnythingConfig(backbone_config=backbone, **neck, head_hidden_size=8)
        fields = {"image_processor_type": "DPTImageProcessor", "size": 56, "keep_aspect_ratio": True}
        fields["ensure_multiple_of"] = 14
        name = f"depth:{saved(tmp_path / 'depth', transformers.DepthAnythingForDepthEstimation(anything), fields)}"
    else:
        config = transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
        name = str(saved(tmp_path / "convnext", transformers.ConvNextModel(config), fields))
    encoder = load_encoder(name, device="cpu")
    shapes = [(96, 200), (200, 96), (96, 200), (120, 120)]
    batch = [np.random.default_rng(i).integers(0, 256, (*shape, 3), np.uint8) for i, shape in enumerate(shapes)]
    together = encoder.encode(batch)
    assert np.allclose(together, np.concatenate([encoder.encode([image]) for image in batch]), atol=1e-5)


def test_a_damaged_classifier_is_not_called_another_class() -> None:
    names = WeightNames(
        ["norm.bias"], ["norm.weight"], optional=[], head=["fc.weight"], saved_as="Net", held=["norm.bias"]
    )
    assert "download it again, or correct config.json" in names.problem(["norm"], "net")
    assert "saved from Net" in WeightNames(["proj.weight"], saved_as="Net").problem(["norm"])
    assert "saved from Net" in WeightNames(
        unexpected=["norm.bias"], optional=["pooler.bias"], head=["norm.bias"], saved_as="Net", missing=["pooler.bias"]
    ).problem(["layers"])


@pytest.mark.parametrize(
    "unexpected, harmless",
    [
        ("classifier.weight", True),
        ("lm_head.bias", True),
        ("decoder.layers.0.weight", True),
        ("vit.embeddings.mask_token", True),
        ("vit.layers.2.norm.num_batches_tracked", True),
        ("vit.layers.2.weight", False),
        ("layers.2.weight", False),
        ("head.weight", False),
        ("norm.weight", False),
    ],
)
def test_left_over_weights_are_harmless_only_as_heads(unexpected: str, harmless: bool) -> None:
    assert (not WeightNames(unexpected=[unexpected]).problem(["layers", "head"], "vit")) is harmless


def test_common_prefix_ignores_heads() -> None:
    assert common_prefix(["backbone.a.weight", "backbone.b.weight", "head.weight"]) == "backbone."
    assert common_prefix(["a.weight", "b.weight"]) == common_prefix(["weight"]) == common_prefix([]) == ""
