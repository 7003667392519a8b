"""Print results to stdout and everything else to stderr, with control characters escaped."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from ..core.escaping import escape, escape_json, escape_lines
from ..errors import ClipfakeError

LOADING = "loading the encoder …"
WIDTH_WITHOUT_TERMINAL = 120  # columns
NO_BREAK_SPACE = "\x00"  # stands for a space at which a line must not be wrapped


def print_result(result: Any) -> None:
    """Print a result to stdout: a dict as one line of JSON, a string as a line, anything else with rich."""
    if isinstance(result, dict):
        print_line(escape_json(json.dumps(result, ensure_ascii=not _is_unicode(sys.stdout))))
    elif isinstance(result, str):
        print_line(result)
    else:
        from ..show.tables import EscapingConsole

        # with `| less`, rich takes the width from another stream that is a terminal
        streams = (sys.__stdin__, sys.__stdout__, sys.__stderr__)
        has_terminal = any(stream is not None and stream.isatty() for stream in streams)
        width = None if has_terminal or "COLUMNS" in os.environ else WIDTH_WITHOUT_TERMINAL
        console = EscapingConsole(width=width)
        with stdout_errors():
            with console.capture() as capture:  # rich itself would exit with an error on a broken pipe
                console.print(result)
            print(capture.get(), end="", flush=True, file=console.file)


def print_line(text: str) -> None:
    """Print one line of the result to stdout; a line break in it is part of a name and is escaped."""
    with stdout_errors():
        print(escape(text), flush=True)  # noqa: T201


class EscapingStream:
    """A text stream that escapes control characters, whoever writes: messages, warnings, logs, tracebacks, libraries.

    Line breaks and tabs stay, and so do the moves to the start of a line with which tqdm draws progress bars. Rich
    styles what it writes; it looks for `rich_proxied_file` and writes there. `EscapingConsole` escapes its content.
    """

    def __init__(self, stream: Any) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        moves = re.match(r"\r?(?:\x1b\[A)*", text)
        length = moves.end() if moves else 0
        self.rich_proxied_file.write(text[:length] + escape_lines(text[length:]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextmanager
def escaped_streams() -> Iterator[None]:
    """Escape control characters in everything that is written to stdout and stderr during the `with` block."""
    with ExitStack() as stack:
        for redirect, stream in ((redirect_stdout, sys.stdout), (redirect_stderr, sys.stderr)):
            if stream is not None:
                stack.enter_context(redirect(EscapingStream(stream)))
        yield


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


def print_message(*lines: str) -> None:
    """Print lines to stderr, wrapped to the width of the terminal; a line break in one is part of a name."""
    shown = [escape(line) for line in lines]
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        shown = [wrapped for line in shown for wrapped in wrap_message(line, width)]
    with suppress(OSError):  # a closed stderr must not end the command
        print(*shown, sep="\n", file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def transient_message(text: str) -> Iterator[None]:
    """Show a message on stderr during the `with` block, if stderr is a terminal."""
    stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    if stream.isatty():
        stream.write(escape(text))
        stream.flush()
    try:
        yield
    finally:
        if stream.isatty():
            stream.write("\r\x1b[2K")
            stream.flush()


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
