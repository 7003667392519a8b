"""`clipfake train` and `clipfake report`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..store.durable import write_text
from .options import (
    STORE,
    JsonOption,
    NameOption,
    StoreOption,
)
from .terminal import say, show


def train_command(
    store: StoreOption = STORE,
    from_store: Annotated[bool, typer.Option("--from-store", help="Train from the stored vectors (always so).")] = True,
    head: NameOption = "default",
    kind: Annotated[str, typer.Option(help="linear or mlp; with text: sum, product, concat or triple.")] = "linear",
    anchor: Annotated[str, typer.Option(help="Class of the triplets' anchors: real, fake or both.")] = "real",
    match: Annotated[str, typer.Option(help="What a triplet's rows share: none, category or source.")] = "none",
    mining: Annotated[str, typer.Option(help="random, semihard or batch-hard.")] = "random",
    epochs: Annotated[int, typer.Option(min=1, max=500, help="At most; stops early.")] = 20,
    sources: Annotated[str, typer.Option(help="Only these, separated by commas.")] = "",
    balanced: Annotated[bool, typer.Option("--balanced", help="As many real as fake rows.")] = False,
    split: Annotated[
        str, typer.Option(help="paper, paper-text or grouped (copies on one side).  [default: paper]")
    ] = "",
    columns: Annotated[
        str, typer.Option(help="Vectors to learn from, joined: main (the store's own) and those of `store column`.")
    ] = "main",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a head from the stored vectors, with its baselines beside it, and calibrate its verdicts.

    The source paper's pipeline: a triplet projection to 128 dimensions, then an SVM, split 70/20/10. No image is read.

    clipfake train --from-store --store mystore
    """
    from ..detector.head import head_folder
    from ..detector.heldout import calibrate
    from ..detector.train import TrainOptions, train
    from ..detector.triplet import TripletOptions
    from ..show.screen import status_of
    from ..show.training import training_summary
    from ..store.joined import joined
    from ..store.store import Store

    triplet = TripletOptions(anchor=anchor, match=match, mining=mining, epochs=epochs)  # type: ignore[arg-type]
    chosen = tuple(filter(None, sources.split(",")))
    options = TrainOptions(kind, triplet, sources=chosen, balanced=balanced, recipe=split, seed=seed)
    names = [name for name in columns.split(",") if name]
    snapshot = joined(Store.open(store).snapshot(), names)
    folder = head_folder(store, head)
    with status_of("training") as tell:
        trained = train(snapshot, options, tell)
        calibrated = calibrate(snapshot, trained.head, options, progress=tell)
    trained = replace(trained, head=replace(trained.head, options={**trained.head.options, "columns": names}))
    trained.head.save(folder)
    calibrated.calibration.save(folder)
    report = {**trained.as_json(), "detector": calibrated.as_json(), "saved": str(folder)}
    write_text(folder / "report.json", json.dumps(report) + "\n")
    show(report if as_json else training_summary(report))
    if not as_json:
        say(f"next: clipfake query IMAGE --store {store}")


def report_command(
    store: StoreOption = STORE,
    head: NameOption = "default",
    out: Annotated[Path, typer.Option(help="The page; figures go to a folder beside it.")] = Path("report.html"),
    as_json: JsonOption = False,
) -> None:
    """Write the report of a head: one page that needs nothing else, and PNG, SVG and CSV of each figure.

    clipfake report --store mystore --out report.html
    """
    from ..detector.detector import Detector
    from ..detector.head import head_folder
    from ..indexer.standin import NOTICE, is_standin
    from ..show.report import write_report
    from ..store.store import Store

    detector = Detector.load(Store.open(store), head)
    said = NOTICE if is_standin(detector.head.space.encoder) else ""
    written = write_report(
        detector,
        head_folder(store, head),
        out,
        title=f"Head “{head}” of the store “{store.resolve().name}”",
        notice=said,
    )
    show({"report": str(out), "figures": [str(path) for path in written[1:]]} if as_json else f"report: {out}")
