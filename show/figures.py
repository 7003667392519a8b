"""The report's figures: arrays in, one picture and the table behind it out. Read in print and by colour-blind eyes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

REAL, FAKE, GREY, INK = "#1f6fb2", "#c8501e", "#8a8f98", "#22262c"
COLOURS = {"real": REAL, "fake": FAKE, "unknown": GREY}
HATCHES = {"real": "", "fake": "////", "unknown": ".."}  # told apart without colour
LINES = {"train": (INK, ":"), "validation": (REAL, "--"), "test": (FAKE, "-")}
PARTS = ("train", "validation", "test")
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Picture:
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
        told: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 160}
        self.figure.savefig(out, format=kind, bbox_inches="tight", facecolor="white", **told)
        return out.getvalue()

    def csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.columns, *self.rows])
        return out.getvalue()


def _axes(count: int = 1, *, width: float = 7.2, height: float = 3.4, share: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False, sharey=share)[0].tolist()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8, color=GREY)
        ax.xaxis.label.set_fontsize(9)
        ax.yaxis.label.set_fontsize(9)
    return figure, axes


def class_distribution(sources: Array, targets: Array, labels: Array) -> Picture:
    """Rows per source by raw target, and by label."""
    names = np.unique(sources).tolist()
    figure, (left, right) = _axes(2, height=max(2.2, 0.26 * len(names) + 1.0), share=True)
    rows: list[tuple[Any, ...]] = []
    place = np.arange(len(names))
    shades = {-1: "#d5d8dc", 0: REAL}
    told = np.unique(targets).tolist()
    oranges = ["#f4c9a8", "#eda877", "#e38749", "#c8501e", "#9c3b12", "#6e270a"]
    offset = np.zeros(len(names))
    for target in told:
        count = np.array([int(((sources == name) & (targets == target)).sum()) for name in names])
        colour = shades.get(target, oranges[(target - 1) % 6])
        left.barh(place, count, left=offset, color=colour, edgecolor="white", label=_target(target))
        offset += count
        rows += [(name, "target", _target(target), int(c)) for name, c in zip(names, count, strict=True)]
    offset = np.zeros(len(names))
    for label, word in ((0, "real"), (1, "fake"), (-1, "unknown")):
        count = np.array([int(((sources == name) & (labels == label)).sum()) for name in names])
        rows += [(name, "label", word, int(c)) for name, c in zip(names, count, strict=True)]
        if count.any():
            right.barh(
                place, count, left=offset, color=COLOURS[word], hatch=HATCHES[word], edgecolor="white", label=word
            )
            offset += count
    left.set_yticks(place, names)
    left.invert_yaxis()
    for ax, title in ((left, "as the data set says (target)"), (right, "as it is learned (label)")):
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("rows")
        ax.legend(fontsize=7, frameon=False)
    caption = "Rows of each source before and after the raw target (0 real, 1 to 6 fake) became a label."
    return Picture("classes", "Classes", caption, figure, ("source", "by", "value", "rows"), tuple(rows))


def _target(target: int) -> str:
    return "not said" if target < 0 else str(target)


def loss_curves(epochs: Sequence[Mapping[str, Any]]) -> Picture:
    """Training and validation loss, and the two mean distances, epoch by epoch."""
    figure, (left, right) = _axes(2)
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
    return Picture("loss", "Training", "Loss and distances of the triplet projection.", figure, columns, rows)


def distance_histograms(distances: Mapping[str, tuple[Array, Array]]) -> Picture:
    """d(anchor, positive) and d(anchor, negative) per split, with the share they have in common."""
    figure, axes = _axes(len(distances), share=True)
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
    axes[0].legend(fontsize=7, frameon=False)
    columns = ("part", "from", "to", "positive", "negative")
    caption = "How far an anchor's own class and the other class lie from it after the projection."
    return Picture("distances", "Distances", caption, figure, columns, tuple(rows))


def confusion_matrices(metrics: Mapping[str, Mapping[str, Any]]) -> Picture:
    """Counts at the threshold 0, per split."""
    figure, axes = _axes(len(metrics), height=2.7)
    rows: list[tuple[Any, ...]] = []
    for ax, (part, told) in zip(axes, metrics.items(), strict=True):
        c = told["confusion"]
        counts = np.array([[c["tn"], c["fp"]], [c["fn"], c["tp"]]])
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i in range(2):
            for j in range(2):
                ink = "white" if shares[i, j] > 0.55 else INK
                ax.text(j, i, f"{counts[i, j]:,}\n{shares[i, j]:.1%}", ha="center", va="center", color=ink, fontsize=9)
        ax.set_xticks([0, 1], ["real", "fake"])
        ax.set_yticks([0, 1], ["real", "fake"], rotation=90, va="center")
        ax.set_xlabel("said")
        ax.set_ylabel("is")
        ax.set_title(f"{part}: accuracy {_percent(told['accuracy'])}", fontsize=9)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        rows.append((part, c["tn"], c["fp"], c["fn"], c["tp"], told["accuracy"]))
    columns = ("part", "tn", "fp", "fn", "tp", "accuracy")
    return Picture("confusion", "Confusion matrices", "The head's answers, by split.", figure, columns, tuple(rows))


def pca_scatter(points: Mapping[str, tuple[Array, Array]]) -> Picture:
    """Two principal components of the projected rows, fitted on the training rows; (n, 2) points and (n,) labels."""
    figure, axes = _axes(len(points), height=2.9, share=True)
    rows: list[tuple[Any, ...]] = []
    for ax, (part, (where, labels)) in zip(axes, points.items(), strict=True):
        for label, word, marker in ((0, "real", "o"), (1, "fake", "x")):
            chosen = where[labels == label]
            ax.scatter(
                chosen[:, 0],
                chosen[:, 1],
                s=7,
                c=COLOURS[word],
                marker=marker,
                alpha=0.45,
                lw=0.7,
                label=word,
                rasterized=True,
            )
        ax.set_title(f"{part} ({len(where):,})", fontsize=9)
        ax.set_xlabel("first component")
        rows += [(part, int(n), float(x), float(y)) for n, (x, y) in zip(labels, where, strict=True)]
    axes[0].set_ylabel("second component")
    axes[0].legend(fontsize=8, frameon=False, markerscale=1.6)
    columns = ("part", "label", "first", "second")
    return Picture(
        "pca", "Map", "Projected rows; the axes come from training rows alone.", figure, columns, tuple(rows)
    )


def explained_variance(raw: Array, projected: Array) -> Picture:
    """Cumulative share of variance of the raw and of the projected rows, marked at 1, 10, 20 and 50 components."""
    figure, (ax,) = _axes()
    rows: list[tuple[Any, ...]] = []
    for word, shares, colour, style, place in (
        ("stored vectors", raw, INK, ":", -10),
        ("projection", projected, FAKE, "-", 5),
    ):
        total = np.cumsum(shares)
        ax.plot(np.arange(1, len(total) + 1), total, color=colour, linestyle=style, label=word)
        for mark in (m for m in (1, 10, 20, 50) if m <= len(total)):
            ax.plot(mark, total[mark - 1], "o", color=colour, markersize=4)
            ax.annotate(
                f"{total[mark - 1]:.0%}", (mark, total[mark - 1]), (4, place), textcoords="offset points", fontsize=7
            )
        rows += [(word, i, float(share)) for i, share in enumerate(total, start=1)]
    ax.set_xscale("log")
    ax.set_xticks([1, 10, 20, 50, 100], ["1", "10", "20", "50", "100"])
    ax.set_ylim(0, 1.03)
    ax.set_xlabel("principal components")
    ax.set_ylabel("variance explained")
    ax.legend(fontsize=8, frameon=False)
    columns = ("of", "components", "cumulative")
    caption = "How many directions the training rows really use."
    return Picture("variance", "Explained variance", caption, figure, columns, tuple(rows))


def measure_bars(measured: Mapping[str, Mapping[str, Any]]) -> Picture:
    """AUC on the test rows with its 95 % interval: the detector, the head and every baseline."""
    names = list(measured)
    figure, (ax,) = _axes(height=0.27 * len(names) + 0.9)
    values = [measured[n]["auc"] if measured[n]["auc"] is not None else np.nan for n in names]
    spans = [(measured[n].get("intervals") or {}).get("auc") for n in names]
    for place, (value, span) in enumerate(zip(values, spans, strict=True)):
        ours = place < 2
        ax.plot(value, place, "o" if ours else "s", color=FAKE if ours else INK, markersize=6 if ours else 4)
        if span:
            ax.plot(span, (place, place), color=FAKE if ours else GREY, linewidth=1.6)
        beyond = ("axes fraction", "data")
        ax.annotate(f"{value:.3f}", (1.0, place), (8, 0), beyond, textcoords="offset points", fontsize=8, va="center")
    ax.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel("AUC on the test rows, with 95 % interval")
    ax.set_xlim(min(0.45, np.nanmin(values) - 0.02), 1.0)
    rows = tuple((n, v, *(s or (None, None))) for n, v, s in zip(names, values, spans, strict=True))
    caption = "A head is worth having if it stands clear of the baselines below it."
    return Picture("measures", "Head and baselines", caption, figure, ("name", "auc", "low", "high"), rows)


def roc_curves(scored: Mapping[str, tuple[Array, Array]]) -> Picture:
    """True-positive against false-positive rate; (n,) labels and (n,) scores per split."""
    figure, (ax,) = _axes(width=4.6, height=4.0)
    rows: list[tuple[Any, ...]] = []
    for part, (labels, scores) in scored.items():
        order = np.argsort(-scores, kind="stable")
        hits = labels[order] == 1
        tpr, fpr = np.cumsum(hits) / max(hits.sum(), 1), np.cumsum(~hits) / max((~hits).sum(), 1)
        colour, style = LINES[part]
        ax.plot([0, *fpr], [0, *tpr], color=colour, linestyle=style, label=part)
        step = max(1, len(fpr) // 200)
        rows += [(part, float(x), float(y)) for x, y in zip(fpr[::step], tpr[::step], strict=True)]
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    ax.set_aspect("equal")
    ax.set_xlabel("real called fake")
    ax.set_ylabel("fake called fake")
    ax.legend(fontsize=8, frameon=False, loc="lower right")
    return Picture("roc", "ROC", "The head's score, by split.", figure, ("part", "fpr", "tpr"), tuple(rows))


def reliability(labels: Array, probabilities: Array, bins: int = 10) -> Picture:
    """What was said against what was true, for test rows."""
    figure, (ax,) = _axes(width=4.6, height=4.0)
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.digitize(probabilities, edges) - 1, 0, bins - 1)
    rows = []
    for i in range(bins):
        here = which == i
        if here.any():
            rows.append((float(probabilities[here].mean()), float((labels[here] == 1).mean()), int(here.sum())))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    said, true, count = (np.array(column) for column in zip(*rows, strict=True))
    ax.plot(said, true, color=FAKE)
    ax.scatter(said, true, s=12 + 160 * count / count.max(), color=FAKE, alpha=0.6, edgecolor="white")
    ax.set_aspect("equal")
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("P(fake) that was said")
    ax.set_ylabel("share that was fake")
    caption = (
        "Test rows by the probability they were given; the size of a dot is the number of rows. Calibrated for "
        "generators never seen, a verdict is cautious about those that were: the curve is then steeper than the line."
    )
    return Picture("reliability", "Reliability", caption, figure, ("said", "true", "rows"), tuple(rows))


def heat_map(name: str, title: str, caption: str, across: Sequence[str], down: Sequence[str], values: Array) -> Picture:
    """A table of shares as colours with their figures: the leave-one-generator-out atlas."""
    figure, (ax,) = _axes(width=2.2 + 0.62 * len(across), height=1.2 + 0.34 * len(down))
    ax.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for i in range(len(down)):
        for j in range(len(across)):
            if np.isfinite(values[i, j]):
                ink = "white" if values[i, j] < 0.55 else INK
                ax.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=8, color=ink)
    ax.set_xticks(range(len(across)), across, rotation=35, ha="right")
    ax.set_yticks(range(len(down)), down)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    rows = tuple((d, a, float(values[i, j])) for i, d in enumerate(down) for j, a in enumerate(across))
    return Picture(name, title, caption, figure, ("row", "column", "value"), rows)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"
