"""Figures of how well a head does: confusion matrices, measures beside the baselines', ROC and reliability curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..detector.metrics import auc, wilson
from .figure import FAKE, GREY, HALF, INK, REAL, Array, ReportFigure, describe_counts, new_axes

LINE_STYLES = {"train": (INK, ":"), "validation": (REAL, "--"), "test": (FAKE, "-")}
MEASURE_LABELS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced\naccuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "auc": "AUC",
    "ap": "average\nprecision",
}


def confusion_matrices(metrics: Mapping[str, Mapping[str, Any]]) -> ReportFigure:
    """Counts of real and fake rows by predicted class at the threshold 0, for each part of the split."""
    figure, axes = new_axes(len(metrics), height=2.7, share=True)
    rows: list[tuple[Any, ...]] = []
    for ax, (part, values) in zip(axes, metrics.items(), strict=True):
        c = values["confusion"]
        counts = np.array([[c["tn"], c["fp"]], [c["fn"], c["tp"]]])
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i in range(2):
            for j in range(2):
                ink = "white" if shares[i, j] > 0.55 else INK
                ax.text(j, i, f"{counts[i, j]:,}\n{shares[i, j]:.1%}", ha="center", va="center", color=ink, fontsize=9)
        ax.set_xticks([0, 1], ["real", "fake"])
        ax.set_yticks([0, 1], ["real", "fake"], rotation=90, va="center")
        ax.set_xlabel("predicted")
        ax.set_title(f"{part}: accuracy {_percent(values['accuracy'])}", fontsize=9)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        rows.append((part, c["tn"], c["fp"], c["fn"], c["tp"], values["accuracy"]))
    axes[0].set_ylabel("actual")
    columns = ("part", "tn", "fp", "fn", "tp", "accuracy")
    caption = (
        "The head's predictions at the threshold 0, by part of the split: rows are the actual class, columns the "
        "predicted one."
    )
    return ReportFigure("confusion", "Confusion matrices", caption, figure, columns, tuple(rows))


def measure_bars(measured: Mapping[str, Mapping[str, Any]]) -> ReportFigure:
    """AUC on the test rows with its 95% interval: the detector, the head and every baseline."""
    names = list(measured)
    figure, (ax,) = new_axes(height=0.24 * len(names) + 0.8)
    values = [measured[n]["auc"] if measured[n]["auc"] is not None else np.nan for n in names]
    spans = [(measured[n].get("intervals") or {}).get("auc") for n in names]
    for position, (value, span) in enumerate(zip(values, spans, strict=True)):
        ours = position < 2
        ax.plot(value, position, "o" if ours else "s", color=FAKE if ours else INK, markersize=6 if ours else 4)
        if span:
            ax.plot(span, (position, position), color=FAKE if ours else GREY, linewidth=1.6)
        right_edge = ("axes fraction", "data")
        ax.annotate(
            f"{value:.3f}", (1.0, position), (8, 0), right_edge, textcoords="offset points", fontsize=8, va="center"
        )
    ax.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    ax.annotate(
        "chance", (0.5, 1), (0, 3), ("data", "axes fraction"), textcoords="offset points", fontsize=7.5, ha="center"
    )
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel("AUC, with its 95% interval")
    ax.set_xlim(min(0.45, np.nanmin(values) - 0.02, *(span[0] - 0.01 for span in spans if span)), 1.0)
    rows = tuple((n, v, *(s or (None, None))) for n, v, s in zip(names, values, spans, strict=True))
    caption = (
        f"Over {measured[names[0]]['n']:,} test rows. A head (orange, round) is worth having if it is clearly better "
        "than the baselines (square) below it."
    )
    return ReportFigure("measures", "AUC on the test rows", caption, figure, ("name", "auc", "low", "high"), rows)


def metric_bars(metrics: Mapping[str, Mapping[str, Any]]) -> ReportFigure:
    """The head's measures by part of the split; precision, recall and F1 are means over both classes."""
    figure, (ax,) = new_axes(height=3.2)
    width, rows = 0.8 / max(len(metrics), 1), list[tuple[Any, ...]]()
    looks = {"train": ("#c9ccd1", ""), "validation": (REAL, ""), "test": (FAKE, "////")}
    for i, (part, measured) in enumerate(metrics.items()):
        figures = (measured[name] for name in MEASURE_LABELS)
        values = [figure["macro"] if isinstance(figure, Mapping) else figure for figure in figures]
        position = np.arange(len(MEASURE_LABELS)) + (i - (len(metrics) - 1) / 2) * width
        color, hatch = looks[part]
        heights = [v if v is not None else 0.0 for v in values]
        ax.bar(position, heights, width, color=color, hatch=hatch, edgecolor="white", label=part)
        for x, value in zip(position, values, strict=True):
            label = "–" if value is None else f"{value:.2f}"
            ax.annotate(label, (x, value or 0), (0, 2), textcoords="offset points", fontsize=6, ha="center")
        rows += [(name, part, value) for name, value in zip(MEASURE_LABELS, values, strict=True)]
    ax.set_xticks(range(len(MEASURE_LABELS)), list(MEASURE_LABELS.values()))
    ax.set_ylim(0, 1.08)
    ax.legend(fontsize=8, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    caption = (
        "The head at the threshold 0, by part of the split. Precision, recall and F1 are means over real and fake."
    )
    return ReportFigure("metrics", "Measures by split", caption, figure, ("measure", "part", "value"), tuple(rows))


def roc_curves(scored: Mapping[str, tuple[Array, Array]]) -> ReportFigure:
    """True-positive against false-positive rate; (n,) labels and (n,) scores for each part of the split."""
    figure, (ax,) = new_axes(width=HALF, height=HALF)
    rows: list[tuple[Any, ...]] = []
    for part, (labels, scores) in scored.items():
        order = np.argsort(-scores, kind="stable")
        hits = labels[order] == 1
        tpr, fpr = np.cumsum(hits) / max(hits.sum(), 1), np.cumsum(~hits) / max((~hits).sum(), 1)
        color, style = LINE_STYLES[part]
        area = auc(labels, scores)
        label = part if area is None else f"{part}, AUC {area:.3f}"
        ax.plot([0, *fpr], [0, *tpr], color=color, linestyle=style, label=label)
        step = max(1, len(fpr) // 200)
        rows += [(part, float(x), float(y)) for x, y in zip(fpr[::step], tpr[::step], strict=True)]
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    ax.set_aspect("equal")
    ax.set_xlabel("false-positive rate (real called fake)")
    ax.set_ylabel("true-positive rate (fake called fake)")
    ax.legend(fontsize=7.5, frameon=False, loc="lower right")
    drawn = describe_counts({part: len(labels) for part, (labels, _) in scored.items()}, "rows")
    caption = f"The head's score at every threshold, by part of the split ({drawn}); the diagonal is chance."
    return ReportFigure("roc", "ROC", caption, figure, ("part", "fpr", "tpr"), tuple(rows))


def reliability(labels: Array, probabilities: Array, bins: int = 10) -> ReportFigure:
    """Reliability diagram of the test rows: predicted probability against the share of fakes, in equal-width bins."""
    figure, (ax,) = new_axes(width=HALF, height=HALF)
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.digitize(probabilities, edges) - 1, 0, bins - 1)
    rows = []
    for i in range(bins):
        inside = which == i
        n, hits = int(inside.sum()), int((labels[inside] == 1).sum())
        if span := wilson(hits, n):
            rows.append((float(probabilities[inside].mean()), hits / n, *span, n))
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    predicted, true, low, high, count = (np.array(column) for column in zip(*rows, strict=True))
    ax.vlines(predicted, low, high, color=FAKE, linewidth=1.2, alpha=0.8)
    ax.scatter(predicted, true, s=10 + 110 * count / count.max(), color=FAKE, edgecolor="white", zorder=3)
    ax.set_aspect("equal")
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("predicted probability of fake")
    ax.set_ylabel("share of fakes, with its 95% interval")
    caption = (
        f"{len(labels):,} test rows by their predicted probability; larger dots stand for more rows. Verdicts are "
        "calibrated for seen and left-out sources together and therefore slightly underconfident on seen ones: the "
        "dots then rise more steeply than the diagonal."
    )
    return ReportFigure(
        "reliability", "Reliability", caption, figure, ("said", "true", "low", "high", "rows"), tuple(rows)
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
