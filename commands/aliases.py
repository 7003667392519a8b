"""Command-line spellings of an earlier release, accepted for one more. They are not in any help."""

from __future__ import annotations

from collections.abc import Sequence

from .terminal import say

COMMANDS: dict[tuple[str, ...], tuple[str, ...]] = {("store", "column"): ("store", "add-vectors")}
# "": an option that says what is the default anyway
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
    """Replace earlier spellings, and say on stderr what they are called now.

    >>> current_spelling(["index", "data", "--part", "1/2"])
    ['index', 'data', '--part', '1/2']
    """
    result = list(arguments)
    if (renamed := COMMANDS.get(tuple(result[:2]))) is not None:
        say(f"`clipfake {' '.join(result[:2])}` is now `clipfake {' '.join(renamed)}`")
        result[:2] = renamed
    command = " ".join(result[:2]) if result[:1] in (["store"], ["bank"]) else "".join(result[:1])
    for i, argument in enumerate(result):
        name, equals, value = argument.partition("=")
        if (option := OPTIONS.get(command, {}).get(name)) is not None:
            if not option:
                say(f"{name} is the default and no longer an option")
                return current_spelling([*result[:i], *result[i + 1 :]])
            say(f"{name} is now {option}")
            result[i] = f"{option}{equals}{value}"
            name = option
        if equals and (word := VALUES.get((command, name, value))) is not None:
            say(f"{name} {value} is now {name} {word}")
            result[i] = f"{name}={word}"
        elif i and (word := VALUES.get((command, result[i - 1], argument))) is not None:
            say(f"{result[i - 1]} {argument} is now {result[i - 1]} {word}")
            result[i] = word
    return result
