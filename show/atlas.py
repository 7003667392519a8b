"""The atlas as a table for the terminal, a heat map and CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from ..detector.atlas import Atlas
from ..store.durable import write_text, written_aside
from .card import table


def atlas_table(atlas: Atlas) -> RenderableType:
    """AUC of every generator left out, against every real source left out with it."""
    values = atlas.table()
    rows = [[name, *map(float, row), float(row.mean())] for name, row in zip(atlas.generators, values, strict=True)]
    rows.append(["mean", *map(float, values.mean(0)), atlas.mean_auc])
    title = "AUC on a generator (down) and a real source (across) the head has never seen"
    return Group(table(title, ["", *atlas.reals, "mean"], rows, folded=True), Text(f"\n{atlas.sentence}"))


def write_atlas(atlas: Atlas, folder: Path) -> list[Path]:
    """atlas.png, atlas.svg and atlas.csv; returns where they are."""
    from .figures import heat_map

    caption = "AUC of a ridge head on two sources it has never seen, generators down and real sources across."
    picture = heat_map("atlas", "Leave one out", caption, atlas.reals, atlas.generators, atlas.table())
    written = []
    for kind in ("png", "svg"):
        written.append(folder / f"atlas.{kind}")
        with written_aside(written[-1]) as temporary:
            temporary.write_bytes(picture.image(kind))
    columns = ("generator", "real", "n", "auc", "accuracy", "oracle")
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(
        [columns, *([cell.as_json()[c] for c in columns] for cell in atlas.cells)]
    )
    written.append(folder / "atlas.csv")
    write_text(written[-1], out.getvalue())
    return written
