"""`clipfake fuse`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import OUTPUT, JsonOption, SeedOption, share_between
from .terminal import print_message, print_result


def fuse_command(
    table: Annotated[
        Path,
        typer.Argument(metavar="CSV", help="Table with a row per image and a column per detector."),
    ],
    label: Annotated[
        str,
        typer.Option(
            "--label",
            metavar="COLUMN",
            help="Column of the truth: 0 or real, 1 or fake; rows where it is empty are judged.",
        ),
    ],
    signals: Annotated[
        str,
        typer.Option(
            "--signals",
            metavar="COLUMNS",
            help="Columns of the scores, comma-separated; higher means fake (default: all numeric columns).",
        ),
    ] = "",
    error: Annotated[
        float,
        typer.Option(
            parser=share_between(0.0001, 0.5),
            metavar="SHARE",
            help="Accepted share of real and of fake images whose true class is excluded, as 5% or 0.05.",
        ),
    ] = 0.05,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the table with fused score, probability and answer to this CSV.",
            dir_okay=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fuse the scores of several detectors into one, with answers that may be unsure, and measure it.

    Scores may be of any scale; only their order counts. Labelled rows are scored by a fusion that was not fitted on
    them, so that their figures hold for new rows like them.

    clipfake fuse scores.csv --label ground_truth --out fused.csv
    """
    from ..detector.fusion.fusion import fuse
    from ..detector.fusion.score_table import ScoreTable
    from ..show.evaluation_tables import fusion_table

    scores = ScoreTable.read(table, label, [name.strip() for name in signals.split(",") if name.strip()])
    if scores.skipped:
        print_message(
            f"not used, as each row has another whole number there: {', '.join(scores.skipped)}; name the columns "
            f"with --signals to use them"
        )
    fused = fuse(scores.signals, scores.labels, scores.names, error=error, seed=seed)
    print_result(fused.report.to_dict() if as_json else fusion_table(fused.report))
    if out:
        scores.write(out, fused)
        print_message(str(out))
