"""DINOv2, DINOv3 and SigLIP 2 with random weights: our vectors are those of `transformers` and its image processor.

Perception Encoder, which `transformers` has only through timm, is in test_libraries.py.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipfake.errors import EncoderError
from clipfake.indexer.decoding.image import Pixels
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.encoders.torch_encoder import TorchEncoder
from library_imports import import_libraries
from PIL import Image
from tiny_models import SMALL, saved

WITHOUT_TORCHVISION = bool(import_libraries())
SQUARE = {"height": 32, "width": 32}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TEXT |= {"vocab_size": 50, "max_position_embeddings": 8, "projection_size": 32}
# The preprocessor_config.json of facebook/dinov2-base, facebook/dinov3-vits16-pretrain-lvd1689m and
# google/siglip2-base-patch16-224, with smaller sizes.
DINOV2 = {
    **IMAGENET,
    "image_processor_type": "BitImageProcessor",
    "size": {"shortest_edge": 36},
    "crop_size": SQUARE,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "resample": 3,
}
DINOV3 = {**IMAGENET, "image_processor_type": "DINOv3ViTImageProcessorFast", "size": SQUARE, "resample": 2}
SIGLIP2 = {"image_processor_type": "SiglipImageProcessor", "size": SQUARE, "resample": 2, "do_convert_rgb": None}


def dinov2(transformers: Any) -> Any:
    fields = {name: value for name, value in SMALL.items() if name != "intermediate_size"}
    return transformers.Dinov2Model(transformers.Dinov2Config(**fields))


def dinov2_with_registers(transformers: Any) -> Any:
    fields = {name: value for name, value in SMALL.items() if name != "intermediate_size"}
    config = transformers.Dinov2WithRegistersConfig(**fields, num_register_tokens=4)
    return transformers.Dinov2WithRegistersModel(config)


def dinov3_vit(transformers: Any) -> Any:
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SMALL, num_register_tokens=4))


def dinov3_convnext(transformers: Any) -> Any:
    config = transformers.DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    return transformers.DINOv3ConvNextModel(config)


def siglip2(transformers: Any) -> Any:
    """SigLIP 2 of a fixed size has the class and the configuration of SigLIP."""
    return transformers.SiglipModel(transformers.SiglipConfig(vision_config=dict(SMALL), text_config=TEXT))


def siglip2_vision(transformers: Any) -> Any:
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SMALL))


MODELS: Mapping[str, tuple[Callable[[Any], Any], Mapping[str, Any]]] = {
    "DINOv2": (dinov2, DINOV2),
    "DINOv2 with registers": (dinov2_with_registers, DINOV2),
    "DINOv3": (dinov3_vit, DINOV3),
    "DINOv3 ConvNeXt": (dinov3_convnext, DINOV3),
    "SigLIP 2": (siglip2, SIGLIP2),
    "SigLIP 2, vision only": (siglip2_vision, SIGLIP2),
}


def tiny(folder: Path, name: str) -> Path:
    """Save a model of random weights that differ from each other, so that no two images have one vector."""
    import transformers

    make, fields = MODELS[name]
    torch.manual_seed(0)
    model = make(transformers)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return saved(folder, model, fields)


def images() -> list[Pixels]:
    shapes = [(32, 32), (200, 301), (503, 320), (40, 400)]
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), np.uint8) for height, width in shapes]
    return [
        np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
        for small, (height, width) in zip(noise, shapes, strict=True)
    ]


def reference_pixels(folder: Path, encoder: TorchEncoder, name: str) -> torch.Tensor:
    """Inputs by the model's own image processor. That of DINOv3 needs torchvision; without it, ours are taken."""
    import transformers

    if "DINOv3" in name and WITHOUT_TORCHVISION:
        return torch.cat([encoder.inputs([image]) for image in images()])
    options = {} if "DINOv3" in name else {"backend": "pil"}
    processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, **options)
    pixels: torch.Tensor = processor([Image.fromarray(image) for image in images()], return_tensors="pt")[
        "pixel_values"
    ]
    return pixels


@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    import transformers

    folder = tiny(tmp_path, name)
    encoder = load_encoder(str(folder), device="cpu")
    assert isinstance(encoder, TorchEncoder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    pixels = reference_pixels(folder, encoder, name)
    with torch.inference_mode():
        output = getattr(model, "get_image_features", model)(pixel_values=pixels)
    expected = torch.nn.functional.normalize(output.pooler_output).numpy()
    vectors = encoder.encode(images())
    # a few pixels differ by one level, and those of DINOv3's processor are not rounded
    assert np.abs(vectors - expected).max() < (2e-2 if "DINOv3" in name else 2e-3)
    assert (vectors @ vectors.T).min() < 0.9  # the images differ more than that


def test_vector_of_dinov3_is_its_class_token_not_a_register(tmp_path: Path) -> None:
    import transformers

    folder = tiny(tmp_path, "DINOv3")
    encoder = load_encoder(str(folder), device="cpu")
    assert isinstance(encoder, TorchEncoder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        tokens = model(pixel_values=encoder.inputs(images()[:1])).last_hidden_state
    alike = torch.nn.functional.normalize(tokens[0]) @ torch.from_numpy(encoder.encode(images()[:1])[0])
    assert tokens.shape[1] == 1 + 4 + 16  # class token, registers, patches
    assert int(alike.argmax()) == 0 and float(alike[0]) > 0.9999


def test_naflex_is_refused_and_a_fixed_size_named(tmp_path: Path) -> None:
    import transformers

    vision = {name: value for name, value in SMALL.items() if name != "image_size"}
    config = transformers.Siglip2Config(vision_config={**vision, "num_patches": 16}, text_config=TEXT)
    fields = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 16}
    folder = saved(tmp_path, transformers.Siglip2Model(config), fields)
    with pytest.raises(EncoderError, match=r"NaFlex.*google/siglip2-base-patch16-224"):
        load_encoder(str(folder), device="cpu")


def test_siglip_texts_are_padded_to_the_length_they_were_trained_with(tmp_path: Path) -> None:
    """SigLIP takes the last token, so that with other padding a text's vector depended on the texts beside it."""
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    folder = tiny(tmp_path, "SigLIP 2")
    words = WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "photo": 3, "of": 4, "leaves": 5}, unk_token="[UNK]")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    ids = fast(["leaves", "a photo of leaves"], padding="max_length", max_length=8, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(model.get_text_features(input_ids=ids).pooler_output).numpy()
    encoder = load_encoder(str(folder), device="cpu")
    assert np.allclose(encoder.encode_texts(["leaves", "a photo of leaves"]), expected, atol=1e-5)
    assert np.allclose(encoder.encode_texts(["leaves"]), expected[:1], atol=1e-5)
