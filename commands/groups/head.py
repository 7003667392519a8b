"""`clipfake head …`: heads that others have trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..choices import HeadFormatName
from ..options import STORE, JsonOption, SeedOption, StoreOption
from ..terminal import print_message, print_result, shell_quoted

app = typer.Typer(no_args_is_help=True, help="Use heads that others have trained.")


@app.callback()
def head_group() -> None:
    """Use heads that others have trained."""  # a group of one command would be that command


@app.command("import")
def head_import_command(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="File with the weights: .pth, .pt, .ckpt, .safetensors, .npz or .json.", dir_okay=False
        ),
    ],
    head_format: Annotated[
        HeadFormatName,
        typer.Option(
            "--format",
            help="Format: univfd (UniversalFakeDetect), clip-cues, or linear for any weight (1 or 2, dim) with a bias.",
        ),
    ],
    store: StoreOption = STORE,
    head: Annotated[
        str, typer.Option("--head", metavar="NAME", help="Name of the head in the store (default: the format's).")
    ] = "",
    vectors: Annotated[
        str,
        typer.Option(metavar="NAME", help="Stored vectors that it reads (default: those of the format)."),
    ] = "",
    fake_class: Annotated[
        int,
        typer.Option(
            "--fake-class", min=0, max=1, metavar="N", help="Number of the class that means fake, if it is not 1."
        ),
    ] = 1,
    any_encoder: Annotated[
        bool,
        typer.Option(
            "--any-encoder",
            metavar="",
            help="Accept vectors of an encoder whose name is not known as the format's: you know that it is the same.",
        ),
    ] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Import a head that others have trained, and calibrate it on the store's labelled rows. No code in it is run.

    Its decision value is the author's logit of the stored vector. It is used like a trained head: query --head NAME.

    clipfake head import fc_weights.pth --format univfd --store mystore
    """
    from ...detector.imported.import_head import import_head
    from ...show.progress_display import status_line
    from ...show.training_summary import training_summary
    from ...store.store import Store

    opened, name = Store.open(store), head or head_format.value
    with status_line("importing") as show_step:
        fit_report = import_head(
            opened,
            file,
            head_format.value,
            name,
            vectors=vectors,
            fake_class=fake_class,
            any_encoder=any_encoder,
            seed=seed,
            on_progress=show_step,
        )
        fit_report.save()
    report = fit_report.to_dict()
    print_result(report if as_json else training_summary(report))
    if not as_json:
        print_message(f"next: clipfake query IMAGE --store {shell_quoted(store)} --head {name}")
