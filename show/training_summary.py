"""What training says on a terminal: the head, the detector and the baselines in one table, then in words."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..detector.split import PARTS
from .verdict_panel import table

SHOWN = ("accuracy", "balanced_accuracy", "auc", "eer", "tpr_at_fpr_5")
TITLES = (
    "accuracy",
    "balanced",
    "AUC",
    "EER",
    "TPR at\n5% FPR",
)  # in two lines: with millions of rows it still fits 80 columns

MODES = {"zero-shot": "nearest by text", "given": "as stored", "mean": "unknown (mean text)"}


def training_summary(report: dict[str, Any]) -> RenderableType:
    """The report of `clipfake train` as `--json` gives it, to be read by a person."""
    rows = [[f"head, {part}", *_figures(report["head"][part])] for part in PARTS]
    for mode, metrics in report.get("categories", {}).items():
        rows.append([f"head, test, category {MODES[mode]}", *_figures(metrics)])
    rows.append(["head + neighbours, test", *_figures(report["detector"]["test"])])
    baselines = [[spoken(name), *_figures(measures["test"])] for name, measures in report["baselines"].items()]
    categories = [[f"category {mode}", *_figures(measures)] for mode, measures in report.get("categories", {}).items()]
    split = report["split"]
    text = ", ".join(f"{split[part]:,} rows {part}" for part in PARTS)
    parts: list[RenderableType] = [table("head", ["", "rows", *TITLES], rows), Text(f"{text}\n", style="dim")]
    if categories:
        parts += [table("head, test, by where the category comes from", ["", "rows", *TITLES], categories), Text()]
    if baselines:
        note = learned_from(report["baselines"])
        parts += [table("baselines, test", ["", "rows", *TITLES], baselines), Text(f"{note}\n", style="dim")]
    sentences = [*report["sentences"], *report["detector"]["sentences"]]
    # the last is the one to read first: how it does on what it has never seen, where that could be measured
    parts += [Text(f"• {one}", style="bold" if one == sentences[-1] else "") for one in sentences]
    parts.append(Text(f"\nsaved to {report['saved']}"))
    return Group(*parts)


def spoken(baseline: str) -> str:
    """A baseline's name in a table.

    >>> spoken("nearest_9"), spoken("pca_svm"), spoken("file_facts")
    ('nearest 9', 'PCA + SVM', 'file facts')
    """
    short = {"lda": "LDA", "pca_svm": "PCA + SVM", "random_svm": "random + SVM", "rbf_svm": "SVM on vectors"}
    return short.get(baseline, baseline.replace("_", " "))


def learned_from(baselines: dict[str, Any]) -> str:
    """How many rows the baselines know, and how many they were asked about.

    >>> learned_from({"lda": {"fitted_on": 1000}, "linear_probe": {"fitted_on": 5000, "note": "measured on a few"}})
    'learned from 1,000 rows (the linear probe from 5,000), measured on a few'
    """
    fewest = min(baseline["fitted_on"] for baseline in baselines.values())
    text = f"learned from {fewest:,} rows"
    probe = baselines.get("linear_probe", {"fitted_on": fewest})["fitted_on"]
    text += f" (the linear probe from {probe:,})" if probe > fewest else ""
    notes = {baseline["note"] for baseline in baselines.values() if baseline.get("note")}
    return ", ".join([text, *sorted(notes)])


def _figures(metrics: dict[str, Any]) -> list[Any]:
    return [metrics["n"], *(metrics[name] for name in SHOWN)]
