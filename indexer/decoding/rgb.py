"""Convert a Pillow image of any mode to 8-bit RGB. Grey values are scaled by their type, never by their content.

Floating-point grey is 0 (black) to 1 (white). Integer grey is 0 (black) to the largest value of its stated depth: 4095
for 12 bits, 65,535 for 16, 32,767 for 16 with a sign, whatever values occur. TIFF's MaxSampleValue is not used: it
describes the content, and "is not to be used to affect the visual appearance" (TIFF 6.0). Values outside these ranges
have no agreed brightness, and the image is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL.Image import Transpose as Turn

from ...errors import ImageError

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
WHITE_IS_ZERO = 0  # a value of PHOTOMETRIC
UNSIGNED, SIGNED = 1, 2  # values of SAMPLE_FORMAT
ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
SIDEWAYS = (Turn.TRANSPOSE, Turn.ROTATE_90, Turn.ROTATE_270, Turn.TRANSVERSE)  # rows become columns
BACKWARDS = (Turn.FLIP_TOP_BOTTOM, Turn.ROTATE_180, Turn.ROTATE_270, Turn.TRANSVERSE)  # the first row becomes the last
# Large images are converted in bands of this many pixels: whole copies of an image would take several times its memory,
# and Pillow holds the GIL while it makes some of them.
BAND_PIXELS = 2**18
FLOAT_TOLERANCE = 1 / 255  # floats may exceed 0..1 by one level of 8 bits, as resampled ones do; they are clipped
# An image of 32-bit integers without any value above this holds 8- or 16-bit values in a wider type: it would be black.
MAX_OF_16_BITS = 65_535


def rgb_pixels(image: Pillow.Image, turn: Turn | None = None) -> npt.NDArray[np.uint8]:
    """(height, width, 3) pixels of a loaded image in RGB, turned.

    A large image is converted in bands of rows, which gives the same pixels as converting all of it at once.

    Raises
    ------
    ImageError
        Grey values are negative, not finite, outside 0..1 as floats, or too small for their 32-bit integers.
    """
    if _is_deep_grey(image):
        image = Pillow.fromarray(_grey_levels(image))
    width, height = image.size
    band = max(BAND_PIXELS // max(width, 1), 1)
    if band >= height:
        rgb = _to_rgb(image)
        return np.asarray(rgb if turn is None else rgb.transpose(turn))
    pixels = np.empty((width, height, 3) if turn in SIDEWAYS else (height, width, 3), np.uint8)
    for top in range(0, height, band):
        bottom = min(top + band, height)
        rgb = _to_rgb(image.crop((0, top, width, bottom)))
        rows = slice(height - bottom, height - top) if turn in BACKWARDS else slice(top, bottom)
        part = pixels[:, rows] if turn in SIDEWAYS else pixels[rows]
        part[:] = np.asarray(rgb if turn is None else rgb.transpose(turn))
    return pixels


def _to_rgb(image: Pillow.Image) -> Pillow.Image:
    """Convert to mode RGB; transparency is blended with white. An RGB image without transparency is not copied."""
    transparent = "transparency" in image.info
    if image.mode == "RGB" and not transparent:  # a needless convert() would halve the speed of several threads
        return image
    if transparent or image.mode in ALPHA_MODES:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Pillow.alpha_composite(Pillow.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def scale_transparent_colour(image: Pillow.Image, depth: int) -> None:
    """Scale the transparent colour of a PNG to the pixels that Pillow makes of samples of `depth` bits.

    Pillow leaves the colour as it is in the file. Of 16-bit RGB it keeps the high bytes, which are compared alone.
    """
    colour = image.info.get("transparency")
    if image.mode == "L" and isinstance(colour, int):
        image.info["transparency"] = colour * 255 // (2**depth - 1)
    elif image.mode == "RGB" and depth == 16 and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _is_deep_grey(image: Pillow.Image) -> bool:
    """True for grey values other than unsigned bytes."""
    return image.mode == "F" or image.mode.startswith("I") or _is_signed_byte(image)


def _grey_levels(image: Pillow.Image) -> npt.NDArray[np.uint8]:
    """(height, width) levels of 0..255 of an image of floats or of more than eight bits; transparency is white."""
    levels = _opaque_grey_levels(image)
    if "transparency" in image.info:
        levels[np.asarray(image) == image.info["transparency"]] = 255
    return levels


def _opaque_grey_levels(image: Pillow.Image) -> npt.NDArray[np.uint8]:
    inverted = _tag(image, PHOTOMETRIC, None) == WHITE_IS_ZERO  # Pillow inverts only up to eight bits
    values = np.asarray(image)
    if image.mode == "F":
        return _levels_of_floats(1 - values if inverted else values)
    if image.mode == "L":
        values, white = values.view(np.int8), 127
    elif image.mode == "I":
        values, white = _typed(image, values)
    else:
        white = 2 ** _tag(image, BITS_PER_SAMPLE, 16) - 1
    return _levels_of_integers(white - values if inverted else values, white)


def _typed(image: Pillow.Image, values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], int]:
    """Values of mode I, which Pillow uses for several types, in their own type; and the value that is white."""
    if image.format in ("PNG", "PPM"):  # Pillow scales PPM to 16 bits; older releases read 16-bit PNGs as mode I
        return values, MAX_OF_16_BITS
    if image.format == "TIFF" and _tag(image, BITS_PER_SAMPLE, 32) == 16:
        return values, 32_767
    if image.format == "TIFF" and _tag(image, SAMPLE_FORMAT, UNSIGNED) == UNSIGNED:
        return values.view(np.uint32), 2**32 - 1
    return values, 2**31 - 1


def _levels_of_integers(values: npt.NDArray[Any], white: int) -> npt.NDArray[np.uint8]:
    low, high = int(values.min()), int(values.max())
    if low < 0:
        raise ImageError(
            f"integer grey values from {low:,} to {high:,}, where 0 is black and {white:,} white; save it with 8 bits"
        )
    if white > MAX_OF_16_BITS and 0 < high <= MAX_OF_16_BITS:
        raise ImageError(
            f"32-bit grey values only up to {high:,}, where {white:,} is white: it would be black; save it with 8 bits"
        )
    dtype = np.float32 if white <= MAX_OF_16_BITS else np.float64

    def scaled(band: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        floats: npt.NDArray[np.floating] = band.astype(dtype)
        return np.asarray(floats * (255.0 / white) + 0.5, np.uint8)

    return _in_bands(scaled, values)


def _levels_of_floats(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise ImageError("floating-point grey values that are NaN or infinite; save it with 8 bits")
    low, high = float(values.min()), float(values.max())
    if low < -FLOAT_TOLERANCE or high > 1 + FLOAT_TOLERANCE:
        raise ImageError(
            f"floating-point grey values from {low:.6g} to {high:.6g}, where 0 is black and 1 is white; "
            "save it with 8 bits"
        )
    return _in_bands(lambda band: np.clip(band * 255 + 0.5, 0, 255).astype(np.uint8), values)


def _in_bands(
    convert: Callable[[npt.NDArray[Any]], npt.NDArray[np.uint8]], values: npt.NDArray[Any]
) -> npt.NDArray[np.uint8]:
    """Convert (height, width) values a band of rows at a time."""
    levels, band = np.empty(values.shape, np.uint8), max(BAND_PIXELS // max(values.shape[1], 1), 1)
    for top in range(0, len(values), band):
        levels[top : top + band] = convert(values[top : top + band])
    return levels


def _is_signed_byte(image: Pillow.Image) -> bool:
    """True for a TIFF of signed 8-bit integers, whose bits Pillow reads as unsigned ones."""
    return image.mode == "L" and image.format == "TIFF" and _tag(image, SAMPLE_FORMAT, UNSIGNED) == SIGNED


def _tag(image: Pillow.Image, tag: int, default: Any) -> Any:
    """First value of a TIFF tag; the default for other formats and for a missing tag."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return value[0] if isinstance(value, tuple) and value else value
