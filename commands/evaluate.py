"""`clipfake evaluate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import STORE, JsonOption, StoreOption
from .terminal import say, show


class Heads(StrEnum):
    """Which heads are asked."""

    ridge = "ridge"
    knn = "knn"
    both = "both"


def evaluate_command(
    store: StoreOption = STORE,
    leave_one_out: Annotated[str, typer.Option("--leave-one-out", help="What is left out: source.")] = "source",
    head: Annotated[
        Heads, typer.Option("--head", help="A ridge head (LDA but for its shrinkage), the neighbour rule, or both.")
    ] = (Heads.both),
    replay_by: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            help="Instead: a CSV with the columns source and date, to train on the past.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures (PNG, SVG) and the CSV.", file_okay=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn at random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """How a head does on every generator and every real source it has never seen, from stored vectors alone.

    With --replay, how one trained on the past does on what was released next.

    clipfake evaluate --leave-one-out source --store mystore --out atlas
    """
    from ..show import evaluation_tables as shown
    from ..store.store import Store

    if leave_one_out != "source":
        raise typer.BadParameter(f"{leave_one_out} cannot be left out; only source", param_hint="--leave-one-out")
    snapshot = Store.open(store).snapshot()
    if replay_by is not None:
        from ..detector.evaluation.temporal_holdout import read_dates, temporal_holdout

        told = temporal_holdout(snapshot, read_dates(replay_by), seed=seed)
        show(told.to_dict() if as_json else shown.temporal_holdout_table(told))
        written = shown.write_temporal_holdout(told, out) if out else []
    else:
        from ..detector.evaluation.leave_one_out import leave_one_out as evaluate

        atlases = [evaluate(snapshot, one, seed=seed) for one in ("ridge", "knn") if head in (one, Heads.both)]
        show(shown.leave_one_out_json(atlases) if as_json else shown.leave_one_out_table(atlases))
        written = shown.write_leave_one_out(atlases, out) if out else []
    for path in written:
        say(str(path))
