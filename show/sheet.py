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

from ..detector.verdict import Neighbor, Verdict
from ..store.durable import written_aside

INK, GREY, PAPER, EMPTY = "#1c2026", "#69717d", "#ffffff", "#eceff3"
COLOURS = {"real": "#1f6fb2", "fake": "#c8501e", "unsure": "#8a6200"}  # apart for colour-blind eyes, and always named
CELL, GAP, MARGIN, LABEL = 132, 14, 36, 42


@dataclass(frozen=True)
class Entry:
    """One image asked about, with its verdict."""

    verdict: Verdict
    picture: Image.Image

    @classmethod
    def of(cls, verdict: Verdict, pixels: Any) -> Entry:
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


def write_sheet(path: Path, entries: Sequence[Entry], thumbnail: Callable[[int], bytes]) -> None:
    """Write the sheet of some verdicts as a PNG, whole or not at all; raises StoreError for a full disk."""
    sheet = draw_sheet(entries, thumbnail)
    with written_aside(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)


def draw_sheet(entries: Sequence[Entry], thumbnail: Callable[[int], bytes]) -> Image.Image:
    """The sheet of some verdicts, one below the other."""
    panels = [_panel(entry, thumbnail) for entry in entries]
    width = max(panel.width for panel in panels)
    sheet = Image.new("RGB", (width, sum(panel.height for panel in panels)), PAPER)
    top = 0
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height
    return sheet


def _panel(entry: Entry, thumbnail: Callable[[int], bytes]) -> Image.Image:
    verdict = entry.verdict
    columns = max(3, *(len(found) for found in verdict.neighbors.values()))
    asked = 2 * CELL + LABEL + GAP
    left = MARGIN + asked + 2 * GAP
    width = left + columns * (CELL + GAP) - GAP + MARGIN
    top = MARGIN + 66
    height = top + 2 * (26 + CELL + LABEL) + MARGIN // 2
    panel = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(panel)
    colour = COLOURS[verdict.verdict]

    title = verdict.verdict.upper() + (
        f", probably {verdict.generator}" if verdict.generator not in ("", "unknown") else ""
    )
    draw.text((MARGIN, MARGIN - 10), title, colour, _font(30, bold=True))
    svm, near = verdict.signals["svm"], verdict.signals["neighbors"]
    said = f"score {verdict.score:+.2f}   classifier {svm:+.2f}   neighbours {near:+.2f}   (above 0 leans fake)"
    draw.text(
        (MARGIN, MARGIN + 32),
        _fitted(f"{said}   {'; '.join(verdict.reasons)}", _font(14), width - 2 * MARGIN),
        GREY,
        _font(14),
    )

    _place(panel, entry.picture, (MARGIN, top + 26), asked)
    draw.rectangle((MARGIN - 3, top + 23, MARGIN + asked + 2, top + 26 + asked + 2), outline=colour, width=3)
    draw.text((MARGIN, top + 26 + asked + 10), _fitted(Path(verdict.image).name, _font(14), asked), INK, _font(14))

    for row, name in enumerate(("real", "fake")):
        y = top + row * (26 + CELL + LABEL)
        draw.text((left, y), f"nearest {name}", COLOURS[name], _font(15, bold=True))
        for column in range(columns):
            x = left + column * (CELL + GAP)
            if column >= len(verdict.neighbors[name]):
                continue
            neighbor = verdict.neighbors[name][column]
            _place(panel, picture_of(neighbor, thumbnail), (x, y + 26), CELL)
            draw.text((x, y + 26 + CELL + 4), f"{neighbor.similarity:.3f}", INK, _font(13, bold=True))
            draw.text((x, y + 26 + CELL + 20), _fitted(neighbor.source, _font(12), CELL), GREY, _font(12))
    draw.line((MARGIN, height - 1, width - MARGIN, height - 1), EMPTY, 1)
    return panel


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
