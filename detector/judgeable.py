"""Images that hold nothing to judge: too small, or of one colour. They can be indexed, but get no verdict.

A classifier always answers. For an image without content the answer depends on how the training images are distributed,
not on the image: a black pixel can be called fake with confidence.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import NothingToJudge

MIN_SIDE = 32  # pixels; CLIP enlarges a smaller image sevenfold, and sees blurred blocks instead of a texture
# Largest difference, in levels of 255, between pixels of one colour: lossy compression of a flat image stays within two
# levels of its colour. The faintest text or gradient that a person can see differs by more.
FLAT_LEVELS = 4
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
    """True if no channel varies by more than `FLAT_LEVELS`."""
    rows = pixels.reshape(len(pixels), -1)  # columns are reduced several times faster than the last axes
    low = rows.min(0).reshape(-1, pixels.shape[2]).min(0)
    high = rows.max(0).reshape(-1, pixels.shape[2]).max(0)
    return bool((high - low).max() <= FLAT_LEVELS)
