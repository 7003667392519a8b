"""The atlas and the replay: tables for the terminal, pictures and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..core.atomic_files import write_text
from ..detector.evaluation.leave_one_out import TITLES, LeaveOneOut
from ..detector.evaluation.temporal_holdout import TemporalHoldout
from .verdict_panel import SideBySide, table

if TYPE_CHECKING:
    from .figure import ReportFigure


def atlas_table(atlases: Sequence[LeaveOneOut]) -> RenderableType:
    """AUC of every generator left out, against every real source left out with it; a table for each head."""
    parts: list[RenderableType] = []
    for atlas in atlases:
        values = atlas.table()
        rows = [[name, *map(float, row), float(row.mean())] for name, row in zip(atlas.generators, values, strict=True)]
        rows.append(["mean", *map(float, values.mean(0)), atlas.mean_auc])
        title = f"{TITLES[atlas.head]}: AUC on a generator (down) and a real source (across) it has never seen"
        parts += [SideBySide(title, ["", *atlas.reals, "mean"], rows), Text(f"\n{atlas.sentence}\n")]
    return Group(*parts)


def atlas_json(atlases: Sequence[LeaveOneOut]) -> dict[str, Any]:
    """The first head's figures, each head's in `heads`, and the cells of all."""
    report = {atlas.head: atlas.to_dict() for atlas in atlases}
    cells = [cell for one in report.values() for cell in one.pop("cells")]
    return {**next(iter(report.values())), "heads": report, "cells": cells}


def atlas_picture(atlas: LeaveOneOut) -> ReportFigure:
    """The heat map of one head."""
    from .evaluation_figures import heat_map

    name = "atlas" if atlas.head == "ridge" else f"atlas-{atlas.head}"
    caption = (
        "AUC on a generator (down) and a real source (across) that the head has never seen: 1 tells them apart, 0.5 is "
        f"a coin; below it, what was learned of the others misleads. Of {atlas.rows:,} rows. {atlas.sentence}"
    )
    return heat_map(name, f"Leave one out: {_lower(atlas)}", caption, atlas.reals, atlas.generators, atlas.table())


def write_atlas(atlases: Sequence[LeaveOneOut], folder: Path) -> list[Path]:
    """atlas.png, atlas.svg and atlas.csv, and the pictures of further heads; returns where they are."""
    written = []
    for atlas in atlases:
        written += atlas_picture(atlas).draw(folder)
    columns = ("head", "generator", "real", "n", "auc", "accuracy", "oracle")
    out = io.StringIO()
    cells = atlas_json(atlases)["cells"]
    csv.writer(out, lineterminator="\n").writerows([columns, *([cell[c] for c in columns] for cell in cells)])
    written.append(folder / "atlas.csv")
    write_text(written[-1], out.getvalue())
    return written


def replay_table(replay: TemporalHoldout) -> RenderableType:
    """What was released, judged by what there was before."""
    columns = ["released", "sources", "generators before", "rows", "AUC", "accuracy", "AUC on the past"]
    rows = [[w.date, ", ".join(w.sources), w.generators, w.n, w.auc, w.accuracy, w.past_auc] for w in replay.windows]
    made = table("trained on the past, asked about what came next", columns, rows, folded=True, words=["sources"])
    return Group(made, Text(), *(Text(f"• {sentence}") for sentence in replay.sentences))


def write_replay(replay: TemporalHoldout, folder: Path) -> list[Path]:
    """replay.png, replay.svg and replay.csv; returns where they are."""
    from .evaluation_figures import replay_lines

    return replay_lines([window.to_dict() for window in replay.windows]).save(folder)


def _lower(atlas: LeaveOneOut) -> str:
    title = TITLES[atlas.head]
    return title[0].lower() + title[1:]
