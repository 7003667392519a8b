"""Agreement of the embeddings with CLIPImageProcessor + CLIPModel in float32: cosines over all images.

With random weights even different images have a cosine of 0.96, so the cosine after subtracting the mean is printed
too: it is the meaningful one.

    python -m clipfake.benchmarks.parity --images ../shared/data/minifact/* \\
        --encoder ../shared/encoders/clip-vit-base-patch32-untrained --untrained --limit 256
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..indexer.embedding import embed_images
from ..indexer.encoders.load import load_encoder
from .common import command
from .common.naive import load_naive

Rows = npt.NDArray[np.float32]  # (n, dim)


def run(
    images: Sequence[str | Path],
    encoder: str,
    *,
    precision: str = "float32,bf16,fp16",
    limit: int | None = 256,
    repeats: int = 1,
    threads: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Smallest and mean cosine for each precision, plain and centred on the mean."""
    if threads:
        torch.set_num_threads(threads)
    paths = command.image_paths(images, limit)
    reference = load_naive(encoder, device)(paths)
    result: dict[str, Any] = {"images": len(paths), "encoder": encoder, "cpu": torch.backends.cpu.get_cpu_capability()}
    for name in precision.split(","):
        ours = load_encoder(encoder, device=device, precision=name)
        vectors = np.array([image.vector for image in embed_images(ours, paths) if image.vector is not None])
        result[name] = agreement(vectors, reference)
    return result


def agreement(ours: Rows, reference: Rows) -> dict[str, float]:
    """Cosines of corresponding rows, plain and after subtracting the mean of the reference from both."""
    plain = cosines(ours, reference)
    centred = cosines(ours - reference.mean(0), reference - reference.mean(0))
    return {
        "cosine_min": float(plain.min()),
        "cosine_mean": float(plain.mean()),
        "centred_cosine_min": float(centred.min()),
        "centred_cosine_mean": float(centred.mean()),
    }


def cosines(a: Rows, b: Rows) -> Rows:
    """(n,) cosines of corresponding rows of `a` and `b`, both (n, dim)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(1) / lengths, np.float32)


if __name__ == "__main__":
    command.main(run, __doc__ or "", precisions="float32,bf16,fp16")
