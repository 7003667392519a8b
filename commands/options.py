"""Options that several commands share, and how their values are parsed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import SourceError
from .choices import Decoder, Precision
from .terminal import print_message

if TYPE_CHECKING:
    from ..store.filter import Filter
    from ..store.records import Mask
    from ..store.search.matches import Searcher
    from ..store.snapshot import Snapshot


def warn_of_int8(precision: Precision) -> Precision:
    """Print how to check the accuracy of int8 if it is chosen."""
    if precision is Precision.int8:
        from ..indexer.encoders.int8 import ACCURACY_NOTE

        print_message(ACCURACY_NOTE)
    return precision


STORE = Path("clipfake-store")
DEFAULT_HEAD = "default"

# panels of the help, the same in every command
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
FollowLinksOption = Annotated[
    bool,
    typer.Option(
        "--follow-links", metavar="", help="Follow links inside a folder that lead out of it.", show_default=False
    ),
]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="NAME",
        help="Hub id, directory, timm:NAME, open_clip:MODEL/PRETRAINED or MODULE:FUNCTION of your own (default: the "
        "store's own, or CLIP ViT-B/32).",
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
    """Return the folders of the arguments and of --folders; a usage error if there are none."""
    folders = [*(arguments or ()), *(option or ())]
    if not folders:
        raise typer.BadParameter("name at least one folder", param_hint="FOLDERS or --folders")
    return folders


def searcher_for(location: str, timeout: float | None = None) -> Callable[[Snapshot], Searcher] | None:
    """Return a function that makes a searcher for the back end at a URL or in a folder; None without a location.

    Parameters
    ----------
    timeout : seconds that one response may take
    """
    if not location:
        return None
    from ..store.backends.qdrant import open_backend
    from ..store.backends.remote_search import remote_searcher

    backend = open_backend(location, timeout=timeout)
    return lambda snapshot: remote_searcher(snapshot, backend)


def filter_of(label: str, source: str, category: str) -> Filter:
    """Return the filter of --label, --source and --category.

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
    """(rows,) mask of the rows that --label, --source and --category select; None for all rows.

    Raises SourceError for a source or category that no row has, since it is probably misspelled.
    """
    selection = filter_of(label, source, category)
    for kind, column, names in (
        ("source", "sources", selection.source),
        ("category", "categories", selection.category),
    ):
        if unknown := [name for name in names if not (snapshot.column(column) == name).any()]:
            raise SourceError(f"no row of {snapshot.folder} has the {kind} {unknown[0]}; check its spelling")
    return None if selection.selects_all else selection.mask(snapshot)


def share_of(text: str, option: str | None = None, low: float = 0.0, high: float = 1.0) -> float:
    """Parse a share between two bounds; a usage error of the option for anything else.

    >>> share_of("1%"), share_of("0.25")
    (0.01, 0.25)
    """
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as e:
        raise typer.BadParameter(f"{text} is not a share; write it as 1% or 0.01", param_hint=option) from e
    if not low <= share <= high:
        message = f"{text} is not between {low:g} and {high:g}; write a share as 1% or 0.01"
        raise typer.BadParameter(message, param_hint=option)
    return share


def share_between(low: float, high: float) -> Callable[[str], float]:
    """Return a parser of shares between two bounds."""

    def parse(text: str) -> float:
        return share_of(str(text), low=low, high=high)  # typer passes the default as a number

    return parse


def part_of(text: str) -> tuple[int, int] | None:
    """Parse i/n, where i counts from 1.

    >>> part_of("2/8"), part_of("")
    ((1, 8), None)
    """
    if not text:
        return None
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise typer.BadParameter(f"{text} is not a part; write for example 1/8, up to 8/8", param_hint="--part")
    return int(part) - 1, int(parts)
