"""`clipfake train` and `clipfake report`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT_HEAD, STORE, JsonOption, NameOption, StoreOption
from .terminal import quoted, say, show


class Kind(StrEnum):
    """Of the projection."""

    linear = "linear"
    mlp = "mlp"
    sum = "sum"
    product = "product"
    concat = "concat"
    triple = "triple"


class Anchor(StrEnum):
    """Class of the triplets' anchors."""

    real = "real"
    fake = "fake"
    both = "both"


class Match(StrEnum):
    """What a triplet's rows share."""

    none = "none"
    category = "category"
    source = "source"


class Mining(StrEnum):
    """How triplets are chosen."""

    random = "random"
    semihard = "semihard"
    batch_hard = "batch-hard"


class Recipe(StrEnum):
    """How rows are dealt to train, validation and test."""

    paper = "paper"
    paper_text = "paper-text"
    grouped = "grouped"


def train_command(
    store: StoreOption = STORE,
    from_store: Annotated[
        bool, typer.Option("--from-store", help="Train from the stored vectors: always so, and said for clearness.")
    ] = True,
    head: NameOption = DEFAULT_HEAD,
    kind: Annotated[
        Kind, typer.Option(help="Projection: of the image's vector alone (linear, mlp) or with its category's text.")
    ] = Kind.linear,
    anchor: Annotated[Anchor, typer.Option(help="Class of the triplets' anchors.")] = Anchor.real,
    match: Annotated[Match, typer.Option(help="What a triplet's rows share.")] = Match.none,
    mining: Annotated[Mining, typer.Option(help="How triplets are chosen.")] = Mining.random,
    epochs: Annotated[int, typer.Option(min=1, max=500, help="Passes over the triplets, at most; stops early.")] = 20,
    sources: Annotated[str, typer.Option(help="Only the rows of these sources, separated by commas.")] = "",
    balanced: Annotated[bool, typer.Option("--balanced", help="As many real as fake rows.")] = False,
    split: Annotated[
        Recipe | None,
        typer.Option(
            help="How rows are dealt to train, validation and test; grouped keeps copies on one side.",
            show_default="paper; with text paper-text",
        ),
    ] = None,
    columns: Annotated[
        str, typer.Option(help="Vectors to learn from, joined: main (the store's own) and those of `store column`.")
    ] = "main",
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn at random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a head from the stored vectors, with its baselines beside it, and calibrate its verdicts.

    The source paper's pipeline: a triplet projection to 128 dimensions, then an SVM, split 70/20/10. No image is read.

    clipfake train --from-store --store mystore
    """
    from ..detector.training.fit import fit_detector
    from ..detector.training.train import TrainOptions
    from ..detector.training.triplet import TripletOptions
    from ..show.progress_display import status_line
    from ..show.training_summary import training_summary
    from ..store.store import Store

    triplet = TripletOptions(anchor=anchor.value, match=match.value, mining=mining.value, epochs=epochs)
    chosen = tuple(filter(None, sources.split(",")))
    recipe = split.value if split else ""
    options = TrainOptions(kind.value, triplet, sources=chosen, balanced=balanced, recipe=recipe, seed=seed)
    names = [name for name in columns.split(",") if name]
    opened = Store.open(store)
    with status_line("training") as tell:
        report = fit_detector(opened, head, options, columns=names, progress=tell).to_dict()
    show(report if as_json else training_summary(report))
    if not as_json:
        named = "" if head == DEFAULT_HEAD else f" --head {head}"
        say(f"next: clipfake query IMAGE --store {quoted(store)}{named}")


def report_command(
    store: StoreOption = STORE,
    head: NameOption = DEFAULT_HEAD,
    out: Annotated[Path, typer.Option(help="The page; figures go to a folder beside it.", dir_okay=False)] = Path(
        "report.html"
    ),
    as_json: JsonOption = False,
) -> None:
    """Write the report of a head: one page that needs nothing else, and PNG, SVG and CSV of each figure.

    clipfake report --store mystore --out report.html
    """
    from ..detector.detector import VectorDetector
    from ..detector.head import head_folder
    from ..show.report import write_report
    from ..simulated.standin_encoder import NOTICE, is_standin
    from ..store.store import Store

    detector = VectorDetector.load(Store.open(store), head)
    said = NOTICE if is_standin(detector.head.space.encoder) else ""
    written = write_report(
        detector,
        head_folder(store, head),
        out,
        title=f"Head “{head}” of the store “{store.resolve().name}”",
        notice=said,
    )
    show({"report": str(out), "figures": [str(path) for path in written[1:]]} if as_json else f"report: {out}")
