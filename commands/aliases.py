"""Spellings of the previous release, accepted for one more release and not shown in any help."""

from __future__ import annotations

from collections.abc import Sequence

from .terminal import print_message

COMMANDS: dict[tuple[str, ...], tuple[str, ...]] = {("store", "column"): ("store", "add-vectors")}
# an empty string: the option is the default now and is dropped
OPTIONS = {
    "index": {
        "--shard": "--part",
        "--address": "--ray-address",
        "--workers": "--ray-workers",
        "--text": "",
        "--thumbnails": "",
    },
    "train": {"--columns": "--vectors"},
    "query": {"--search-at": "--search-backend", "--steady": "--check-stability"},
    "serve": {"--search-at": "--search-backend"},
    "evaluate": {"--replay": "--temporal"},
    "store push": {"--shards": "--qdrant-shards", "--quantised": "--quantized"},
    "store import": {"--normalise": "--normalize"},
}
VALUES = {("store index", "--kind", "compact"): "quantized"}


def current_spelling(arguments: Sequence[str]) -> list[str]:
    """Replace earlier spellings, and print the current ones to stderr.

    >>> current_spelling(["index", "data", "--part", "1/2"])
    ['index', 'data', '--part', '1/2']
    """
    result = list(arguments)
    if (renamed := COMMANDS.get(tuple(result[:2]))) is not None:
        print_message(f"`clipfake {' '.join(result[:2])}` is now `clipfake {' '.join(renamed)}`")
        result[:2] = renamed
    command = " ".join(result[:2]) if result[:1] in (["store"], ["bank"]) else "".join(result[:1])
    for i, argument in enumerate(result):
        name, equals, value = argument.partition("=")
        if (option := OPTIONS.get(command, {}).get(name)) is not None:
            if not option:
                print_message(f"{name} is the default now and no longer an option")
                return current_spelling([*result[:i], *result[i + 1 :]])
            print_message(f"{name} is now {option}")
            result[i] = f"{option}{equals}{value}"
            name = option
        if equals and (word := VALUES.get((command, name, value))) is not None:
            print_message(f"{name} {value} is now {name} {word}")
            result[i] = f"{name}={word}"
        elif i and (word := VALUES.get((command, result[i - 1], argument))) is not None:
            print_message(f"{result[i - 1]} {argument} is now {result[i - 1]} {word}")
            result[i] = word
    return result
