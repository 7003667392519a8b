"""An encoder by its name: from a directory or the hub, on the devices and in the precision that were asked for."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import EncoderError, MissingExtra
from ...store.space import Space
from .base import Encoder, PlainEncoder, Replicas
from .checkpoint import Checkpoint, fingerprint_of, open_checkpoint
from .clip_vision import ClipVision, VisionConfig
from .depth import load_depth_encoder
from .encoder_name import DEPTH, INT8, PLAIN, cannot_load, place_of, seed_of, with_random_weights
from .openvino import OpenVinoEncoder
from .preprocess import Preprocess
from .text_encoder import TextEncoder
from .torch_encoder import TorchEncoder, choose_device, choose_dtype
from .vision_backbone import VisionBackbone, load_model, random_model, words_of

OPENVINO = "openvino"  # as a --device
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of malloc.h


def load_encoder(name: str, *, device: str = "auto", precision: str = "auto") -> Encoder:
    """An encoder by hub id or local directory; "untrained:0:NAME" for NAME with random weights of seed 0,
    "depth:NAME" for a depth model, "int8:NAME" for NAME in OpenVINO with 8-bit products.

    Parameters
    ----------
    device : "auto", "cuda", "cuda:1", "mps", "cpu", several ("cuda:0,cuda:1", "all" GPUs) or "openvino"
        OpenVINO runs the image tower on the CPU, faster than torch; it needs the extra `cpu`.
    precision : "auto" (float32 on a CPU, bf16 or fp16 on a GPU), "float32", "bf16", "fp16", or with OpenVINO "int8"
        int8 vectors are a space of their own, "int8:NAME": a store of them is never mixed with another.

    Raises
    ------
    EncoderError
        It is not there (and cannot be fetched), or is no vision model.
    MissingExtra
        OpenVINO is asked for and not installed.
    """
    if name == PLAIN:
        return PlainEncoder()
    if name.startswith(DEPTH):
        return load_depth_encoder(name, device="cpu" if device == OPENVINO else device)
    name, device, precision = in_8_bits(name, device, precision)
    first, *others = [choose_device(device_name) for device_name in device_names(device)]
    torch_precision = "float32" if device == OPENVINO else precision
    choose_dtype(torch_precision, first)  # an unknown precision is not the encoder's fault
    if first.type == "cpu":
        keep_memory()
    try:
        encoder = _load(name, first, torch_precision)
    except MissingExtra:
        raise
    except Exception as e:  # transformers checks little of a stranger's config.json
        raise cannot_load(f"the encoder {name}", e) from e
    if device == OPENVINO:
        return OpenVinoEncoder(encoder, precision)
    replicas = [encoder, *(encoder.on(other) for other in others)]
    for replica in replicas:
        replica.use_onednn_linear()
    return Replicas(replicas) if others else encoder


def in_8_bits(name: str, device: str, precision: str) -> tuple[str, str, str]:
    """Name, device and precision, where the first or the last may ask for int8, which OpenVINO alone can do.

    >>> in_8_bits("int8:here", "auto", "auto"), in_8_bits("here", "auto", "bf16")
    (('here', 'openvino', 'int8'), ('here', 'auto', 'bf16'))
    """
    if not name.startswith(INT8):
        if precision == "int8" and device != OPENVINO:
            raise EncoderError(f"int8 runs in OpenVINO, not on {device}; add --device openvino")
        return name, device, precision
    if device not in ("auto", "cpu", OPENVINO) or precision not in ("auto", "int8"):
        raise EncoderError(f"{name} runs in OpenVINO on a CPU and in int8, not on {device} in {precision}")
    return name.removeprefix(INT8), OPENVINO, "int8"


def keep_memory() -> None:
    """Make glibc keep freed memory: returning each layer's memory and taking it anew can cost more than the layer.

    Elsewhere than on glibc nothing is changed.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most it takes
        libc.mallopt(M_TRIM_THRESHOLD, 256 * 2**20)
        libc.mallopt(M_ARENA_MAX, 1)  # other arenas hold 64 MiB at most, and the encoder runs in a thread of its own


def device_names(device: str) -> list[str]:
    """The devices of a --device.

    >>> device_names("cuda:0,cuda:1"), device_names("openvino")
    (['cuda:0', 'cuda:1'], ['cpu'])
    """
    if device == OPENVINO:
        return ["cpu"]
    if device == "all":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["auto"]
    return [name.strip() for name in device.split(",")]


def _load(name: str, device: torch.device, precision: str) -> TorchEncoder:
    place, trained = place_of(name)
    seed = seed_of(name)
    checkpoint = open_checkpoint(place, weights=trained)
    if Path(place).is_dir():
        place = str(checkpoint.folder)
    model: Callable[[Path], Any] = load_model if seed is None else partial(random_model, seed=seed)
    tower: torch.nn.Module
    is_clip = checkpoint.config.get("model_type") == "clip"
    if is_clip:
        shape = VisionConfig.from_config(checkpoint.config)
        own = seed is None and checkpoint.has_safetensors
        weights = checkpoint.weights() if own else model(checkpoint.folder).state_dict()
        tower, dim, two_towers = ClipVision.of(shape, weights), shape.dim, True
        _require_side(checkpoint, shape)
    else:
        whole = model(checkpoint.folder).eval()
        weights, tower, two_towers = whole.state_dict(), VisionBackbone(whole), hasattr(whole, "get_text_features")
        dim = _dim_of(tower, checkpoint.preprocess)
    words = (
        TextEncoder(partial(words_of, checkpoint.folder, model)) if two_towers and checkpoint.has_tokenizer else None
    )
    full = place if seed is None else with_random_weights(place, seed)
    hashing = ThreadPoolExecutor(1)
    space = hashing.submit(lambda: Space(full, fingerprint_of(weights, checkpoint.preprocess), dim))
    hashing.shutdown(wait=False)
    return TorchEncoder(
        space, tower, checkpoint.preprocess, words, device, choose_dtype(precision, device, clip=is_clip)
    )


def _require_side(checkpoint: Checkpoint, shape: VisionConfig) -> None:
    """Raise EncoderError where the preprocessing makes images of another side than the tower looks at."""
    preprocess = checkpoint.preprocess
    height, width = (
        (preprocess.crop, preprocess.crop)
        if preprocess.crop
        else (preprocess.height or preprocess.short, preprocess.width or preprocess.short)
    )
    if (height // shape.patch) * (width // shape.patch) != shape.patches:
        raise EncoderError(
            f"{checkpoint.folder}: the preprocessing makes images of {height} x {width}, config.json wants {shape.side}"
        )


@torch.inference_mode()
def _dim_of(tower: torch.nn.Module, preprocess: Preprocess) -> int:
    grey = preprocess([np.full((64, 64, 3), 128, np.uint8)], torch.device("cpu"), torch.float32)
    return int(tower(grey).shape[1])
