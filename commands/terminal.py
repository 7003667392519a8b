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
WIDE = 120  # columns where there is no terminal at all: nothing is cut to a width that nobody has
HELD = "\x00"  # a space that no line is broken at


def show(result: Any) -> None:
    """A result, on stdout: an object as one line of JSON, words as they are, anything else as rich draws it."""
    if isinstance(result, dict):
        say_out(json.dumps(result, ensure_ascii=not _has_every_sign(sys.stdout)))
    elif isinstance(result, str):
        say_out(result)
    else:
        from rich.console import Console

        # of `| less` rich takes the width from what else is a terminal
        seen = any(stream is not None and stream.isatty() for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__))
        width = None if seen or "COLUMNS" in os.environ else WIDE
        # names of files and sources are text, whatever brackets and colons are in them
        console = Console(highlight=False, markup=False, emoji=False, width=width)
        with writing():
            with console.capture() as drawn:  # printed by rich, a reader that has gone would be an error
                console.print(result)
            print(drawn.get(), end="", flush=True)  # noqa: T201


def say_out(text: str) -> None:
    """A line of the result, on stdout."""
    with writing():
        print(text, flush=True)  # noqa: T201


class ReaderGone(Exception):
    """Nobody reads our output any more: `clipfake query ... | head`."""


@contextmanager
def writing() -> Iterator[None]:
    """Guard writes to stdout: raises ReaderGone, or ClipfakeError for what cannot be written."""
    try:
        yield
    except BrokenPipeError as e:
        _hush()
        raise ReaderGone from e
    except OSError as e:
        _hush()
        raise ClipfakeError(f"the result cannot be written ({e.strerror}); give standard output room") from e


def prepare() -> None:
    """Make sure that a character the terminal's encoding lacks ends no command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of UTF-8 only file names that are none are lacking
            stream.reconfigure(errors="backslashreplace" if _has_every_sign(stream) else "replace")


def _hush() -> None:
    """Detach an output that cannot be written, or Python will try once more as it exits."""
    with suppress(OSError, ValueError, AttributeError):  # a stream of tests is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _has_every_sign(stream: Any) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def say(text: str) -> None:
    """A line for the person, on stderr; on a terminal it is broken between words."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(line for one in text.split("\n") for line in broken(one, width))
    with suppress(OSError):  # nobody listens: no reason to end what is under way
        print(text, file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def passing(text: str) -> Iterator[None]:
    """Words on stderr for as long as something takes; none where stderr is no terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(text)
        sys.stderr.flush()
    try:
        yield
    finally:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()


def broken(line: str, width: int) -> list[str]:
    """A line as several; a command stays whole, so that it can be pasted.

    >>> broken("the image cannot be read", 16), broken("next: clipfake query IMAGE", 16)
    (['the image cannot', 'be read'], ['next: clipfake query IMAGE'])
    >>> broken("no head at a/heads; run `clipfake train` first", 16)
    ['no head at', 'a/heads; run', '`clipfake train`', 'first']
    """
    held = re.sub("`[^`]*`", lambda quoted: quoted[0].replace(" ", HELD), line)
    if "clipfake " in held:
        return [line]
    wrapped = textwrap.wrap(held, width, break_long_words=False, break_on_hyphens=False)
    return [one.replace(HELD, " ") for one in wrapped] or [line]


def quoted(path: Path) -> str:
    """A path as it is pasted into a shell.

    >>> quoted(Path("mystore")), quoted(Path("my store"))
    ('mystore', "'my store'")
    """
    return shlex.quote(str(path))
