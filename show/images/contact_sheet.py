"""A contact sheet: one image with each queried image beside its nearest real and nearest fake rows.

Under it, where the head may show one, is a map of its patches.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ...core.atomic_files import written_aside
from ...core.escaping import escape
from ...core.reading import open_stream
from ...detector.patches.patch_map import Area
from ...detector.verdict import Neighbor, Verdict
from ..phrasing import (
    CAVEAT,
    describe_likelihood,
    describe_map,
    describe_ratio,
    describe_source,
    named_signals,
)
from ..verdict_style import VERDICT_STYLES
from .patch_overlay import STRONGEST_PATCH, colored, overlay

INK, GREY, PAPER, EMPTY = "#1c2026", "#69717d", "#ffffff", "#eceff3"
CELL, GAP, MARGIN, LABEL = 132, 14, 36, 52
HEAD, TITLE = 96, 26  # pixels above the images for the verdict, and above each row for its title
MAP = 2 * CELL  # pixels a side of the picture with the map
SCALE = 360  # pixels of the scale of the map
MIN_COLUMNS = 6  # leaves room for the text when there are few neighbours
JPEG = (".jpg", ".jpeg")


@dataclass(frozen=True)
class SheetEntry:
    """A queried image with its verdict."""

    verdict: Verdict
    image: Image.Image
    area: Area | None = None  # part of `image` that the verdict's map covers, None for the map's own

    @classmethod
    def of(cls, verdict: Verdict, pixels: Any, covered: Callable[[int, int], Area] | None = None) -> SheetEntry:
        """Make an entry from (height, width, 3) uint8 pixels, shrunk so that many entries fit in memory.

        Parameters
        ----------
        covered : height and width of the pixels, which may be cropped already, to the part that a map covers
        """
        image = Image.fromarray(pixels)
        area = covered(image.height, image.width) if covered else None
        image.thumbnail((3 * CELL, 3 * CELL), Image.Resampling.LANCZOS)
        return cls(verdict, image, area)


def open_neighbor(neighbor: Neighbor, thumbnail: Callable[[int], bytes]) -> Image.Image | None:
    """Open the neighbour's file if it still exists, else its stored thumbnail; None if there is neither."""
    try:
        with open_stream(neighbor.path) as file, Image.open(file) as image:
            image.draft("RGB", (2 * CELL, 2 * CELL))
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        stored = thumbnail(neighbor.row)
        return Image.open(io.BytesIO(stored)).convert("RGB") if stored else None


def write_sheet(path: Path, entries: Sequence[SheetEntry], thumbnail: Callable[[int], bytes]) -> None:
    """Write the contact sheet atomically: a JPEG if the name ends in .jpg or .jpeg, else a PNG.

    Raises StoreError if the disk is full.
    """
    sheet = draw_sheet(entries, thumbnail)
    with written_aside(path) as temporary:
        if path.suffix.lower() in JPEG:
            sheet.save(temporary, "JPEG", quality=88, optimize=True)
        else:
            sheet.save(temporary, "PNG", optimize=True)


def draw_sheet(entries: Sequence[SheetEntry], thumbnail: Callable[[int], bytes]) -> Image.Image:
    """Draw the contact sheet, with the verdicts below each other."""
    panels = [_panel(entry, thumbnail) for entry in entries]
    width = max(panel.width for panel in panels)
    sheet = Image.new("RGB", (width, sum(panel.height for panel in panels) + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = 0
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height
        draw.line((MARGIN, top - 2, width - MARGIN, top - 2), EMPTY, 2)
    for line, text in enumerate((entries[0].verdict.notice, CAVEAT)):
        corner = (MARGIN, top + MARGIN // 2 - 6 + 20 * line)
        draw.text(corner, _fitted(text, _font(14), width - 2 * MARGIN), GREY, _font(14))
    return sheet


def _panel(entry: SheetEntry, thumbnail: Callable[[int], bytes]) -> Image.Image:
    verdict = entry.verdict
    columns = max(MIN_COLUMNS, *(len(neighbors) for neighbors in verdict.neighbors.values()))
    side = 2 * CELL + LABEL + GAP  # of the queried image
    left = MARGIN + side + 2 * GAP
    width = left + columns * (CELL + GAP) - GAP + MARGIN
    top = MARGIN + HEAD
    bottom = top + 2 * (TITLE + CELL + LABEL)  # of the images
    has_map = verdict.map is not None and verdict.map.shown
    height = bottom + (TITLE + MAP + GAP if has_map else 0) + MARGIN // 2
    panel = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(panel)
    style = VERDICT_STYLES[verdict.verdict]

    title = f"{style.sign} {verdict.verdict.upper()}"
    draw.text((MARGIN, MARGIN - 10), title, style.print_color, _font(30, bold=True))
    answer_x = MARGIN + round(_font(30, bold=True).getlength(title)) + 18
    answer = verdict.copy or _answer(verdict)
    draw.text((answer_x, MARGIN), _fitted(answer, _font(20), width - answer_x - MARGIN), INK, _font(20))
    for line, (text, ink) in enumerate(((_reasons(verdict), INK), (_signals(verdict), GREY))):
        corner = (MARGIN, MARGIN + 36 + 22 * line)
        draw.text(corner, _fitted(text, _font(14), width - 2 * MARGIN), ink, _font(14))

    _paste(panel, entry.image, (MARGIN, top + TITLE), side)
    edge = top + TITLE
    draw.rectangle((MARGIN - 3, edge - 3, MARGIN + side + 2, edge + side + 2), outline=style.print_color, width=3)
    draw.text((MARGIN, edge + side + 10), _fitted(Path(verdict.image).name, _font(14), side), INK, _font(14))

    for row, name in enumerate(("real", "fake")):
        y = top + row * (TITLE + CELL + LABEL)
        title, font = f"{VERDICT_STYLES[name].sign} nearest {name}", _font(15, bold=True)
        draw.text((left, y), title, VERDICT_STYLES[name].print_color, font)
        draw.text((left + round(font.getlength(title)) + 10, y + 2), "cosine similarity and source", GREY, _font(12))
        for column, neighbor in enumerate(verdict.neighbors[name][:columns]):
            x = left + column * (CELL + GAP)
            _paste(panel, open_neighbor(neighbor, thumbnail), (x, y + TITLE), CELL)
            draw.text((x, y + TITLE + CELL + 4), f"{neighbor.similarity:.3f}", INK, _font(13, bold=True))
            draw.text((x, y + TITLE + CELL + 20), _fitted(neighbor.source, _font(12), CELL), GREY, _font(12))
    if has_map:
        _draw_map(panel, entry, bottom)
    return panel


def _draw_map(panel: Image.Image, entry: SheetEntry, top: int) -> None:
    """Draw the map of the patches below the images: the picture with the map, its scale, and what it is worth."""
    draw, patch_map, left = ImageDraw.Draw(panel), entry.verdict.map, MARGIN + MAP + 2 * GAP
    assert patch_map is not None
    width = panel.width - left - MARGIN
    draw.text((MARGIN, top), "Where in the image", INK, _font(15, bold=True))
    _paste(panel, overlay(entry.image, patch_map, entry.area), (MARGIN, top + TITLE), MAP)
    y = top + TITLE
    scale = colored(np.linspace(-STRONGEST_PATCH, STRONGEST_PATCH, SCALE)[None])
    bar = Image.alpha_composite(Image.new("RGBA", (SCALE, 1), PAPER), Image.fromarray(scale, "RGBA"))
    panel.paste(bar.convert("RGB").resize((SCALE, 14)), (left, y + 22))
    draw.rectangle((left, y + 22, left + SCALE - 1, y + 35), outline=EMPTY)
    for share, anchor, text in ((0, "la", "● leans real, 20×"), (0.5, "ma", "even"), (1, "ra", "▲ leans fake, 20×")):
        draw.text((left + share * SCALE, y), text, INK, _font(12), anchor=anchor)
    sentences = f"{describe_map(patch_map)}. {patch_map.note}"
    for line, text in enumerate(_wrapped(sentences[:1].upper() + sentences[1:], _font(14), width)):
        draw.text((left, y + 52 + 22 * line), text, INK, _font(14))


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """Break a text at spaces into lines of a width in pixels; its control characters are escaped."""
    lines: list[str] = []
    for word in escape(text).split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _answer(verdict: Verdict) -> str:
    return ", ".join(filter(None, (describe_likelihood(verdict), describe_source(verdict))))


def _reasons(verdict: Verdict) -> str:
    """The reasons and what would change the verdict; with copies, the probability first."""
    changes = "; ".join(f"{change.what} it would be {change.verdict}" for change in verdict.changes)
    sentences = (_answer(verdict) if verdict.copy else "", "; ".join(verdict.reasons), changes)
    text = ". ".join(sentence[:1].upper() + sentence[1:] for sentence in sentences if sentence)
    return f"{text}."


def _signals(verdict: Verdict) -> str:
    """The log-likelihood ratios of the verdict, in numbers and words."""
    signals = named_signals(verdict)
    return "   ".join(f"{name} {value:+.2f} ({describe_ratio(value)})" for name, value in signals.items()).replace(
        "-", "−"
    )


def _paste(sheet: Image.Image, image: Image.Image | None, corner: tuple[int, int], side: int) -> None:
    """Fit a whole image into a square, or write that none is stored."""
    x, y = corner
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((x, y, x + side - 1, y + side - 1), fill=EMPTY)
    if image is None:
        draw.text((x + side // 2, y + side // 2), "no image stored", GREY, _font(12), anchor="mm")
        return
    small = ImageOps.contain(image, (side, side), Image.Resampling.LANCZOS)
    sheet.paste(small, (x + (side - small.width) // 2, y + (side - small.height) // 2))


def _fitted(text: str, font: Any, width: int) -> str:
    """Shorten a text to a width in pixels with an ellipsis; its control characters are escaped."""
    text = escape(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


@lru_cache
def _font(size: int, bold: bool = False) -> Any:
    """Load DejaVu Sans from matplotlib's files, so that a sheet looks the same on every machine."""
    spec = find_spec("matplotlib")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    try:
        return ImageFont.truetype(folder / "mpl-data/fonts/ttf" / name, size)
    except OSError:
        return ImageFont.load_default(size)
