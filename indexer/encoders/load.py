"""Load an encoder by name, from a directory or the hub, for the requested devices and precision."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...errors import EncoderError, MissingExtra
from ...store.space import Space
from .base import Encoder, PlainEncoder, Replicas
from .checkpoint import Checkpoint, Weights, fingerprint_of, open_checkpoint, require_finite
from .clip_vision import ClipVision, VisionConfig
from .depth import load_depth_encoder
from .encoder_name import DEPTH, INT8, PLAIN, code_of, load_error, model_id_of, seed_of, with_random_weights
from .external.library import is_library_model, load_library_model
from .external.own_encoder import load_own_encoder
from .hub import ensure_available, offline
from .openvino import OpenVinoEncoder
from .preprocess import Preprocess
from .text_encoder import TextEncoder
from .torch_encoder import TorchEncoder, choose_device, choose_dtype
from .vision_backbone import (
    VisionBackbone,
    architecture_of,
    has_text_model,
    kind_of,
    load_model,
    load_text_model,
    probe,
    random_model,
)

OPENVINO = "openvino"  # value of --device
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # options of mallopt in malloc.h


def load_encoder(name: str, *, device: str = "auto", precision: str = "auto", trusted: bool = True) -> Encoder:
    """Load an encoder by hub id or local directory.

    "timm:NAME" and "open_clip:MODEL/PRETRAINED" are models of these libraries, "module:function" and "file.py:function"
    encoders that a function of the user's makes. "untrained:0:NAME" is NAME with random weights of seed 0, "depth:NAME"
    a depth model and "int8:NAME" is NAME in OpenVINO with 8-bit products.

    Parameters
    ----------
    device : "auto", "cuda", "cuda:1", "mps", "cpu", several ("cuda:0,cuda:1", "all" GPUs) or "openvino"
        OpenVINO runs the vision model on the CPU, faster than torch; it needs the extra `cpu`.
    precision : "auto" (float32 on a CPU, bf16 or fp16 on a GPU), "float32", "bf16", "fp16", or with OpenVINO "int8"
        int8 vectors form a separate space, "int8:NAME", and are never mixed with others in a store.
    trusted : download an encoder that is not on this machine and run the code that a name gives; set it to False for a
        name from a file of someone else

    Raises
    ------
    EncoderError
        The encoder is missing and is not or cannot be downloaded, or is not a vision model. Or it is code that must not
        be run, or fails.
    MissingExtra
        OpenVINO, timm or open_clip is needed but not installed.
    """
    if name == PLAIN:
        return PlainEncoder()
    if name.startswith(DEPTH):
        ensure_available(name, trusted=trusted)
        with offline():
            return load_depth_encoder(name, device="cpu" if device == OPENVINO else device)
    name, device, precision = resolve_int8(name, device, precision)
    if code_of(name):
        if (device, precision) != ("auto", "auto"):
            raise EncoderError(
                f"{name} chooses device and precision itself, not --device {device} --precision {precision}; leave "
                f"both options out"
            )
        ensure_available(name, trusted=trusted)
        return load_own_encoder(name)
    first, *others = [choose_device(device_name) for device_name in device_names(device)]
    torch_precision = "float32" if device == OPENVINO else precision
    choose_dtype(torch_precision, first)  # report an unknown precision before blaming the encoder
    ensure_available(name, trusted=trusted)
    if first.type == "cpu":
        keep_memory()
    load = _load_from_library if is_library_model(model_id_of(name)[0]) else _load
    with offline():
        encoder = load(name, first, torch_precision)
    if device == OPENVINO:
        return OpenVinoEncoder(encoder, precision)
    replicas = [encoder, *(encoder.copy_to(other) for other in others)]
    for replica in replicas:
        replica.use_onednn_linear()
    return Replicas(replicas) if others else encoder


def resolve_int8(name: str, device: str, precision: str) -> tuple[str, str, str]:
    """Return name, device and precision with an "int8:" prefix of the name resolved; only OpenVINO supports int8.

    >>> resolve_int8("int8:clip", "auto", "auto"), resolve_int8("clip", "auto", "bf16")
    (('clip', 'openvino', 'int8'), ('clip', 'auto', 'bf16'))
    """
    if not name.startswith(INT8):
        if precision == "int8" and device != OPENVINO:
            raise EncoderError(f"int8 needs OpenVINO, not --device {device}; use --device openvino")
        return name, device, precision
    if device not in ("auto", "cpu", OPENVINO) or precision not in ("auto", "int8"):
        raise EncoderError(
            f"{name} needs OpenVINO on a CPU in int8, not --device {device} --precision {precision}; "
            f"leave both options out"
        )
    return name.removeprefix(INT8), OPENVINO, "int8"


def keep_memory() -> None:
    """Make glibc keep freed memory, since allocating each layer's memory anew can take longer than the layer.

    Without glibc, this does nothing.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the maximum glibc allows
        libc.mallopt(M_TRIM_THRESHOLD, 256 * 2**20)


def device_names(device: str) -> list[str]:
    """Return the devices in a value of --device.

    >>> device_names("cuda:0,cuda:1"), device_names("openvino")
    (['cuda:0', 'cuda:1'], ['cpu'])
    """
    if device == OPENVINO:
        return ["cpu"]
    if device == "all":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["auto"]
    return [name.strip() for name in device.split(",")]


def _load(name: str, device: torch.device, precision: str) -> TorchEncoder:
    """Load a checkpoint of `transformers`; raises EncoderError or MissingExtra."""
    try:
        return _load_checkpoint(name, device, precision)
    except MissingExtra:
        raise
    except Exception as e:  # transformers validates little of an untrusted config.json
        raise load_error(f"the encoder {name}", e) from e


def _load_checkpoint(name: str, device: torch.device, precision: str) -> TorchEncoder:
    model_id, trained = model_id_of(name)
    seed = seed_of(name)
    checkpoint = open_checkpoint(model_id, weights=trained)
    if Path(model_id).is_dir():
        model_id = str(checkpoint.folder)
    kind = kind_of(checkpoint.config)
    load: Callable[[Path], Any] = partial(load_model, kind=kind)
    if seed is not None:
        load = partial(random_model, kind=kind, seed=seed)
    vision_model: torch.nn.Module
    is_clip = checkpoint.config.get("model_type") == "clip" or kind == "CLIPVisionModelWithProjection"
    if is_clip:
        config = VisionConfig.from_config(checkpoint.config)
        read_directly = seed is None and checkpoint.has_safetensors
        weights = checkpoint.weights() if read_directly else load(checkpoint.folder).state_dict()
        _require_side(checkpoint, config)
        vision_model, dim = ClipVision.from_weights(config, weights, _other_class(checkpoint)), config.dim
        has_text = any(name.startswith("text_model.") for name in weights)
    else:
        model = load(checkpoint.folder).eval()
        weights, vision_model = model.state_dict(), VisionBackbone(model)
        require_finite(weights, checkpoint.folder)
        has_text = has_text_model(model)
        dim = probe(vision_model, checkpoint.preprocess)
    text_encoder = None
    if has_text and checkpoint.has_tokenizer:
        text_encoder = TextEncoder(partial(load_text_model, checkpoint.folder, load))
    full_name = model_id if seed is None else with_random_weights(model_id, seed)
    pooling = vision_model.pooling if isinstance(vision_model, VisionBackbone) else ""
    space = _hashed_space(full_name, weights, checkpoint.preprocess, pooling, dim)
    if is_clip and seed is None:
        require_finite(weights, checkpoint.folder)  # while they are hashed
        probe(vision_model, checkpoint.preprocess)
    return TorchEncoder(
        space, vision_model, checkpoint.preprocess, text_encoder, device, choose_dtype(precision, device, clip=is_clip)
    )


def _load_from_library(name: str, device: torch.device, precision: str) -> TorchEncoder:
    """Load a model of timm or open_clip; raises EncoderError or MissingExtra."""
    model = load_library_model(model_id_of(name)[0], seed_of(name))
    require_finite(model.weights, model.name)
    dim = probe(model.vision_model, model.preprocess)
    space = _hashed_space(model.name, model.weights, model.preprocess, model.architecture, dim)
    dtype = choose_dtype(precision, device)
    return TorchEncoder(space, model.vision_model, model.preprocess, model.text_encoder, device, dtype)


def _hashed_space(name: str, weights: Weights, preprocess: Preprocess, model: str, dim: int) -> Future[Space]:
    """Hash the weights in a thread, while they are moved to the device; `model` says what else determines vectors."""
    hashing = ThreadPoolExecutor(1)
    space = hashing.submit(lambda: Space(name, fingerprint_of(weights, preprocess, model), dim))
    hashing.shutdown(wait=False)
    return space


def _other_class(checkpoint: Checkpoint) -> str:
    """Return the class that a checkpoint of CLIP was saved from, or "" if it is one with image features."""
    architecture = architecture_of(checkpoint.config)
    return "" if architecture in ("CLIPModel", "CLIPVisionModelWithProjection") else architecture


def _require_side(checkpoint: Checkpoint, config: VisionConfig) -> None:
    """Raise EncoderError if the preprocessed images have another size than the model expects."""
    size = checkpoint.preprocess.fixed_size
    if size != (config.side, config.side):
        found = f"{size[0]} x {size[1]} pixels" if size else "a size that depends on the image"
        raise EncoderError(
            f"{checkpoint.folder}: the preprocessing gives images of {found}, but config.json has an image_size of "
            f"{config.side}; correct one of them"
        )
