"""Which output of a model is the vector of an image, for models with and without a pooler or a class token."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from clipfake.errors import EncoderError
from clipfake.indexer.decoding.image import Pixels
from clipfake.indexer.encoders.checkpoint import fingerprint_of
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.encoders.torch_encoder import TorchEncoder
from tiny_models import FIELDS, SMALL, saved

STAGES: Mapping[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "num_attention_heads": [1, 1, 2, 2]}
TEXT = {**SMALL, "vocab_size": 50, "max_position_embeddings": 8}
SHAPES = {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 64}}


def varied(folder: Path, model: Any, fields: Mapping[str, Any] = FIELDS) -> Path:
    """Save a model whose weights differ from each other, so that no two features are alike."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return saved(folder, model, fields)


def images() -> list[Pixels]:
    return [np.random.default_rng(i).integers(0, 256, (64, 128, 3), np.uint8) for i in range(2)]


def unit(features: torch.Tensor) -> npt.NDArray[np.float32]:
    return torch.nn.functional.normalize(features.flatten(1)).numpy()


def vectors_and_output(folder: Path, auto: Callable[..., Any] | None = None) -> tuple[npt.NDArray[np.float32], Any]:
    """Vectors of the images, and the output of `transformers` for the same inputs."""
    import transformers

    encoder = load_encoder(str(folder), device="cpu")
    assert isinstance(encoder, TorchEncoder)
    model = (auto or transformers.AutoModel.from_pretrained)(folder).eval()
    with torch.inference_mode():
        return encoder.encode(images()), model(pixel_values=encoder.inputs(images()))


@pytest.mark.parametrize("kind", ["Segformer", "PvtV2", "GLPN"])
def test_features_of_a_feature_map_are_its_mean(kind: str, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**STAGES)
    vectors, output = vectors_and_output(varied(tmp_path, getattr(transformers, f"{kind}Model")(config)))
    assert np.allclose(vectors, unit(output.last_hidden_state.mean((2, 3))), atol=1e-5)


def test_pooling_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    """Stores of earlier versions hold the vectors of other pooling, which must not be mixed with the mean."""
    import transformers

    folder = varied(tmp_path, transformers.IJepaModel(transformers.IJepaConfig(**SMALL)))
    encoder = load_encoder(str(folder), device="cpu")
    assert isinstance(encoder, TorchEncoder)
    weights = transformers.IJepaModel.from_pretrained(folder).state_dict()
    assert encoder.space.fingerprint == fingerprint_of(weights, encoder.preprocess, "mean")
    assert encoder.space.fingerprint != fingerprint_of(weights, encoder.preprocess)


def test_feature_map_of_any_size_gives_one_length(tmp_path: Path) -> None:
    import transformers

    model = transformers.GLPNForDepthEstimation(transformers.GLPNConfig(**STAGES, decoder_hidden_size=8))
    folder = varied(tmp_path, model, {"image_processor_type": "GLPNImageProcessor"})
    shapes = [(64, 128), (128, 64), (96, 96)]
    mixed = [np.random.default_rng(i).integers(0, 256, (*shape, 3), np.uint8) for i, shape in enumerate(shapes)]
    assert load_encoder(str(folder), device="cpu").encode(mixed).shape == (3, 32)


@pytest.mark.parametrize(
    "kind, fields",
    [("IJepa", {}), ("SiglipVision", {"vision_use_head": False}), ("Aimv2Vision", {"use_head": False})],
)
def test_without_class_token_the_patches_are_averaged(kind: str, fields: dict[str, Any], tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SMALL, **fields)
    vectors, output = vectors_and_output(varied(tmp_path, getattr(transformers, f"{kind}Model")(config)))
    assert np.allclose(vectors, unit(output.last_hidden_state.mean(1)), atol=1e-5)


@pytest.mark.parametrize("kind", ["ViTMSN", "Pvt"])
def test_with_class_token_it_is_the_vector(kind: str, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(SMALL if kind == "ViTMSN" else {**STAGES, "image_size": 32}))
    vectors, output = vectors_and_output(varied(tmp_path, getattr(transformers, f"{kind}Model")(config)))
    assert np.allclose(vectors, unit(output.last_hidden_state[:, 0]), atol=1e-5)


def test_masking_model_without_positions_is_refused(tmp_path: Path) -> None:
    """A plain image would not show it: its patches differ in their positions only."""
    import transformers

    torch.manual_seed(0)
    model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**SMALL))
    folder = varied(tmp_path, model)
    model.embeddings.position_embeddings.data.zero_()
    model.save_pretrained(folder)
    with pytest.raises(EncoderError, match="other features for the same image"):
        load_encoder(str(folder), device="cpu")


def negative_variances(model: Any) -> None:
    for name, weight in model.named_buffers():
        if name.endswith("running_var"):
            weight.sub_(5)


def huge_matrices(model: Any) -> None:
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.mul_(1e30)


def zeros(model: Any) -> None:
    for weight in model.parameters():
        weight.zero_()


@pytest.mark.parametrize(
    "kind, change, found",
    [
        ("resnet", negative_variances, "not finite"),
        ("vit", huge_matrices, "not finite"),
        ("vit", zeros, "all zero"),
        ("clip", huge_matrices, "not finite"),
        ("clip", zeros, "all zero"),
    ],
)
def test_useless_features_are_refused_when_loading(kind: str, change: Any, found: str, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    model: Any
    if kind == "resnet":
        model = transformers.ResNetModel(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    elif kind == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(**SMALL))
    else:
        model = transformers.CLIPModel(transformers.CLIPConfig(vision_config=dict(SMALL), text_config=TEXT))
    folder = varied(tmp_path, model)
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder)
    with pytest.raises(EncoderError, match=found):
        load_encoder(str(folder), device="cpu")


def clip_config() -> Any:
    import transformers

    return transformers.CLIPConfig(vision_config={**SMALL, "projection_dim": 24}, text_config=TEXT, projection_dim=24)


def test_projection_of_a_vision_model_is_used(tmp_path: Path) -> None:
    """The vectors are those of the whole CLIP model that it was taken from."""
    import transformers

    torch.manual_seed(0)
    whole = transformers.CLIPModel(clip_config())
    folder = varied(tmp_path / "clip", whole)
    part = transformers.CLIPVisionModelWithProjection.from_pretrained(folder)
    part.save_pretrained(tmp_path / "part")
    (tmp_path / "part" / "preprocessor_config.json").write_text(json.dumps(FIELDS))
    vectors, output = vectors_and_output(tmp_path / "part", transformers.CLIPVisionModelWithProjection.from_pretrained)
    assert vectors.shape == (2, 24)
    assert np.allclose(vectors, unit(output.image_embeds), atol=1e-5)
    assert np.allclose(vectors, load_encoder(str(folder), device="cpu").encode(images()), atol=1e-5)


@pytest.mark.parametrize("kind", ["PoolFormer", "SwiftFormer"])
def test_normalisation_of_a_classifier_is_part_of_its_head(kind: str, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 16, 24, 32], "embed_dims": [8, 16, 24, 32], "depths": [1] * 4, "image_size": 64}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    fields = {**FIELDS, "size": 64}
    folder = varied(tmp_path, getattr(transformers, f"{kind}ForImageClassification")(config), fields)
    vectors, output = vectors_and_output(folder)
    assert np.allclose(vectors, unit(output.last_hidden_state.mean((2, 3))), atol=1e-5)


def test_pooler_of_a_classifier_is_used(tmp_path: Path) -> None:
    """AutoModel builds Data2VecVision without one."""
    import transformers

    torch.manual_seed(0)
    model = transformers.Data2VecVisionForImageClassification(transformers.Data2VecVisionConfig(**SMALL))

    def pooled(folder: Path) -> Any:
        return transformers.Data2VecVisionModel.from_pretrained(folder, add_pooling_layer=True)

    vectors, output = vectors_and_output(varied(tmp_path, model), pooled)
    assert np.allclose(vectors, unit(output.pooler_output), atol=1e-5)


def test_image_features_need_no_text_model(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.SiglipConfig(vision_config=dict(SMALL), text_config={**TEXT, "projection_size": 32})
    model = transformers.SiglipForImageClassification(config)
    folder = varied(tmp_path, model)
    (folder / "tokenizer.json").write_text("{}")

    vectors, output = vectors_and_output(folder, lambda _: model.vision_model)
    assert np.allclose(vectors, unit(output.pooler_output), atol=1e-5)
    first, again = (load_encoder(str(folder), device="cpu") for _ in range(2))
    assert first.space == again.space and not first.has_text


def test_classifier_without_projection_is_named(tmp_path: Path) -> None:
    import transformers

    folder = varied(tmp_path, transformers.CLIPForImageClassification(clip_config()))
    with pytest.raises(EncoderError, match=r"1 weight is missing.* saved from CLIPForImageClassification"):
        load_encoder(str(folder), device="cpu")
