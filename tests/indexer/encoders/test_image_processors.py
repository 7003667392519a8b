"""Preprocessing compared with AutoImageProcessor: one configuration of each class, on images of several shapes."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipfake.errors import EncoderError, ImageError
from clipfake.indexer.decoding.image import Pixels
from clipfake.indexer.encoders.checkpoint import open_checkpoint
from clipfake.indexer.encoders.gpu import batch_input
from clipfake.indexer.encoders.preprocess import Preprocess
from PIL import Image

CPU = torch.device("cpu")
NORM = {"do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SQUARE = {"height": 224, "width": 224}
SHAPES = {  # height and width
    "square": (224, 224),
    "wide": (200, 300),
    "tall": (500, 320),
    "large": (480, 641),  # resized before it is queued
    "tiny": (9, 7),
    "strip": (40, 400),
}

# One line for each class or field; files of models on the hub, shortened.
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "CLIP": {"image_processor_type": "CLIPImageProcessor"},
    "CLIP, old": {
        **NORM,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "size": 224,
        "crop_size": 224,
        "do_center_crop": True,
        "resample": 3,
    },
    "CLIP, without do_center_crop": {
        **NORM,
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 224},
    },
    "CLIP, fast": {"image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 112}, "crop_size": 112},
    "CLIP, null is false": {
        "image_processor_type": "CLIPImageProcessor",
        "size": SQUARE,
        "do_center_crop": None,
        "do_normalize": None,
    },
    "CLIP, no resizing": {"image_processor_type": "CLIPImageProcessor", "do_resize": False},
    "CLIP, no rescaling": {"image_processor_type": "CLIPImageProcessor", "do_rescale": False, "image_std": [9, 9, 9]},
    "CLIP, no normalisation": {"image_processor_type": "CLIPImageProcessor", "do_normalize": False},
    "CLIP, rectangular crop": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 193},
    },
    "CLIP, crop larger than the image": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 101},
        "crop_size": {"height": 224, "width": 192},
    },
    "CLIP, longest edge": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 200, "longest_edge": 280},
        "do_center_crop": False,
    },
    "CLIP, no crop": {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False},
    "ChineseCLIP": {"image_processor_type": "ChineseCLIPImageProcessor", "size": SQUARE, "do_center_crop": False},
    "SigLIP": {"image_processor_type": "SiglipImageProcessor", "size": SQUARE},
    "SigLIP 2, fixed size": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 256, "width": 256}},
    "ViT": {"image_processor_type": "ViTImageProcessor"},
    "ViT, size as a list": {"image_processor_type": "ViTImageProcessor", "size": [192, 224]},
    "ViT, one mean": {"image_processor_type": "ViTImageProcessor", "image_mean": 0.5, "image_std": 0.25},
    "DINO": {**NORM, "feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 3},
    "Swin": {**NORM, "feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 3},
    "DeiT": {**NORM, "feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224},
    "DINOv2": {
        **NORM,
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 256},
        "crop_size": SQUARE,
        "do_center_crop": True,
    },
    "BEiT": {**NORM, "feature_extractor_type": "BeitFeatureExtractor", "size": 224, "crop_size": 224, "resample": 2},
    "BEiT, cropped": {"image_processor_type": "BeitImageProcessor", "size": 256, "do_center_crop": True},
    "ConvNeXt": {**NORM, "image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}},
    "ConvNeXt, old": {**NORM, "feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.95},
    "ConvNeXt, warped": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
    "PoolFormer": {**NORM, "image_processor_type": "PoolFormerImageProcessor", "crop_pct": 0.95},
    "PoolFormer, square size": {"image_processor_type": "PoolFormerImageProcessor", "size": SQUARE},
    "PoolFormer, no crop_pct": {"image_processor_type": "PoolFormerImageProcessor", "crop_pct": None},
    "PoolFormer, rectangle": {
        "image_processor_type": "PoolFormerImageProcessor",
        "size": {"height": 224, "width": 256},
    },
    "LeViT": {"image_processor_type": "LevitImageProcessor"},
    "LeViT, square size": {"image_processor_type": "LevitImageProcessor", "size": SQUARE},
    "EfficientNet": {
        "image_processor_type": "EfficientNetImageProcessor",
        "size": SQUARE,
        "resample": 0,
        "image_std": [0.47853944, 0.4732864, 0.47434163],
        "include_top": False,
    },
    "EfficientNet, include_top": {"image_processor_type": "EfficientNetImageProcessor", "size": SQUARE},
    "EfficientNet, offset": {
        "image_processor_type": "EfficientNetImageProcessor",
        "rescale_factor": 1 / 127.5,
        "rescale_offset": True,
        "include_top": False,
        "do_center_crop": True,
    },
    "MobileViT": {
        "feature_extractor_type": "MobileViTFeatureExtractor",
        "size": 288,
        "crop_size": 256,
        "do_center_crop": True,
        "do_flip_channel_order": True,
        "resample": 2,
    },
    "MobileViT, RGB": {"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": False},
    "MobileNetV1": {"image_processor_type": "MobileNetV1ImageProcessor"},
    "MobileNetV2": {"image_processor_type": "MobileNetV2ImageProcessor"},
    "DPT": {"image_processor_type": "DPTImageProcessor", "size": {"height": 224, "width": 256}},
    "DPT, multiple": {"image_processor_type": "DPTImageProcessor", "size": SQUARE, "ensure_multiple_of": 15},
    "Depth Anything": {
        **NORM,
        "image_processor_type": "DPTImageProcessor",
        "size": SQUARE,
        "keep_aspect_ratio": True,
        "ensure_multiple_of": 14,
    },
    "GLPN": {"image_processor_type": "GLPNImageProcessor", "do_rescale": True},
    "BLIP": {"image_processor_type": "BlipImageProcessor", "size": SQUARE},
    "PVT": {"image_processor_type": "PvtImageProcessor"},
    "FLAVA": {"image_processor_type": "FlavaImageProcessor"},
    "OWL-ViT": {"image_processor_type": "OwlViTImageProcessor", "size": SQUARE},
    "SegFormer": {"image_processor_type": "SegformerImageProcessor", "size": SQUARE},
    "box": {"image_processor_type": "ViTImageProcessor", "resample": 4},
    "hamming": {"image_processor_type": "ViTImageProcessor", "resample": 5},
    "lanczos": {"image_processor_type": "ViTImageProcessor", "resample": 1},
    "nearest": {"image_processor_type": "ViTImageProcessor", "resample": 0},
}


def smooth_image(height: int, width: int) -> Pixels:
    noise = np.random.default_rng(0).integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The image processors of `transformers` that use Pillow, for all configurations."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    folder, made = tmp_path_factory.mktemp("processors"), {}
    for name, config in CONFIGS.items():
        (folder / "preprocessor_config.json").write_text(json.dumps(config))
        made[name] = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    return made


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_equal_those_of_transformers(name: str, shape: tuple[int, int], processors: Mapping[str, Any]) -> None:
    preprocess, image = Preprocess.from_config(dict(CONFIGS[name])), smooth_image(*shape)
    if name == "GLPN" and min(shape) < 32:
        with pytest.raises(ImageError, match="sides must be 1"):
            preprocess.shrink(image)
        return
    expected = processors[name](Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    level = preprocess.scale / np.array(preprocess.std).reshape(3, 1, 1)
    for pixels in (image, preprocess.shrink(image)):  # a large image is shrunk before it is queued
        values = preprocess([pixels], CPU, torch.float32)[0].numpy()
        assert values.shape == expected.shape == (3, *preprocess.input_size(*shape))
        assert (np.abs(values - expected) / level).max() < 1.01
        assert (np.abs(values - expected) / level).mean() < 0.01


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_dinov3_pixels_equal_an_antialiased_resize(shape: tuple[int, int]) -> None:
    """The class needs torchvision, which resizes as torch does: the values are not rounded."""
    preprocess = Preprocess.from_config({"image_processor_type": "DINOv3ViTImageProcessorFast", "size": SQUARE})
    image = torch.from_numpy(smooth_image(*shape).copy()).permute(2, 0, 1)[None] / 255
    resized = torch.nn.functional.interpolate(image, (224, 224), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    values = preprocess([smooth_image(*shape)], CPU, torch.float32)
    assert ((values - (resized - mean) / std).abs() * std * 255).max() < 1.01


@pytest.mark.parametrize("model_type, expected", [("vit", "bilinear"), ("siglip", "bicubic"), ("dinov2", "bicubic")])
def test_class_without_a_name_is_that_of_the_model(model_type: str, expected: str) -> None:
    assert Preprocess.from_config({}, model_type).filter == expected


@pytest.mark.parametrize(
    "change, text",
    [
        ({"image_processor_type": "Siglip2ImageProcessor"}, "image_processor_type is Siglip2ImageProcessor"),
        ({"image_processor_type": None, "feature_extractor_type": "NoFeatureExtractor"}, "is NoFeatureExtractor"),
        ({"do_pad": True, "pad_size": SQUARE}, "do_pad"),
        ({"do_resize": False, "do_center_crop": False}, "do_resize"),
        ({"size": {"longest_edge": 224}}, "longest_edge"),
        ({"size": {"max_height": 224, "max_width": 224}}, "max_height"),
        ({"crop_size": {"shortest_edge": 224}}, "crop_size"),
        ({"use_square_size": True}, "use_square_size"),
        ({"resample": 6}, "resample is 6"),
        ({"image_processor_type": "DINOv3ViTImageProcessor", "resample": 3}, "resample is 3"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": SQUARE}, "shortest_edge"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}}, "crop_pct"),
        ({"image_processor_type": "DPTImageProcessor", "size": {"shortest_edge": 224}}, "DPTImageProcessor"),
        ({"image_processor_type": "PoolFormerImageProcessor", "crop_pct": 0}, "ZeroDivisionError"),
    ],
)
def test_unsupported_field_is_named(change: dict[str, Any], text: str) -> None:
    base = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True}
    with pytest.raises(EncoderError, match=text):
        Preprocess.from_config(base | change)


def test_unknown_model_type_without_a_class_is_refused() -> None:
    with pytest.raises(EncoderError, match="model_type is 'bert'"):
        Preprocess.from_config({"size": 224}, "bert")


def test_fingerprint_fields_of_older_stores_are_the_same() -> None:
    clip = Preprocess.from_config({"image_processor_type": "CLIPImageProcessor"}).to_dict()
    assert list(clip) == ["height", "width", "short", "crop", "filter", "scale", "mean", "std"]
    mobile_vit = Preprocess.from_config({"image_processor_type": "MobileViTImageProcessor"}).to_dict()
    assert mobile_vit["flip"] is True and "crop_width" not in mobile_vit


@pytest.mark.parametrize("name", CONFIGS)
def test_gpu_kernel_gets_only_what_it_can_do(name: str) -> None:
    """On the CPU, the tables of the kernel have one input size and no weights outside the image."""
    preprocess = Preprocess.from_config(dict(CONFIGS[name]))
    general = ("no crop", "longest edge", "no resizing", "crop larger", "MobileViT", "Depth Anything", "GLPN")
    supported = not any(text in name and text + "_" not in name for text in general)
    assert preprocess.on_gpu is supported
    if supported:
        images = [smooth_image(*shape) for shape in SHAPES.values()]
        _, _, size = batch_input._resize_tables(preprocess, images)
        assert size == preprocess.fixed_size


def test_unsupported_by_the_kernel_is_left_to_the_general_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the kernel was loaded")

    monkeypatch.setattr(batch_input, "GpuInput", fail)
    for name in ("MobileViT", "Depth Anything", "CLIP, crop larger than the image"):
        uploader: Any = None
        assert batch_input.gpu_input_for(Preprocess.from_config(dict(CONFIGS[name])), CPU, uploader) is None


@pytest.mark.parametrize("name", CONFIGS)
def test_images_of_all_shapes_in_one_batch(name: str) -> None:
    preprocess = Preprocess.from_config(dict(CONFIGS[name]))
    images = [smooth_image(*shape) for shape in [(200, 300), (320, 200), (200, 300), (224, 224)]]

    def means(members: Any) -> torch.Tensor:
        return preprocess(members, CPU, torch.float32).mean((1, 2, 3))

    together = preprocess.by_input_size(images, means)
    assert torch.allclose(together, torch.cat([means([image]) for image in images]), atol=1e-5)


def test_nested_fields_go_before_flat_ones(tmp_path: Path) -> None:
    mobilenet = {"image_processor_type": "MobileNetV1ImageProcessor"}
    (tmp_path / "config.json").write_text('{"model_type": "mobilenet_v1"}')
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(mobilenet))
    assert open_checkpoint(str(tmp_path), weights=False).preprocess.short == 256
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {**mobilenet, "size": 240}}))
    assert open_checkpoint(str(tmp_path), weights=False).preprocess.short == 240
    (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert open_checkpoint(str(tmp_path), weights=False).preprocess.short == 256
    (tmp_path / "processor_config.json").write_text('{"image_processor": []}')
    with pytest.raises(EncoderError, match="not a JSON object"):
        open_checkpoint(str(tmp_path), weights=False)
    shutil.move(tmp_path / "preprocessor_config.json", tmp_path / "other.json")
    (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    with pytest.raises(EncoderError, match="neither"):
        open_checkpoint(str(tmp_path), weights=False)
