"""`clipfake evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import STORE, JsonOption, StoreOption
from .terminal import say, show


def evaluate_command(
    store: StoreOption = STORE,
    leave_one_out: Annotated[str, typer.Option("--leave-one-out", help="What is left out: source.")] = "source",
    out: Annotated[Path | None, typer.Option(help="Folder for the heat map (PNG, SVG) and CSV.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """How a linear head does on every generator and every real source it has never seen, from stored vectors alone.

    clipfake evaluate --leave-one-out source --store mystore --out atlas
    """
    from ..detector.atlas import atlas
    from ..show.atlas import atlas_table, write_atlas
    from ..store.store import Store

    if leave_one_out != "source":
        raise typer.BadParameter(f"{leave_one_out} cannot be left out; only source", param_hint="--leave-one-out")
    found = atlas(Store.open(store).snapshot(), seed=seed)
    show(found.as_json() if as_json else atlas_table(found))
    if out:
        for path in write_atlas(found, out):
            say(str(path))
