"""Decode one image file to RGB pixels and properties of the file, with one policy for all formats.

A valid EXIF orientation is applied, other metadata is ignored (metadata.py); CMYK and palettes are converted to RGB,
transparency is blended with white, grey is scaled to 8 bits by its type (rgb.py); only the first frame of an animation
is used. Plain JPEGs are decoded by simplejpeg if it is installed (the same pixels as Pillow's, faster), all others by
Pillow. HEIC needs the extra `heic`.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from ...errors import ImageError, MissingExtra
from .metadata import PNG, TIFF, states_layout_twice, transposition, without_damaged_tags, without_metadata
from .quiet import silence_pillow
from .rgb import rgb_pixels, scale_transparent_colour
from .tiff_layout import refuse_misread_layouts

try:
    import simplejpeg
except ImportError:  # optional: Pillow decodes JPEGs too
    simplejpeg = None

SOI, SCAN_BYTES = b"\xff\xd8", 10  # start of a JPEG; smallest size of a scan in bytes

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)

PIXEL_LIMIT = 100_000_000  # 10,000 x 10,000; larger images are refused before they are decoded
THUMBNAIL_SIDE = 128  # longest side in pixels: an image of 200 pixels becomes one of 100, one of 256 or 1024 one of 128
THUMBNAIL_QUALITY = 80
ASPECT_LIMIT = 100  # largest aspect ratio; an encoder would see a more elongated image as a few stretched lines
SCANS_LIMIT = 100  # scans of a large JPEG; encoders write ten, and each needs few bytes but a pass over all pixels
# Formats in common use; Pillow has others that run a program (EPS) or are obsolete.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "HEIF")
SIGNATURES = {PNG: "PNG", SOI: "JPEG", b"GIF8": "GIF"} | dict.fromkeys(TIFF, "TIFF")
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands of ISO/IEC 23008-12

# Luminance table of ISO/IEC 10918-1 Annex K.1, which libjpeg scales by quality; only the sum of its values is used.
# fmt: off
_ANNEX_K = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29,
    51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121,
    120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
])
# fmt: on


silence_pillow()  # also for modules that read a header themselves, before an image is decoded


@dataclass(frozen=True)
class Image:
    """A decoded image and properties of its file."""

    pixels: Pixels  # (height, width, 3) RGB, upright
    format: str  # "JPEG", "PNG", ...
    quality: int  # JPEG quality estimated from the luminance quantisation table, -1 for other formats
    size: int  # bytes
    digest: bytes  # BLAKE2b-128 of the file

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])


def decode(content: bytes) -> Image:
    """Decode one file; raises ImageError."""
    if not content:
        raise ImageError("empty file")
    digest = digest_of(content)
    header = jpeg_header(content)
    quality = header.quality if header else -1
    if content[:2] == SOI:
        _check_scans(content, header.pixels if header else PIXEL_LIMIT)
    if header and header.plain and simplejpeg is not None:
        _check_size(header.width, header.height)
        try:
            pixels = simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False)
            return Image(pixels, "JPEG", quality, len(content), digest)
        except ValueError:
            pass  # Pillow may be able to decode it, or gives a better message
    pixels, name = _decode_with_pillow(content)
    return Image(pixels, name, quality, len(content), digest)


def digest_of(content: bytes) -> bytes:
    """BLAKE2b-128 of a file's content."""
    return hashlib.blake2b(content, digest_size=16).digest()


def thumbnail(pixels: Pixels, side: int = THUMBNAIL_SIDE) -> bytes:
    """Make a JPEG whose longer side is at most `side` pixels; a small image keeps its size.

    Each pixel is the mean of an integral number of image pixels, at a fifth of the cost of resampling to an exact size.
    """
    return thumbnail_of(reduced(pixels, side))


def reduced(pixels: Pixels, side: int = THUMBNAIL_SIDE) -> Pixels:
    """Reduce an image to the size of its thumbnail."""
    factor = thumbnail_factor(pixels.shape[0], pixels.shape[1], side)
    return pixels if factor == 1 else np.asarray(Pillow.fromarray(pixels).reduce(factor))


def thumbnail_factor(height: int, width: int, side: int = THUMBNAIL_SIDE) -> int:
    """Number of image pixels, in each direction, per pixel of the thumbnail."""
    return -(-max(height, width) // side)


def thumbnail_of(small: Pixels) -> bytes:
    """Encode a reduced image as a JPEG."""
    if simplejpeg is not None:
        return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(small), THUMBNAIL_QUALITY, colorsubsampling="420"))
    out = io.BytesIO()
    Pillow.fromarray(small).save(out, "JPEG", quality=THUMBNAIL_QUALITY)
    return out.getvalue()


def pixels_of(image: Pillow.Image) -> Pixels:
    """RGB pixels of a Pillow image, upright; raises ImageError, also for a lazily opened file that is damaged."""
    silence_pillow()
    try:
        return _upright_pixels(image)
    except ImageError:
        raise
    except Exception as e:  # a damaged file can make Pillow's readers raise almost anything
        raise _image_error(b"", e) from e


def _upright_pixels(image: Pillow.Image) -> Pixels:
    refuse_misread_layouts(image)
    image.load()
    return rgb_pixels(image, transposition(image))


def _decode_with_pillow(content: bytes) -> tuple[Pixels, str]:
    if content.startswith(TIFF):
        if states_layout_twice(content):
            raise ImageError("a TIFF that states its size or layout twice; save it again")
        content = without_damaged_tags(content)
    try:
        return _read_with_pillow(content)
    except ImageError:
        raise
    except Exception as e:  # a damaged file can make Pillow's readers raise almost anything
        bare = without_metadata(content)
        if bare != content:
            return _decode_with_pillow(bare)
        raise _image_error(content, e) from e


def _read_with_pillow(content: bytes) -> tuple[Pixels, str]:
    silence_pillow()
    if _is_heic(content):
        _register_heic()
    with Pillow.open(io.BytesIO(content), formats=_formats()) as image:
        _check_size(*image.size)
        image.seek(0)
        if image.format == "PNG":
            scale_transparent_colour(image, depth=content[24])
        return _upright_pixels(image), image.format or "unknown"


def _image_error(content: bytes, error: Exception) -> ImageError:
    """Say in our words why Pillow cannot read a file."""
    if isinstance(error, Pillow.DecompressionBombError | Pillow.DecompressionBombWarning):
        return ImageError(f"more than {PIXEL_LIMIT:,} pixels: a decompression bomb, or too large to judge")
    if not isinstance(error, UnidentifiedImageError):
        return ImageError(f"damaged or unsupported image: {_without_content(str(error)) or type(error).__name__}")
    if content[:5] == b"%PDF-":
        return ImageError("a PDF, not an image; save the image in it as PNG or JPEG")
    if content[4:8] == b"ftyp":
        return ImageError(
            "a video, or an AVIF or HEIC that is damaged or unsupported; save it as PNG or JPEG with 8 bits"
        )
    for start, name in SIGNATURES.items():
        if content.startswith(start):
            return ImageError(
                f"damaged {name}, or one of an unsupported kind; save it again as PNG or JPEG with 8 bits"
            )
    return ImageError(f"not an image ({len(content):,} bytes)")


def _without_content(message: str) -> str:
    """The start of a reader's message up to what it may quote of the file, which need not be an image.

    >>> _without_content("Token too long in file header: secret"), _without_content("broken PNG file (chunk b'abc')")
    ('Token too long in file header', 'broken PNG file')
    """
    start = re.split(r""":|\bb?['"]""", message, maxsplit=1)[0]
    return re.sub(r"\s*\([^)]*$", "", start).strip()


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that this Pillow supports."""
    Pillow.init()
    return tuple(name for name in FORMATS if name in Pillow.OPEN)


def _is_heic(content: bytes) -> bool:
    """True for a HEIF file, such as a photo of an iPhone, except AVIF, which Pillow decodes itself."""
    brands = content[8 : min(int.from_bytes(content[:4], "big"), 256)]
    return content[4:8] == b"ftyp" and b"avif" not in brands and any(brand in brands for brand in HEIC)


@cache
def _register_heic() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as e:
        raise ImageError(str(MissingExtra("reading HEIC", "heic"))) from e
    register_heif_opener()
    _formats.cache_clear()


def _check_size(width: int, height: int) -> None:
    if width * height > PIXEL_LIMIT:
        raise ImageError(f"{width} x {height} is more than {PIXEL_LIMIT:,} pixels; too large to judge")
    if max(width, height) > ASPECT_LIMIT * min(width, height):
        raise ImageError(f"{width} x {height} is a strip, more than {ASPECT_LIMIT} times as long as wide; crop it")


def _check_scans(content: bytes, pixels: int) -> None:
    limit = max(SCANS_LIMIT, SCANS_LIMIT * PIXEL_LIMIT // (10 * max(pixels, 1)))  # scans of small images cost less
    if len(content) > limit * SCAN_BYTES and (scans := content.count(b"\xff\xda")) > limit:
        raise ImageError(f"a JPEG of {scans:,} scans, more than {limit:,}: it would take too long to decode")


@dataclass(frozen=True)
class JpegHeader:
    """Properties of a JPEG from its header."""

    width: int
    height: int
    plain: bool  # grey or YCbCr and without EXIF: needs no rotation or conversion
    quality: int  # 1..100, -1 without a quantisation table
    components: bytes  # component ids; some writers mark an image that is not YCbCr with "RGB"

    @property
    def pixels(self) -> int:
        return self.width * self.height


def jpeg_header(content: bytes) -> JpegHeader | None:
    """Read the header of a JPEG up to its first scan; None for anything else."""
    if content[:2] != SOI:
        return None
    start, quality, converted = 2, -1, False
    while start + 4 <= len(content) and content[start] == 0xFF:
        marker, length = content[start + 1], int.from_bytes(content[start + 2 : start + 4], "big")
        segment = content[start + 4 : start + 2 + length]
        if marker == 0xDB and quality < 0 and len(segment) >= 65 and segment[0] == 0:  # 8-bit table 0: luminance
            quality = estimate_quality(sum(segment[1:65]))
        elif marker == 0xE1 and segment[:4] == b"Exif":
            converted = True
        elif marker == 0xEE:  # Adobe: may be CMYK or plain RGB
            converted = converted or segment[11:12] != b"\x01"
        elif marker in (0xC0, 0xC1, 0xC2) and len(segment) >= 6:
            height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
            plain = not converted and segment[5] in (1, 3)
            return JpegHeader(width, height, plain, quality, segment[6 : 6 + 3 * segment[5] : 3])
        start += 2 + length
    return None


@cache
def estimate_quality(table_sum: int) -> int:
    """Estimate the libjpeg quality, 1..100, as the one whose luminance table has the nearest sum."""
    return int(np.argmin(np.abs(_SUMS - table_sum))) + 1


def _scaled_sum(quality: int) -> int:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return int(np.clip((_ANNEX_K * scale + 50) // 100, 1, 255).sum())


_SUMS = np.array([_scaled_sum(quality) for quality in range(1, 101)])
