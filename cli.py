"""The command line: parses, calls, prints. The one place that knows every wing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from .store.errors import ClipfakeError

app = typer.Typer(
    name="clipfake",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Index millions of images once; ask for ever after: is this one fake, and which known images say so?",
)

# Options that take several values: the shell turns `--folders data/*` into `--folders a b c`.
SPREADING = ("--folders",)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Exit 0: done; 1: an error of ours, told on stderr; 2: wrong usage."""
    try:
        app(args=spread(sys.argv[1:] if arguments is None else arguments), prog_name="clipfake")
    except ClipfakeError as e:
        say(f"clipfake: {e}")
        raise SystemExit(1) from e


def spread(arguments: Sequence[str]) -> list[str]:
    """Repeat an option that takes several values before each of them.

    >>> spread(["index", "--folders", "a", "b", "--store", "s"])
    ['index', '--folders', 'a', '--folders', 'b', '--store', 's']
    """
    result: list[str] = []
    option = ""  # the spreading option whose values are being read
    for argument in arguments:
        if argument in SPREADING:
            option = argument
        elif option and not argument.startswith("--"):
            result += [option, argument]
        else:
            option = ""
            result.append(argument)
    return result


def say(text: str) -> None:
    """A line for the person, on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
