"""The source paper's tables beside the reproduced figures: on the terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..core.atomic_files import write_text
from ..core.escaping import escape_all
from ..detector.evaluation.reproduce import (
    BACKBONES,
    PAPER_DATA,
    PAPER_RUNS,
    PAPER_TABLES,
    PaperFigures,
    PaperRun,
    PaperTable,
)
from ..detector.split import PARTS
from ..detector.training.baseline_names import baseline_name
from .tables import table

FIGURE_COLUMNS = ("table", "run", "part", "figure", "paper", "here", "95%", "rows (paper)")
RUN_COLUMNS = (
    "table",
    "run",
    "test",
    "95%",
    "category by text",
    "category unknown",
    baseline_name("linear_probe").title,
    "on other sets",
)
WITHIN = "the paper's accuracy lies within the 95% interval of the reproduced one"


def paper_tables(result: dict[str, Any]) -> RenderableType:
    """Tables of the accuracies in the result of `clipfake reproduce`; the written files have the other measures."""
    result = escape_all(result)
    parts: list[RenderableType] = [Text(f"{notice}\n", style="bold") for notice in result["notices"]]
    compared = [[*row[:3], *row[4:7]] for row in compared_rows(result) if row[3] == "accuracy"]
    if compared:
        parts += [
            table("accuracy in the paper and here (percent)", [*FIGURE_COLUMNS[:3], *FIGURE_COLUMNS[4:7]], compared),
            Text(),
        ]
    runs = [[*row[:4], *row[6:]] for row in run_rows(result)]
    if runs:
        parts += [table("test accuracy of every run (percent)", [*RUN_COLUMNS[:4], *RUN_COLUMNS[6:]], runs), Text()]
    parts += [Text(f"• {sentence}") for sentence in summary_sentences(result)]
    return Group(*parts)


def write_tables(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write all figures to tables.md and tables.csv; returns their paths."""
    result = escape_all(result)
    compared, runs = compared_rows(result), run_rows(result)
    lines = ["# The paper's tables, reproduced", "", *(f"**{notice}**\n" for notice in result["notices"])]
    for title, columns, rows in (("The ten tables", FIGURE_COLUMNS, compared), ("Every run", RUN_COLUMNS, runs)):
        lines += [f"## {title} (percent)", "", _line(columns), _line(["---"] * len(columns)), *map(_line, rows), ""]
    lines += [f"- {sentence}" for sentence in summary_sentences(result)]
    written = io.StringIO()
    csv.writer(written).writerows([FIGURE_COLUMNS, *compared])
    paths = [folder / "tables.md", folder / "tables.csv"]
    for path, text in zip(paths, ("\n".join(lines) + "\n", written.getvalue()), strict=True):
        write_text(path, text)
    return paths


def compared_rows(result: dict[str, Any]) -> list[list[str]]:
    """A row for each figure of the paper that was reproduced."""
    return [
        row
        for paper_table in PAPER_TABLES
        if paper_table.cell in result["runs"]
        for row in _compared(paper_table, result["runs"][paper_table.cell])
    ]


def _compared(paper_table: PaperTable, run: dict[str, Any]) -> list[list[str]]:
    rows = []
    counts = f"{sum(run['rows'][part] for part in PARTS):,} ({PAPER_DATA[paper_table.data].rows:,})"
    label = [str(paper_table.number), run_name(paper_table)]
    for part, figures in paper_table.parts.items():
        ours = run["parts"][part]
        for name, published, reproduced in _figures(figures, ours):
            interval = _interval(ours) if name == "accuracy" else ""
            rows.append([*label, part, name, f"{published:.2f}", _percent(reproduced), interval, counts])
    return rows


def _figures(paper: PaperFigures, ours: dict[str, Any]) -> list[tuple[str, float, float | None]]:
    pairs: list[tuple[str, float, float | None]] = []  # name, published, reproduced
    if paper.accuracy is not None:
        pairs.append(("accuracy", paper.accuracy, ours["accuracy"]))
    else:  # the test rows are balanced, so the mean recall is the accuracy
        pairs.append(("accuracy", paper.recall[0], ours["accuracy"]))
    for name in ("precision", "recall", "f1"):
        values = getattr(paper, name)
        classes = ("real", "fake") if len(values) == 2 else ("macro",)
        pairs += [(f"{name} {label}", value, ours[name][label]) for label, value in zip(classes, values, strict=True)]
    return pairs


def run_rows(result: dict[str, Any]) -> list[list[str]]:
    """A row for each run, including those that the paper does not have."""
    return [
        _run_row(paper_run, result["runs"][paper_run.name])
        for paper_run in PAPER_RUNS
        if paper_run.name in result["runs"]
    ]


def _run_row(paper_run: PaperRun, run: dict[str, Any]) -> list[str]:
    test = run["parts"]["test"]
    modes = [_percent(run["modes"][mode]["accuracy"]) if run["modes"] else "" for mode in ("zero-shot", "mean")]
    probe = run["baselines"].get("linear_probe")
    others = ", ".join(
        f"{PAPER_DATA[name].name} {_percent(metrics['accuracy'])}" for name, metrics in run["elsewhere"].items()
    )
    return [
        ", ".join(str(paper_table.number) for paper_table in paper_run.tables) or "new",
        run_name(paper_run),
        _percent(test["accuracy"]),
        _interval(test),
        *modes,
        _percent(probe["test"]["accuracy"]) if probe else "",
        others,
    ]


def summary_sentences(result: dict[str, Any]) -> list[str]:
    """The main results in words, and the runs that are missing."""
    sentences = []
    tested = [
        paper_table
        for paper_table in PAPER_TABLES
        if "test" in paper_table.parts and paper_table.cell in result["runs"]
    ]
    tests = [(paper_table, result["runs"][paper_table.cell]) for paper_table in tested]
    if tests:
        inside = [paper_table for paper_table, run in tests if _within(paper_table, run)]
        numbers = ", ".join(str(paper_table.number) for paper_table in inside) or "none"
        sentences.append(f"In {len(inside)} of {len(tests)} tables with test rows ({numbers}), {WITHIN}.")
    for name, data in PAPER_DATA.items():
        counts = {
            sum(run["rows"][part] for part in PARTS)
            for run_key, run in result["runs"].items()
            if run_key.endswith(f"-{name}")
        }
        if counts:
            sentences.append(f"{data.name}: {min(counts):,} rows here, {data.rows:,} in the paper.")
    missing: dict[str, list[str]] = {}
    for name, reason in result["missing"].items():
        missing.setdefault(reason, []).append(name)
    sentences += [f"Not run: {', '.join(names)}: {reason}" for reason, names in missing.items()]
    return sentences


def run_name(run: PaperRun | PaperTable) -> str:
    """A short name of a run.

    >>> run_name(PAPER_RUNS[0])
    'B/32 image, CycleGAN'
    """
    kind = "image" if run.kind == "linear" else run.kind
    return f"{BACKBONES[run.backbone].removeprefix('ViT-')} {kind}, {PAPER_DATA[run.data].name}"


def _within(paper_table: PaperTable, run: dict[str, Any]) -> bool:
    figures = paper_table.parts["test"]
    published = figures.recall[0] if figures.accuracy is None else figures.accuracy
    low, high = run["parts"]["test"]["intervals"]["accuracy"]
    return bool(100 * low <= published <= 100 * high)


def _interval(metrics: dict[str, Any]) -> str:
    low, high = metrics["intervals"]["accuracy"]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _line(values: Any) -> str:
    return f"| {' | '.join(values)} |"
