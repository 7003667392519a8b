"""Options that several commands take, and how their words are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import SourceError
from .terminal import say

if TYPE_CHECKING:
    from ..store.filter import Filter
    from ..store.records import Mask
    from ..store.search.matches import Searcher
    from ..store.snapshot import Snapshot


def told_of_int8(precision: str) -> str:
    """The precision as it was given; what int8 costs is never found out later."""
    if precision == "int8":
        from ..indexer.encoders.int8 import CHECK

        say(CHECK)
    return precision


STORE = Path("clipfake-store")
DEFAULT_HEAD = "default"
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
    str,
    typer.Option(
        "--precision",
        callback=told_of_int8,
        help="auto (float32 on a CPU, half on a GPU), float32, bf16, fp16; int8 with openvino, as a space of its own.",
    ),
]
DecoderOption = Annotated[
    str,
    typer.Option("--decoder", help="Of large JPEGs: auto (nvimagecodec on a GPU, if it pays), cpu or nvimagecodec."),
]
NameOption = Annotated[str, typer.Option("--head", help="Name of the head, where a store has several.")]

LabelOption = Annotated[str, typer.Option("--label", help="Only these: real, fake or unknown, commas between.")]
SourcesOption = Annotated[str, typer.Option("--source", help="Only these sources, commas between.")]
CategoriesOption = Annotated[str, typer.Option("--category", help="Only these categories, commas between.")]

SearchAtOption = Annotated[
    str,
    typer.Option("--search-at", help="Ask the engine of `store push` for the nearest rows: its URL or folder."),
]


def elsewhere_of(place: str, timeout: float | None = None) -> Callable[[Snapshot], Searcher] | None:
    """Who is asked for the nearest rows with --search-at; None without it. An answer may take so many seconds."""
    if not place:
        return None
    from ..store.backends.qdrant import open_backend
    from ..store.backends.remote_search import remote_searcher

    engine = open_backend(place, timeout=timeout)
    return lambda snapshot: remote_searcher(snapshot, engine)


def filter_of(label: str, source: str, category: str) -> Filter:
    """The rows that people name with --label, --source and --category.

    >>> filter_of("fake", "pro_gan,cycle_gan", "")
    Filter(label=('fake',), source=('pro_gan', 'cycle_gan'))
    """
    from ..errors import BadFilter
    from ..store.filter import Filter

    labels, sources, categories = (list(filter(None, words.split(","))) for words in (label, source, category))
    try:
        return Filter(label=labels, source=sources, category=categories)
    except BadFilter as e:
        raise typer.BadParameter(str(e), param_hint="--label") from e


def rows_of(snapshot: Snapshot, label: str, source: str, category: str) -> Mask | None:
    """(rows,) True for those that people name with --label, --source and --category; None where they name none.

    Raises SourceError for a source or category that no row has: a slip of the pen is not "no rows".
    """
    which = filter_of(label, source, category)
    for what, column, names in (("source", "sources", which.source), ("category", "categories", which.category)):
        if unknown := [name for name in names if not (snapshot.column(column) == name).any()]:
            raise SourceError(f"no row of {snapshot.folder} has the {what} {unknown[0]}; check how it is written")
    return None if which.selects_all else which.mask(snapshot)


def share_of(text: str) -> float:
    """A share as people write it.

    >>> share_of("1%"), share_of("0.25")
    (0.01, 0.25)
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as e:
        raise typer.BadParameter(f"{text} is no share; write 1% or 0.01") from e
    if not 0 <= share <= 1:
        raise typer.BadParameter(f"{text} is not between 0% and 100%")
    return share


def share_between(low: float, high: float) -> Callable[[str], float]:
    """What reads a share of an option, and refuses one beyond these."""

    def read(text: str) -> float:
        share = share_of(str(text))  # typer hands over a default too, which is a number
        if not low <= share <= high:
            raise typer.BadParameter(f"{text} is not between {low:.2%} and {high:.2%}")
        return share

    return read


def part_of(text: str) -> tuple[int, int] | None:
    """The i-th of n parts, counted from 1 on the command line.

    >>> part_of("2/8"), part_of("")
    ((1, 8), None)
    """
    if not text:
        return None
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise typer.BadParameter(f"{text} is no part; write 1/8 to 8/8", param_hint="--shard")
    return int(part) - 1, int(parts)
