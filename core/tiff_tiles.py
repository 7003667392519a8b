"""Sides of the part of an image that a decoder holds in memory at once: tiles of a TIFF are unpacked whole."""

from __future__ import annotations

from typing import Any

TILE_WIDTH, TILE_HEIGHT = 322, 323  # tags of TIFF


def sides_in_memory(image: Any) -> tuple[int, int]:
    """Width and height of an opened Pillow image or, if they have more pixels, of its tiles."""
    tags = getattr(image, "tag_v2", {})
    sides = (tags.get(TILE_WIDTH, 0), tags.get(TILE_HEIGHT, 0))
    width, height = (side if isinstance(side, int) else 0 for side in sides)
    size: tuple[int, int] = image.size
    return (width, height) if width * height > size[0] * size[1] else size
