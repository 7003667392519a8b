"""Vision models of timm (PyTorch Image Models): features before the classifier, with timm's own preprocessing.

A name is timm's, as in "vit_base_patch14_dinov2.lvd142m", or a directory as timm saves it: config.json with its
architecture, and weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ....core.reading import read_text
from ....errors import EncoderError
from ..checkpoint_rules.image_processors import FILTERS
from ..encoder_name import TIMM, with_random_weights
from ..preprocess import Preprocess
from .hub_weights import HubWeights
from .library_model import LibraryModel, import_library, quiet_logging, seeded

EXTRA = "timm"
WEIGHTS = "pytorch_model.bin"  # the name if timm's configuration of the model has none


def hub_weights(name: str) -> HubWeights | None:
    """The file of a model's weights on the hub, None for a directory; raises EncoderError or MissingExtra."""
    if Path(name).is_dir():
        return None
    config = _pretrained_config(name)
    if not config.hf_hub_id:
        raise EncoderError(f"timm has no weights of {name} on the hub; name a directory with config.json and weights")
    return HubWeights.preferring_safetensors(config.hf_hub_id, config.hf_hub_filename or WEIGHTS)


def load(name: str, seed: int | None) -> LibraryModel:
    """Load a model whose weights are on this machine, or with random weights; raises EncoderError or MissingExtra."""
    timm = import_library("timm", EXTRA)
    overlay: dict[str, str] = {}
    if Path(name).is_dir():
        name = str(Path(name).resolve())
        source, (architecture, arguments) = f"local-dir:{name}", _saved_architecture(Path(name))
    else:
        _pretrained_config(name)
        source, architecture, arguments = name, name.partition(".")[0], ""
        if seed is None and (files := hub_weights(name)):
            overlay = {"file": str(files.cached())}
    if "naflex" in architecture:
        raise EncoderError(
            f"{architecture} takes images of any aspect ratio as sequences of patches, which is not supported; use a "
            f"model of one size, such as timm:vit_base_patch16_siglip_224.v2_webli"
        )
    with quiet_logging(), seeded(seed):
        # with its classifier, so that timm compares the names of all weights; without, it would accept missing ones
        model = timm.create_model(source, pretrained=seed is None, pretrained_cfg_overlay=overlay).eval()
    model.reset_classifier(0)
    full_name = f"{TIMM}{name}" if seed is None else with_random_weights(f"{TIMM}{name}", seed)
    preprocess = preprocess_of(timm.data.resolve_model_data_config(model))
    state: dict[str, torch.Tensor] = model.state_dict()
    return LibraryModel(full_name, f"{TIMM}{architecture}{arguments}", model.requires_grad_(False), preprocess, state)


def preprocess_of(config: Mapping[str, Any]) -> Preprocess:
    """Return the evaluation transform of a timm data configuration; raises EncoderError if it is not supported.

    >>> sizes = {"input_size": (3, 224, 224), "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic"}
    >>> preprocess = preprocess_of({**sizes, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})
    >>> preprocess.short, preprocess.crop
    (256, 224)
    """
    height, width = config["input_size"][1:]
    share, mode, filter_ = config["crop_pct"], config["crop_mode"], config["interpolation"]
    scaled = [math.floor(side / share) for side in (height, width)]
    squash = mode == "squash"
    if filter_ not in FILTERS.values() or share > 1 or not (squash or (mode == "center" and height == width)):
        raise EncoderError(
            f"timm's preprocessing of the model is not supported: input_size {config['input_size']}, crop_pct {share}, "
            f"crop_mode {mode}, interpolation {filter_}; supported are squash, and center for squares, with a crop_pct "
            f"up to 1 and Pillow's filters {', '.join(FILTERS.values())}"
        )
    cropped = not squash or share < 1
    return Preprocess(
        height=scaled[0] if squash else 0,
        width=scaled[1] if squash else 0,
        short=0 if squash else scaled[0],
        crop=height if cropped else 0,
        crop_width=width if cropped and width != height else 0,
        filter=filter_,
        scale=1 / 255,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        half_even=cropped,
    )


def _saved_architecture(folder: Path) -> tuple[str, str]:
    """Architecture in a directory's config.json, and its arguments as JSON, "" without any; raises EncoderError."""
    try:
        config = json.loads(read_text(folder / "config.json"))
        architecture, arguments = str(config["architecture"]), config.get("model_args")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise EncoderError(f"{folder / 'config.json'} is no configuration of timm: {type(e).__name__}: {e}") from e
    return architecture, json.dumps(arguments, sort_keys=True) if arguments else ""


def _pretrained_config(name: str) -> Any:
    """timm's configuration of a model; raises EncoderError if there is none."""
    timm = import_library("timm", EXTRA)
    config = timm.get_pretrained_cfg(name, allow_unregistered=False) if _is_known(timm, name) else None
    if config is None:
        raise EncoderError(
            f"timm {timm.__version__} has no model {name}, and there is no such directory; `timm.list_models()` and "
            f"`timm.list_pretrained()` have the names"
        )
    return config


def _is_known(timm: Any, name: str) -> bool:
    architecture, _, tag = name.partition(".")
    return timm.is_model(architecture) and (not tag or name in timm.list_pretrained(f"{architecture}.*"))
