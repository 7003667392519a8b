"""Entry point of the command line: registers the commands of commands/ and sets the exit codes."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer

from . import __version__
from .commands.aliases import current_spelling
from .commands.bench import bench_command
from .commands.demo import demo_command
from .commands.evaluate import evaluate_command
from .commands.fuse import fuse_command
from .commands.groups.bank import app as bank
from .commands.groups.head import app as head
from .commands.index import index_command
from .commands.query import query_command
from .commands.reproduce import reproduce_command
from .commands.serve import serve_command
from .commands.store import app as store
from .commands.terminal import ReaderGone, configure_streams, escaped_streams, print_line, print_message
from .commands.train import report_command, train_command
from .core.escaping import escape
from .errors import ClipfakeError

app = typer.Typer(
    name="clipfake",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # "rich" would parse a [default: …] in a help text as markup
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "index": index_command,
    "train": train_command,
    "query": query_command,
    "evaluate": evaluate_command,
    "fuse": fuse_command,
    "report": report_command,
    "reproduce": reproduce_command,
    "serve": serve_command,
    "demo": demo_command,
    "bench": bench_command,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
app.add_typer(store, name="store")
app.add_typer(bank, name="bank")
app.add_typer(head, name="head")


def _print_version(requested: bool) -> None:
    if requested:
        print_line(f"clipfake {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Find AI-generated images, with the nearest known images as evidence."""


USAGE_ERROR: Any = typer.BadParameter.__base__  # of click, or of typer's own copy of it
MULTI_VALUE_OPTIONS = ("--folders",)  # the shell expands `--folders data/*` to `--folders a b c`


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Exit code 0: done; 1: an error, explained on stderr; 2: wrong usage."""
    configure_streams()
    with escaped_streams():
        run(sys.argv[1:] if arguments is None else arguments)


def run(arguments: Sequence[str]) -> NoReturn:
    """Run a command; raises SystemExit with its exit code."""
    try:
        code = app(args=spread(current_spelling(arguments)), prog_name="clipfake", standalone_mode=False)
        raise SystemExit(code or 0)
    except USAGE_ERROR as e:
        show_usage_error(e)
        raise SystemExit(2) from e
    except typer.Abort as e:
        print_message("clipfake: aborted")
        raise SystemExit(1) from e
    except ClipfakeError as e:
        print_message(f"clipfake: {e}")
        raise SystemExit(1) from e
    except KeyboardInterrupt as e:
        print_message("clipfake: stopped; everything stored so far is kept")
        raise SystemExit(130) from e
    except ReaderGone:
        raise SystemExit(0) from None
    except Exception as e:  # a defect: its traceback is printed here, where names in it are escaped
        traceback.print_exc()
        raise SystemExit(1) from e


def show_usage_error(error: Any) -> None:
    """Print a usage error as typer does, with the names in it escaped: they may be those of a stranger's files."""
    from typer.rich_utils import rich_format_error

    error.message = escape(error.message)
    rich_format_error(error)


def spread(arguments: Sequence[str]) -> list[str]:
    """Repeat an option that takes several values before each value.

    >>> spread(["index", "--folders", "a", "b", "--store", "s"])
    ['index', '--folders', 'a', '--folders', 'b', '--store', 's']
    """
    result: list[str] = []
    option = ""  # the multi-value option whose values are being read
    for argument in arguments:
        if argument in MULTI_VALUE_OPTIONS:
            option = argument
        elif option and not argument.startswith("--"):
            result += [option, argument]
        else:
            option = ""
            result.append(argument)
    return result


if __name__ == "__main__":
    main()
