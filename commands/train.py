"""`clipfake train` and `clipfake report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .choices import Anchor, ClassifierName, Match, Mining, ProjectionKind, SplitRecipe
from .options import DEFAULT_HEAD, ROWS, STORE, TRAINING, JsonOption, NameOption, SeedOption, StoreOption
from .terminal import print_message, print_result, shell_quoted


def train_command(
    store: StoreOption = STORE,
    from_store: Annotated[
        bool, typer.Option("--from-store", metavar="", help="Train from the stored vectors; this is always so.")
    ] = True,
    head: NameOption = DEFAULT_HEAD,
    sources: Annotated[
        str, typer.Option(metavar="NAMES", help="Only rows of these sources (comma-separated).", rich_help_panel=ROWS)
    ] = "",
    balanced: Annotated[
        bool, typer.Option("--balanced", metavar="", help="Use as many real as fake rows.", rich_help_panel=ROWS)
    ] = False,
    split: Annotated[
        SplitRecipe,
        typer.Option(
            help="Recipe of the train/validation/test split; grouped keeps copies of a file in the same part.",
            rich_help_panel=ROWS,
        ),
    ] = SplitRecipe.grouped,
    vectors: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Stored vectors to train on: main, and any added with `store add-vectors` (comma-separated).",
            rich_help_panel=ROWS,
        ),
    ] = "main",
    classifier: Annotated[
        ClassifierName,
        typer.Option(
            help="Classifier; auto takes the one that is best on sources left out of the training rows.",
            rich_help_panel=TRAINING,
        ),
    ] = ClassifierName.auto,
    kind: Annotated[
        ProjectionKind | None,
        typer.Option(
            help="Projection of triplet-svm: linear and mlp use the image's vector, the others also its text's.",
            show_default="linear",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    anchor: Annotated[
        Anchor, typer.Option(help="Class of the anchors of triplets.", rich_help_panel=TRAINING)
    ] = Anchor.real,
    match: Annotated[
        Match, typer.Option(help="Attribute that the rows of a triplet share.", rich_help_panel=TRAINING)
    ] = Match.none,
    mining: Annotated[
        Mining, typer.Option(help="Strategy for choosing triplets.", rich_help_panel=TRAINING)
    ] = Mining.random,
    epochs: Annotated[
        int,
        typer.Option(
            min=1,
            max=500,
            metavar="N",
            help="Maximum number of epochs; training stops early.",
            rich_help_panel=TRAINING,
        ),
    ] = 20,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a head on the stored vectors, compare it with baselines and calibrate its verdicts. No image is read.

    The source paper's pipeline, a triplet projection to 128 dimensions and an SVM on a random split, is
    --classifier triplet-svm --split paper.

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
    options = TrainOptions(
        kind.value if kind else "",
        triplet,
        sources=chosen,
        balanced=balanced,
        recipe=split.value,
        seed=seed,
        classifier=classifier.value,
    )
    names = [name for name in vectors.split(",") if name]
    opened = Store.open(store)
    with status_line("training") as show_step:
        fit_report = fit_detector(opened, head, options, vectors=names, on_progress=show_step)
        fit_report.save()
    report = fit_report.to_dict()
    print_result(report if as_json else training_summary(report))
    if not as_json:
        head_option = "" if head == DEFAULT_HEAD else f" --head {head}"
        print_message(f"next: clipfake query IMAGE --store {shell_quoted(store)}{head_option}")


def report_command(
    store: StoreOption = STORE,
    head: NameOption = DEFAULT_HEAD,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="File to write; the figures go to a folder beside it.", dir_okay=False)
    ] = Path("report.html"),
    as_json: JsonOption = False,
) -> None:
    """Write a report on a head: one self-contained HTML page, and each figure as PNG, SVG and CSV.

    clipfake report --store mystore --out report.html
    """
    from ..detector.detector import VectorDetector
    from ..detector.head import head_folder
    from ..show.report import write_report
    from ..simulated.notice import NOTICE, is_standin
    from ..store.store import Store

    detector = VectorDetector.load(Store.open(store), head)
    notices = (NOTICE if is_standin(detector.head.space.encoder) else "", detector.notice)
    written = write_report(
        detector,
        head_folder(store, head),
        out,
        title=f"Head “{head}” of the store “{store.resolve().name}”",
        notice=" ".join(filter(None, notices)),
    )
    print_result({"report": str(out), "figures": [str(path) for path in written[1:]]} if as_json else f"report: {out}")
