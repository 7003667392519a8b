"""Layouts of TIFF that Pillow opens, but whose samples it takes for others: wrong pixels without an error."""

from __future__ import annotations

from PIL import Image as Pillow
from PIL.TiffImagePlugin import TiffImageFile

from ...core.tiff_tiles import sides_in_memory
from ...errors import ImageError
from .rgb import BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO

COMPRESSION, FILL_ORDER, STRIP_BYTES, PLANAR_CONFIGURATION, TILE_BYTES = 259, 266, 279, 284, 325  # tags
UNCOMPRESSED = 1  # a value of COMPRESSION
SEPARATE = 2  # a value of PLANAR_CONFIGURATION
MOST_TILE_PIXELS = 1 << 24  # 4096 x 4096, of a tile of a small image
BLACK_IS_ZERO, YCBCR = 1, 6  # values of PHOTOMETRIC


def refuse_misread_layouts(image: Pillow.Image) -> None:
    """Raise ImageError for an opened TIFF whose samples Pillow misreads, or whose tiles are far larger than it is."""
    if not isinstance(image, TiffImageFile):
        return
    width, height = sides_in_memory(image)
    if width * height > max(2 * image.size[0] * image.size[1], MOST_TILE_PIXELS):
        raise ImageError(f"a TIFF with tiles of {width} x {height}, far more than its pixels; save it again")
    if image.tag_v2.get(COMPRESSION, UNCOMPRESSED) != UNCOMPRESSED:
        # libtiff returns samples in the machine's byte order, and Pillow reads these modes in the file's
        if image.tag_v2.prefix == b"MM" and image.mode in ("I", "F"):
            raise ImageError("a compressed big-endian TIFF of this depth is unsupported; save it as PNG with 8 bits")
    elif _has_odd_planes(image):
        raise ImageError("an uncompressed TIFF with separate planes of this kind is unsupported; save it as PNG")
    elif _has_reduced_chroma(image):
        raise ImageError("an uncompressed TIFF with reduced chroma is unsupported; save it as PNG")


def _has_odd_planes(image: TiffImageFile) -> bool:
    """True for separate planes of anything but plain bytes or plain bits, as which Pillow reads them."""
    tags = image.tag_v2
    if tags.get(PLANAR_CONFIGURATION, 1) != SEPARATE:
        return False
    bits, photometric = set(tags.get(BITS_PER_SAMPLE, (1,))), tags.get(PHOTOMETRIC, WHITE_IS_ZERO)
    plain = (bits == {8} and photometric != WHITE_IS_ZERO) or (bits == {1} and photometric == BLACK_IS_ZERO)
    return not plain or tags.get(FILL_ORDER, 1) != 1


def _has_reduced_chroma(image: TiffImageFile) -> bool:
    tags, (width, height) = image.tag_v2, image.size
    stored = sum(tags.get(STRIP_BYTES, ()) or tags.get(TILE_BYTES, ()))
    return bool(tags.get(PHOTOMETRIC) == YCBCR and stored < 3 * width * height)
