"""Decode uploads within the service's limits, and refuse files that are made to be expensive."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from ..core.tiff_tiles import sides_in_memory
from ..detector.judgeable import require_judgeable
from ..detector.patches.patch_map import WHOLE, Area
from ..errors import ImageError
from ..store.space import Space
from .limits import Limits
from .problems import HttpProblem

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)
# Formats that can hold a photograph. Pillow reads more, among them some that start other programs (EPS).
FORMATS = {"JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM"}
MAX_SCANS = 100  # a progressive JPEG usually has about ten
PIECE = 2**20  # bytes that are searched for markers at once; other threads run in between
MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # a JPEG marker other than stuffed zeros, restarts and padding
MAX_MARKERS = 10_000  # far more than any image has
END, SCAN, BARE = 0xD9, 0xDA, (0x01, 0xD8)  # markers: end of image, start of scan, those without a segment
# Memory that decoding takes at most, in bytes per pixel: the decoder's buffers, its image, and the RGB copy.
BYTES_PER_PIXEL = 14
BYTES_PER_PIXEL_OF = {"WEBP": 20, "AVIF": 20, "TIFF": 20, "JPEG2000": 28}
BYTES_PER_PIXEL_OF_VIEWS = 16  # of making degraded copies, after decoding
BYTES_PER_PIXEL_OF_REDUCED = 12  # the same of those that are made of an image of a megapixel at most
MEGAPIXEL = 2**20
PNG = b"\x89PNG\r\n\x1a\n"  # followed by the header: its length and name, width and height
Embeddings = npt.NDArray[np.float32]  # (n, dim), unit rows


class ImageEncoder(Protocol):
    """Encoder interface that the service needs."""

    @property
    def space(self) -> Space: ...

    @property
    def spaces(self) -> dict[str, Space]: ...

    @property
    def has_text(self) -> bool: ...

    def shrink(self, pixels: Pixels) -> Pixels: ...

    def encode(self, images: Sequence[Pixels]) -> Embeddings: ...

    def split(self, vectors: Embeddings) -> dict[str, Embeddings]: ...

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
    """An encoder with the functions that prepare images for it."""

    encoder: ImageEncoder
    decode: Callable[[bytes], DecodedPixels]  # raises ImageError
    thumbnail: Callable[[Pixels], bytes]  # to a small JPEG
    degraded: Callable[[Pixels], dict[str, Pixels]] | None = None  # to degraded copies by name
    covered: Callable[[int, int], Area] = lambda height, width: WHOLE  # part of an image that the encoder sees

    def memory_needed(self, content: bytes, limits: Limits, *, views: bool = False) -> int:
        """Return the bytes of memory that decoding a file takes at most, from its header.

        Raises ImageError or HttpProblem for a file beyond the limits, or one that is too expensive to decode.
        """
        if len(content) > limits.image_bytes:
            message = f"{len(content):,} bytes are more than the {limits.image_bytes:,} allowed for an image"
            raise HttpProblem("too-large", f"{message}; send a smaller file")
        pixels, bytes_per_pixel = pixels_of(content, limits.pixels)
        if not views:
            return pixels * bytes_per_pixel
        reduced = min(pixels, MEGAPIXEL) * BYTES_PER_PIXEL_OF_REDUCED
        return pixels * max(bytes_per_pixel, BYTES_PER_PIXEL_OF_VIEWS) + reduced

    def open(
        self, content: bytes, limits: Limits, *, thumbnail: bool = False, views: bool = False, to_judge: bool = False
    ) -> UploadedImage:
        """Decode one file that `memory_needed` did not refuse.

        Raises ImageError (NothingToJudge if `to_judge` is set), or HttpProblem if it has too many pixels.
        """
        try:
            image = self.decode(content)
        except (ImageError, MemoryError):
            raise
        except Exception as e:  # a crafted file can make a decoder raise anything
            message = f"damaged or unsupported image ({type(e).__name__}); save it again as JPEG or PNG and retry"
            raise ImageError(message) from e
        height, width = image.pixels.shape[:2]
        if height * width > limits.pixels:  # the size in the header is not readable for every format
            raise too_many_pixels(width, height, limits.pixels)
        if to_judge:
            require_judgeable(image.pixels)
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
    """A decoded upload whose vector has not been computed yet."""

    pixels: Any  # in the encoder's input size
    width: int  # of the file
    height: int
    format: str
    quality: int  # of a JPEG, else -1
    size: int  # bytes
    digest: bytes  # BLAKE2b-128 of the file
    thumbnail: bytes  # empty unless requested
    views: dict[str, Any] = field(default_factory=dict)  # pixels of the degraded copies by name, if requested

    @property
    def nbytes(self) -> int:
        """Bytes of its pixels and of those of its copies."""
        return sum(int(getattr(pixels, "nbytes", 0)) for pixels in (self.pixels, *self.views.values()))

    def without_pixels(self) -> UploadedImage:
        """Return everything but the pixels, which are not needed once there are vectors."""
        return replace(self, pixels=None, views={})


def pixels_of(content: bytes, max_pixels: int) -> tuple[int, int]:
    """Return the number of pixels in the header of a file, and the bytes of memory that decoding takes per pixel.

    A header that cannot be read counts as the largest image of the most expensive format. Raises HttpProblem for too
    many pixels, and ImageError for a file that is too expensive to decode or that would start another program.
    """
    if content.startswith(b"\xff\xd8") and (scans := count_scans(content)) > MAX_SCANS:
        raise ImageError(
            f"a JPEG of {scans} or more scans (at most {MAX_SCANS} are allowed); save the image again and retry"
        )
    if content.startswith(PNG):  # Pillow would read, and refuse, large texts before the pixels
        width, height = png_sides(content)
        if width * height > max_pixels:
            raise too_many_pixels(width, height, max_pixels)
        return width * height, BYTES_PER_PIXEL
    try:
        with Pillow.open(io.BytesIO(content)) as header:
            width, height = sides_in_memory(header)
            image_format = header.format or "unknown"
            in_python = any(tile[0] in Pillow.DECODERS for tile in header.tile)  # a thousand times slower
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as e:
        raise HttpProblem("too-large", f"{e}; at most {max_pixels:,} pixels are allowed") from e
    except Exception:  # noqa: BLE001 - the decoder raises the better error, or reads the image without its metadata
        return max_pixels, max(BYTES_PER_PIXEL_OF.values())
    if image_format not in FORMATS:
        raise ImageError(f"{image_format} images are not supported; convert it to JPEG or PNG and try again")
    if in_python:
        raise ImageError(f"{image_format} images of this kind take too long to decode; convert it to JPEG or PNG")
    if width * height > max_pixels:
        raise too_many_pixels(width, height, max_pixels)
    return width * height, BYTES_PER_PIXEL_OF.get(image_format, BYTES_PER_PIXEL)


def png_sides(content: bytes) -> tuple[int, int]:
    """Return width and height of a PNG; raises ImageError unless it begins with its only header.

    Pillow takes the last header before the pixels, wherever it is.
    """
    offset, headers = len(PNG), []
    for _ in range(MAX_MARKERS):
        length, kind = int.from_bytes(content[offset : offset + 4]), content[offset + 4 : offset + 8]
        if kind in (b"IDAT", b"IEND", b""):
            break
        headers += [offset] if kind == b"IHDR" else []
        offset += 12 + length
    else:
        raise ImageError(f"a PNG of {MAX_MARKERS:,} or more chunks before its pixels; save the image again and retry")
    if headers != [len(PNG)]:
        raise ImageError("a PNG that does not begin with its only header; save the image again and retry")
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])


def count_scans(content: bytes) -> int:
    """Count the scans of a JPEG; `MAX_MARKERS` if it has that many markers of any kind.

    Segments and data after the end of the image, such as a preview or a phone's video, are skipped.
    """
    offset = scans = 0
    for _ in range(MAX_MARKERS):
        match = _next_marker(content, offset)
        if match is None or content[match.start() + 1] == END:
            return scans
        offset, kind = match.end(), content[match.start() + 1]
        scans += kind == SCAN
        if kind not in BARE:
            offset += int.from_bytes(content[offset : offset + 2])
    return MAX_MARKERS


def _next_marker(content: bytes, offset: int) -> re.Match[bytes] | None:
    for start in range(offset, len(content), PIECE):
        if match := MARKER.search(content, start, start + PIECE + 1):
            return match
    return None


def too_many_pixels(width: int, height: int, max_pixels: int) -> HttpProblem:
    """The problem of an image with too many pixels."""
    message = f"{width} x {height} is more than the {max_pixels:,} pixels allowed"
    return HttpProblem("too-large", f"{message}; send a smaller copy")
