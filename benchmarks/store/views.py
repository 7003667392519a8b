"""Cost of views: time of an encoder pass and of indexing with them, as ratios of main alone, and bytes of a row.

Each view is measured beside main alone in interleaved repeats, on the same images.

    python -m clipfake.benchmarks.store.views --images ../shared/data/minifact/* \\
        --encoder ../shared/encoders/mobilenet-v1-imagenet
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...indexer.decoding.image import Pixels, decode
from ...indexer.encoders.base import Encoder
from ...indexer.encoders.load import load_encoder
from ...indexer.index import IndexOptions, index
from ...indexer.views.create import encoder_with_views
from ...store.named_vectors import FOLDER, create_view, open_named_vectors
from ...store.store import Store
from ..common import command

SETS = (("layers",), ("crops",), ("crops5",), ("raw",), ("tokens",), ("layers", "tokens"), ("layers", "crops"))


def run(
    images: Sequence[str | Path],
    encoder: str,
    *,
    limit: int | None = 256,
    repeats: int = 3,
    threads: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure main alone and each set of views.

    Returns for each set: `encode` and `index`, the median ratio of its time to that of main alone, and `row_bytes`.
    """
    if threads:
        torch.set_num_threads(threads)
    paths = command.image_paths(images, limit)
    pixels = [decode(path.read_bytes()).pixels for path in paths]
    main = load_encoder(encoder, device=device)
    result: dict[str, Any] = {
        "encoder": encoder,
        "images": len(paths),
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    with tempfile.TemporaryDirectory() as folder:
        for views in SETS:
            store = Store.create(Path(folder) / "-".join(views), main.space)
            index(list(images), store, main, IndexOptions(views=views, limit=limit, text=False))  # fits the views
            with_views = encoder_with_views(store, main, views)
            ratios = [_encode_seconds(with_views, pixels) / _encode_seconds(main, pixels) for _ in range(repeats)]
            pairs = [
                tuple(_index_seconds(store.folder, main, images, limit, of) for of in (views, ()))
                for _ in range(repeats)
            ]
            result["+".join(views)] = {
                "encode": round(statistics.median(ratios), 3),
                "index": round(statistics.median(some / alone for some, alone in pairs), 3),
                "row_bytes": sum(_vector_bytes(store.folder, view) for view in views) // len(store.snapshot()),
            }
        seconds = statistics.median(_encode_seconds(main, pixels) for _ in range(repeats))
        result["main"] = {"images_per_second": round(len(pixels) / seconds, 1), "row_bytes": 2 * main.space.dim}
    return result


def _encode_seconds(encoder: Encoder, pixels: Sequence[Pixels]) -> float:
    began = time.perf_counter()
    for start in range(0, len(pixels), 64):
        encoder.encode(pixels[start : start + 64])
    return time.perf_counter() - began


def _index_seconds(
    fitted: Path, encoder: Encoder, images: Sequence[str | Path], limit: int | None, views: Sequence[str]
) -> float:
    """Seconds of an indexing run into a new store, whose views are those that another store has fitted."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "s", encoder.space)
        for view in views:
            _copy_view(fitted, store.folder, view)
        began = time.perf_counter()
        index(list(images), store, encoder, IndexOptions(views=tuple(views), limit=limit, text=False))
        return time.perf_counter() - began


def _copy_view(fitted: Path, folder: Path, name: str) -> None:
    """Copy a view without its vectors."""
    column = open_named_vectors(fitted, name)
    assert column.view
    create_view(folder, name, column.space, column.view, column.parameters())


def _vector_bytes(folder: Path, name: str) -> int:
    return sum(path.stat().st_size for path in (folder / FOLDER / name).glob("*.f2"))


if __name__ == "__main__":
    command.main(run, __doc__ or "")
