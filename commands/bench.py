"""`clipfake bench`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.atomic_files import write_text
from .options import DEFAULT_ENCODER, DeviceOption, JsonOption
from .terminal import say, say_out, show

SUITES = "throughput,parity,query,training"
ON_REQUEST = "int8"


def bench_command(
    encoder: Annotated[str, typer.Option("--encoder", help="Hub id or directory of a CLIP.")] = DEFAULT_ENCODER,
    untrained: Annotated[bool, typer.Option("--untrained", help="Random weights from a seed.")] = False,
    folders: Annotated[list[str] | None, typer.Option("--folders", help="Images.  [default: simulated ones]")] = None,
    only: Annotated[str, typer.Option(help=f"Some of: {SUITES}; or {ON_REQUEST}.")] = SUITES,
    precision: Annotated[str, typer.Option(help="One or several, separated by commas.")] = "auto",
    limit: Annotated[int, typer.Option(min=8, help="Images.")] = 256,
    rows: Annotated[int, typer.Option(min=1000, help="Of the synthetic bank that is queried.")] = 100_000,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch.")] = None,
    device: DeviceOption = "auto",
    out: Annotated[Path | None, typer.Option(help="Write the JSON here too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine: images/s by stage against a naive script, agreement of embeddings, query and training time.

    clipfake bench --encoder openai/clip-vit-base-patch32 --out bench.json
    """
    import tempfile

    from ..benchmarks import int8, parity, throughput
    from ..benchmarks.common import command
    from ..benchmarks.detector import query, training
    from ..indexer.encoders.encoder_name import with_random_weights

    name = with_random_weights(encoder) if untrained else encoder
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        images: list[Any] = list(folders or ())
        if not images and {"throughput", "parity", "int8"} & set(only.split(",")):
            from ..simulated.images import SOURCES, write_sample

            say("writing simulated images")
            images = list(write_sample(Path(made), images_per_source=-(-limit // len(SOURCES))))
        at: dict[str, Any] = {"threads": threads, "device": device}
        suites: dict[str, Callable[[], dict[str, Any]]] = {
            "throughput": lambda: throughput.run(images, name, precision=precision, limit=limit, repeats=repeats, **at),
            "parity": lambda: parity.run(images, name, limit=limit, **at),
            "query": lambda: query.run(name, rows=rows, **at),
            "training": training.run,
            # its own device and precisions: what the choice between them costs a head
            "int8": lambda: int8.run(images, name, repeats=repeats, threads=threads),
        }
        for suite in only.split(","):
            if suite not in suites:
                raise typer.BadParameter(f"{suite} is none of {', '.join(suites)}", param_hint="--only")
            say(f"measuring {suite}")
            result[suite] = suites[suite]()
    if out:
        write_text(out, json.dumps(result, indent=1) + "\n")
    if as_json:
        show(result)
    else:
        for line in command.table(result):
            say_out(line)
