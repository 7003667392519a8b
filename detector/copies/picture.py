"""A picture at the few pixels at which copies are compared, from the bytes of a thumbnail."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

SIDE = 64  # pixels to which both sides of a picture are resized for the comparison
COARSE_SIDE = 32  # the same for the search of a common part
MAX_SIDE = 1024  # of a thumbnail; a stranger's store may hold larger images
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue (ITU-R BT.601)

Grid = npt.NDArray[np.float32]  # (height, width) or (height, width, 3), in levels of 255


@dataclass(frozen=True)
class Picture:
    """A picture stretched to squares of fixed sizes, so that any two can be compared."""

    color: Grid  # (SIDE, SIDE, 3) RGB
    coarse: Grid  # (COARSE_SIDE, COARSE_SIDE) brightness

    @classmethod
    def of(cls, thumbnail: bytes) -> Picture | None:
        """Decode a thumbnail; None if it is empty, damaged or too large."""
        try:
            with Image.open(io.BytesIO(thumbnail), formats=("JPEG",)) as image:
                if max(image.size) > MAX_SIDE:
                    return None
                pixels = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
            return None
        color = np.asarray(pixels, np.float32)
        factor = SIDE // COARSE_SIDE
        coarse = (color @ LUMA).reshape(COARSE_SIDE, factor, COARSE_SIDE, factor).mean((1, 3))
        return cls(color, coarse)

    @property
    def brightness(self) -> Grid:
        """(SIDE, SIDE) brightness."""
        return np.asarray(self.color @ LUMA, np.float32)

    def mirrored(self) -> Picture:
        """The picture with left and right exchanged."""
        return Picture(self.color[:, ::-1], self.coarse[:, ::-1])
