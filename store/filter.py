"""Filter: selects rows by label, source, generator, category or key, for searches, deletion and search back ends."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadFilter
from .records import LABEL_NUMBERS, LABELS, TEXT, Mask, Names

if TYPE_CHECKING:
    from .snapshot import Snapshot


@dataclass(frozen=True, init=False)
class Filter:
    """Selects rows that have one of the given values in each given column; an empty filter selects all rows.

    >>> Filter(label="fake", source=["ffhq", "sd14"])
    Filter(label=('fake',), source=('ffhq', 'sd14'))
    """

    label: tuple[str, ...]  # "real", "fake" or "unknown"
    source: tuple[str, ...]
    generator: tuple[str, ...]
    category: tuple[str, ...]
    key: tuple[str, ...]
    exclude_source: tuple[str, ...]

    def __init__(
        self,
        *,
        label: str | int | Iterable[str | int] = (),
        source: str | Iterable[str] = (),
        generator: str | Iterable[str] = (),
        category: str | Iterable[str] = (),
        key: str | Iterable[str] = (),
        exclude_source: str | Iterable[str] = (),
    ) -> None:
        """Accept one value or several for each column.

        Parameters
        ----------
        label : "real", "fake" or "unknown" (or 0, 1 or -1)
        exclude_source : sources to exclude

        Raises
        ------
        BadFilter
            The label does not exist.
        """
        values = {
            "label": tuple(_label(value) for value in ((label,) if isinstance(label, str | int) else label)),
            "source": _texts(source),
            "generator": _texts(generator),
            "category": _texts(category),
            "key": _texts(key),
            "exclude_source": _texts(exclude_source),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def selects_all(self) -> bool:
        """True if the filter selects every row."""
        return not any(getattr(self, f.name) for f in fields(self))

    @property
    def label_numbers(self) -> tuple[int, ...]:
        """The labels as stored: 0 real, 1 fake, -1 unknown."""
        return tuple(LABEL_NUMBERS[name] for name in self.label)

    def mask(self, snapshot: Snapshot) -> Mask:
        """(rows,) True for the selected rows."""
        result = np.ones(len(snapshot), bool)
        columns = {
            "labels": self.label_numbers,
            "sources": self.source,
            "generators": self.generator,
            "categories": self.category,
        }
        for name, allowed in columns.items():
            if allowed:
                result &= _is_in(snapshot.column(name), list(allowed))
        if self.exclude_source:
            result &= ~_is_in(snapshot.column("sources"), list(self.exclude_source))
        if self.key:
            positions = snapshot.find(list(self.key))
            has_key = np.zeros(len(snapshot), bool)
            has_key[positions[positions >= 0]] = True
            result &= has_key
        return result

    def __repr__(self) -> str:
        arguments = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name))
        return f"Filter({', '.join(arguments)})"


def _texts(values: str | Iterable[str]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)


def _label(label: str | int) -> str:
    name = LABELS.get(label) if isinstance(label, int) else label if label in LABEL_NUMBERS else None
    if name is None:
        raise BadFilter(f"there is no label {label!r}; use 'real', 'fake' or 'unknown'")
    return name


def _is_in(values: Any, allowed: list[Any]) -> Mask:
    """Mask of the values that are in a short list. np.isin would sort millions of strings."""
    result = np.zeros(len(values), bool)
    for value in allowed:
        with suppress(UnicodeEncodeError):  # a lone surrogate, which no store can contain
            result |= _equal(values, value) if values.dtype == TEXT else values == value
    return result


def _equal(values: Names, text: str) -> Mask:
    """Mask of the values equal to a string, also if it contains NUL characters.

    numpy (2.4.6) compares those wrongly: it drops NULs at the end of a plain string, and compares two strings of equal
    length only up to a NUL in both.
    """
    result: Mask = values == np.array(text, TEXT)
    if "\0" in text:
        result[result] = [value == text for value in values[result].tolist()]
    return result
