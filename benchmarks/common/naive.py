"""Naive reference script: Pillow, CLIPImageProcessor and CLIPModel in a loop. It shares no code with the indexer.

    python -m clipfake.benchmarks.common.naive --images ../shared/data/minifact/* \\
        --encoder ../shared/encoders/clip-vit-base-patch32-untrained --untrained --limit 64
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ...indexer.encoders.encoder_name import model_id_of, seed_of
from ...indexer.encoders.load import device_names
from ...indexer.encoders.torch_encoder import choose_device
from . import command

BATCH = 32


def load_naive(name: str, device: str = "auto") -> Callable[[Sequence[Path]], npt.NDArray[np.float32]]:
    """A function from image paths to (n, dim) float32 unit vectors.

    Parameters
    ----------
    name : hub id or directory of a CLIP, as for `load_encoder`
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    torch_device = choose_device(device_names(device)[0])
    seed, (name, _) = seed_of(name), model_id_of(name)
    if seed is not None:
        torch.manual_seed(seed)
        model = transformers.CLIPModel(transformers.CLIPConfig.from_pretrained(name))
    else:
        model = transformers.CLIPModel.from_pretrained(name)
    model = model.eval().to(torch_device)
    processor = transformers.CLIPImageProcessor.from_pretrained(name)

    def embed(paths: Sequence[Path]) -> npt.NDArray[np.float32]:
        vectors = []
        for first in range(0, len(paths), BATCH):
            images = [Image.open(path).convert("RGB") for path in paths[first : first + BATCH]]
            inputs = processor(images=images, return_tensors="pt").to(torch_device)
            with torch.no_grad():
                features = model.get_image_features(**inputs)
            features = getattr(features, "pooler_output", features)  # transformers 5 wraps it
            vectors.append((features / features.norm(dim=-1, keepdim=True)).cpu().numpy())
        return np.concatenate(vectors)

    return embed


def run(
    images: Sequence[str | Path],
    encoder: str,
    *,
    limit: int | None = 256,
    repeats: int = 3,
    threads: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Images per second of the naive script, median of `repeats`."""
    if threads:
        torch.set_num_threads(threads)
    paths = command.image_paths(images, limit)
    embed = load_naive(encoder, device)
    embed(paths[:2])
    rates = []
    for _ in range(repeats):
        began = time.perf_counter()
        embed(paths)
        rates.append(len(paths) / (time.perf_counter() - began))
    return {"images": len(paths), "threads": torch.get_num_threads(), "images_per_second": float(np.median(rates))}


if __name__ == "__main__":
    command.main(run, "Images per second of the naive script.")
