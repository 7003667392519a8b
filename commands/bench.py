"""`clipfake bench`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.atomic_files import write_text
from ..indexer.encoders.encoder_name import DEFAULT_ENCODER
from .options import MODEL, OUTPUT, DeviceOption, JsonOption, UntrainedOption
from .terminal import print_line, print_message, print_result

SUITES = "throughput,parity,query,training"
ON_REQUEST = "int8"


def bench_command(
    encoder: Annotated[
        str,
        typer.Option("--encoder", metavar="NAME", help="Hub id or directory of a CLIP encoder.", rich_help_panel=MODEL),
    ] = DEFAULT_ENCODER,
    folders: Annotated[
        list[str] | None,
        typer.Option(
            "--folders", metavar="PATH...", help="Folders of images to measure with (default: simulated ones)."
        ),
    ] = None,
    only: Annotated[
        str, typer.Option(metavar="NAMES", help=f"Benchmarks to run (comma-separated): {SUITES}, {ON_REQUEST}.")
    ] = SUITES,
    limit: Annotated[int, typer.Option(min=8, metavar="N", help="Number of images.")] = 256,
    rows: Annotated[
        int, typer.Option(min=1000, metavar="N", help="Number of rows in the synthetic bank that is searched.")
    ] = 100_000,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Number of repeats; medians are reported.")] = 3,
    untrained: UntrainedOption = False,
    device: DeviceOption = "auto",
    precision: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Precisions to measure (comma-separated).", rich_help_panel=MODEL),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of torch threads (default: torch's own choice).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the JSON to this file too.", dir_okay=False, rich_help_panel=OUTPUT),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure speed on this machine, and how far embeddings agree with those of transformers.

    clipfake bench --encoder openai/clip-vit-base-patch32 --out bench.json
    """
    import tempfile

    from ..benchmarks import int8, parity, throughput
    from ..benchmarks.common import command
    from ..benchmarks.detector import query, training
    from ..indexer.encoders.encoder_name import with_random_weights

    name = with_random_weights(encoder) if untrained else encoder
    result: dict[str, Any] = {}
    images: list[Any] = list(folders or ())
    machine: dict[str, Any] = {"threads": threads, "device": device}
    suites: dict[str, Callable[[], dict[str, Any]]] = {
        "throughput": lambda: throughput.run(
            images, name, precision=precision, limit=limit, repeats=repeats, **machine
        ),
        "parity": lambda: parity.run(images, name, limit=limit, **machine),
        "query": lambda: query.run(name, rows=rows, **machine),
        "training": training.run,
        # chooses its device and precisions itself, to compare them
        "int8": lambda: int8.run(images, name, repeats=repeats, threads=threads),
    }
    selected = only.split(",")
    for suite in selected:
        if suite not in suites:
            raise typer.BadParameter(f"{suite} is none of {', '.join(suites)}", param_hint="--only")
    with tempfile.TemporaryDirectory() as scratch:
        if not images and {"throughput", "parity", "int8"} & set(selected):
            from ..simulated.images import SOURCES, write_sample

            print_message("writing simulated images")
            images += write_sample(Path(scratch), images_per_source=-(-limit // len(SOURCES)))
        for suite in selected:
            print_message(f"measuring {suite}")
            result[suite] = suites[suite]()
    if out:
        write_text(out, json.dumps(result, indent=1) + "\n")
    if as_json:
        print_result(result)
    else:
        for line in command.table(result):
            print_line(line)
