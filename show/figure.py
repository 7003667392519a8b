"""A figure with its caption and its data, in one style that is legible in print and to colour-blind readers."""

from __future__ import annotations

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
from ..core.escaping import csv_text, escape
from .verdict_style import VERDICT_STYLES

REAL, FAKE = VERDICT_STYLES["real"].print_color, VERDICT_STYLES["fake"].print_color
GREY, INK = "#8a8f98", "#22262c"
FAINT = "#b9bec5"  # axes and other auxiliary lines
FULL, HALF = 7.2, 3.5  # inches: width of the report, and of two figures side by side
LABEL_COLORS = {"real": REAL, "fake": FAKE, "unknown": GREY}
NAME_LENGTH = 24  # characters of a name beside or below a figure
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ReportFigure:
    """A figure with its title, its caption and its data."""

    name: str  # of its files, without a suffix
    title: str
    caption: str
    figure: Figure
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def image(self, kind: str) -> bytes:
        """The figure as the bytes of an "svg" or a "png"."""
        out = io.BytesIO()
        options: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 160}
        # saved at full size, not cropped to its content, so that text has the same size in all figures
        self.figure.savefig(out, format=kind, facecolor="white", **options)
        return out.getvalue()

    def draw(self, folder: Path) -> list[Path]:
        """Write the PNG and SVG to a folder; returns their paths."""
        written = []
        for kind in ("png", "svg"):
            written.append(folder / f"{self.name}.{kind}")
            with written_aside(written[-1]) as temporary:
                temporary.write_bytes(self.image(kind))
        return written

    def save(self, folder: Path) -> list[Path]:
        """Write the PNG, SVG and CSV to a folder; returns their paths."""
        table = folder / f"{self.name}.csv"
        drawn = self.draw(folder)
        write_text(table, self.csv())
        return [*drawn, table]

    def csv(self) -> str:
        """The figure's data as CSV with a header."""
        return csv_text([self.columns, *self.rows])


def new_axes(
    count: int = 1, *, width: float = FULL, height: float = 3.4, share: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes side by side; width and height in inches."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    axes = figure.subplots(1, count, squeeze=False, sharey=share)[0].tolist()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(FAINT)
        ax.tick_params(labelsize=8, color=FAINT, labelcolor=INK)
        for text in (ax.xaxis.label, ax.yaxis.label, ax.title):
            text.set(fontsize=9, color=INK)
    return figure, axes


def add_legend_below(figure: Figure, ax: Axes, location: Literal["outside lower left", "outside lower right"]) -> None:
    """Put the legend of one of two axes below the figure, where it covers no data."""
    handles, labels = ax.get_legend_handles_labels()
    compact: dict[str, Any] = {"handlelength": 1.2, "handletextpad": 0.4, "columnspacing": 0.9, "fontsize": 7.5}
    figure.legend(handles, labels, loc=location, ncols=len(labels), frameon=False, **compact)


def shorten_middle(name: str) -> str:
    r"""Shorten a long name in its middle, since names may differ at either end, and escape it for matplotlib.

    >>> shorten_middle("stylegan2"), shorten_middle("stable_diffusion_xl_base_1_0_refined")
    ('stylegan2', 'stable_diffu…_0_refined')
    >>> print(shorten_middle("$gan$"))
    \$gan\$
    """
    name = escape(name)
    short = name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH // 2]}…{name[-(NAME_LENGTH // 2 - 2) :]}"
    return short.replace("$", r"\$")  # between two of them it would be a formula


def describe_counts(by_part: Mapping[str, int], what: str) -> str:
    """Counts by part of the split, in words.

    >>> describe_counts({"train": 4000, "test": 1171}, "rows")
    '4,000 train and 1,171 test rows'
    """
    *first, last = [f"{number:,} {part}" for part, number in by_part.items()]
    return f"{', '.join(first)} and {last} {what}" if first else f"{last} {what}"
