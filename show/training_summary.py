"""Summary of a training run on the terminal: tables of the head, the detector and the baselines, then sentences."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..core.escaping import escape_all
from ..detector.split import PARTS
from ..detector.training.baseline_names import baseline_name
from .tables import table

MEASURES = ("accuracy", "balanced_accuracy", "auc", "eer", "tpr_at_fpr_5")
TITLES = (
    "accuracy",
    "balanced",
    "AUC",
    "EER",
    "TPR at\n5% FPR",
)  # the last in two lines, so that the table fits 80 columns even with millions of rows

MODES = {"zero-shot": "nearest by text", "given": "as stored", "mean": "unknown (mean text)"}  # of the category


def training_summary(report: dict[str, Any]) -> RenderableType:
    """Tables and sentences from the report that `clipfake train --json` prints."""
    report = escape_all(report)
    rows = [[f"head, {part}", *_figures(report["head"][part])] for part in PARTS]
    rows.append(["head + neighbours, test", *_figures(report["detector"]["test"])])
    baselines = [[baseline_name(name).title, *_figures(result["test"])] for name, result in report["baselines"].items()]
    categories = [
        [f"{mode}: {MODES[mode]}", *_figures(metrics)] for mode, metrics in report.get("categories", {}).items()
    ]
    split = report["split"]
    counts = ", ".join(f"{split[part]:,} {part}" for part in PARTS)
    parts: list[RenderableType] = [
        table(f"head: {report.get('classifier', 'triplet-svm')}", ["", "rows", *TITLES], rows),
        Text(f"{counts} rows\n", style="dim"),
    ]
    if categories:
        parts += [table("head, test, by source of the category", ["", "rows", *TITLES], categories), Text()]
    if baselines:
        note = describe_training_rows(report["baselines"])
        parts += [table("baselines, test", ["", "rows", *TITLES], baselines), Text(f"{note}\n", style="dim")]
    sentences = [*report["sentences"], *report["detector"]["sentences"]]
    # the last sentence matters most: the results on unseen generators, where they could be measured
    parts += [Text(f"• {sentence}", style="bold" if sentence == sentences[-1] else "") for sentence in sentences]
    parts.append(Text(f"\nsaved to {report['saved']}"))
    return Group(*parts)


def describe_training_rows(baselines: dict[str, Any]) -> str:
    """The number of rows that the baselines were trained on, and notes on their evaluation.

    >>> probe = {"fitted_on": 5000, "note": "tested on 20,000 rows"}
    >>> describe_training_rows({"lda": {"fitted_on": 1000}, "linear_probe": probe})
    'trained on 1,000 rows (the linear probe on 5,000), tested on 20,000 rows'
    """
    fewest = min(baseline["fitted_on"] for baseline in baselines.values())
    probe = baselines.get("linear_probe", {"fitted_on": fewest})["fitted_on"]
    more = f" ({baseline_name('linear_probe').phrase} on {probe:,})" if probe > fewest else ""
    notes = {baseline["note"] for baseline in baselines.values() if baseline.get("note")}
    return ", ".join([f"trained on {fewest:,} rows{more}", *sorted(notes)])


def _figures(metrics: dict[str, Any]) -> list[Any]:
    return [metrics["n"], *(metrics[name] for name in MEASURES)]
