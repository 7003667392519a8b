"""Crops of an image at its native resolution: resizing wipes out traces of its generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..decoding.image import Pixels


class PixelsWithCrops(np.ndarray[Any, np.dtype[np.uint8]]):
    """Pixels that were resized and carry crops of the image before it was resized."""

    crops: tuple[Pixels, ...]

    @classmethod
    def of(cls, pixels: Pixels, crops: Sequence[Pixels]) -> PixelsWithCrops:
        """Attach crops to pixels."""
        result = np.ascontiguousarray(pixels).view(cls)
        result.crops = tuple(crops)
        return result

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels and their crops."""
        return super().nbytes + sum(crop.nbytes for crop in self.crops)


def crops_of(pixels: Pixels, size: tuple[int, int], number: int) -> list[Pixels]:
    """Return the crops that an image carries; one that was not resized is cut.

    Parameters
    ----------
    size : height and width of a crop
    number : 1 for the centre, 5 for the centre and the four corners
    """
    return list(pixels.crops[:number]) if isinstance(pixels, PixelsWithCrops) else cut(pixels, size, number)


def cut(pixels: Pixels, size: tuple[int, int], number: int) -> list[Pixels]:
    """Cut crops of height x width from an image: the centre, then the corners. What lies outside is black.

    The same pixels as torchvision's CenterCrop and FiveCrop; an image that is too small for FiveCrop is first padded
    as CenterCrop pads it.
    """
    height, width = size
    missing = max(height - pixels.shape[0], 0), max(width - pixels.shape[1], 0)
    if any(missing):
        pixels = np.pad(pixels, (*((side // 2, (side + 1) // 2) for side in missing), (0, 0)))
    bottom, right = pixels.shape[0] - height, pixels.shape[1] - width
    places = [(round(bottom / 2), round(right / 2)), (0, 0), (0, right), (bottom, 0), (bottom, right)]
    return [np.ascontiguousarray(pixels[y : y + height, x : x + width]) for y, x in places[:number]]
