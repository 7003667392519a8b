"""Degraded copies of an image, as websites and messengers make them: recompressed, reduced, blurred."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from PIL import Image as Pillow
from PIL import ImageFilter

from .decoding.image import Pixels, pixels_of

Degrade = Callable[[Pillow.Image], Pillow.Image]


def recompressed(image_format: str, quality: int) -> Degrade:
    """Compress as JPEG or WEBP at a quality between 1 and 100."""

    def degrade(image: Pillow.Image) -> Pillow.Image:
        content = io.BytesIO()
        image.save(content, image_format, quality=quality)
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
    return lambda image: image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


DEGRADATIONS: dict[str, Degrade] = {  # by name, in the order of the views made by `degraded`
    "after JPEG quality 60": recompressed("JPEG", 60),
    "at half its size": resized(0.5),
}


def degraded(pixels: Pixels) -> Sequence[Pixels]:
    """Degraded copies of an image, one for each of `DEGRADATIONS`, in their order."""
    return list(degraded_by_name(pixels).values())


def degraded_by_name(pixels: Pixels) -> dict[str, Pixels]:
    """Degraded copies of an image, by the names in `DEGRADATIONS`."""
    image = Pillow.fromarray(pixels)
    return {name: pixels_of(degrade(image)) for name, degrade in DEGRADATIONS.items()}
