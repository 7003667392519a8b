"""Figures of a head's training: its rows, its loss, and the rows before and after the projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from ..store.records import distinct
from .figure import (
    FAKE,
    INK,
    LABEL_COLORS,
    REAL,
    Array,
    ReportFigure,
    add_legend_below,
    describe_counts,
    new_axes,
    shorten_middle,
)

HATCHES = {"real": "", "fake": "////", "unknown": ".."}  # so that classes differ in more than colour


def class_distribution(sources: Array, targets: Array, labels: Array) -> ReportFigure:
    """Rows of each source by raw target and by label."""
    unique, which, _ = distinct(sources)
    names = unique.tolist()
    figure, (left, right) = new_axes(2, height=max(2.2, 0.26 * len(names) + 1.0), share=True)
    rows: list[tuple[Any, ...]] = []
    bars = np.arange(len(names))
    shades = {-1: "#d5d8dc", 0: REAL}
    oranges = ["#f4c9a8", "#eda877", "#e38749", "#c8501e", "#9c3b12", "#6e270a"]
    offset = np.zeros(len(names))
    for target in np.unique(targets).tolist():
        count = np.bincount(which[targets == target], minlength=len(names))
        color = shades.get(target, oranges[(target - 1) % 6])
        left.barh(bars, count, left=offset, color=color, edgecolor="white", label=_target(target))
        offset += count
        rows += [(name, "target", _target(target), int(c)) for name, c in zip(names, count, strict=True)]
    offset = np.zeros(len(names))
    for label, word in ((0, "real"), (1, "fake"), (-1, "unknown")):
        count = np.bincount(which[labels == label], minlength=len(names))
        rows += [(name, "label", word, int(c)) for name, c in zip(names, count, strict=True)]
        if count.any():
            right.barh(
                bars, count, left=offset, color=LABEL_COLORS[word], hatch=HATCHES[word], edgecolor="white", label=word
            )
            offset += count
    left.set_yticks(bars, map(shorten_middle, names))
    left.invert_yaxis()
    for ax, title in ((left, "raw target of the data set"), (right, "label used for training")):
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("rows")
        ax.tick_params(axis="y", length=0)
    add_legend_below(figure, left, "outside lower left")
    add_legend_below(figure, right, "outside lower right")
    caption = "Rows of each source before and after the raw target (0 real, 1 to 6 fake) became a label."
    return ReportFigure("classes", "Classes", caption, figure, ("source", "by", "value", "rows"), tuple(rows))


def _target(target: int) -> str:
    return "none" if target < 0 else f"{target}{' real' if target == 0 else ''}"


def loss_curves(epochs: Sequence[Mapping[str, Any]]) -> ReportFigure:
    """Training and validation loss and the two mean distances, by epoch."""
    figure, (left, right) = new_axes(2)
    number = [e["epoch"] for e in epochs]
    left.plot(number, [e["loss"] for e in epochs], color=INK, linestyle=":", marker=".", label="training triplets")
    left.plot(number, [e["validation_loss"] for e in epochs], color=FAKE, marker=".", label="validation triplets")
    left.set_ylabel("triplet loss")
    right.plot(number, [e["positive_distance"] for e in epochs], color=REAL, marker=".", label="to the positive")
    right.plot(
        number, [e["negative_distance"] for e in epochs], color=FAKE, ls="--", marker=".", label="to the negative"
    )
    right.set_ylabel("mean distance from the anchor")
    for ax in (left, right):
        ax.set_xlabel("epoch")
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(fontsize=8, frameon=False)
    columns = ("epoch", "loss", "validation_loss", "positive_distance", "negative_distance", "active_share")
    rows = tuple(tuple(e[c] for c in columns) for e in epochs)
    return ReportFigure("loss", "Training", "Loss and distances of the triplet projection.", figure, columns, rows)


def distance_histograms(distances: Mapping[str, tuple[Array, Array]]) -> ReportFigure:
    """Histograms of d(anchor, positive) and d(anchor, negative) with their overlap, for each part of the split."""
    figure, axes = new_axes(len(distances), share=True)
    edges = np.linspace(0, 2, 41)
    rows: list[tuple[Any, ...]] = []
    for ax, (part, (positive, negative)) in zip(axes, distances.items(), strict=True):
        one, two = (np.histogram(d, edges)[0] / max(len(d), 1) for d in (positive, negative))
        overlap = float(np.minimum(one, two).sum())
        ax.stairs(one, edges, fill=True, color=REAL, alpha=0.45, label="to the positive")
        ax.stairs(two, edges, color=FAKE, linewidth=1.6, label="to the negative")
        ax.set_title(f"{part}: overlap {overlap:.0%}", fontsize=9)
        ax.set_xlabel("Euclidean distance")
        rows += [(part, *map(float, r)) for r in zip(edges[:-1], edges[1:], one, two, strict=True)]
    axes[0].set_ylabel("share of triplets")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    columns = ("part", "from", "to", "positive", "negative")
    drawn = describe_counts({part: len(positive) for part, (positive, _) in distances.items()}, "triplets")
    caption = f"Distances of an anchor to its own class and to the other class after the projection ({drawn})."
    return ReportFigure("distances", "Distances", caption, figure, columns, tuple(rows))


def pca_scatter(points: Mapping[str, tuple[Array, Array]]) -> ReportFigure:
    """Scatter plots of the projected rows on two principal components; (n, 2) points and (n,) labels for each part."""
    figure, axes = new_axes(len(points), height=3.2, share=True)
    rows: list[tuple[Any, ...]] = []
    every = np.concatenate([coordinates for coordinates, _ in points.values()])
    low, high = every.min(0), every.max(0)
    edge = 0.04 * (high - low)
    for ax, (part, (coordinates, labels)) in zip(axes, points.items(), strict=True):
        for label, word, marker in ((0, "real", "o"), (1, "fake", "x")):
            of_class = coordinates[labels == label]
            ax.scatter(
                of_class[:, 0],
                of_class[:, 1],
                s=7,
                c=LABEL_COLORS[word],
                marker=marker,
                alpha=0.45,
                lw=0.7,
                label=word,
                rasterized=True,
            )
        ax.set_title(f"{part} ({len(coordinates):,})", fontsize=9)
        ax.set_xlabel("first component")
        ax.set_xlim(low[0] - edge[0], high[0] + edge[0])
        ax.set_ylim(low[1] - edge[1], high[1] + edge[1])
        rows += [(part, int(n), float(x), float(y)) for n, (x, y) in zip(labels, coordinates, strict=True)]
    axes[0].set_ylabel("second component")
    legend = figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    legend.set_frame_on(False)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    columns = ("part", "label", "first", "second")
    return ReportFigure(
        "pca",
        "Principal components",
        "Rows as the classifier reads them; the axes are fitted on the training rows only.",
        figure,
        columns,
        tuple(rows),
    )


def explained_variance(raw: Array, projected: Array) -> ReportFigure:
    """Cumulative explained variance of the raw and of the projected rows, marked at 1, 10, 20 and 50 components.

    Parameters
    ----------
    raw, projected : (dim,) share of variance of each component, largest first
    """
    figure, (ax,) = new_axes()
    rows: list[tuple[Any, ...]] = []
    totals = {"stored vectors": np.cumsum(raw), "projection": np.cumsum(projected)}
    looks = {"stored vectors": (REAL, "--"), "projection": (FAKE, "-")}
    for word, total in totals.items():
        [other] = (t for name, t in totals.items() if name != word)
        color, style = looks[word]
        ax.plot(np.arange(1, len(total) + 1), total, color=color, linestyle=style, label=word)
        for mark in (m for m in (1, 10, 20, 50) if m <= len(total)):
            ax.plot(mark, total[mark - 1], "o", color=color, markersize=4)
            above = (total[mark - 1], word == "projection") > (other[min(mark, len(other)) - 1], word != "projection")
            offset, side = ((-5, 4), "right") if above else ((5, -10), "left")  # away from the other curve
            point = (mark, total[mark - 1])
            ax.annotate(
                f"{point[1]:.0%}", point, offset, textcoords="offset points", fontsize=7.5, ha=side, color=color
            )
        rows += [(word, i, float(share)) for i, share in enumerate(total, start=1)]
    ax.set_xscale("log")
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if t <= max(len(raw), len(projected))]
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlim(0.6, None)
    ax.set_ylim(0, 1.03)
    ax.set_xlabel("principal components")
    ax.set_ylabel("share of variance explained")
    ax.legend(fontsize=8, frameon=False, loc="lower right")
    columns = ("of", "components", "cumulative")
    caption = (
        "Share of the training rows' variance in their first 1, 10, 20 and 50 principal components: how many "
        "directions they use."
    )
    return ReportFigure("variance", "Explained variance", caption, figure, columns, tuple(rows))
