"""Figures of how well a head does: right and wrong answers, measures beside the baselines', curves, what was said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..detector.metrics import auc, wilson
from .figure import FAKE, GREY, HALF, INK, REAL, Array, ReportFigure, counted, new_axes

LINES = {"train": (INK, ":"), "validation": (REAL, "--"), "test": (FAKE, "-")}
METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced\naccuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "auc": "AUC",
    "ap": "average\nprecision",
}


def confusion_matrices(metrics: Mapping[str, Mapping[str, Any]]) -> ReportFigure:
    """Counts at the threshold 0, per split."""
    figure, axes = new_axes(len(metrics), height=2.7, share=True)
    rows: list[tuple[Any, ...]] = []
    for ax, (part, figures) in zip(axes, metrics.items(), strict=True):
        c = figures["confusion"]
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
        ax.set_title(f"{part}: accuracy {_percent(figures['accuracy'])}", fontsize=9)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        rows.append((part, c["tn"], c["fp"], c["fn"], c["tp"], figures["accuracy"]))
    axes[0].set_ylabel("in truth")
    columns = ("part", "tn", "fp", "fn", "tp", "accuracy")
    caption = (
        "The head's answers at the threshold 0, by split: what the rows are, down, and what they were called, across."
    )
    return ReportFigure("confusion", "Confusion matrices", caption, figure, columns, tuple(rows))


def measure_bars(measured: Mapping[str, Mapping[str, Any]]) -> ReportFigure:
    """AUC on the test rows with its 95 % interval: the detector, the head and every baseline."""
    names = list(measured)
    figure, (ax,) = new_axes(height=0.24 * len(names) + 0.8)
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
    return ReportFigure("measures", "AUC on the test rows", caption, figure, ("name", "auc", "low", "high"), rows)


def metric_bars(metrics: Mapping[str, Mapping[str, Any]]) -> ReportFigure:
    """The head's measures by split, side by side; precision, recall and F1 are means over both classes."""
    figure, (ax,) = new_axes(height=3.2)
    width, rows = 0.8 / max(len(metrics), 1), list[tuple[Any, ...]]()
    looks = {"train": ("#c9ccd1", ""), "validation": (REAL, ""), "test": (FAKE, "////")}
    for i, (part, figures) in enumerate(metrics.items()):
        values = [figures[name]["macro"] if isinstance(figures[name], Mapping) else figures[name] for name in METRICS]
        place = np.arange(len(METRICS)) + (i - (len(metrics) - 1) / 2) * width
        colour, hatch = looks[part]
        heights = [v if v is not None else 0.0 for v in values]
        ax.bar(place, heights, width, color=colour, hatch=hatch, edgecolor="white", label=part)
        for x, value in zip(place, values, strict=True):
            text = "–" if value is None else f"{value:.2f}"
            ax.annotate(text, (x, value or 0), (0, 2), textcoords="offset points", fontsize=6, ha="center")
        rows += [(name, part, value) for name, value in zip(METRICS, values, strict=True)]
    ax.set_xticks(range(len(METRICS)), list(METRICS.values()))
    ax.set_ylim(0, 1.08)
    ax.legend(fontsize=8, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    caption = "The head at the threshold 0, by split. Precision, recall and F1 are the means over real and fake."
    return ReportFigure("metrics", "Measures by split", caption, figure, ("measure", "part", "value"), tuple(rows))


def roc_curves(scored: Mapping[str, tuple[Array, Array]]) -> ReportFigure:
    """True-positive against false-positive rate; (n,) labels and (n,) scores per split."""
    figure, (ax,) = new_axes(width=HALF, height=HALF)
    rows: list[tuple[Any, ...]] = []
    for part, (labels, scores) in scored.items():
        order = np.argsort(-scores, kind="stable")
        hits = labels[order] == 1
        tpr, fpr = np.cumsum(hits) / max(hits.sum(), 1), np.cumsum(~hits) / max((~hits).sum(), 1)
        colour, style = LINES[part]
        area = auc(labels, scores)
        text = part if area is None else f"{part}, AUC {area:.3f}"
        ax.plot([0, *fpr], [0, *tpr], color=colour, linestyle=style, label=text)
        step = max(1, len(fpr) // 200)
        rows += [(part, float(x), float(y)) for x, y in zip(fpr[::step], tpr[::step], strict=True)]
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    ax.set_aspect("equal")
    ax.set_xlabel("share of real rows called fake")
    ax.set_ylabel("share of fake rows called fake")
    ax.legend(fontsize=7.5, frameon=False, loc="lower right")
    drawn = counted({part: len(labels) for part, (labels, _) in scored.items()}, "rows")
    caption = f"The head's score at every threshold, by split ({drawn}); the straight line is a coin."
    return ReportFigure("roc", "ROC", caption, figure, ("part", "fpr", "tpr"), tuple(rows))


def reliability(labels: Array, probabilities: Array, bins: int = 10) -> ReportFigure:
    """What was said against what was true, for test rows."""
    figure, (ax,) = new_axes(width=HALF, height=HALF)
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.digitize(probabilities, edges) - 1, 0, bins - 1)
    rows = []
    for i in range(bins):
        here = which == i
        n, hits = int(here.sum()), int((labels[here] == 1).sum())
        if span := wilson(hits, n):
            rows.append((float(probabilities[here].mean()), hits / n, *span, n))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    predicted, true, low, high, count = (np.array(column) for column in zip(*rows, strict=True))
    ax.vlines(predicted, low, high, color=FAKE, linewidth=1.2, alpha=0.8)
    ax.scatter(predicted, true, s=10 + 110 * count / count.max(), color=FAKE, edgecolor="white", zorder=3)
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
    return ReportFigure(
        "reliability", "Reliability", caption, figure, ("said", "true", "low", "high", "rows"), tuple(rows)
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
