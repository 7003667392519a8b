"""Command line of the benchmarks: options for images and encoder, output as a table and JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from ...indexer.encoders.encoder_name import with_random_weights
from ...indexer.sources.folders import expand, images_in


def image_paths(folders: Iterable[str | Path], limit: int | None) -> list[Path]:
    """Up to `limit` image files of these folders, evenly spaced so that they represent all of them."""
    paths = [Path(entry.path) for entry in images_in(expand(folders)) if not entry.refused]
    return paths if limit is None else list(islice(paths[:: max(len(paths) // limit, 1)], limit))


def main(run: Callable[..., dict[str, Any]], description: str, *, precisions: str = "", **defaults: Any) -> None:
    """Run a benchmark from the command line and print its result.

    Parameters
    ----------
    precisions : default of --precision; if empty, the option does not exist
    defaults : defaults of other options
    """
    parser = argparse.ArgumentParser(description=description)
    add_images_option(parser)
    add_encoder_options(parser)
    parser.add_argument("--limit", type=int, default=256, help="number of images")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats; medians are printed")
    parser.add_argument("--threads", type=int, help="torch threads (default: chosen by torch)")
    parser.add_argument("--device", default="auto", help="device of the encoder")
    if precisions:
        parser.add_argument("--precision", default=precisions, help="one or more precisions, separated by commas")
    parser.set_defaults(**defaults)
    options = parse_options(parser)
    print_result(run(options.pop("images"), options.pop("encoder"), **options))


def add_images_option(parser: argparse.ArgumentParser) -> None:
    """Add --images."""
    parser.add_argument("--images", nargs="+", required=True, metavar="FOLDERS", help="folders of images")


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """Add --encoder and --untrained."""
    parser.add_argument("--encoder", default="openai/clip-vit-base-patch32", help="hub id or directory of a CLIP")
    parser.add_argument("--untrained", action="store_true", help="random weights with seed 0: for speed, not accuracy")


def parse_options(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The options by name; --untrained becomes part of `encoder`."""
    options = vars(parser.parse_args())
    if options.pop("untrained", False):
        options["encoder"] = with_random_weights(options["encoder"])
    return options


def print_result(result: dict[str, Any]) -> None:
    """Print a table on stderr and one JSON object on stdout."""
    print("\n".join(table(result)), file=sys.stderr)
    print(json.dumps(result))


def table(result: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines of a table, one per value; the names of nested values are joined by a space.

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
