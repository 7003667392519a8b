"""Pictures to index, and what a store then holds of them."""

from pathlib import Path

import numpy as np
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.store.store import Store
from PIL import Image as Pillow


def pictures(folder: Path, count: int) -> Path:
    """A new folder of so many small images, each another."""
    folder.mkdir(parents=True)
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (6, 6, 3), np.uint8)
        Pillow.fromarray(noise).resize((24, 24)).save(folder / f"{i:04d}.png")
    return folder


def store_at(folder: Path) -> Store:
    return Store.create(folder, PlainEncoder().space)


def contents(store: Store) -> dict[str, bytes]:
    """Key to the file's digest and its vector."""
    snapshot = store.snapshot()
    rows, vectors = snapshot.rows, snapshot.vectors()
    found = {key: rows.digests[i].tobytes() + vectors[i].tobytes() for i, key in enumerate(rows.keys.tolist())}
    assert len(found) == len(snapshot), "a key stands twice"
    return found
