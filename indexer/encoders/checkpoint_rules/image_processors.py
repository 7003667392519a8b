"""Image processors of `transformers`: their defaults, and their steps as fields of `Preprocess`.

A preprocessor_config.json holds only what differs from its class, and some classes compute with its fields: ConvNeXt
divides the size by `crop_pct`, LeViT multiplies it by 256 / 224. Where the classes that use Pillow and those that use
torchvision differ, Pillow's are followed. A test compares every class with AutoImageProcessor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ....errors import EncoderError

Fields = Mapping[str, Any]  # of a preprocessor_config.json, completed with the defaults of its class

FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers
WHOLE_SIZES = ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"})
WARP_SIDE = 384  # pixels; from this size on, ConvNeXt distorts images instead of cropping them

_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_COMMON = {
    "do_resize": True,
    "resample": 3,
    "default_to_square": True,  # an integer `size` is the height and the width, not the shorter side
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _cropped(short: int, crop: int) -> dict[str, Any]:
    """Defaults of a class that keeps the aspect ratio and crops the centre."""
    size, crop_size = {"shortest_edge": short}, _square(crop)
    return {"size": size, "default_to_square": False, "crop_size": crop_size, "do_center_crop": True}


DEFAULTS: Mapping[str, Fields] = {
    name: {**_COMMON, **fields}
    for name, fields in {
        "BeitImageProcessor": {**_HALF, "size": _square(224), "crop_size": _square(224)},
        "BitImageProcessor": {**_CLIP, **_cropped(224, 224)},
        "BlipImageProcessor": {**_CLIP, "size": _square(384)},
        "ChineseCLIPImageProcessor": {**_CLIP, **_cropped(224, 224)},
        "CLIPImageProcessor": {**_CLIP, **_cropped(224, 224)},
        "ConvNextImageProcessor": {
            **_HALF,
            "size": {"shortest_edge": 384},
            "default_to_square": False,
            "crop_pct": 224 / 256,
        },
        "DeiTImageProcessor": {**_HALF, "size": _square(256), "crop_size": _square(224), "do_center_crop": True},
        "DINOv3ViTImageProcessor": {**_IMAGENET, "size": _square(224), "resample": 2},
        "DPTImageProcessor": {**_HALF, "size": _square(384), "keep_aspect_ratio": False, "ensure_multiple_of": 1},
        "EfficientNetImageProcessor": {
            **_HALF,
            "size": _square(346),
            "crop_size": _square(289),
            "rescale_offset": False,
            "include_top": True,
        },
        "FlavaImageProcessor": {**_CLIP, "size": _square(224), "crop_size": _square(224), "do_center_crop": True},
        "GLPNImageProcessor": {"resample": 2, "do_normalize": False, "size_divisor": 32},
        "LevitImageProcessor": {**_IMAGENET, **_cropped(224, 224)},
        "MobileNetV1ImageProcessor": {**_HALF, **_cropped(256, 224), "resample": 2},
        "MobileNetV2ImageProcessor": {**_HALF, **_cropped(256, 224), "resample": 2},
        "MobileViTImageProcessor": {**_HALF, **_cropped(224, 256), "do_flip_channel_order": True},
        "OwlViTImageProcessor": {**_CLIP, "size": _square(768), "crop_size": _square(768)},
        "PoolFormerImageProcessor": {**_IMAGENET, **_cropped(224, 224), "crop_pct": 0.9},
        "PvtImageProcessor": {**_IMAGENET, "size": _square(224)},
        "SegformerImageProcessor": {**_IMAGENET, "size": _square(512), "resample": 2},
        "SiglipImageProcessor": {**_HALF, "size": _square(224), "default_to_square": False},
        "ViTImageProcessor": {**_HALF, "size": _square(224), "resample": 2},
    }.items()
}

# model_type in config.json to the class, if the preprocessing names none
MODEL_TYPES: Mapping[str, str] = {
    model_type: f"{prefix}ImageProcessor"
    for prefix, model_types in {
        "Beit": "beit data2vec-vision",
        "Bit": "bit dinov2 dinov2_with_registers focalnet hiera pixio",
        "Blip": "blip blip-2 instructblip",
        "ChineseCLIP": "chinese_clip",
        "CLIP": "clip clip_vision_model aimv2 altclip metaclip_2 mlcd",
        "ConvNext": "convnext convnextv2 cvt regnet resnet",
        "DeiT": "deit",
        "DINOv3ViT": "dinov3_vit dinov3_convnext",
        "DPT": "dpt depth_anything",
        "EfficientNet": "efficientnet align",
        "Flava": "flava",
        "GLPN": "glpn",
        "Levit": "levit",
        "MobileNetV1": "mobilenet_v1",
        "MobileNetV2": "mobilenet_v2",
        "MobileViT": "mobilevit mobilevitv2",
        "OwlViT": "owlvit",
        "PoolFormer": "poolformer",
        "Pvt": "pvt pvt_v2",
        "Segformer": "segformer",
        "Siglip": "siglip siglip_vision_model",
        "ViT": "vit clipseg dinat ijepa swiftformer swin swinv2 vit_mae vit_msn",
    }.items()
    for model_type in model_types.split()
}

PADS_NOTHING = {"Beit", "ConvNext", "EfficientNet", "Flava", "GLPN", "MobileNetV2", "MobileViT", "Segformer"}
NEVER_CROPS = {"DPT", "GLPN", "Segformer"}  # whatever `do_center_crop` says


def preprocess_fields(config: Fields, model_type: str) -> dict[str, Any]:
    """Return the arguments of `Preprocess` for a preprocessor_config.json; those not needed are left out.

    Raises EncoderError for a class or a field that is not supported; KeyError, TypeError or ValueError for an invalid
    value.
    """
    name = processor_class(config, model_type)
    fields = {**DEFAULTS[name], **config}  # null is no default: as in transformers, it means false or is an error
    kind = name.removesuffix("ImageProcessor")
    _refuse_unsupported(kind, fields)
    geometry = _GEOMETRY.get(kind, _geometry)(fields)
    if fields["do_center_crop"] and kind not in NEVER_CROPS:
        if "crop" in geometry:
            raise EncoderError(
                "do_center_crop after the crop of crop_pct is not supported; set do_center_crop to false"
            )
        geometry |= _crop(fields["crop_size"])
    resample = fields["resample"]
    if isinstance(resample, bool) or resample not in FILTERS:
        raise EncoderError(f"resample is {resample!r}, and Pillow's filters are {FILTERS}")
    flip = {"flip": True} if kind == "MobileViT" and fields["do_flip_channel_order"] else {}
    return (
        {"height": 0, "width": 0, "short": 0, "crop": 0, "filter": FILTERS[resample]}
        | geometry
        | flip
        | _values(kind, fields)
    )


def processor_class(config: Fields, model_type: str) -> str:
    """Return the class of the image processor, as AutoImageProcessor chooses it; raises EncoderError.

    >>> processor_class({"feature_extractor_type": "DeiTFeatureExtractor"}, "vit"), processor_class({}, "swin")
    ('DeiTImageProcessor', 'ViTImageProcessor')
    """
    named = config.get("image_processor_type") or config.get("feature_extractor_type")
    name = str(named or MODEL_TYPES.get(model_type, "")).replace("FeatureExtractor", "ImageProcessor")
    name = name.removesuffix("Fast").removesuffix("Pil")
    if name in DEFAULTS:
        return name
    found = f"image_processor_type is {named}" if named else f"it names no class, and model_type is {model_type!r}"
    supported = ", ".join(known.removesuffix("ImageProcessor") for known in DEFAULTS)
    raise EncoderError(f"{found}; supported are the image processors of {supported}")


def _refuse_unsupported(kind: str, fields: Fields) -> None:
    if fields.get("do_pad") and kind not in PADS_NOTHING:
        raise EncoderError("do_pad is true, and padding is not supported")
    if fields.get("use_square_size"):
        raise EncoderError("use_square_size is not supported; give size a height and a width")
    if not fields["do_resize"] and (kind in NEVER_CROPS or not fields["do_center_crop"]):
        raise EncoderError("do_resize and do_center_crop are false, so that every image would keep a size of its own")
    if kind == "DINOv3ViT" and fields["resample"] in (1, 3):  # torchvision does not clip its overshoot to 0..255
        raise EncoderError(f"resample is {fields['resample']}; for DINOv3ViTImageProcessor, only 2 is supported")


def _geometry(fields: Fields) -> dict[str, int]:
    """Return the size after resizing, which most classes read from `size` alone."""
    if not fields["do_resize"]:
        return {}
    size = _size(fields["size"], square=fields["default_to_square"])
    if "shortest_edge" not in size:
        return {"height": size["height"], "width": size["width"]}
    longest = {"longest": size["longest_edge"]} if "longest_edge" in size else {}
    return {"short": size["shortest_edge"], **longest}


def _convnext_geometry(fields: Fields) -> dict[str, int]:
    if not fields["do_resize"]:
        return {}
    side = _shortest_edge(fields)
    if side >= WARP_SIDE:
        return _square(side)
    return {"short": int(side / fields["crop_pct"]), "crop": side}


def _poolformer_geometry(fields: Fields) -> dict[str, int]:
    geometry = _geometry(fields)
    if "longest" in geometry:
        raise EncoderError("size has a longest_edge, which is not supported with crop_pct")
    if fields["crop_pct"] is None:
        return geometry
    enlarged = {key: int(side / fields["crop_pct"]) for key, side in geometry.items()}
    if len(enlarged) == 2 and geometry["height"] == geometry["width"]:
        return {"short": enlarged["height"]}  # a square keeps the aspect ratio
    return enlarged


def _levit_geometry(fields: Fields) -> dict[str, int]:
    geometry = _geometry(fields)
    if "short" not in geometry:
        return geometry
    return {"short": int((256 / 224) * geometry["short"])}  # in this order, as in transformers


def _dpt_geometry(fields: Fields) -> dict[str, Any]:
    geometry = _geometry(fields)
    if "short" in geometry:
        raise EncoderError("size has a shortest_edge, and DPTImageProcessor needs a height and a width")
    multiple, keep_aspect = _whole(fields["ensure_multiple_of"]), bool(fields["keep_aspect_ratio"])
    if multiple > 1 and not keep_aspect:  # the same size for every image
        return {key: round(side / multiple) * multiple for key, side in geometry.items()}
    return {**geometry, **({"multiple": multiple, "keep_aspect": True} if keep_aspect else {})}


def _glpn_geometry(fields: Fields) -> dict[str, Any]:
    return {"multiple": _whole(fields["size_divisor"])}


_GEOMETRY: Mapping[str, Callable[[Fields], dict[str, Any]]] = {
    "ConvNext": _convnext_geometry,
    "DPT": _dpt_geometry,
    "GLPN": _glpn_geometry,
    "Levit": _levit_geometry,
    "PoolFormer": _poolformer_geometry,
}


def _values(kind: str, fields: Fields) -> dict[str, Any]:
    """Return the linear map from pixel values to inputs: `scale`, `mean` and `std`."""
    scale, mean, std = 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if fields["do_rescale"]:
        scale = float(fields["rescale_factor"])
    if fields["do_normalize"] and kind != "MobileViT":  # whose class ignores it
        mean, std = _channels(fields["image_mean"]), _channels(fields["image_std"])
    if kind != "EfficientNet":
        return {"scale": scale, "mean": mean, "std": std}
    if fields["rescale_offset"] and fields["do_rescale"]:
        mean = (mean[0] + 1, mean[1] + 1, mean[2] + 1)
    if fields["include_top"]:  # divides by the standard deviation once more
        again = _channels(fields["image_std"])
        std = (std[0] * again[0], std[1] * again[1], std[2] * again[2])
    return {"scale": scale, "mean": mean, "std": std}


def _channels(values: Any) -> tuple[float, float, float]:
    if isinstance(values, int | float):
        return (float(values),) * 3
    red, green, blue = map(float, values)
    return red, green, blue


def _shortest_edge(fields: Fields) -> int:
    size = _size(fields["size"], square=fields["default_to_square"])
    if set(size) != {"shortest_edge"}:
        raise EncoderError(f"size is {fields['size']}, and the class needs a shortest_edge")
    return size["shortest_edge"]


def _size(size: Any, *, square: bool) -> dict[str, int]:
    """Return a size as whole numbers by name."""
    if isinstance(size, int):
        return _square(_whole(size)) if square else {"shortest_edge": _whole(size)}
    if isinstance(size, list | tuple):
        height, width = size
        return {"height": _whole(height), "width": _whole(width)}
    sides = {key: value for key, value in dict(size).items() if value is not None}
    if set(sides) not in WHOLE_SIZES:
        raise EncoderError(
            f"size is {size}; supported are height and width, or shortest_edge with or without longest_edge"
        )
    return {key: _whole(side) for key, side in sides.items()}


def _crop(size: Any) -> dict[str, int]:
    sides = _size(size, square=True)
    if set(sides) != {"height", "width"}:
        raise EncoderError(f"crop_size is {size}, and needs a height and a width")
    height, width = sides["height"], sides["width"]
    return {"crop": height} if height == width else {"crop": height, "crop_width": width}


def _whole(side: Any) -> int:
    if isinstance(side, bool) or int(side) != side or side < 1:
        raise ValueError(f"{side!r} is not a positive whole number")
    return int(side)
