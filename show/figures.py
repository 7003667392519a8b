"""The report's figures: arrays in, one picture and the table behind it out. Read in print and by colour-blind eyes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from ..detector.metrics import auc, wilson
from ..store.block import distinct

REAL, FAKE, GREY, INK = "#1f6fb2", "#c8501e", "#8a8f98", "#22262c"
FAINT = "#b9bec5"  # axes and other lines that only hold things up
FULL, HALF = 7.2, 3.5  # inches: across the report, and of two side by side
COLOURS = {"real": REAL, "fake": FAKE, "unknown": GREY}
HATCHES = {"real": "", "fake": "////", "unknown": ".."}  # told apart without colour
LINES = {"train": (INK, ":"), "validation": (REAL, "--"), "test": (FAKE, "-")}
SEEN = (0.2126, 0.7152, 0.0722)  # how bright red, green and blue are to the eye
NAME = 24  # letters of a name beside or below a figure
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
        self.figure.savefig(out, format=kind, facecolor="white", **told)  # as wide as it says: all letters are one size
        return out.getvalue()

    def csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.columns, *self.rows])
        return out.getvalue()


def _axes(
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


def class_distribution(sources: Array, targets: Array, labels: Array) -> Picture:
    """Rows per source by raw target, and by label."""
    found, which, _ = distinct(sources)
    names = found.tolist()
    figure, (left, right) = _axes(2, height=max(2.2, 0.26 * len(names) + 1.0), share=True)
    rows: list[tuple[Any, ...]] = []
    place = np.arange(len(names))
    shades = {-1: "#d5d8dc", 0: REAL}
    told = np.unique(targets).tolist()
    oranges = ["#f4c9a8", "#eda877", "#e38749", "#c8501e", "#9c3b12", "#6e270a"]
    offset = np.zeros(len(names))
    for target in told:
        count = np.bincount(which[targets == target], minlength=len(names))
        colour = shades.get(target, oranges[(target - 1) % 6])
        left.barh(place, count, left=offset, color=colour, edgecolor="white", label=_target(target))
        offset += count
        rows += [(name, "target", _target(target), int(c)) for name, c in zip(names, count, strict=True)]
    offset = np.zeros(len(names))
    for label, word in ((0, "real"), (1, "fake"), (-1, "unknown")):
        count = np.bincount(which[labels == label], minlength=len(names))
        rows += [(name, "label", word, int(c)) for name, c in zip(names, count, strict=True)]
        if count.any():
            right.barh(
                place, count, left=offset, color=COLOURS[word], hatch=HATCHES[word], edgecolor="white", label=word
            )
            offset += count
    left.set_yticks(place, map(shortened, names))
    left.invert_yaxis()
    for ax, title in ((left, "as the data set says (target)"), (right, "as it is learned (label)")):
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("rows")
        ax.tick_params(axis="y", length=0)
    _below(figure, left, "outside lower left")
    _below(figure, right, "outside lower right")
    caption = "Rows of each source before and after the raw target (0 real, 1 to 6 fake) became a label."
    return Picture("classes", "Classes", caption, figure, ("source", "by", "value", "rows"), tuple(rows))


def shortened(name: str) -> str:
    """A name that leaves room for what it names; both its ends are kept, for either may tell it from others.

    >>> shortened("stylegan2"), shortened("stable_diffusion_xl_base_1_0_refined")
    ('stylegan2', 'stable_diffu…_0_refined')
    """
    return name if len(name) <= NAME else f"{name[: NAME // 2]}…{name[-(NAME // 2 - 2) :]}"


def _below(figure: Figure, ax: Axes, place: Literal["outside lower left", "outside lower right"]) -> None:
    """The legend of one of two axes under the figure, where it can hide nothing."""
    handles, words = ax.get_legend_handles_labels()
    tight: dict[str, Any] = {"handlelength": 1.2, "handletextpad": 0.4, "columnspacing": 0.9, "fontsize": 7.5}
    figure.legend(handles, words, loc=place, ncols=len(words), frameon=False, **tight)


def _target(target: int) -> str:
    return "not said" if target < 0 else f"{target}{' real' if target == 0 else ''}"


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
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    columns = ("part", "from", "to", "positive", "negative")
    drawn = _numbers({part: len(positive) for part, (positive, _) in distances.items()}, "triplets")
    caption = f"How far an anchor's own class and the other class lie from it after the projection ({drawn})."
    return Picture("distances", "Distances", caption, figure, columns, tuple(rows))


def confusion_matrices(metrics: Mapping[str, Mapping[str, Any]]) -> Picture:
    """Counts at the threshold 0, per split."""
    figure, axes = _axes(len(metrics), height=2.7, share=True)
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
        ax.set_xlabel("called")
        ax.set_title(f"{part}: accuracy {_percent(told['accuracy'])}", fontsize=9)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        rows.append((part, c["tn"], c["fp"], c["fn"], c["tp"], told["accuracy"]))
    axes[0].set_ylabel("in truth")
    columns = ("part", "tn", "fp", "fn", "tp", "accuracy")
    caption = (
        "The head's answers at the threshold 0, by split: what the rows are, down, and what they were called, across."
    )
    return Picture("confusion", "Confusion matrices", caption, figure, columns, tuple(rows))


def pca_scatter(points: Mapping[str, tuple[Array, Array]]) -> Picture:
    """Two principal components of the projected rows, fitted on the training rows; (n, 2) points and (n,) labels."""
    figure, axes = _axes(len(points), height=3.2, share=True)
    rows: list[tuple[Any, ...]] = []
    every = np.concatenate([where for where, _ in points.values()])
    low, high = every.min(0), every.max(0)
    edge = 0.04 * (high - low)
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
        ax.set_xlim(low[0] - edge[0], high[0] + edge[0])
        ax.set_ylim(low[1] - edge[1], high[1] + edge[1])
        rows += [(part, int(n), float(x), float(y)) for n, (x, y) in zip(labels, where, strict=True)]
    axes[0].set_ylabel("second component")
    shown = figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    shown.set_frame_on(False)
    for handle in shown.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    columns = ("part", "label", "first", "second")
    return Picture(
        "pca", "Map", "Projected rows; the axes come from training rows alone.", figure, columns, tuple(rows)
    )


def explained_variance(raw: Array, projected: Array) -> Picture:
    """Cumulative share of variance of the raw and of the projected rows, marked at 1, 10, 20 and 50 components."""
    figure, (ax,) = _axes()
    rows: list[tuple[Any, ...]] = []
    totals = {"stored vectors": np.cumsum(raw), "projection": np.cumsum(projected)}
    looks = {"stored vectors": (REAL, "--"), "projection": (FAKE, "-")}
    for word, total in totals.items():
        [other] = (t for name, t in totals.items() if name != word)
        colour, style = looks[word]
        ax.plot(np.arange(1, len(total) + 1), total, color=colour, linestyle=style, label=word)
        for mark in (m for m in (1, 10, 20, 50) if m <= len(total)):
            ax.plot(mark, total[mark - 1], "o", color=colour, markersize=4)
            above = (total[mark - 1], word == "projection") > (other[min(mark, len(other)) - 1], word != "projection")
            place, side = ((-5, 4), "right") if above else ((5, -10), "left")  # away from the other curve
            said, where = f"{total[mark - 1]:.0%}", (mark, total[mark - 1])
            ax.annotate(said, where, place, textcoords="offset points", fontsize=7.5, ha=side, color=colour)
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
        "How many directions the training rows really use: the share of their variance in the first 1, 10, 20, 50."
    )
    return Picture("variance", "Explained variance", caption, figure, columns, tuple(rows))


def measure_bars(measured: Mapping[str, Mapping[str, Any]]) -> Picture:
    """AUC on the test rows with its 95 % interval: the detector, the head and every baseline."""
    names = list(measured)
    figure, (ax,) = _axes(height=0.24 * len(names) + 0.8)
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
    ax.annotate(
        "a coin", (0.5, 1), (0, 3), ("data", "axes fraction"), textcoords="offset points", fontsize=7.5, ha="center"
    )
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel("AUC, with its 95% interval")
    ax.set_xlim(min(0.45, np.nanmin(values) - 0.02, *(span[0] - 0.01 for span in spans if span)), 1.0)
    rows = tuple((n, v, *(s or (None, None))) for n, v, s in zip(names, values, spans, strict=True))
    caption = (
        f"Over {measured[names[0]]['n']:,} test rows. A head (orange, round) is worth having if it stands clear of the "
        "baselines (square) below it."
    )
    return Picture("measures", "AUC on the test rows", caption, figure, ("name", "auc", "low", "high"), rows)


METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced\naccuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "auc": "AUC",
    "ap": "average\nprecision",
}


def metric_bars(metrics: Mapping[str, Mapping[str, Any]]) -> Picture:
    """The head's measures by split, side by side; precision, recall and F1 are means over both classes."""
    figure, (ax,) = _axes(height=3.2)
    width, rows = 0.8 / max(len(metrics), 1), list[tuple[Any, ...]]()
    looks = {"train": ("#c9ccd1", ""), "validation": (REAL, ""), "test": (FAKE, "////")}
    for i, (part, told) in enumerate(metrics.items()):
        values = [told[name]["macro"] if isinstance(told[name], Mapping) else told[name] for name in METRICS]
        place = np.arange(len(METRICS)) + (i - (len(metrics) - 1) / 2) * width
        colour, hatch = looks[part]
        heights = [v if v is not None else 0.0 for v in values]
        ax.bar(place, heights, width, color=colour, hatch=hatch, edgecolor="white", label=part)
        for x, value in zip(place, values, strict=True):
            said = "–" if value is None else f"{value:.2f}"
            ax.annotate(said, (x, value or 0), (0, 2), textcoords="offset points", fontsize=6, ha="center")
        rows += [(name, part, value) for name, value in zip(METRICS, values, strict=True)]
    ax.set_xticks(range(len(METRICS)), list(METRICS.values()))
    ax.set_ylim(0, 1.08)
    ax.legend(fontsize=8, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    caption = "The head at the threshold 0, by split. Precision, recall and F1 are the means over real and fake."
    return Picture("metrics", "Measures by split", caption, figure, ("measure", "part", "value"), tuple(rows))


def roc_curves(scored: Mapping[str, tuple[Array, Array]]) -> Picture:
    """True-positive against false-positive rate; (n,) labels and (n,) scores per split."""
    figure, (ax,) = _axes(width=HALF, height=HALF)
    rows: list[tuple[Any, ...]] = []
    for part, (labels, scores) in scored.items():
        order = np.argsort(-scores, kind="stable")
        hits = labels[order] == 1
        tpr, fpr = np.cumsum(hits) / max(hits.sum(), 1), np.cumsum(~hits) / max((~hits).sum(), 1)
        colour, style = LINES[part]
        area = auc(labels, scores)
        said = part if area is None else f"{part}, AUC {area:.3f}"
        ax.plot([0, *fpr], [0, *tpr], color=colour, linestyle=style, label=said)
        step = max(1, len(fpr) // 200)
        rows += [(part, float(x), float(y)) for x, y in zip(fpr[::step], tpr[::step], strict=True)]
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    ax.set_aspect("equal")
    ax.set_xlabel("share of real rows called fake")
    ax.set_ylabel("share of fake rows called fake")
    ax.legend(fontsize=7.5, frameon=False, loc="lower right")
    drawn = _numbers({part: len(labels) for part, (labels, _) in scored.items()}, "rows")
    caption = f"The head's score at every threshold, by split ({drawn}); the straight line is a coin."
    return Picture("roc", "ROC", caption, figure, ("part", "fpr", "tpr"), tuple(rows))


def reliability(labels: Array, probabilities: Array, bins: int = 10) -> Picture:
    """What was said against what was true, for test rows."""
    figure, (ax,) = _axes(width=HALF, height=HALF)
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.digitize(probabilities, edges) - 1, 0, bins - 1)
    rows = []
    for i in range(bins):
        here = which == i
        n, hits = int(here.sum()), int((labels[here] == 1).sum())
        if span := wilson(hits, n):
            rows.append((float(probabilities[here].mean()), hits / n, *span, n))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    said, true, low, high, count = (np.array(column) for column in zip(*rows, strict=True))
    ax.vlines(said, low, high, color=FAKE, linewidth=1.2, alpha=0.8)
    ax.scatter(said, true, s=10 + 110 * count / count.max(), color=FAKE, edgecolor="white", zorder=3)
    ax.set_aspect("equal")
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("likely fake, as was said")
    ax.set_ylabel("share that was fake, with its 95% interval")
    caption = (
        f"{len(labels):,} test rows by the probability they were given; the larger a dot, the more rows. Calibrated "
        "for generators never seen, a verdict is cautious about those that were: the dots then rise more steeply than "
        "the line."
    )
    return Picture("reliability", "Reliability", caption, figure, ("said", "true", "low", "high", "rows"), tuple(rows))


def heat_map(name: str, title: str, caption: str, across: Sequence[str], down: Sequence[str], values: Array) -> Picture:
    """A table of AUCs as colours with their figures: blue where sources are told apart, orange where they mislead.

    The means stand apart, below and to the right.
    """
    rows = tuple((d, a, float(values[i, j])) for i, d in enumerate(down) for j, a in enumerate(across))
    across, down = (*across, "mean"), (*down, "mean")
    values = np.vstack([values, values.mean(0)])
    values = np.hstack([values, values.mean(1, keepdims=True)])
    figure, (ax,) = _axes(width=max(2.6 + 0.62 * len(across), 5.2), height=1.2 + 0.3 * len(down))
    colours = LinearSegmentedColormap.from_list("orange to blue", ["#8f3a10", FAKE, "#f6f6f4", REAL, "#0f3f6b"])
    drawn = ax.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for i in range(len(down)):
        for j in range(len(across)):
            if np.isfinite(values[i, j]):
                ink = ink_on(colours(values[i, j]))
                bold = "bold" if i == len(down) - 1 or j == len(across) - 1 else "normal"
                said = f"{values[i, j]:.2f}"
                ax.text(j, i, said, ha="center", va="center", fontsize=8, color=ink, fontweight=bold)
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
    return Picture(name, title, caption, figure, ("row", "column", "value"), rows)


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


def replay_lines(windows: Sequence[Mapping[str, Any]]) -> Picture:
    """AUC on what came next and on what was known, and accuracy at the past's threshold, by day of release."""
    figure, (ax,) = _axes(width=max(5.2, 1.6 + 0.7 * len(windows)))
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
    told = [f"{w['date']}\n{shortened(n)}" for w, n in zip(windows, names, strict=True)]
    ax.set_xticks(place, told, rotation=35, ha="right")
    ax.set_ylim(min(0.45, *(w[name] - 0.03 for w in windows for name, *_ in lines)), 1.02)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    columns = ("date", "sources", "generators", "n", "auc", "accuracy", "past_auc")
    rows = tuple(tuple(" ".join(w[c]) if c == "sources" else w[c] for c in columns) for w in windows)
    caption = "Each head learned from what had been released before the day; what was released then is new to it."
    return Picture("replay", "The past on the future", caption, figure, columns, rows)


def _numbers(by_part: Mapping[str, int], what: str) -> str:
    """How many each part has.

    >>> _numbers({"train": 4000, "test": 1171}, "rows")
    '4,000 train and 1,171 test rows'
    """
    *first, last = [f"{number:,} {part}" for part, number in by_part.items()]
    return f"{', '.join(first)} and {last} {what}" if first else f"{last} {what}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
