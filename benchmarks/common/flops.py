"""How much arithmetic an embedding is, from the encoder's configuration, and how much this machine can do.

A share of the machine's own matrix rate tells more of an encoder than images a second: it holds on the next card too.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ...indexer.encoders.clip_vision import VisionConfig

MATRIX = 8192  # side of the square matrices that tell what a card does
SMALL = 2048  # and a CPU


def flops_per_image(shape: VisionConfig, *, whole: bool = False) -> float:
    """Floating-point operations of CLIP's image tower for one image; a multiplication and an addition are two.

    Products only: what is beside them is less than a hundredth.

    Parameters
    ----------
    whole : as `transformers` does it; else as `ClipTower` does it, the last layer for the class token alone

    Examples
    --------
    >>> round(flops_per_image(Shape(), whole=True) / 1e9, 2)  # ViT-B/32
    8.82
    """
    width, tokens = shape.width, shape.patches + 1

    def layer(asking: int) -> float:
        projections: float = 2 * width * width * (2 * asking + 2 * tokens)  # query and output; key and value
        attention: float = 2 * 2 * asking * tokens * width
        mlp: float = 2 * 2 * asking * width * shape.hidden
        return projections + attention + mlp

    embedding = 2 * shape.patches * shape.channels * shape.patch**2 * width
    last = layer(tokens if whole else 1)
    return float(embedding + (shape.layers - 1) * layer(tokens) + last + 2 * width * shape.dim)


def matrix_rate(device: str, dtype: torch.dtype, side: int = 0, *, rounds: int = 10) -> float:
    """What the device does in products of square matrices, in 10¹² operations a second: the best of some rounds.

    On a CPU by core time, so that other programs do not count.
    """
    cuda = device.startswith("cuda")
    side = side or (MATRIX if cuda else SMALL)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    products = 10 if cuda else 1

    def some() -> None:
        for _ in range(products):
            a @ b

    best = min(seconds(some, device) for _ in range(rounds + 1))
    return products * 2 * side**3 / best / 1e12


def seconds(do: Callable[[], object], device: str) -> float:
    """How long it takes: on a card by the clock until it has finished, on a CPU in core time."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        do()
        torch.cuda.synchronize(device)
        return time.perf_counter() - began
    began = time.process_time()
    do()
    return max(time.process_time() - began, 1e-9)
