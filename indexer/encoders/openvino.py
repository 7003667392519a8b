"""Vision model in OpenVINO: faster on a CPU, with the same float32 embeddings. Needs the extra `cpu`."""

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
from .base import Embeddings, Encoder, Features, unit
from .torch_encoder import TorchEncoder

BATCH_SIZE = 8  # images; larger batches are no faster on a CPU
INT8 = "int8"  # value of --precision
OPTIONS: dict[str, dict[str, Any]] = {
    "float32": {"INFERENCE_PRECISION_HINT": "f32"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    INT8: dict(int8.OPTIONS),
}


class OpenVinoEncoder(Encoder):
    """Encodes images in OpenVINO and texts in torch."""

    def __init__(self, torch_encoder: TorchEncoder, precision: str = "auto") -> None:
        self.torch_encoder, self.precision = torch_encoder, precision
        self._space = int8_space(torch_encoder.space) if precision == INT8 else torch_encoder.space
        self.has_text = torch_encoder.has_text
        self._compile, self._width = _compiler(torch_encoder, precision)
        self._queues: dict[int, Any] = {}  # batch size -> queue of the vision model compiled for it

    def shrink(self, pixels: Pixels) -> Pixels:
        return self.torch_encoder.shrink(pixels)

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        return unit(self.features(images))

    def features(self, images: Sequence[Pixels]) -> Features:
        """Compute the (n, width) features of n images, not normalised."""
        pixels = self.torch_encoder.preprocess(images, self.torch_encoder.device, torch.float32).numpy()
        features = np.empty((len(pixels), self._width), np.float32)
        full = len(pixels) // BATCH_SIZE * BATCH_SIZE
        self._run(BATCH_SIZE, pixels[:full], features[:full])
        self._run(1, pixels[full:], features[full:])
        return features

    def _run(self, size: int, pixels: Any, features: Any) -> None:
        """Fill `features` in batches of `size` images, one batch per core at a time."""
        if not len(pixels):
            return
        if size not in self._queues:
            self._queues[size] = self._compile(size)
        queue = self._queues[size]

        def store_output(request: Any, first: int) -> None:
            features[first : first + size] = request.get_output_tensor(0).data

        queue.set_callback(store_output)
        for first in range(0, len(pixels), size):
            queue.start_async([pixels[first : first + size]], first)
        queue.wait_all()

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        return self.torch_encoder.encode_texts(texts)


def int8_space(space: Space) -> Space:
    """Return the space of the encoder in int8: its vectors are close to the float32 ones but must not be mixed."""
    digest = hashlib.sha256(f"{int8.SCHEME}: {space.fingerprint}".encode())
    return Space(f"{encoder_name.INT8}{space.encoder}", digest.hexdigest(), space.dim)


def _compiler(torch_encoder: TorchEncoder, precision: str) -> tuple[Callable[[int], Any], int]:
    """Return a function from a batch size to a queue of inference requests of that size, and the features' length."""
    try:
        import openvino
    except ImportError as e:
        raise MissingExtra("--device openvino", "cpu") from e
    core = openvino.Core()
    precision = "float32" if precision == "auto" else precision
    if precision not in OPTIONS:
        raise EncoderError(f"OpenVINO supports --precision {', '.join(OPTIONS)}, not {precision}")
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise EncoderError("this CPU has no bf16 instructions, so OpenVINO would use float32; use --precision float32")
    if torch_encoder.preprocess.fixed_size is None:
        raise EncoderError(
            f"the preprocessing of {torch_encoder.space.encoder} gives images of different sizes, and --device "
            f"openvino needs one size; use --device cpu"
        )
    example = torch_encoder.preprocess([np.zeros((64, 64, 3), np.uint8)], torch_encoder.device, torch.float32)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing the model warns about internals of the converter
        traced = openvino.convert_model(
            torch_encoder.vision_model, example_input=example, input=[-1, *example.shape[1:]]
        )
    if precision == INT8 and not int8.quantise_graph(traced):
        raise EncoderError(
            f"{torch_encoder.space.encoder} has no matrix products to run in int8; use --precision float32"
        )
    threads = torch.get_num_threads()  # respects `torch.set_num_threads`

    def compile_for(size: int) -> Any:
        model = traced.clone()
        model.reshape([size, *example.shape[1:]])  # a fixed batch size is a fifth faster than a dynamic one
        properties = {**OPTIONS[precision], "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": threads}
        return openvino.AsyncInferQueue(core.compile_model(model, "CPU", properties), threads)

    return compile_for, int(traced.output(0).partial_shape[1].get_length())
