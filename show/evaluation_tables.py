"""Results of the leave-one-out evaluation, the temporal holdout and a fusion: tables, figures and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..core.atomic_files import write_text
from ..core.escaping import csv_text, escape_all
from ..detector.evaluation.leave_one_out import TITLES, LeaveOneOut
from ..detector.evaluation.temporal_holdout import TemporalHoldout
from ..detector.evaluation.view_gains import ViewGain
from ..detector.fusion.fusion_report import FusionReport
from .tables import WrappedTable, table

if TYPE_CHECKING:
    from .figure import ReportFigure


def leave_one_out_table(results: Sequence[LeaveOneOut], gains: Sequence[ViewGain] = ()) -> RenderableType:
    """AUC of each left-out generator against each left-out real source, a table per head; then gains of views."""
    parts: list[RenderableType] = []
    for result in escape_all(list(results)):
        values = result.table()
        named = zip(result.generators, values, strict=True)
        rows = [[name, *map(float, row), float(row.mean())] for name, row in named]
        rows.append(["mean", *map(float, values.mean(0)), result.mean_auc])
        title = f"{TITLES[result.head]}: AUC on an unseen generator (rows) and an unseen real source (columns)"
        parts += [WrappedTable(title, ["", *result.reals, "mean"], rows), Text(f"\n{result.sentence}\n")]
    parts += [Text(f"• {gain.sentence}") for gain in escape_all(list(gains))]
    return Group(*parts)


def leave_one_out_json(results: Sequence[LeaveOneOut]) -> dict[str, Any]:
    """The first head's figures at the top level, each head's in `heads`, and the cells of all heads in `cells`."""
    heads = {result.head: result.to_dict() for result in results}
    cells = [cell for head in heads.values() for cell in head.pop("cells")]
    return {**next(iter(heads.values())), "heads": heads, "cells": cells}


def leave_one_out_figure(result: LeaveOneOut) -> ReportFigure:
    """Heat map of one head's AUCs."""
    from .evaluation_figures import heat_map

    name = "leave_one_out" if result.head == "ridge" else f"leave_one_out_{result.head}"
    title = TITLES[result.head]
    caption = (
        "AUC on an unseen generator (rows) and an unseen real source (columns): 1 is perfect separation, 0.5 is "
        "chance, and below 0.5 what the head learned from the other sources misleads it. "
        f"{result.rows:,} rows. {result.sentence}"
    )
    title = f"Leave one out: {title[0].lower()}{title[1:]}"
    return heat_map(name, title, caption, result.reals, result.generators, result.table())


def write_leave_one_out(results: Sequence[LeaveOneOut], folder: Path) -> list[Path]:
    """Write leave_one_out.csv and a PNG and SVG for each head; returns their paths."""
    written = []
    for result in results:
        written += leave_one_out_figure(result).draw(folder)
    columns = ("head", "generator", "real", "n", "auc", "accuracy", "oracle")
    cells = leave_one_out_json(results)["cells"]
    written.append(folder / "leave_one_out.csv")
    write_text(written[-1], csv_text([columns, *([cell[c] for c in columns] for cell in cells)]))
    return written


def temporal_holdout_table(result: TemporalHoldout) -> RenderableType:
    """Each release window, judged by a head trained on the sources released before it."""
    result = escape_all(result)
    columns = ["released", "sources", "generators before", "rows", "AUC", "accuracy", "AUC on older sources"]
    rows = [[w.date, ", ".join(w.sources), w.generators, w.n, w.auc, w.accuracy, w.past_auc] for w in result.windows]
    windows = table("trained on older sources, tested on newer ones", columns, rows, folded=True, words=["sources"])
    return Group(windows, Text(), *(Text(f"• {sentence}") for sentence in result.sentences))


def write_temporal_holdout(result: TemporalHoldout, folder: Path) -> list[Path]:
    """Write temporal_holdout.png, .svg and .csv; returns their paths."""
    from .evaluation_figures import temporal_holdout_lines

    return temporal_holdout_lines([window.to_dict() for window in result.windows]).save(folder)


def fusion_table(report: FusionReport) -> RenderableType:
    """AUC and weight of each signal, and what the fusion reaches on held-out rows."""
    report = escape_all(report)
    rows = [
        [name, "" if signal.auc is None else signal.auc, signal.weight, f"{signal.missing:.1%}"]
        for name, signal in report.signals.items()
    ]
    title = "AUC of each signal, and its weight: the standard deviation of what it adds to the fused score"
    return Group(table(title, ["", "AUC", "weight", "missing"], rows), *(Text(f"\n{s}") for s in report.sentences))
