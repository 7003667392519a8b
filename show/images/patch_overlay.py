"""A map of an image's patches laid over the picture."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ...detector.patches.patch_map import Area, PatchMap
from ..verdict_style import VERDICT_STYLES

STRONGEST_PATCH = math.log(20)  # log-odds at the ends of the scale of a map, and beyond
SIGN = 0.1  # half the size of a sign, as a share of a patch
OPACITY = 0.6  # of the strongest patches; those that say nothing are transparent


def overlay(image: Image.Image, patch_map: PatchMap, area: Area | None = None) -> Image.Image:
    """Lay the map over an RGB image: blue where patches lean real, orange where they lean fake.

    Parameters
    ----------
    area : the part of `image` that the patches cover (default: that of the map)
    """
    left, top, right, bottom = area or patch_map.area
    colors = colored(np.array(patch_map.values))
    size = (max(1, round((right - left) * image.width)), max(1, round((bottom - top) * image.height)))
    # nearest: the patches stay visible, and a map promises no more detail than it has
    patches = Image.fromarray(colors, "RGBA").resize(size, Image.Resampling.NEAREST)
    whole = Image.new("RGBA", image.size)
    whole.paste(patches, (round(left * image.width), round(top * image.height)))
    grey = Image.blend(
        image.convert("L").convert("RGB"), image.convert("RGB"), 0.25
    )  # so that only the map is in colour
    result = Image.alpha_composite(grey.convert("RGBA"), whole).convert("RGB")
    _draw_signs(result, patch_map, (left, top, right, bottom))
    return result


def _draw_signs(image: Image.Image, patch_map: PatchMap, area: Area) -> None:
    """Draw a triangle in patches that lean fake, a dot in those that lean real, if they lean strongly."""
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = area
    width, height = (right - left) * image.width / patch_map.columns, (bottom - top) * image.height / patch_map.rows
    r = SIGN * min(width, height)
    for row, values in enumerate(patch_map.values):
        for column, value in enumerate(values):
            if abs(value) < STRONGEST_PATCH / 2:
                continue
            x, y = left * image.width + (column + 0.5) * width, top * image.height + (row + 0.5) * height
            if value > 0:
                draw.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill="white", outline="black")
            else:
                draw.ellipse([x - r, y - r, x + r, y + r], fill="white", outline="black")


def colored(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """(..., 4) uint8 RGBA of log-odds: blue below 0, orange above, the more opaque the farther from 0."""
    strength = np.clip(np.abs(values) / STRONGEST_PATCH, 0, 1)
    fake, real = (_rgb(VERDICT_STYLES[name].print_color) for name in ("fake", "real"))
    colors = np.where((values > 0)[..., None], fake, real)
    return np.concatenate([colors, np.rint(255 * OPACITY * strength)[..., None]], -1).astype(np.uint8)


def _rgb(color: str) -> npt.NDArray[np.int64]:
    """Numbers of a hex color.

    >>> _rgb("#1f6fb2").tolist()
    [31, 111, 178]
    """
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
