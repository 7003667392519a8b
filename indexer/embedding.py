"""Images someone asks about: files, folders, archives and standard input, decoded and embedded as they stream by."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from ..errors import ImageError
from ..store.records import invalid_rows, to_float16
from .decoding.image import Image, Pixels, decode
from .encoders.base import Encoder
from .sources.archive import TARS
from .sources.folders import expand, listing
from .sources.image_ref import ImageRef, InMemory

BATCH = 16  # images held at a time
ARCHIVES = (".zip", *TARS)
AFTER = ("after JPEG quality 60", "at half its size")  # what `degraded` gives, in order


@dataclass(frozen=True)
class EmbeddedImage:
    """One image with its vector, or the reason why there is none."""

    name: str
    image: Image | None = None
    vector: npt.NDArray[np.float32] | None = None  # (dim,)
    views: npt.NDArray[np.float32] | None = None  # (2, dim) of the degraded copies, see AFTER
    error: str = ""


def embed_images(encoder: Encoder, images: Iterable[str], *, views: bool = False) -> Iterator[EmbeddedImage]:
    """Each image of these files, folders, zip or tar archives, "-" for one on standard input; memory stays flat.

    Parameters
    ----------
    views : embed two degraded copies of each image too

    Raises
    ------
    SourceError
        Something named is not there.
    """
    entries = _entries(images)
    with ThreadPoolExecutor(2) as pool:
        while batch := list(islice(entries, BATCH)):
            decoded = list(pool.map(_decode, batch))
            good = [image for image in decoded if isinstance(image, Image)]
            vectors: Iterator[Any] = iter(encoder.encode([image.pixels for image in good]) if good else ())
            for entry, image in zip(batch, decoded, strict=True):
                if isinstance(image, Image):
                    vector, copies = next(vectors), encoder.encode(degraded(image.pixels)) if views else None
                    if len(invalid_rows(to_float16(np.vstack([vector[None], *([] if copies is None else [copies])])))):
                        yield EmbeddedImage(
                            entry.path, error="the encoder gives it a vector that is zero or not finite"
                        )
                    else:
                        yield EmbeddedImage(entry.path, image, vector, copies)
                else:
                    yield EmbeddedImage(entry.path, error=str(image))


def degraded(pixels: Pixels) -> Sequence[Pixels]:
    """An image as the web would hand it on: as a JPEG of quality 60, and at half its width and height."""
    picture = Pillow.fromarray(pixels)
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=60)
    half = picture.resize((max(picture.width // 2, 1), max(picture.height // 2, 1)), Pillow.Resampling.LANCZOS)
    return [np.asarray(Pillow.open(packed).convert("RGB")), np.asarray(half)]


def degraded_by_name(pixels: Pixels) -> dict[str, Pixels]:
    """What was done to an image -> the copy."""
    return dict(zip(AFTER, degraded(pixels), strict=True))


def _entries(images: Iterable[str]) -> Iterator[ImageRef]:
    for image in images:
        if image == "-":
            yield ImageRef("-", "-", where=InMemory(sys.stdin.buffer.read(), 0))
        elif Path(image).is_dir() or image.lower().endswith(ARCHIVES):
            yield from listing(expand([image]))
        else:  # if it is not there or no image, that is one line of the output
            yield ImageRef(image, image)


def _decode(entry: ImageRef) -> Image | ImageError:
    try:
        if entry.refused:
            return ImageError(entry.refused)
        return decode(entry.place.read()[0])
    except ImageError as e:
        return e
