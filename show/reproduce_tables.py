"""The source paper's tables beside our own figures: on a terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..core.atomic_files import write_text
from ..detector.evaluation.reproduce import CELLS, DATA, NAMES, TABLES, PaperFigures, PaperRun, PaperTable
from ..detector.split import PARTS
from .verdict_panel import table

COMPARED = ("table", "run", "part", "figure", "paper", "here", "95 %", "rows (paper)")
OTHERS = ("table", "run", "test", "95 %", "category by text", "category unknown", "linear probe", "on other sets")
WITHIN = "the paper's figure lies within the interval of ours"


def paper_tables(result: dict[str, Any]) -> RenderableType:
    """What `clipfake reproduce --json` gives, to be read by a person: accuracies alone, the rest is in the files."""
    parts: list[RenderableType] = [Text(f"{text}\n", style="bold") for text in result["notices"]]
    compared = [[*row[:3], *row[4:7]] for row in compared_rows(result) if row[3] == "accuracy"]
    if compared:
        parts += [table("accuracy in the paper and here (per cent)", [*COMPARED[:3], *COMPARED[4:7]], compared), Text()]
    runs = [[*row[:4], *row[6:]] for row in run_rows(result)]
    if runs:
        parts += [table("test accuracy of every run (per cent)", [*OTHERS[:4], *OTHERS[6:]], runs), Text()]
    parts += [Text(f"• {text}") for text in sentences(result)]
    return Group(*parts)


def write_tables(result: dict[str, Any], folder: Path) -> list[Path]:
    """The same as `tables.md` and `tables.csv`; returns where they are."""
    compared, runs = compared_rows(result), run_rows(result)
    lines = ["# The paper's tables, run again", "", *(f"**{text}**\n" for text in result["notices"])]
    for title, columns, rows in (("Its ten tables", COMPARED, compared), ("Every run", OTHERS, runs)):
        lines += [f"## {title} (per cent)", "", _line(columns), _line(["---"] * len(columns)), *map(_line, rows), ""]
    lines += [f"- {text}" for text in sentences(result)]
    written = io.StringIO()
    csv.writer(written).writerows([COMPARED, *compared])
    paths = [folder / "tables.md", folder / "tables.csv"]
    for path, text in zip(paths, ("\n".join(lines) + "\n", written.getvalue()), strict=True):
        write_text(path, text)
    return paths


def compared_rows(result: dict[str, Any]) -> list[list[str]]:
    """A line for each figure of the paper that was measured again."""
    return [row for one in TABLES if one.cell in result["runs"] for row in _compared(one, result["runs"][one.cell])]


def _compared(one: PaperTable, run: dict[str, Any]) -> list[list[str]]:
    rows = []
    counts = f"{sum(run['rows'][part] for part in PARTS):,} ({DATA[one.data].rows:,})"
    for part, figures in one.parts.items():
        ours = run["parts"][part]
        for name, paper, here in _figures(figures, ours):
            interval = _interval(ours) if name == "accuracy" else ""
            rows.append([str(one.number), run_name(one), part, name, f"{paper:.2f}", _percent(here), interval, counts])
    return rows


def _figures(paper: PaperFigures, ours: dict[str, Any]) -> list[tuple[str, float, float | None]]:
    found: list[tuple[str, float, float | None]] = []
    if paper.accuracy is not None:
        found.append(("accuracy", paper.accuracy, ours["accuracy"]))
    else:  # of a balanced test, which these are, the mean recall is the accuracy
        found.append(("accuracy", paper.recall[0], ours["accuracy"]))
    for name in ("precision", "recall", "f1"):
        values = getattr(paper, name)
        of = ("real", "fake") if len(values) == 2 else ("macro",)
        found += [(f"{name} {which}", value, ours[name][which]) for which, value in zip(of, values, strict=True)]
    return found


def run_rows(result: dict[str, Any]) -> list[list[str]]:
    """A line for each run, whether the paper has it or not."""
    return [_run(cell, result["runs"][cell.name]) for cell in CELLS if cell.name in result["runs"]]


def _run(cell: PaperRun, run: dict[str, Any]) -> list[str]:
    test = run["parts"]["test"]
    modes = [_percent(run["modes"][mode]["accuracy"]) if run["modes"] else "" for mode in ("zero-shot", "mean")]
    probe = run["baselines"].get("linear_probe")
    others = ", ".join(
        f"{DATA[name].name} {_percent(metrics['accuracy'])}" for name, metrics in run["elsewhere"].items()
    )
    return [
        ", ".join(str(one.number) for one in cell.tables) or "new",
        run_name(cell),
        _percent(test["accuracy"]),
        _interval(test),
        *modes,
        _percent(probe["test"]["accuracy"]) if probe else "",
        others,
    ]


def sentences(result: dict[str, Any]) -> list[str]:
    """What to take home, and what is missing."""
    lines = []
    tests = [(one, result["runs"][one.cell]) for one in TABLES if "test" in one.parts and one.cell in result["runs"]]
    if tests:
        inside = [one for one, run in tests if _within(one, run)]
        numbers = ", ".join(str(one.number) for one in inside) or "none"
        lines.append(f"Of {len(tests)} tables with test rows, {WITHIN} in {len(inside)} ({numbers}).")
    for name, data in DATA.items():
        used = {sum(run["rows"][p] for p in PARTS) for cell, run in result["runs"].items() if cell.endswith(f"-{name}")}
        if used:
            lines.append(f"{data.name}: {min(used):,} rows were used, in the paper {data.rows:,}.")
    missing: dict[str, list[str]] = {}
    for cell, why in result["missing"].items():
        missing.setdefault(why, []).append(cell)
    lines += [f"Not run: {', '.join(cells)}: {why}" for why, cells in missing.items()]
    return lines


def run_name(one: PaperRun | PaperTable) -> str:
    """A run in a few words.

    >>> run_name(CELLS[0])
    'B/32 image, CycleGAN'
    """
    kind = "image" if one.kind == "linear" else one.kind
    return f"{NAMES[one.backbone].removeprefix('ViT-')} {kind}, {DATA[one.data].name}"


def _within(one: PaperTable, run: dict[str, Any]) -> bool:
    figures = one.parts["test"]
    paper = figures.recall[0] if figures.accuracy is None else figures.accuracy
    low, high = run["parts"]["test"]["intervals"]["accuracy"]
    return bool(100 * low <= paper <= 100 * high)


def _interval(metrics: dict[str, Any]) -> str:
    low, high = metrics["intervals"]["accuracy"]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _line(values: Any) -> str:
    return f"| {' | '.join(values)} |"
