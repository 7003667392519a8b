"""Figures of unseen data: leave-one-out AUCs as a heat map, the temporal holdout as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgb

from .figure import FAKE, GREY, INK, REAL, Array, ReportFigure, new_axes, shorten_middle

LUMINANCE = (0.2126, 0.7152, 0.0722)  # weights of linear red, green and blue (WCAG 2, relative luminance)


def heat_map(
    name: str, title: str, caption: str, across: Sequence[str], down: Sequence[str], values: Array
) -> ReportFigure:
    """Heat map of AUCs with their values: blue above 0.5, orange below, means in the last row and column.

    Parameters
    ----------
    values : (len(down), len(across)) AUCs, NaN where there is none
    """
    rows = tuple((d, a, float(values[i, j])) for i, d in enumerate(down) for j, a in enumerate(across))
    across, down = (*across, "mean"), (*down, "mean")
    values = np.vstack([values, values.mean(0)])
    values = np.hstack([values, values.mean(1, keepdims=True)])
    figure, (ax,) = new_axes(width=max(2.6 + 0.62 * len(across), 5.2), height=1.2 + 0.3 * len(down))
    colors = LinearSegmentedColormap.from_list("orange to blue", ["#8f3a10", FAKE, "#f6f6f4", REAL, "#0f3f6b"])
    drawn = ax.imshow(values, cmap=colors, vmin=0, vmax=1, aspect="auto")
    for i in range(len(down)):
        for j in range(len(across)):
            if np.isfinite(values[i, j]):
                ink = text_color(colors(values[i, j]))
                bold = "bold" if i == len(down) - 1 or j == len(across) - 1 else "normal"
                ax.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=8, color=ink, fontweight=bold)
    ax.axhline(len(down) - 1.5, color="white", linewidth=5)
    ax.axvline(len(across) - 1.5, color="white", linewidth=5)
    ax.set_xticks(range(len(across)), map(shorten_middle, across), rotation=35, ha="right")
    ax.set_yticks(range(len(down)), map(shorten_middle, down))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xticks(np.arange(len(across) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(down) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="minor", length=0)
    bar = figure.colorbar(drawn, ax=ax, ticks=[0, 0.5, 1], fraction=0.05, pad=0.02)
    bar.ax.set_yticklabels(["0 inverted", "0.5 chance", "1 perfect"], fontsize=7.5)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    return ReportFigure(name, title, caption, figure, ("row", "column", "value"), rows)


def text_color(background: Sequence[float]) -> str:
    """White or dark text, whichever has the higher contrast on a background (WCAG 2).

    Parameters
    ----------
    background : red, green and blue, each from 0 to 1

    Examples
    --------
    >>> text_color((1.0, 1.0, 1.0)), text_color((0.12, 0.44, 0.7))
    ('#22262c', 'white')
    """
    background_luminance, ink_luminance = _luminance(background), _luminance(to_rgb(INK))
    return "white" if 1.05 * (ink_luminance + 0.05) > (background_luminance + 0.05) ** 2 else INK


def _luminance(color: Sequence[float]) -> float:
    linear = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in color)
    return sum(weight * value for weight, value in zip(LUMINANCE, linear, strict=False))


def temporal_holdout_lines(windows: Sequence[Mapping[str, Any]]) -> ReportFigure:
    """AUC on newer sources and on older ones, and accuracy at the old threshold, by release date."""
    figure, (ax,) = new_axes(width=max(5.2, 1.6 + 0.7 * len(windows)))
    positions = np.arange(len(windows))
    lines = (
        ("past_auc", "AUC on older sources", REAL, "--", "o"),
        ("auc", "AUC on newer sources", FAKE, "-", "o"),
        ("accuracy", "accuracy on newer sources at the old threshold", GREY, ":", "s"),
    )
    for name, label, color, style, marker in lines:
        values = [w[name] for w in windows]
        ax.plot(positions, values, color=color, linestyle=style, marker=marker, markersize=4, label=label)
    ax.axhline(0.5, color=GREY, linewidth=0.8)
    names = [", ".join(w["sources"]) for w in windows]
    labels = [f"{w['date']}\n{shorten_middle(n)}" for w, n in zip(windows, names, strict=True)]
    ax.set_xticks(positions, labels, rotation=35, ha="right")
    ax.set_ylim(min(0.45, *(w[name] - 0.03 for w in windows for name, *_ in lines)), 1.02)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    columns = ("date", "sources", "generators", "n", "auc", "accuracy", "past_auc")
    rows = tuple(tuple(" ".join(w[c]) if c == "sources" else w[c] for c in columns) for w in windows)
    caption = "Each head was trained on the sources released before the date and tested on those released on it."
    return ReportFigure("temporal_holdout", "Temporal holdout", caption, figure, columns, rows)
