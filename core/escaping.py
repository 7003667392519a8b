"""Show text of unknown origin so that it can neither control a terminal nor look like other text.

A file's name may clear the screen, forge a line or reverse the order of what follows. Stores, keys and JSON keep the
true text; it is escaped where it is printed or drawn.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any

# Unicode's general categories of characters that are not seen but have an effect: control characters (C0, DEL, C1),
# formats (bidirectional marks, zero-width characters), lone surrogates, line and paragraph separators
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # full-width ones start a formula in Excel too


class _Escapes(dict[int, str]):
    """A table for `str.translate`, filled as characters occur."""

    def __init__(self, kept: str = "") -> None:
        super().__init__({ord(character): character for character in kept})

    def __missing__(self, code: int) -> str:
        character = chr(code)
        unseen = unicodedata.category(character) in UNSEEN
        self[code] = self.escaped(character) if unseen else character
        return self[code]

    def escaped(self, character: str) -> str:
        return character.encode("unicode_escape").decode("ascii")


class _JsonEscapes(_Escapes):
    """The same in JSON, whose strings keep their values."""

    def escaped(self, character: str) -> str:
        return json.dumps(character)[1:-1]


_NAMES, _LINES, _JSON = _Escapes(), _Escapes("\n\t"), _JsonEscapes("\n\t")


def escape(text: str) -> str:
    r"""Escape all characters that are not seen, line breaks and tabs among them, as in a Python string.

    >>> print(escape("a\x1b[2J\nREAL 99%.jpg"), escape("gpj.\u202eexe"), escape("münchen 1.jpg"))
    a\x1b[2J\nREAL 99%.jpg gpj.\u202eexe münchen 1.jpg
    """
    return text if text.isprintable() else text.translate(_NAMES)


def escape_lines(text: str) -> str:
    r"""Escape as `escape` does, but keep line breaks and tabs: for text that has lines of its own.

    >>> escape_lines("one\ntwo\x1b[2J")
    'one\ntwo\\x1b[2J'
    """
    return text if text.isprintable() else text.translate(_LINES)


def escape_json(text: str) -> str:
    r"""Escape the characters of a JSON text that a terminal would act on; it stands for the same value.

    >>> print(escape_json('{"name": "a\x9b31m"}'))
    {"name": "a\u009b31m"}
    """
    return text if text.isprintable() else text.translate(_JSON)


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    r"""Format rows as CSV with escaped texts, one line for each row.

    A text that a spreadsheet would evaluate as a formula gets an apostrophe before it. Numbers stay numbers.

    >>> csv_text([["=1+1.png", -0.5], ["a=1.png", None]])
    "'=1+1.png,-0.5\na=1.png,\n"
    """
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([_csv_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _csv_cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return escape(f"'{value}" if value.startswith(FORMULA_STARTS) else value)


def escape_all(value: Any) -> Any:
    r"""Escape each string in a report: in dicts (keys too), lists, tuples and dataclasses. Other values stay.

    >>> escape_all({"a\n": ["b\x07", 1, None]})
    {'a\\n': ['b\\x07', 1, None]}
    """
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, dict):
        return {escape_all(key): escape_all(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(escape_all, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: escape_all(getattr(value, field.name)) for field in fields(value)})
    return value
