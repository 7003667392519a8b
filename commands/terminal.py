"""Print results to stdout and everything else to stderr."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import ClipfakeError

LOADING = "loading the encoder …"
WIDTH_WITHOUT_TERMINAL = 120  # columns
NO_BREAK_SPACE = "\x00"  # stands for a space at which a line must not be wrapped


def print_result(result: Any) -> None:
    """Print a result to stdout: a dict as one line of JSON, a string as it is, anything else with rich."""
    if isinstance(result, dict):
        print_line(json.dumps(result, ensure_ascii=not _is_unicode(sys.stdout)))
    elif isinstance(result, str):
        print_line(result)
    else:
        from rich.console import Console

        # with `| less`, rich takes the width from another stream that is a terminal
        streams = (sys.__stdin__, sys.__stdout__, sys.__stderr__)
        has_terminal = any(stream is not None and stream.isatty() for stream in streams)
        width = None if has_terminal or "COLUMNS" in os.environ else WIDTH_WITHOUT_TERMINAL
        # no markup: names of files and sources may contain brackets and colons
        console = Console(highlight=False, markup=False, emoji=False, width=width)
        with stdout_errors():
            with console.capture() as capture:  # rich itself would exit with an error on a broken pipe
                console.print(result)
            print(capture.get(), end="", flush=True)  # noqa: T201


def print_line(text: str) -> None:
    """Print a line of the result to stdout."""
    with stdout_errors():
        print(text, flush=True)  # noqa: T201


class ReaderGone(Exception):
    """The reader of stdout has closed the pipe, as in `clipfake query ... | head`."""


@contextmanager
def stdout_errors() -> Iterator[None]:
    """Convert errors of writing to stdout to ReaderGone or ClipfakeError."""
    try:
        yield
    except BrokenPipeError as e:
        _detach_stdout()
        raise ReaderGone from e
    except OSError as e:
        _detach_stdout()
        raise ClipfakeError(
            f"cannot write to standard output ({e.strerror}); free space or redirect it elsewhere"
        ) from e


def configure_streams() -> None:
    """Set the error handlers of stdout and stderr, so that a character they cannot encode raises no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # UTF-8 lacks only the lone surrogates of invalid file names
            stream.reconfigure(errors="backslashreplace" if _is_unicode(stream) else "replace")


def _detach_stdout() -> None:
    """Redirect stdout to the null device, because Python flushes it again at exit."""
    with suppress(OSError, ValueError, AttributeError):  # a stream without a file descriptor, in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_unicode(stream: Any) -> bool:
    """Whether a stream can encode every character."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def print_message(text: str) -> None:
    """Print a message to stderr, wrapped to the width of the terminal."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(wrapped for line in text.split("\n") for wrapped in wrap_message(line, width))
    with suppress(OSError):  # a closed stderr must not end the command
        print(text, file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def transient_message(text: str) -> Iterator[None]:
    """Show a message on stderr during the `with` block, if stderr is a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(text)
        sys.stderr.flush()
    try:
        yield
    finally:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()


def wrap_message(line: str, width: int) -> list[str]:
    """Wrap a line to a width; a command stays on one line, so that it can be pasted.

    >>> wrap_message("the image cannot be read", 16), wrap_message("next: clipfake query IMAGE", 16)
    (['the image cannot', 'be read'], ['next: clipfake query IMAGE'])
    >>> wrap_message("no head at a/heads; run `clipfake train` first", 16)
    ['no head at', 'a/heads; run', '`clipfake train`', 'first']
    """
    protected = re.sub("`[^`]*`", lambda match: match[0].replace(" ", NO_BREAK_SPACE), line)
    if "clipfake " in protected:
        return [line]
    lines = textwrap.wrap(protected, width, break_long_words=False, break_on_hyphens=False)
    return [wrapped.replace(NO_BREAK_SPACE, " ") for wrapped in lines] or [line]


def shell_quoted(path: Path) -> str:
    """Quote a path for a shell.

    >>> shell_quoted(Path("mystore")), shell_quoted(Path("my store"))
    ('mystore', "'my store'")
    """
    return shlex.quote(str(path))
