"""What the benchmarks' command lines share: which images, which encoder, and a table with its JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from ...indexer.encoders.encoder_spec import with_random_weights
from ...indexer.sources.folders import expand, listing


def image_paths(folders: Iterable[str | Path], limit: int | None) -> list[Path]:
    """Image files of these folders, an equal share of the list apart, so that a few stand for all."""
    paths = [Path(entry.path) for entry in listing(expand(folders)) if not entry.refused]
    return paths if limit is None else list(islice(paths[:: max(len(paths) // limit, 1)], limit))


def main(run: Callable[..., dict[str, Any]], what: str, *, precisions: str = "", **defaults: Any) -> None:
    """Parse, measure, print: a table on stderr and one JSON object on stdout.

    Parameters
    ----------
    defaults : of options, where they are not those of most benchmarks
    """
    parser = argparse.ArgumentParser(description=what)
    add_images_option(parser)
    add_encoder_options(parser)
    parser.add_argument("--limit", type=int, default=256, help="images")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved; medians are printed")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--device", default="auto")
    if precisions:
        parser.add_argument("--precision", default=precisions, help="comma between several")
    parser.set_defaults(**defaults)
    told = parse_options(parser)
    print_result(run(told.pop("images"), told.pop("encoder"), **told))


def add_images_option(parser: argparse.ArgumentParser) -> None:
    """Add --images."""
    parser.add_argument("--images", nargs="+", required=True, metavar="FOLDERS", help="folders of images")


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """Add --encoder and --untrained."""
    parser.add_argument("--encoder", default="openai/clip-vit-base-patch32", help="hub id or directory of a CLIP")
    parser.add_argument("--untrained", action="store_true", help="random weights of seed 0: speed, not accuracy")


def parse_options(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The options by name; where --untrained is given, `encoder` says so."""
    told = vars(parser.parse_args())
    if told.pop("untrained", False):
        told["encoder"] = with_random_weights(told["encoder"])
    return told


def print_result(result: dict[str, Any]) -> None:
    """A table on stderr and one JSON object on stdout."""
    print("\n".join(table(result)), file=sys.stderr)
    print(json.dumps(result))


def table(result: dict[str, Any], prefix: str = "") -> list[str]:
    """One line a figure, names of nested ones joined by a space.

    >>> table({"a": 1, "b": {"c": 0.25}})
    ['a                                        1', 'b c                                      0.25']
    """
    lines = []
    for name, value in result.items():
        if isinstance(value, dict):
            lines += table(value, f"{prefix}{name} ")
        else:
            lines.append(f"{prefix + name:40} {value}")
    return lines
