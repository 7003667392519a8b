"""Images to index, and the contents of the resulting store."""

from pathlib import Path

import numpy as np
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.store.store import Store
from PIL import Image as Pillow


def write_images(folder: Path, count: int) -> Path:
    """Create a folder of `count` small, distinct images."""
    folder.mkdir(parents=True)
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (6, 6, 3), np.uint8)
        Pillow.fromarray(noise).resize((24, 24)).save(folder / f"{i:04d}.png")
    return folder


def store_at(folder: Path) -> Store:
    return Store.create(folder, PlainEncoder().space)


def contents(store: Store) -> dict[str, bytes]:
    """Map each key to the file's digest and vector."""
    snapshot = store.snapshot()
    rows, vectors = snapshot.rows, snapshot.vectors()
    by_key = {key: rows.digests[i].tobytes() + vectors[i].tobytes() for i, key in enumerate(rows.keys.tolist())}
    assert len(by_key) == len(snapshot), "a key occurs twice"
    return by_key
