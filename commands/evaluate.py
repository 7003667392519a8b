"""`clipfake evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .choices import EvaluationHead, LeftOut
from .options import OUTPUT, STORE, JsonOption, SeedOption, StoreOption
from .terminal import say, show


def evaluate_command(
    store: StoreOption = STORE,
    leave_one_out: Annotated[
        LeftOut, typer.Option("--leave-one-out", help="Attribute whose values are left out in turn.")
    ] = LeftOut.source,
    head: Annotated[
        EvaluationHead,
        typer.Option("--head", help="Head to evaluate: a ridge classifier, nearest neighbours, or both."),
    ] = EvaluationHead.both,
    temporal: Annotated[
        Path | None,
        typer.Option(
            "--temporal",
            metavar="CSV",
            help="Train on the past and test on later sources instead, by a CSV with columns source and date.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for figures (PNG, SVG) and CSV.", file_okay=False, rich_help_panel=OUTPUT
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a head on every generator and every real source it has not seen, from stored vectors alone.

    With --temporal, measure a head trained on the past on what was released next.

    clipfake evaluate --leave-one-out source --store mystore --out figures
    """
    from ..show import evaluation_tables as shown
    from ..store.store import Store

    snapshot = Store.open(store).snapshot()
    if temporal is not None:
        from ..detector.evaluation.temporal_holdout import read_dates, temporal_holdout

        report = temporal_holdout(snapshot, read_dates(temporal), seed=seed)
        show(report.to_dict() if as_json else shown.temporal_holdout_table(report))
        written = shown.write_temporal_holdout(report, out) if out else []
    else:
        from ..detector.evaluation.leave_one_out import leave_one_out as evaluate

        results = [evaluate(snapshot, one, seed=seed) for one in ("ridge", "knn") if head in (one, EvaluationHead.both)]
        show(shown.leave_one_out_json(results) if as_json else shown.leave_one_out_table(results))
        written = shown.write_leave_one_out(results, out) if out else []
    for path in written:
        say(str(path))
