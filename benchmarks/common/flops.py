"""Floating-point operations of an embedding, and the measured matrix rate of a device.

The share of the matrix rate that an encoder reaches carries over to other devices; images per second do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ...indexer.encoders.clip_vision import VisionConfig

GPU_MATRIX_SIDE = 8192  # side of the square matrices on a GPU
CPU_MATRIX_SIDE = 2048  # side of the square matrices on a CPU


def flops_per_image(shape: VisionConfig, *, whole: bool = False) -> float:
    """Floating-point operations of CLIP's vision model for one image; a multiply-add counts as two.

    Matrix products only; everything else is less than 1%.

    Parameters
    ----------
    whole : compute the last layer for all tokens, as `transformers` does; otherwise for the class token only, as
        `ClipVision` does

    Examples
    --------
    >>> round(flops_per_image(VisionConfig(), whole=True) / 1e9, 2)  # ViT-B/32
    8.82
    """
    width, tokens = shape.width, shape.patches + 1

    def layer(queries: int) -> float:
        projections: float = 2 * width * width * (2 * queries + 2 * tokens)  # query and output; key and value
        attention: float = 2 * 2 * queries * tokens * width
        mlp: float = 2 * 2 * queries * width * shape.hidden
        return projections + attention + mlp

    embedding = 2 * shape.patches * shape.channels * shape.patch**2 * width
    last = layer(tokens if whole else 1)
    return float(embedding + (shape.layers - 1) * layer(tokens) + last + 2 * width * shape.dim)


def matrix_rate(device: str, dtype: torch.dtype, side: int = 0, *, rounds: int = 10) -> float:
    """Rate of square matrix products in 10¹² operations per second, the best of several rounds.

    On a CPU it is measured in core time, which other programs do not affect.
    """
    cuda = device.startswith("cuda")
    side = side or (GPU_MATRIX_SIDE if cuda else CPU_MATRIX_SIDE)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    products = 10 if cuda else 1

    def multiply() -> None:
        for _ in range(products):
            a @ b

    best = min(measure_seconds(multiply, device) for _ in range(rounds + 1))
    return products * 2 * side**3 / best / 1e12


def measure_seconds(call: Callable[[], object], device: str) -> float:
    """Duration of a call in seconds: wall-clock time until a GPU has finished, core time on a CPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        return time.perf_counter() - began
    began = time.process_time()
    call()
    return max(time.process_time() - began, 1e-9)
