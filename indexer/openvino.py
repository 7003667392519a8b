"""The image tower in OpenVINO: the same float32 embeddings from a CPU, faster. Needs the extra `cpu`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..store.errors import EncoderError, MissingExtra
from .encoder import Embeddings, TransformerEncoder, unit
from .image import Pixels


class OpenVinoEncoder:
    """An encoder whose images go through OpenVINO and whose words go through torch."""

    def __init__(self, plain: TransformerEncoder, precision: str = "auto") -> None:
        self._plain = plain
        self.space, self.has_text = plain.space, plain.has_text
        self._run = _compiled(plain, precision)

    def shrink(self, pixels: Pixels) -> Pixels:
        return self._plain.shrink(pixels)

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        pixels = self._plain.preprocess(images, self._plain.device, torch.float32).numpy()
        return unit(np.asarray(self._run(pixels)[0], np.float32))

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        return self._plain.encode_texts(texts)


class _Features(torch.nn.Module):
    """Pixels to features as one module, for the converter to trace."""

    def __init__(self, plain: TransformerEncoder) -> None:
        super().__init__()
        self.model = plain.model
        self._plain = plain

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._plain.features_of(pixels)


def _compiled(plain: TransformerEncoder, precision: str) -> Any:
    try:
        import openvino
    except ImportError as e:
        raise MissingExtra("--device openvino", "cpu") from e
    core = openvino.Core()
    told = {"auto": "f32", "float32": "f32", "bf16": "bf16"}.get(precision)
    if told is None:
        raise EncoderError(f"OpenVINO runs the tower in float32 or bf16, not {precision}")
    if told == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise EncoderError("this CPU has no bf16 instructions, OpenVINO would use float32; name --precision float32")
    example = plain.preprocess([np.zeros((64, 64, 3), np.uint8)], plain.device, torch.float32)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how the converter traces the model: its business
        model = openvino.convert_model(_Features(plain).eval(), example_input=example, input=[-1, *example.shape[1:]])
    # as many threads as torch was told to use; one stream, since batches come one after another
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1}
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": told, **threads})
