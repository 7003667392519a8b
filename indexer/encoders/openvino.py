"""The image tower in OpenVINO: the same float32 embeddings from a CPU, or faster ones. Needs the extra `cpu`."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ...errors import EncoderError, MissingExtra
from ...store.space import Space
from ..decoding.image import Pixels
from . import encoder_name, int8
from .base import Embeddings, Encoder, unit
from .torch_encoder import TorchEncoder

TOGETHER = 8  # images; more bring nothing on a CPU
INT8 = "int8"  # as a --precision
OPTIONS: dict[str, dict[str, Any]] = {
    "float32": {"INFERENCE_PRECISION_HINT": "f32"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    INT8: dict(int8.OPTIONS),
}


class OpenVinoEncoder(Encoder):
    """An encoder whose images go through OpenVINO and whose words go through torch."""

    def __init__(self, plain: TorchEncoder, precision: str = "auto") -> None:
        self._plain = plain
        self._space = space_in_8_bits(plain.space) if precision == INT8 else plain.space
        self.has_text = plain.has_text
        self._compile = _compiler(plain, precision)
        self._queues: dict[int, Any] = {}  # images at once -> the tower compiled for just as many

    def shrink(self, pixels: Pixels) -> Pixels:
        return self._plain.shrink(pixels)

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        pixels = self._plain.preprocess(images, self._plain.device, torch.float32).numpy()
        features = np.empty((len(pixels), self.space.dim), np.float32)
        whole = len(pixels) // TOGETHER * TOGETHER
        self._run(TOGETHER, pixels[:whole], features[:whole])
        self._run(1, pixels[whole:], features[whole:])
        return unit(features)

    def _run(self, size: int, pixels: Any, features: Any) -> None:
        """Fill `features`, so many images at once, one such batch a core."""
        if not len(pixels):
            return
        if size not in self._queues:
            self._queues[size] = self._compile(size)
        queue = self._queues[size]

        def keep(request: Any, first: int) -> None:
            features[first : first + size] = request.get_output_tensor(0).data

        queue.set_callback(keep)
        for first in range(0, len(pixels), size):
            queue.start_async([pixels[first : first + size]], first)
        queue.wait_all()

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        return self._plain.encode_texts(texts)


def space_in_8_bits(space: Space) -> Space:
    """The space of the same encoder in 8 bits: near, but not to be mixed with it."""
    digest = hashlib.sha256(f"{int8.SCHEME}: {space.fingerprint}".encode())
    return Space(f"{encoder_name.INT8}{space.encoder}", digest.hexdigest(), space.dim)


def _compiler(plain: TorchEncoder, precision: str) -> Callable[[int], Any]:
    """Return a function from a batch size to a queue of inference requests of that size."""
    try:
        import openvino
    except ImportError as e:
        raise MissingExtra("--device openvino", "cpu") from e
    core = openvino.Core()
    precision = "float32" if precision == "auto" else precision
    if precision not in OPTIONS:
        raise EncoderError(f"OpenVINO runs the tower in {', '.join(OPTIONS)}, not {precision}")
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise EncoderError("this CPU has no bf16 instructions, OpenVINO would use float32; name --precision float32")
    example = plain.preprocess([np.zeros((64, 64, 3), np.uint8)], plain.device, torch.float32)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how the converter traces the model: its business
        traced = openvino.convert_model(plain.tower, example_input=example, input=[-1, *example.shape[1:]])
    if precision == INT8 and not int8.quantise(traced):
        raise EncoderError(f"{plain.space.encoder} has no products to run in int8; name --precision float32")
    threads = torch.get_num_threads()  # as many as torch was told to use

    def compiled(size: int) -> Any:
        model = traced.clone()
        model.reshape([size, *example.shape[1:]])  # a fixed size is a fifth faster than an open one
        properties = {**OPTIONS[precision], "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": threads}
        return openvino.AsyncInferQueue(core.compile_model(model, "CPU", properties), threads)

    return compiled
