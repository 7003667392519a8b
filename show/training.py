"""What training says on a terminal: the head, the detector and the baselines in one table, then in words."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from .card import table

SHOWN = ("accuracy", "balanced_accuracy", "auc", "eer", "tpr_at_fpr_5")
TITLES = ("accuracy", "balanced", "AUC", "EER", "TPR at 5 % FPR")


def training_summary(report: dict[str, Any]) -> RenderableType:
    """The report of `clipfake train` as `--json` gives it, to be read by a person."""
    rows = [[f"head, {part}", *_figures(report["head"][part])] for part in ("train", "validation", "test")]
    rows.append(["head + neighbours, test", *_figures(report["detector"]["test"])])
    baselines = [[name.replace("_", " "), *_figures(told["test"])] for name, told in report["baselines"].items()]
    split = report["split"]
    said = ", ".join(f"{split[part]:,} rows {part}" for part in ("train", "validation", "test"))
    parts: list[RenderableType] = [table("head", ["", "rows", *TITLES], rows), Text(f"{said}\n", style="dim")]
    if baselines:
        parts += [table("baselines, test", ["", "rows", *TITLES], baselines), Text()]
    for sentence in (*report["sentences"], *report["detector"]["sentences"]):
        parts.append(Text(f"• {sentence}"))
    parts.append(Text(f"\nsaved to {report['saved']}"))
    return Group(*parts)


def _figures(metrics: dict[str, Any]) -> list[Any]:
    return [metrics["n"], *(metrics[name] for name in SHOWN)]
