"""Models of open_clip: CLIP's image features and texts, with open_clip's own preprocessing.

A name is "MODEL/PRETRAINED", as in "ViT-B-32/laion2b_s34b_b79k", where PRETRAINED may be a path of weights, or it is a
directory with open_clip_config.json and weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ....errors import EncoderError
from ..encoder_name import OPEN_CLIP, with_random_weights
from ..preprocess import Preprocess
from ..text_encoder import TextEncoder
from .hub_weights import HubWeights
from .library_model import LibraryModel, import_library, quiet_logging, seeded

EXTRA = "open-clip"
WEIGHTS = "open_clip_pytorch_model.bin"  # the name if open_clip's configuration of the weights has none


def hub_weights(name: str) -> HubWeights | None:
    """The file of a model's weights on the hub, None for a path; raises EncoderError or MissingExtra."""
    if Path(name).is_dir():
        return None
    model, pretrained = _parts(name)
    if not pretrained:
        raise EncoderError(
            f"{OPEN_CLIP}{name} names no weights; add them after a slash, as in {OPEN_CLIP}ViT-B-32/laion2b_s34b_b79k "
            f"or {OPEN_CLIP}ViT-B-32/weights.safetensors"
        )
    config = _pretrained_config(model, pretrained)
    if not config:
        return None
    repository, _, file = str(config.get("hf_hub", "")).rpartition("/")
    if not repository:
        raise EncoderError(
            f"open_clip has no weights of {name} on the hub; download {config.get('url')} and give its path after the "
            f"model, as in {OPEN_CLIP}{model}/weights.pt"
        )
    return HubWeights.preferring_safetensors(repository, file or WEIGHTS)


def load(name: str, seed: int | None) -> LibraryModel:
    """Load a model whose weights are on this machine, or with random weights; raises EncoderError or MissingExtra."""
    open_clip = import_library("open_clip", EXTRA)
    options: dict[str, Any] = {}
    if Path(name).is_dir():
        name = str(Path(name).resolve())
        source = f"local-dir:{name}"
        architecture = json.dumps(open_clip.get_model_config(source), sort_keys=True)
    else:
        source, pretrained = _parts(name)
        config = _pretrained_config(source, pretrained)
        if pretrained and not config:
            pretrained = str(Path(pretrained).resolve())
            name = f"{source}/{pretrained}"
        # open_clip only warns of weights that were trained with the other activation
        quick_gelu = bool(config.get("quick_gelu"))
        options = {"force_quick_gelu": quick_gelu, "force_preprocess_cfg": dict(config)}
        architecture = f"{source}, QuickGELU" if quick_gelu else source
        if seed is None:
            files = hub_weights(name)
            options["pretrained"] = str(files.cached()) if files else pretrained
    with quiet_logging(), seeded(seed):
        model = open_clip.create_model(
            source, load_weights=seed is None, require_pretrained=seed is None, pretrained_text=False, **options
        ).eval()
    preprocess = preprocess_of(open_clip.get_model_preprocess_cfg(model))
    weights: dict[str, torch.Tensor] = model.requires_grad_(False).state_dict()
    full_name = f"{OPEN_CLIP}{name}" if seed is None else with_random_weights(f"{OPEN_CLIP}{name}", seed)
    vision_model, texts = OpenClipVision(model.visual), _texts(open_clip, source, model)
    return LibraryModel(full_name, f"{OPEN_CLIP}{architecture}", vision_model, preprocess, weights, texts)


def preprocess_of(config: Mapping[str, Any]) -> Preprocess:
    """Return the evaluation transform of an open_clip preprocessing configuration; raises EncoderError.

    >>> clip = {"size": 224, "resize_mode": "shortest", "interpolation": "bicubic", "mean": (0, 0, 0), "std": (1, 1, 1)}
    >>> preprocess_of(clip).short, preprocess_of({**clip, "resize_mode": "squash"}).height
    (224, 224)
    """
    size, mode = config["size"], config["resize_mode"]
    height, width = (size, size) if isinstance(size, int) else size
    squash = mode == "squash"
    if not (squash or (mode == "shortest" and height == width)):
        raise EncoderError(
            f"open_clip's preprocessing of the model is not supported: size {size}, resize_mode {mode}; supported are "
            f"squash, and shortest for squares"
        )
    return Preprocess(
        height=height if squash else 0,
        width=width if squash else 0,
        short=0 if squash else height,
        crop=0 if squash else height,
        filter="bilinear" if config["interpolation"] == "bilinear" else "bicubic",  # "random" is bicubic here
        scale=1 / 255,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        half_even=not squash,
    )


class OpenClipVision(torch.nn.Module):
    """Maps (n, 3, height, width) preprocessed pixels to (n, dim) image features, not normalised."""

    def __init__(self, visual: torch.nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.has_class_token = hasattr(visual, "class_embedding")

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        output = self.visual(pixels)
        features: torch.Tensor = output[0] if isinstance(output, tuple) else output  # CoCa's tokens come second
        return features


class OpenClipTexts:
    """Text model of open_clip with the interface of a tokenizer and a text model of `transformers`."""

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self._tokenizer, self._model = tokenizer, model

    def __call__(self, texts: Sequence[str], **_: object) -> dict[str, torch.Tensor]:
        """Return {"tokens": (n, length)} of n texts; open_clip pads and cuts them itself."""
        return {"tokens": self._tokenizer(list(texts))}

    def get_text_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """(n, dim) features of n texts, not normalised."""
        features: torch.Tensor = self._model.encode_text(tokens)
        return features


def _texts(open_clip: Any, source: str, model: Any) -> TextEncoder | None:
    """The text encoder, None if its tokenizer is not part of open_clip and might have to be downloaded."""
    config = open_clip.get_model_config(source)["text_cfg"]
    if config.get("hf_tokenizer_name") or config.get("hf_model_name") or "siglip" in source.lower():
        return None
    texts = OpenClipTexts(open_clip.get_tokenizer(source), model)
    return TextEncoder(lambda: (texts, texts))


def _parts(name: str) -> tuple[str, str]:
    """Return a model and its weights.

    >>> _parts("ViT-B-32/laion2b_s34b_b79k"), _parts("ViT-B-32")
    (('ViT-B-32', 'laion2b_s34b_b79k'), ('ViT-B-32', ''))
    """
    model, _, pretrained = name.partition("/")
    return model, pretrained


def _pretrained_config(model: str, pretrained: str) -> Mapping[str, Any]:
    """open_clip's configuration of pretrained weights, empty for a weight file or none; raises EncoderError."""
    open_clip = import_library("open_clip", EXTRA)
    if open_clip.get_model_config(model) is None:
        raise EncoderError(
            f"open_clip {open_clip.__version__} has no model {model}, and there is no such directory; "
            f"`open_clip.list_models()` has the names"
        )
    config: Mapping[str, Any] = open_clip.get_pretrained_cfg(model, pretrained) if pretrained else {}
    if pretrained and not config and not Path(pretrained).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model))
        raise EncoderError(
            f"open_clip has no weights {pretrained} of {model}, and there is no such file; it has {tags}"
        )
    return config
