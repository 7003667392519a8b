"""One image file's bytes in, RGB pixels and file facts out, by one policy for every odd format.

The policy: EXIF rotation is applied; CMYK and palettes become RGB; transparency lies on white; 16-bit grey is scaled
to 8; of an animation the first frame counts. Plain JPEG goes through simplejpeg where it is installed (Pillow's pixels,
faster), everything else through Pillow, HEIC with what the extra `heic` adds to it.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from ...errors import ImageError, MissingExtra

try:
    import simplejpeg
except ImportError:  # optional: a bare machine decodes with Pillow alone
    simplejpeg = None

SOI, SCAN_BYTES = b"\xff\xd8", 10  # how a JPEG starts; bytes of a scan at least

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)

PIXEL_LIMIT = 100_000_000  # 10,000 x 10,000; more is refused before it is decoded
THUMBNAIL_SIDE = 128  # pixels at most: an image of 200 becomes one of 100, of 256 or 1024 one of 128
THUMBNAIL_QUALITY = 80
SIDES_LIMIT = 100  # times as long as it is wide: beyond it, what an encoder sees is a line made a square
SCANS_LIMIT = 100  # of a JPEG of many pixels; encoders write ten, and a few bytes of another take all pixels once more
# What people have and what decodes here: Pillow knows others that run a program (EPS) or are long out of use.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "HEIF")
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands of ISO/IEC 23008-12

# The luminance table of ISO/IEC 10918-1 Annex K.1, which libjpeg scales by quality; only its sum is needed.
# fmt: off
_ANNEX_K = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29,
    51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121,
    120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
])
# fmt: on


@dataclass(frozen=True)
class Image:
    """A decoded image and what its file said."""

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
    """Decode one file; raises ImageError saying what was found."""
    if not content:
        raise ImageError("empty file")
    digest = digest_of(content)
    header = jpeg_header(content)
    quality = header.quality if header else -1
    if content[:2] == SOI:
        _refuse_scans(content, header.pixels if header else PIXEL_LIMIT)
    if header and header.plain and simplejpeg is not None:
        _refuse_odd(header.width, header.height)
        try:
            pixels = simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False)
            return Image(pixels, "JPEG", quality, len(content), digest)
        except ValueError:
            pass  # Pillow may know better, or say more
    pixels, name = _decode_with_pillow(content)
    return Image(pixels, name, quality, len(content), digest)


def digest_of(content: bytes) -> bytes:
    """A file's BLAKE2b-128."""
    return hashlib.blake2b(content, digest_size=16).digest()


def thumbnail(pixels: Pixels, side: int = THUMBNAIL_SIDE) -> bytes:
    """A JPEG whose longer side is at most `side` pixels; a small image keeps its size.

    Each pixel is the mean of a whole number of the image's: a fifth of the cost of resampling to an exact size.
    """
    return thumbnail_of(reduced(pixels, side))


def reduced(pixels: Pixels, side: int = THUMBNAIL_SIDE) -> Pixels:
    """An image as small as its thumbnail."""
    factor = thumbnail_factor(pixels.shape[0], pixels.shape[1], side)
    return pixels if factor == 1 else np.asarray(Pillow.fromarray(pixels).reduce(factor))


def thumbnail_factor(height: int, width: int, side: int = THUMBNAIL_SIDE) -> int:
    """Number of pixels, across and down, that make one pixel of the thumbnail."""
    return -(-max(height, width) // side)


def thumbnail_of(small: Pixels) -> bytes:
    """The JPEG of an image that was reduced."""
    if simplejpeg is not None:
        return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(small), THUMBNAIL_QUALITY, colorsubsampling="420"))
    out = io.BytesIO()
    Pillow.fromarray(small).save(out, "JPEG", quality=THUMBNAIL_QUALITY)
    return out.getvalue()


def _decode_with_pillow(content: bytes) -> tuple[Pixels, str]:
    if _is_heic(content):
        _learn_heic()
    try:
        with Pillow.open(io.BytesIO(content), formats=_formats()) as picture:
            _refuse_odd(*picture.size)
            name = picture.format or "unknown"
            picture.seek(0)
            ImageOps.exif_transpose(picture, in_place=True)  # otherwise it copies what is upright already
            return np.asarray(_rgb(picture)), name
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as e:
        raise ImageError(f"more than {PIXEL_LIMIT:,} pixels: a decompression bomb, or too large to judge") from e
    except UnidentifiedImageError as e:
        if content[:5] == b"%PDF-":
            raise ImageError("a PDF, not an image; save the picture in it as PNG or JPEG") from e
        raise ImageError(f"not an image ({len(content):,} bytes starting with {content[:8]!r})") from e
    except ImageError:
        raise
    except Exception as e:  # a format's reader raises whatever a damaged file makes of its arithmetic
        raise ImageError(f"damaged or unsupported image: {str(e) or type(e).__name__}") from e


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that this Pillow supports."""
    Pillow.init()
    return tuple(name for name in FORMATS if name in Pillow.OPEN)


def _is_heic(content: bytes) -> bool:
    """True for a file of the HEIF family, such as an iPhone's photos; AVIF, which Pillow decodes, belongs to it too."""
    brands = content[8 : min(int.from_bytes(content[:4], "big"), 256)]
    return content[4:8] == b"ftyp" and b"avif" not in brands and any(brand in brands for brand in HEIC)


@cache
def _learn_heic() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as e:
        raise ImageError(str(MissingExtra("reading HEIC", "heic"))) from e
    register_heif_opener()
    _formats.cache_clear()


def _rgb(picture: Pillow.Image) -> Pillow.Image:
    if picture.mode == "RGB":  # a needless convert() would halve the speed of threads
        return picture
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture, np.float32))
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        grey = np.clip(values * (255.0 / top) + 0.5, 0, 255).astype(np.uint8)
        return Pillow.fromarray(grey).convert("RGB")
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        seen = picture.convert("RGBA")
        return Pillow.alpha_composite(Pillow.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return picture.convert("RGB")


def _refuse_odd(width: int, height: int) -> None:
    if width * height > PIXEL_LIMIT:
        raise ImageError(f"{width} x {height} is more than {PIXEL_LIMIT:,} pixels; too large to judge")
    if max(width, height) > SIDES_LIMIT * min(width, height):
        raise ImageError(f"{width} x {height} is a strip, more than {SIDES_LIMIT} times as long as wide; crop it")


def _refuse_scans(content: bytes, pixels: int) -> None:
    most = max(SCANS_LIMIT, SCANS_LIMIT * PIXEL_LIMIT // (10 * max(pixels, 1)))  # a small image has time for more
    if len(content) > most * SCAN_BYTES and (scans := content.count(b"\xff\xda")) > most:
        raise ImageError(f"a JPEG of {scans:,} scans, more than {most:,}: it would take very long to decode")


@dataclass(frozen=True)
class JpegHeader:
    width: int
    height: int
    plain: bool  # grey or YCbCr and without EXIF: nothing to turn or convert
    quality: int  # 1..100, -1 where there is no table
    components: bytes  # their ids; "RGB" is what some writers say of an image that is not YCbCr

    @property
    def pixels(self) -> int:
        return self.width * self.height


def jpeg_header(content: bytes) -> JpegHeader | None:
    """Read the header of a JPEG up to its first scan; None for anything else."""
    if content[:2] != SOI:
        return None
    at, quality, turned = 2, -1, False
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        segment = content[at + 4 : at + 2 + length]
        if marker == 0xDB and quality < 0 and len(segment) >= 65 and segment[0] == 0:  # 8-bit table 0: luminance
            quality = estimate_quality(sum(segment[1:65]))
        elif marker == 0xE1 and segment[:4] == b"Exif":
            turned = True
        elif marker == 0xEE:  # Adobe: may be CMYK or plain RGB
            turned = turned or segment[11:12] != b"\x01"
        elif marker in (0xC0, 0xC1, 0xC2) and len(segment) >= 6:
            height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
            plain = not turned and segment[5] in (1, 3)
            return JpegHeader(width, height, plain, quality, segment[6 : 6 + 3 * segment[5] : 3])
        at += 2 + length
    return None


@cache
def estimate_quality(table_sum: int) -> int:
    """The libjpeg quality whose luminance table has the nearest sum, 1..100."""
    return int(np.argmin(np.abs(_SUMS - table_sum))) + 1


def _scaled_sum(quality: int) -> int:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return int(np.clip((_ANNEX_K * scale + 50) // 100, 1, 255).sum())


_SUMS = np.array([_scaled_sum(quality) for quality in range(1, 101)])
