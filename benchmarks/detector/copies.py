"""Are copies of stored images found, and only copies?

Views of stored images are looked up as queries are: by vector, then by thumbnail. `found` is the share whose own row is
confirmed. `matches` compares every stored image with its nearest rows in the same way: each pair that is confirmed is
listed, to be looked at, since data sets hold honest copies of one picture. `edited` pastes a square of a fake into a
real image: its share of confirmed copies should be 0.

    python -m clipfake.benchmarks.detector.copies --store mystore --encoder ../shared/encoders/mobilenet-v1-imagenet
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...detector.copies.alignment import same_picture
from ...detector.copies.finder import FoundCopy, find_copies
from ...detector.copies.picture import Picture
from ...detector.evidence import Bank
from ...detector.metrics import wilson
from ...indexer.decoding.image import Pixels, decode, thumbnail
from ...indexer.encoders.load import load_encoder
from ...store.records import FAKE, REAL, Vectors
from ...store.store import Store
from ..common import command

PATCHES = (0.1, 0.15, 0.2, 0.33)  # sides of the pasted square, as shares of the image's
BATCH = 32  # images encoded at a time
View = Callable[[Image.Image, np.random.Generator], Image.Image]


def saved(image: Image.Image, quality: int, name: str = "JPEG") -> Image.Image:
    """The image after lossy compression."""
    content = io.BytesIO()
    image.save(content, name, quality=quality)
    return Image.open(content).convert("RGB")


def half(image: Image.Image) -> Image.Image:
    """The image at half its width and height."""
    return image.resize((max(image.width // 2, 1), max(image.height // 2, 1)), Image.Resampling.LANCZOS)


def crop(image: Image.Image, kept: float, rng: np.random.Generator) -> Image.Image:
    """A window at a random place, with a share of the width and of the height."""
    width, height = round(image.width * kept), round(image.height * kept)
    left, top = (int(rng.integers(0, rest + 1)) for rest in (image.width - width, image.height - height))
    return image.crop((left, top, left + width, top + height))


def flip(image: Image.Image) -> Image.Image:
    """The image with left and right exchanged."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


VIEWS: dict[str, View] = {
    "JPEG quality 40": lambda image, _: saved(image, 40),
    "half size": lambda image, _: half(image),
    "10 % crop": lambda image, rng: crop(image, 0.9, rng),
    "20 % crop": lambda image, rng: crop(image, 0.8, rng),
    "flip": lambda image, _: flip(image),
    "half size, JPEG 40": lambda image, _: saved(half(image), 40),
    "10 % crop, half size, JPEG 40": lambda image, rng: saved(half(crop(image, 0.9, rng)), 40),
    "all four": lambda image, rng: flip(saved(half(crop(image, 0.9, rng)), 40)),
}


def run(store: Store, encoder: str, *, queries: int = 300, seed: int = 0) -> dict[str, Any]:
    """Recall of copies by view, pairs that are confirmed among stored images, and edits taken for copies."""
    snapshot, rng = store.snapshot(), np.random.default_rng(seed)
    bank, model = Bank.from_snapshot(snapshot), load_encoder(encoder, device="cpu")
    paths, labels = snapshot.column("paths"), snapshot.column("labels")
    chosen = np.sort(rng.choice(len(snapshot), min(queries, len(snapshot)), replace=False))
    images = [_image(paths[row]) for row in chosen]
    result: dict[str, Any] = {"store": store.folder.name, "rows": len(snapshot), "found": {}}
    seconds = []
    for name, view in VIEWS.items():
        pixels = [np.asarray(view(image, rng)) for image in images]
        vectors = [np.asarray(model.encode([model.shrink(p) for p in pixels[i : i + BATCH]])) for i in _starts(pixels)]
        hits = 0
        for row, vector, shown in zip(chosen, np.concatenate(vectors), pixels, strict=True):
            began = time.process_time()
            found = _find(bank, vector, thumbnail(shown))
            seconds.append(time.process_time() - began)
            hits += any(copy.row == row for copy in found)
        result["found"][name] = _share(hits, len(chosen))
    result["matches"] = _matches(bank)
    result["edited"] = {
        f"{patch:.0%} of a side": _edited(snapshot.thumbnail, paths, labels, patch, queries, rng) for patch in PATCHES
    }
    result["search_and_compare_ms"] = {"median": round(float(np.median(seconds)) * 1000, 2)}
    return result


def _find(bank: Bank, vector: Vectors, small: bytes) -> list[FoundCopy]:
    nearest = bank.candidates(vector[None])
    return find_copies(bank.snapshot, list(nearest.values()), small, lambda _: False)


def _matches(bank: Bank) -> dict[str, Any]:
    """Pairs of stored images that are confirmed as copies, other than identical files."""
    snapshot, pairs = bank.snapshot, set[tuple[int, int]]()
    seconds = []
    digests, keys = snapshot.column("digests"), snapshot.column("keys")
    for row in range(len(snapshot)):
        vector, small = snapshot.vectors([row])[0], snapshot.thumbnail(row)
        nearest = bank.candidates(vector[None], digests[[row]])
        began = time.process_time()
        found = find_copies(snapshot, list(nearest.values()), small, lambda _: False)
        seconds.append(time.process_time() - began)
        pairs |= {(min(row, copy.row), max(row, copy.row)) for copy in found if copy.row != row}
    labels = snapshot.column("labels")
    return {
        "images": len(snapshot),
        "pairs": len(pairs),
        "of_both_labels": sum(bool(labels[a] != labels[b]) for a, b in pairs),
        "compare_ms": {
            "median": round(float(np.median(seconds)) * 1000, 2),
            "p99": round(float(np.quantile(seconds, 0.99)) * 1000, 2),
        },
        "keys": [f"{keys[a]} = {keys[b]}" for a, b in sorted(pairs)],
    }


def _edited(
    thumbnail_of: Callable[[int], bytes],
    paths: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    patch: float,
    number: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """How often a real image with a pasted square is confirmed as a copy of the real one."""
    reals, fakes = (rng.choice(np.flatnonzero(labels == label), number) for label in (REAL, FAKE))
    confirmed = 0
    for real, fake in zip(reals.tolist(), fakes.tolist(), strict=True):
        image = _image(paths[real])
        side = max(round(min(image.size) * patch), 1)
        left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
        square = _image(paths[fake]).resize(image.size).crop((left, top, left + side, top + side))
        image.paste(square, (left, top))
        stored, edited = Picture.of(thumbnail_of(real)), Picture.of(thumbnail(np.asarray(saved(image, 90))))
        confirmed += bool(stored and edited and same_picture(stored, edited))
    return _share(confirmed, number)


def _image(path: str) -> Image.Image:
    pixels: Pixels = decode(Path(path).read_bytes()).pixels
    return Image.fromarray(pixels)


def _starts(values: list[Any]) -> range:
    return range(0, len(values), BATCH)


def _share(hits: int, n: int) -> dict[str, Any]:
    return {"share": round(hits / n, 4), "n": n, "interval_95": wilson(hits, n)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_encoder_options(parser)
    parser.add_argument("--store", type=Path, required=True, help="store whose images are still at their paths")
    parser.add_argument("--queries", type=int, default=300, help="number of images of which views are made")
    parser.add_argument("--seed", type=int, default=0)
    arguments = command.parse_options(parser)
    command.print_result(run(Store.open(arguments.pop("store")), arguments.pop("encoder"), **arguments))


if __name__ == "__main__":
    main()
