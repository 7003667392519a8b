"""Images that hold nothing to judge: too small, or of one colour. They can be indexed, but get no verdict.

A classifier always answers. For an image without content the answer depends on how the training images are distributed,
not on the image: a black pixel can be called fake with confidence.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import NothingToJudge

MIN_SIDE = 32  # pixels; CLIP enlarges a smaller image sevenfold, and sees blurred blocks instead of a texture
# Largest differences, in levels of 255, between pixels of one colour. Lossy WebP changes the brightness of a flat image
# by 2 levels and its colours by up to 15 (at quality 30), JPEG and AVIF by at most 1. Text or a gradient that a person
# can see differs by more in brightness.
FLAT_BRIGHTNESS, FLAT_CHANNEL = 4, 16
BRIGHTNESS = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue (ITU-R BT.601)
SAMPLE_SIDE = 16  # most images are seen not to be flat from 16 x 16 of their pixels


def require_judgeable(pixels: npt.NDArray[np.uint8]) -> None:
    """Raise NothingToJudge if (height, width, 3) pixels of the full-size image are too few, or have one colour."""
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise NothingToJudge(
            f"cannot be judged: {width} x {height} pixels; at least {MIN_SIDE} on each side are needed"
        )
    sample = pixels[:: height // SAMPLE_SIDE, :: width // SAMPLE_SIDE]
    if _is_flat(sample) and _is_flat(pixels):
        colour = ", ".join(str(level) for level in pixels[0, 0].tolist())
        raise NothingToJudge(f"cannot be judged: it has one colour only, RGB ({colour})")


def _is_flat(pixels: npt.NDArray[np.uint8]) -> bool:
    """True if all pixels have one colour, within `FLAT_BRIGHTNESS` and `FLAT_CHANNEL`."""
    rows = pixels.reshape(len(pixels), -1)  # columns are reduced several times faster than the last axes
    low = rows.min(0).reshape(-1, pixels.shape[2]).min(0)
    high = rows.max(0).reshape(-1, pixels.shape[2]).max(0)
    varies = int((high - low).max())
    if varies <= FLAT_BRIGHTNESS or varies > FLAT_CHANNEL:
        return varies <= FLAT_BRIGHTNESS
    return bool(np.ptp(pixels @ BRIGHTNESS) <= FLAT_BRIGHTNESS)
