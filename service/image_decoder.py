"""Decode uploads: the functions the service is given, and one upload's bytes to an image small enough to queue."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from ..errors import ImageError
from ..store.space import Space
from .limits import Limits
from .problems import HttpProblem

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)
# What is decoded: kinds that can hold a photograph. Pillow knows more, among them some that start other programs (EPS).
KINDS = {"JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM"}
SCANS = 100  # of a progressive JPEG, which usually has about ten
MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # of a JPEG: no stuffed zero, no restart, no padding
MARKERS = 10_000  # far more than any picture has
END, SCAN, BARE = 0xD9, 0xDA, (0x01, 0xD8)  # markers: the picture's end, one of its scans, those that stand alone
Embeddings = npt.NDArray[np.float32]  # (n, dim), unit rows


class ImageEncoder(Protocol):
    """Interface of an encoder, as far as the service uses it."""

    @property
    def space(self) -> Space: ...

    @property
    def has_text(self) -> bool: ...

    def shrink(self, pixels: Pixels) -> Pixels: ...

    def encode(self, images: Sequence[Pixels]) -> Embeddings: ...

    def encode_texts(self, texts: Sequence[str]) -> Embeddings: ...


class DecodedPixels(Protocol):
    """A decoded file."""

    @property
    def pixels(self) -> Pixels: ...

    @property
    def format(self) -> str: ...

    @property
    def quality(self) -> int: ...

    @property
    def digest(self) -> bytes: ...


@dataclass(frozen=True)
class ImageDecoder:
    """An encoder and the two functions on images that belong to it."""

    encoder: ImageEncoder
    decode: Callable[[bytes], DecodedPixels]  # raises ImageError
    thumbnail: Callable[[Pixels], bytes]  # a small JPEG
    degraded: Callable[[Pixels], dict[str, Pixels]] | None = (
        None  # what was done -> the picture as it would be handed on
    )

    def open(self, content: bytes, limits: Limits, *, thumbnail: bool = False, views: bool = False) -> UploadedImage:
        """Decode one file within the limits, with its degraded copies if asked; raises ImageError or Problem."""
        if len(content) > limits.image_bytes:
            message = f"{len(content):,} bytes are more than the {limits.image_bytes:,} allowed for an image"
            raise HttpProblem("too-large", f"{message}; send a smaller file")
        refuse_hostile(content, limits.pixels)
        try:
            image = self.decode(content)
        except (ImageError, MemoryError):
            raise
        except Exception as e:  # a decoder's own failures on a file that was made to fail
            raise ImageError(f"damaged or unsupported image ({type(e).__name__}); save it anew and try again") from e
        height, width = image.pixels.shape[:2]
        if height * width > limits.pixels:  # a format that only the decoder can read the size of
            raise too_many_pixels(width, height, limits.pixels)
        small = self.thumbnail(image.pixels) if thumbnail else b""
        copies = self.degraded(image.pixels) if views and self.degraded else {}
        return UploadedImage(
            self.encoder.shrink(image.pixels),
            width,
            height,
            image.format,
            image.quality,
            len(content),
            image.digest,
            small,
            {what: self.encoder.shrink(copy) for what, copy in copies.items()},
        )


@dataclass(frozen=True)
class UploadedImage:
    """An image that waits for its vector."""

    pixels: Any  # as the encoder takes it
    width: int  # of the file
    height: int
    format: str
    quality: int  # of a JPEG, else -1
    size: int  # bytes
    digest: bytes  # BLAKE2b-128 of the file
    thumbnail: bytes  # b"" unless asked for
    views: dict[str, Any] = field(default_factory=dict)  # what was done -> pixels of a degraded copy, if asked for


def refuse_hostile(content: bytes, most: int) -> None:
    """Raise for what would cost too much to decode, or runs other programs, going by its header; nothing is decoded."""
    if content.startswith(b"\xff\xd8") and (scans := scans_of(content)) > SCANS:
        raise ImageError(f"a JPEG of {scans} scans or more, made to take long; save the image anew and try again")
    try:
        with Pillow.open(io.BytesIO(content)) as header:
            width, height = header.size
            kind = header.format or "unknown"
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as e:
        raise HttpProblem("too-large", f"{e}; at most {most:,} pixels are allowed") from e
    except UnidentifiedImageError:
        return  # the decoder says what it found
    except Exception as e:
        raise ImageError(f"damaged image header ({type(e).__name__}); save the image anew and try again") from e
    if kind not in KINDS:
        raise ImageError(f"{kind} images are not taken; convert it to JPEG or PNG and try again")
    if width * height > most:
        raise too_many_pixels(width, height, most)


def scans_of(content: bytes) -> int:
    """Count the scans of a JPEG; `MARKERS` if it has that many of any kind.

    What is in its segments or comes after its end is no part of it: a preview, or the film that phones put there.
    """
    at = scans = 0
    for _ in range(MARKERS):
        found = MARKER.search(content, at)
        if found is None or content[found.start() + 1] == END:
            return scans
        at, kind = found.end(), content[found.start() + 1]
        scans += kind == SCAN
        if kind not in BARE:
            at += int.from_bytes(content[at : at + 2])
    return MARKERS


def too_many_pixels(width: int, height: int, most: int) -> HttpProblem:
    message = f"{width} x {height} is more than the {most:,} pixels allowed"
    return HttpProblem("too-large", f"{message}; send a smaller copy")
