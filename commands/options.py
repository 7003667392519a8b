"""Options that several commands take, and how their words are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

STORE = Path("clipfake-store")
DEFAULT_ENCODER = "openai/clip-vit-base-patch32"
StoreOption = Annotated[Path, typer.Option("--store", envvar="CLIPFAKE_STORE", help="Folder of the store.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]
FoldersOption = Annotated[
    list[str], typer.Option("--folders", help="Folders, or a quoted pattern; as many as you like.")
]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        "--encoder", help=f"Hub id or directory.  [default: the store's own, for a new store {DEFAULT_ENCODER}]"
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, mps, openvino, cuda, cuda:0,cuda:1 or all (GPUs).")
]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="auto (float32 on a CPU, half on a GPU), float32, bf16 or fp16.")
]
NameOption = Annotated[str, typer.Option("--head", help="Name of the head, where a store has several.")]


def share_of(told: str) -> float:
    """A share as people write it.

    >>> share_of("1%"), share_of("0.25")
    (0.01, 0.25)
    """
    try:
        share = float(told.removesuffix("%")) / (100 if told.endswith("%") else 1)
    except ValueError as e:
        raise typer.BadParameter(f"{told} is no share; write 1% or 0.01") from e
    if not 0 <= share <= 1:
        raise typer.BadParameter(f"{told} is not between 0% and 100%")
    return share


def part_of(told: str) -> tuple[int, int] | None:
    """The i-th of n parts, counted from 1 on the command line.

    >>> part_of("2/8"), part_of("")
    ((1, 8), None)
    """
    if not told:
        return None
    part, _, parts = told.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise typer.BadParameter(f"{told} is no part; write 1/8 to 8/8", param_hint="--shard")
    return int(part) - 1, int(parts)
