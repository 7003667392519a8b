"""Figures of what a head does on what it has never seen: the atlas as a map of heat, the replay as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgb

from .figure import FAKE, GREY, INK, REAL, Array, ReportFigure, new_axes, shortened

SEEN = (0.2126, 0.7152, 0.0722)  # how bright red, green and blue are to the eye


def heat_map(
    name: str, title: str, caption: str, across: Sequence[str], down: Sequence[str], values: Array
) -> ReportFigure:
    """A table of AUCs as colours with their figures: blue where sources are told apart, orange where they mislead.

    The means stand apart, below and to the right.
    """
    rows = tuple((d, a, float(values[i, j])) for i, d in enumerate(down) for j, a in enumerate(across))
    across, down = (*across, "mean"), (*down, "mean")
    values = np.vstack([values, values.mean(0)])
    values = np.hstack([values, values.mean(1, keepdims=True)])
    figure, (ax,) = new_axes(width=max(2.6 + 0.62 * len(across), 5.2), height=1.2 + 0.3 * len(down))
    colours = LinearSegmentedColormap.from_list("orange to blue", ["#8f3a10", FAKE, "#f6f6f4", REAL, "#0f3f6b"])
    drawn = ax.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for i in range(len(down)):
        for j in range(len(across)):
            if np.isfinite(values[i, j]):
                ink = ink_on(colours(values[i, j]))
                bold = "bold" if i == len(down) - 1 or j == len(across) - 1 else "normal"
                text = f"{values[i, j]:.2f}"
                ax.text(j, i, text, ha="center", va="center", fontsize=8, color=ink, fontweight=bold)
    ax.axhline(len(down) - 1.5, color="white", linewidth=5)
    ax.axvline(len(across) - 1.5, color="white", linewidth=5)
    ax.set_xticks(range(len(across)), map(shortened, across), rotation=35, ha="right")
    ax.set_yticks(range(len(down)), map(shortened, down))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xticks(np.arange(len(across) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(down) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="minor", length=0)
    bar = figure.colorbar(drawn, ax=ax, ticks=[0, 0.5, 1], fraction=0.05, pad=0.02)
    bar.ax.set_yticklabels(["0 misled", "0.5 a coin", "1 told apart"], fontsize=7.5)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    return ReportFigure(name, title, caption, figure, ("row", "column", "value"), rows)


def ink_on(colour: Sequence[float]) -> str:
    """White or ink, whichever is read better on a colour of shares of red, green and blue (WCAG 2's contrast).

    >>> ink_on((1.0, 1.0, 1.0)), ink_on((0.12, 0.44, 0.7))
    ('#22262c', 'white')
    """
    ground, ink = (
        sum(w * (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4) for w, c in zip(SEEN, one, strict=False))
        for one in (colour, to_rgb(INK))
    )
    return "white" if 1.05 * (ink + 0.05) > (ground + 0.05) ** 2 else INK


def replay_lines(windows: Sequence[Mapping[str, Any]]) -> ReportFigure:
    """AUC on what came next and on what was known, and accuracy at the past's threshold, by day of release."""
    figure, (ax,) = new_axes(width=max(5.2, 1.6 + 0.7 * len(windows)))
    place = np.arange(len(windows))
    lines = (
        ("past_auc", "AUC on the past", REAL, "--", "o"),
        ("auc", "AUC on what came next", FAKE, "-", "o"),
        ("accuracy", "accuracy on what came next, at the past's threshold", GREY, ":", "s"),
    )
    for name, word, colour, style, marker in lines:
        values = [w[name] for w in windows]
        ax.plot(place, values, color=colour, linestyle=style, marker=marker, markersize=4, label=word)
    ax.axhline(0.5, color=GREY, linewidth=0.8)
    names = [", ".join(w["sources"]) for w in windows]
    labels = [f"{w['date']}\n{shortened(n)}" for w, n in zip(windows, names, strict=True)]
    ax.set_xticks(place, labels, rotation=35, ha="right")
    ax.set_ylim(min(0.45, *(w[name] - 0.03 for w in windows for name, *_ in lines)), 1.02)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    columns = ("date", "sources", "generators", "n", "auc", "accuracy", "past_auc")
    rows = tuple(tuple(" ".join(w[c]) if c == "sources" else w[c] for c in columns) for w in windows)
    caption = "Each head learned from what had been released before the day; what was released then is new to it."
    return ReportFigure("replay", "The past on the future", caption, figure, columns, rows)
