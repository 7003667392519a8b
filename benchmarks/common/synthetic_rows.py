"""Synthetic rows distributed like image embeddings: one cone, overlapping categories of unequal size, source shifts.

Nearest-neighbour indexes look far better on well-separated clusters than on real embeddings. Here the spectrum decays
slowly, clusters overlap, and rows of one source lie close together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ...store.records import FAKE, REAL, Block, Rows
from ...store.space import Space

SOURCES = 25
CATEGORIES = 400


def space(dim: int) -> Space:
    """The embedding space of the synthetic rows."""
    return Space("synthetic", "5e" * 32, dim)


def synthetic(rows: int, dim: int = 512, seed: int = 0, size: int = 16_384) -> Iterator[Block]:
    """Draw `rows` rows in blocks of `size`, of 10 real and 15 fake sources and 400 categories; reproducible by seed."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, dim + 1) ** -0.5
    mean = _directions(rng, 1, np.ones(dim))[0]
    shifts = _directions(rng, SOURCES, spectrum)
    centres = _directions(rng, CATEGORIES, spectrum)
    weights = 1 / np.arange(1, CATEGORIES + 1)
    for start in range(0, rows, size):
        n = min(size, rows - start)
        source = rng.integers(0, SOURCES, n)
        category = rng.choice(CATEGORIES, n, p=weights / weights.sum())
        offsets = _directions(rng, n, spectrum)
        vectors = mean + 0.35 * shifts[source] + 0.6 * centres[category] + 0.75 * offsets
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        sources = [f"source-{s:02d}" for s in source.tolist()]
        metadata = Rows.make(
            keys=[f"{s}/img/{i:09d}.jpg" for i, s in enumerate(sources, start)],
            labels=np.where(source < 10, REAL, FAKE),
            targets=np.where(source < 10, 0, 1),
            sources=sources,
            generators=["" if s < 10 else f"generator-{s:02d}" for s in source.tolist()],
            categories=[f"category-{c:03d}" for c in category.tolist()],
            paths=[f"/data/{s}/img/{i:09d}.jpg" for i, s in enumerate(sources, start)],
            digests=rng.integers(0, 256, (n, 16), dtype=np.uint8).view("V16").reshape(-1),
            bytes=rng.integers(4_000, 20_000, n),
            widths=np.full(n, 200),
            heights=np.full(n, 200),
            formats=["JPEG"] * n,
            qualities=rng.integers(65, 101, n),
        )
        yield Block(space(dim), metadata, vectors.astype(np.float32))


def _directions(rng: np.random.Generator, n: int, spectrum: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """(n, dim) float32 unit vectors, normal with the standard deviations `spectrum` before normalisation."""
    vectors = rng.standard_normal((n, len(spectrum)), dtype=np.float32) * spectrum.astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
