"""A figure with its words and its numbers, and the look that all share: read in print and by colour-blind eyes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ..core.atomic_files import write_text, written_aside

REAL, FAKE, GREY, INK = "#1f6fb2", "#c8501e", "#8a8f98", "#22262c"
FAINT = "#b9bec5"  # axes and other lines that only hold things up
FULL, HALF = 7.2, 3.5  # inches: across the report, and of two side by side
COLOURS = {"real": REAL, "fake": FAKE, "unknown": GREY}
NAME = 24  # letters of a name beside or below a figure
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ReportFigure:
    """A figure with its words and its numbers."""

    name: str  # of its files
    title: str
    caption: str
    figure: Figure
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def image(self, kind: str) -> bytes:
        """As "svg" or "png"."""
        out = io.BytesIO()
        options: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 160}
        self.figure.savefig(
            out, format=kind, facecolor="white", **options
        )  # as wide as it says: all letters are one size
        return out.getvalue()

    def draw(self, folder: Path) -> list[Path]:
        """Write its PNG and SVG into a folder; returns where they are."""
        written = []
        for kind in ("png", "svg"):
            written.append(folder / f"{self.name}.{kind}")
            with written_aside(written[-1]) as temporary:
                temporary.write_bytes(self.image(kind))
        return written

    def save(self, folder: Path) -> list[Path]:
        """Write its PNG, SVG and CSV into a folder; returns where they are."""
        table = folder / f"{self.name}.csv"
        drawn = self.draw(folder)
        write_text(table, self.csv())
        return [*drawn, table]

    def csv(self) -> str:
        """Its numbers, under the names of their columns."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.columns, *self.rows])
        return out.getvalue()


def new_axes(
    count: int = 1, *, width: float = FULL, height: float = 3.4, share: bool = False
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    axes = figure.subplots(1, count, squeeze=False, sharey=share)[0].tolist()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(FAINT)
        ax.tick_params(labelsize=8, color=FAINT, labelcolor=INK)
        for text in (ax.xaxis.label, ax.yaxis.label, ax.title):
            text.set(fontsize=9, color=INK)
    return figure, axes


def legend_below(figure: Figure, ax: Axes, place: Literal["outside lower left", "outside lower right"]) -> None:
    """The legend of one of two axes under the figure, where it can hide nothing."""
    handles, words = ax.get_legend_handles_labels()
    tight: dict[str, Any] = {"handlelength": 1.2, "handletextpad": 0.4, "columnspacing": 0.9, "fontsize": 7.5}
    figure.legend(handles, words, loc=place, ncols=len(words), frameon=False, **tight)


def shortened(name: str) -> str:
    """A name that leaves room for what it names; both its ends are kept, for either may tell it from others.

    >>> shortened("stylegan2"), shortened("stable_diffusion_xl_base_1_0_refined")
    ('stylegan2', 'stable_diffu…_0_refined')
    """
    return name if len(name) <= NAME else f"{name[: NAME // 2]}…{name[-(NAME // 2 - 2) :]}"


def counted(by_part: Mapping[str, int], what: str) -> str:
    """How many each part has.

    >>> counted({"train": 4000, "test": 1171}, "rows")
    '4,000 train and 1,171 test rows'
    """
    *first, last = [f"{number:,} {part}" for part, number in by_part.items()]
    return f"{', '.join(first)} and {last} {what}" if first else f"{last} {what}"
