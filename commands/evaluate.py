"""`clipfake evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .choices import LeftOut
from .options import OUTPUT, STORE, JsonOption, SeedOption, StoreOption
from .terminal import print_message, print_result

if TYPE_CHECKING:
    from ..detector.evaluation.leave_one_out import LeaveOneOut
    from ..store.snapshot import Snapshot


def evaluate_command(
    store: StoreOption = STORE,
    leave_one_out: Annotated[
        LeftOut, typer.Option("--leave-one-out", help="Attribute whose values are left out in turn.")
    ] = LeftOut.source,
    head: Annotated[
        str,
        typer.Option(
            "--head",
            metavar="NAME",
            help="Head to evaluate: ridge, knn, both, a classifier of `train`, or a head of the store by its name; the "
            "classifier of a trained one is fitted again.",
        ),
    ] = "both",
    temporal: Annotated[
        Path | None,
        typer.Option(
            "--temporal",
            metavar="CSV",
            help="Train on earlier sources and test on later ones instead, by a CSV with columns source and date.",
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
    """Measure heads on each generator and each real source that they were not trained on, from stored vectors.

    A classifier of `train` is fitted once for each pair of sources, on at most 3,000 rows: 50 pairs take minutes.

    For named vectors (`clipfake store add-vectors`) it also measures what they gain over the main ones, alone and
    beside them, which takes about a minute for each.

    With --temporal, measure heads on the sources that were released after those they were trained on.

    clipfake evaluate --leave-one-out source --store mystore --out figures
    """
    from ..show import evaluation_tables as tables
    from ..store.store import Store

    snapshot = Store.open(store).snapshot()
    if temporal is not None:
        from ..detector.evaluation.temporal_holdout import read_dates, temporal_holdout

        report = temporal_holdout(snapshot, read_dates(temporal), seed=seed)
        print_result(report.to_dict() if as_json else tables.temporal_holdout_table(report))
        written = tables.write_temporal_holdout(report, out) if out else []
    else:
        from ..detector.evaluation.leave_one_out import FITTED
        from ..detector.evaluation.leave_one_out import leave_one_out as evaluate
        from ..detector.evaluation.view_gains import view_gains
        from ..show.progress_display import status_line

        heads = ("ridge", "knn") if head == "both" else (head,)
        results = [evaluate(snapshot, name, seed=seed) for name in FITTED if name in heads]
        gains = []
        if results:
            with status_line("gain of the named vectors") as show_step:
                gains = view_gains(snapshot, seed=seed, on_progress=show_step)
        else:
            results = [_evaluate_stored(snapshot, head, seed)]
        if as_json:
            print_result({**tables.leave_one_out_json(results), "views": [gain.to_dict() for gain in gains]})
        else:
            print_result(tables.leave_one_out_table(results, gains))
        written = tables.write_leave_one_out(results, out) if out else []
    for path in written:
        print_message(str(path))


def _evaluate_stored(snapshot: Snapshot, name: str, seed: int) -> LeaveOneOut:
    """Evaluate a head of the store on its vectors: an imported one as it is, a trained one by its classifier."""
    from ..detector.evaluation.leave_one_out import FITTED, leave_one_out
    from ..detector.head import Head, head_folder
    from ..store.concatenated import concatenated_snapshot

    head = Head.load(head_folder(snapshot.folder, name))
    view = concatenated_snapshot(snapshot, head.vectors)
    if head.imported:
        return leave_one_out(view, head, seed=seed)
    [classifier] = [kind for kind in FITTED if kind == head.classifier_name]
    return leave_one_out(view, classifier, seed=seed)
