"""Where results and words go: stdout is for the result alone, everything else is on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any


def show(result: Any) -> None:
    """A result, on stdout: an object as one line of JSON, anything else as rich draws it."""
    if isinstance(result, dict):
        say_out(json.dumps(result, ensure_ascii=False))
        return
    from rich.console import Console

    Console(highlight=False).print(result)


def say_out(text: str) -> None:
    """A line of the result, on stdout."""
    print(text, flush=True)  # noqa: T201


def say(text: str) -> None:
    """A line for the person, on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201
