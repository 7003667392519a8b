"""Do our embeddings agree with CLIPImageProcessor + CLIPModel in float32? Cosines over all the images given.

With random weights all images lie in one corner (cosine 0.96 between different ones), so the cosine after the mean is
taken off is printed as well: that is the honest one.

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
    """Smallest and mean cosine for each precision, plain and centred."""
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
    """Cosines of corresponding rows, plain and after the reference's mean is taken off both."""
    plain = cosines(ours, reference)
    centred = cosines(ours - reference.mean(0), reference - reference.mean(0))
    return {
        "cosine_min": float(plain.min()),
        "cosine_mean": float(plain.mean()),
        "centred_cosine_min": float(centred.min()),
        "centred_cosine_mean": float(centred.mean()),
    }


def cosines(a: Rows, b: Rows) -> Rows:
    """(n,) cosine of each row of a with the row of b at its place."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(1) / lengths, np.float32)


if __name__ == "__main__":
    command.main(run, __doc__ or "", precisions="float32,bf16,fp16")
