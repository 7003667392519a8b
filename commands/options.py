"""Options that several commands share, and how their values are parsed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import SourceError
from .choices import Decoder, Precision
from .terminal import say

if TYPE_CHECKING:
    from ..store.filter import Filter
    from ..store.records import Mask
    from ..store.search.matches import Searcher
    from ..store.snapshot import Snapshot


def warn_of_int8(precision: Precision) -> Precision:
    """Say what int8 may cost, when it is chosen: nobody finds out later."""
    if precision is Precision.int8:
        from ..indexer.encoders.int8 import CHECK

        say(CHECK)
    return precision


STORE = Path("clipfake-store")
DEFAULT_HEAD = "default"

# Panels of help, the same in every command
MODEL, SPEED, ROBUSTNESS, MACHINES, OUTPUT = "Model", "Speed", "Robustness", "Several machines", "Output"
ROWS, TRAINING = "Rows", "Training"

StoreOption = Annotated[
    Path, typer.Option("--store", metavar="DIR", envvar="CLIPFAKE_STORE", help="Folder of the store.")
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", metavar="", help="Print one JSON object on stdout, everything else on stderr.", rich_help_panel=OUTPUT
    ),
]
FoldersOption = Annotated[
    list[str] | None,
    typer.Option("--folders", metavar="PATH...", help="Folders, archives, tables, URLs or quoted patterns."),
]
FoldersArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FOLDERS]...", help="Folders, archives, tables, URLs or quoted patterns.", show_default=False
    ),
]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="NAME",
        help="Hub id or directory (default: the store's own, or CLIP ViT-B/32).",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Device: auto, cpu, mps, openvino, cuda, cuda:0,cuda:1 or all GPUs (all).",
        rich_help_panel=MODEL,
    ),
]
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--precision",
        callback=warn_of_int8,
        metavar="NAME",
        help="Precision: auto, float32, bf16, fp16, or int8 with openvino. auto uses float32 on a CPU.",
        rich_help_panel=MODEL,
    ),
]
UntrainedOption = Annotated[
    bool,
    typer.Option("--untrained", metavar="", help="Use random weights, to measure speed only.", rich_help_panel=MODEL),
]
DecoderOption = Annotated[
    Decoder,
    typer.Option(
        "--decoder",
        metavar="NAME",
        help="Decoder of large JPEGs: auto, cpu or nvimagecodec. auto uses a GPU where it pays.",
        rich_help_panel=SPEED,
    ),
]
NameOption = Annotated[
    str, typer.Option("--head", metavar="NAME", help="Name of the trained head.", rich_help_panel=MODEL)
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Random seed.")]

LabelOption = Annotated[
    str,
    typer.Option(
        "--label",
        metavar="WORDS",
        help="Only rows with these labels: real, fake, unknown (comma-separated).",
        rich_help_panel=ROWS,
    ),
]
SourcesOption = Annotated[
    str,
    typer.Option(
        "--source", metavar="NAMES", help="Only rows of these sources (comma-separated).", rich_help_panel=ROWS
    ),
]
CategoriesOption = Annotated[
    str,
    typer.Option(
        "--category", metavar="NAMES", help="Only rows of these categories (comma-separated).", rich_help_panel=ROWS
    ),
]
SearchBackendOption = Annotated[
    str,
    typer.Option(
        "--search-backend",
        metavar="URL|DIR",
        help="Search the back end that `store push` filled instead of the store.",
        rich_help_panel=MODEL,
    ),
]


def chosen_folders(arguments: list[str] | None, option: list[str] | None) -> list[str]:
    """The folders given as arguments and with --folders; a usage error where there are none."""
    folders = [*(arguments or ()), *(option or ())]
    if not folders:
        raise typer.BadParameter("name at least one folder", param_hint="FOLDERS or --folders")
    return folders


def searcher_for(place: str, timeout: float | None = None) -> Callable[[Snapshot], Searcher] | None:
    """Return a function that makes a searcher for the back end at a URL or in a folder; None for no place.

    Parameters
    ----------
    timeout : seconds that one answer may take
    """
    if not place:
        return None
    from ..store.backends.qdrant import open_backend
    from ..store.backends.remote_search import remote_searcher

    backend = open_backend(place, timeout=timeout)
    return lambda snapshot: remote_searcher(snapshot, backend)


def filter_of(label: str, source: str, category: str) -> Filter:
    """The filter that --label, --source and --category describe.

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
    """(rows,) True for the rows that --label, --source and --category select; None for all rows.

    Raises SourceError for a source or category that no row has: a misspelled name does not mean "no rows".
    """
    which = filter_of(label, source, category)
    for what, column, names in (("source", "sources", which.source), ("category", "categories", which.category)):
        if unknown := [name for name in names if not (snapshot.column(column) == name).any()]:
            raise SourceError(f"no row of {snapshot.folder} has the {what} {unknown[0]}; check its spelling")
    return None if which.selects_all else which.mask(snapshot)


def share_of(text: str) -> float:
    """Parse a share.

    >>> share_of("1%"), share_of("0.25")
    (0.01, 0.25)
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as e:
        raise typer.BadParameter(f"{text} is not a share; write 1% or 0.01") from e
    if not 0 <= share <= 1:
        raise typer.BadParameter(f"{text} is not between 0% and 100%")
    return share


def share_between(low: float, high: float) -> Callable[[str], float]:
    """A parser of shares that refuses those outside these bounds."""

    def read(text: str) -> float:
        share = share_of(str(text))  # typer passes a default too, which is a number
        if not low <= share <= high:
            raise typer.BadParameter(f"{text} is not between {low:.2%} and {high:.2%}")
        return share

    return read


def part_of(text: str) -> tuple[int, int] | None:
    """Parse i/n, where i counts from 1.

    >>> part_of("2/8"), part_of("")
    ((1, 8), None)
    """
    if not text:
        return None
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise typer.BadParameter(f"{text} is not a part; write 1/8 to 8/8", param_hint="--part")
    return int(part) - 1, int(parts)
