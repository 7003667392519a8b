"""A contact sheet: the image asked about, its nearest real and its nearest fake rows, as one picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..core.atomic_files import written_aside
from ..detector.verdict import Neighbor, Verdict
from .phrasing import CAVEAT, SHAPES, chance, kept, likelier, maker

INK, GREY, PAPER, EMPTY = "#1c2026", "#69717d", "#ffffff", "#eceff3"
COLOURS = {"real": "#1f6fb2", "fake": "#c8501e", "unsure": "#505b67"}  # apart for colour-blind eyes, and always named
CELL, GAP, MARGIN, LABEL = 132, 14, 36, 52
HEAD, TITLE = 96, 26  # above the pictures: the answer; of a row: its name
LEAST = 6  # columns, so that the words have room beside few witnesses
JPEG = (".jpg", ".jpeg")


@dataclass(frozen=True)
class SheetEntry:
    """One image asked about, with its verdict."""

    verdict: Verdict
    picture: Image.Image

    @classmethod
    def of(cls, verdict: Verdict, pixels: Any) -> SheetEntry:
        """From (height, width, 3) uint8 pixels; they are shrunk, so that many entries can wait."""
        picture = Image.fromarray(pixels)
        picture.thumbnail((3 * CELL, 3 * CELL), Image.Resampling.LANCZOS)
        return cls(verdict, picture)


def picture_of(neighbor: Neighbor, thumbnail: Callable[[int], bytes]) -> Image.Image | None:
    """A witness's file if it is still where it was, else the thumbnail that was stored, else None."""
    try:
        with Image.open(neighbor.path) as image:
            image.draft("RGB", (2 * CELL, 2 * CELL))
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        stored = thumbnail(neighbor.row)
        return Image.open(io.BytesIO(stored)).convert("RGB") if stored else None


def write_sheet(path: Path, entries: Sequence[SheetEntry], thumbnail: Callable[[int], bytes]) -> None:
    """Write the sheet of some verdicts, whole or not at all, as the JPEG its name says or as a PNG.

    Raises StoreError for a full disk.
    """
    sheet = draw_sheet(entries, thumbnail)
    with written_aside(path) as temporary:
        if path.suffix.lower() in JPEG:
            sheet.save(temporary, "JPEG", quality=88, optimize=True)
        else:
            sheet.save(temporary, "PNG", optimize=True)


def draw_sheet(entries: Sequence[SheetEntry], thumbnail: Callable[[int], bytes]) -> Image.Image:
    """The sheet of some verdicts, one below the other."""
    panels = [_panel(entry, thumbnail) for entry in entries]
    width = max(panel.width for panel in panels)
    sheet = Image.new("RGB", (width, sum(panel.height for panel in panels) + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = 0
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height
        draw.line((MARGIN, top - 2, width - MARGIN, top - 2), EMPTY, 2)
    draw.text((MARGIN, top + MARGIN // 2 + 4), _fitted(CAVEAT, _font(14), width - 2 * MARGIN), GREY, _font(14))
    return sheet


def _panel(entry: SheetEntry, thumbnail: Callable[[int], bytes]) -> Image.Image:
    verdict = entry.verdict
    columns = max(LEAST, *(len(found) for found in verdict.neighbors.values()))
    image_width = 2 * CELL + LABEL + GAP
    left = MARGIN + image_width + 2 * GAP
    width = left + columns * (CELL + GAP) - GAP + MARGIN
    top = MARGIN + HEAD
    height = top + 2 * (TITLE + CELL + LABEL) + MARGIN // 2
    panel = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(panel)
    colour = COLOURS[verdict.verdict]

    title = f"{SHAPES[verdict.verdict]} {verdict.verdict.upper()}"
    draw.text((MARGIN, MARGIN - 10), title, colour, _font(30, bold=True))
    beside = MARGIN + round(_font(30, bold=True).getlength(title)) + 18
    how_sure = ", ".join(filter(None, (chance(verdict), maker(verdict))))
    draw.text((beside, MARGIN), _fitted(how_sure, _font(20), width - beside - MARGIN), INK, _font(20))
    for line, (heading_width, ink) in enumerate(((_why(verdict), INK), (_signals(verdict), GREY))):
        where = (MARGIN, MARGIN + 36 + 22 * line)
        draw.text(where, _fitted(heading_width, _font(14), width - 2 * MARGIN), ink, _font(14))

    _place(panel, entry.picture, (MARGIN, top + TITLE), image_width)
    edge = top + TITLE
    draw.rectangle((MARGIN - 3, edge - 3, MARGIN + image_width + 2, edge + image_width + 2), outline=colour, width=3)
    draw.text(
        (MARGIN, edge + image_width + 10), _fitted(Path(verdict.image).name, _font(14), image_width), INK, _font(14)
    )

    for row, name in enumerate(("real", "fake")):
        y = top + row * (TITLE + CELL + LABEL)
        draw.text((left, y), f"{SHAPES[name]} nearest {name}", COLOURS[name], _font(15, bold=True))
        heading_width = round(_font(15, bold=True).getlength(f"{SHAPES[name]} nearest {name}"))
        draw.text((left + heading_width + 10, y + 2), "cosine similarity and source", GREY, _font(12))
        for column, neighbor in enumerate(verdict.neighbors[name][:columns]):
            x = left + column * (CELL + GAP)
            _place(panel, picture_of(neighbor, thumbnail), (x, y + TITLE), CELL)
            draw.text((x, y + TITLE + CELL + 4), f"{neighbor.similarity:.3f}", INK, _font(13, bold=True))
            draw.text((x, y + TITLE + CELL + 20), _fitted(neighbor.source, _font(12), CELL), GREY, _font(12))
    return panel


def _why(verdict: Verdict) -> str:
    """The reasons, and what would be said otherwise."""
    changes = "; ".join(f"{change.what} it would be {change.verdict}" for change in verdict.changes)
    parts = ("; ".join(verdict.reasons), changes, kept(verdict))
    text = ". ".join(part[:1].upper() + part[1:] for part in parts if part)
    return f"{text}."


def _signals(verdict: Verdict) -> str:
    """The numbers behind the answer."""
    numbers = {"classifier": verdict.signals["svm"], "neighbours": verdict.signals["neighbors"], "score": verdict.score}
    return "   ".join(f"{name} {value:+.2f} ({likelier(value)})" for name, value in numbers.items()).replace("-", "−")


def _place(sheet: Image.Image, picture: Image.Image | None, corner: tuple[int, int], side: int) -> None:
    """A picture whole within a square, or the words that there is none."""
    x, y = corner
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((x, y, x + side - 1, y + side - 1), fill=EMPTY)
    if picture is None:
        draw.text((x + side // 2, y + side // 2), "no picture kept", GREY, _font(12), anchor="mm")
        return
    small = ImageOps.contain(picture, (side, side), Image.Resampling.LANCZOS)
    sheet.paste(small, (x + (side - small.width) // 2, y + (side - small.height) // 2))


def _fitted(text: str, font: Any, width: int) -> str:
    """The text, cut to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


@lru_cache
def _font(size: int, bold: bool = False) -> Any:
    """DejaVu Sans as matplotlib brings it along, so that a sheet looks alike everywhere."""
    found = find_spec("matplotlib")
    folder = Path(found.origin).parent if found and found.origin else Path()
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    try:
        return ImageFont.truetype(folder / "mpl-data/fonts/ttf" / name, size)
    except OSError:
        return ImageFont.load_default(size)
