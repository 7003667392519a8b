"""Degraded copies of an image, as websites and messengers make them: recompressed, reduced, blurred.

Which ones, and how strong, is measured by benchmarks/detector/stability.py.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from PIL import Image as Pillow
from PIL import ImageFilter

from .decoding.image import Pixels, pixels_of

Degrade = Callable[[Pillow.Image], Pillow.Image]

# Larger images are reduced before they are compressed or blurred, as websites do: WEBP has no more than 16,383 pixels a
# side and takes seconds for a photograph, and a copy of full size would reach the encoder almost unchanged.
LONGEST = 1024  # pixels a side


def recompressed(image_format: str, quality: int) -> Degrade:
    """Compress as JPEG or WEBP at a quality between 1 and 100."""

    def degrade(image: Pillow.Image) -> Pillow.Image:
        content = io.BytesIO()
        _reduced(image).save(content, image_format, quality=quality)
        return Pillow.open(content)

    return degrade


def resized(factor: float) -> Degrade:
    """Multiply width and height by a factor."""

    def degrade(image: Pillow.Image) -> Pillow.Image:
        size = max(int(image.width * factor), 1), max(int(image.height * factor), 1)
        return image.resize(size, Pillow.Resampling.LANCZOS)

    return degrade


def blurred(share: float) -> Degrade:
    """Blur with a Gaussian whose standard deviation is a share of the shorter side, whatever the number of pixels."""

    def degrade(image: Pillow.Image) -> Pillow.Image:
        image = _reduced(image)
        return image.filter(ImageFilter.GaussianBlur(share * min(image.size)))

    return degrade


DEGRADATIONS: dict[str, Degrade] = {  # by name, in the order of the views made by `degraded`
    "after JPEG quality 60": recompressed("JPEG", 60),
    "after WebP quality 50": recompressed("WEBP", 50),
    "at half its size": resized(0.5),
    "after a blur of 1%": blurred(0.01),
}


def degraded(pixels: Pixels) -> Sequence[Pixels]:
    """Degraded copies of an image, one for each of `DEGRADATIONS`, in their order."""
    return list(degraded_by_name(pixels).values())


def degraded_by_name(pixels: Pixels) -> dict[str, Pixels]:
    """Degraded copies of an image, by the names in `DEGRADATIONS`."""
    image = Pillow.fromarray(pixels)
    return {name: pixels_of(degrade(image)) for name, degrade in DEGRADATIONS.items()}


def _reduced(image: Pillow.Image) -> Pillow.Image:
    """Reduce an image to at most `LONGEST` pixels a side; a smaller one is returned as it is."""
    if max(image.size) <= LONGEST:
        return image
    image = image.copy()
    image.thumbnail((LONGEST, LONGEST))
    return image
