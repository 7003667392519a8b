"""Select rows by label, source, generator, category or key: for masks, deletion and search back ends alike."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadBlock, BadFilter
from .records import LABEL_NUMBERS, LABELS, TEXT, Mask, Names

if TYPE_CHECKING:
    from .snapshot import Snapshot
    from .store import Store


@dataclass(frozen=True, init=False)
class Filter:
    """Rows that have one of the given values in each of the given columns; an empty filter selects all rows.

    >>> Filter(label="fake", source=["ffhq", "sd14"])
    Filter(label=('fake',), source=('ffhq', 'sd14'))
    """

    label: tuple[str, ...]  # of "real", "fake", "unknown"
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
        """Take one value or several for each column.

        Parameters
        ----------
        label : "real", "fake" or "unknown" (0, 1 and -1 mean the same)
        exclude_source : sources whose rows are left out

        Raises
        ------
        BadFilter
            There is no such label.
        """
        values = {
            "label": tuple(_label(one) for one in ((label,) if isinstance(label, str | int) else label)),
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
        """True if every row passes."""
        return not any(getattr(self, f.name) for f in fields(self))

    @property
    def label_numbers(self) -> tuple[int, ...]:
        """The labels as they are stored: 0 real, 1 fake, -1 unknown."""
        return tuple(LABEL_NUMBERS[word] for word in self.label)

    def mask(self, snapshot: Snapshot) -> Mask:
        """(rows,) True for the rows that pass."""
        result = np.ones(len(snapshot), bool)
        columns = {
            "labels": self.label_numbers,
            "sources": self.source,
            "generators": self.generator,
            "categories": self.category,
        }
        for name, wanted in columns.items():
            if wanted:
                result &= _one_of(snapshot.column(name), list(wanted))
        if self.exclude_source:
            result &= ~_one_of(snapshot.column("sources"), list(self.exclude_source))
        if self.key:
            positions = snapshot.find(list(self.key))
            has_key = np.zeros(len(snapshot), bool)
            has_key[positions[positions >= 0]] = True
            result &= has_key
        return result

    def __repr__(self) -> str:
        given = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name))
        return f"Filter({', '.join(given)})"


def _texts(values: str | Iterable[str]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)


def _label(label: str | int) -> str:
    word = LABELS.get(label) if isinstance(label, int) else label if label in LABEL_NUMBERS else None
    if word is None:
        raise BadFilter(f"there is no label {label!r}; use 'real', 'fake' or 'unknown'")
    return word


@dataclass(frozen=True)
class DeleteReport:
    """Report of `delete`."""

    rows: int
    snapshot: int
    before: int  # `undo` to this snapshot brings the rows back

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def delete(store: Store, which: Filter, note: str = "deleted") -> DeleteReport:
    """Drop the rows of a filter from the store; `Store.undo` brings them back until `compact`.

    Raises
    ------
    BadBlock
        The filter allows every row, which is more likely a slip than a wish.
    """
    if which.selects_all:
        raise BadBlock("this would delete every row; name sources, labels, categories or keys, or remove the folder")
    with store.writer(note) as writer:
        before = writer.snapshot.number
        rows = writer.delete(which.mask(writer.snapshot))
        return DeleteReport(rows, writer.snapshot.number, before)


def _one_of(values: Any, wanted: list[Any]) -> Mask:
    """Mask of the values that are in a short list; numpy's own test sorts millions of texts for that."""
    result = np.zeros(len(values), bool)
    for one in wanted:
        with suppress(UnicodeEncodeError):  # half a character, which no store can hold
            result |= _equal(values, one) if values.dtype == TEXT else values == one
    return result


def _equal(values: Names, text: str) -> Mask:
    """Mask of the values equal to a text. numpy (2.4.6) gets this wrong: it drops zeros at the end of a plain string,
    and of two texts of one length looks no further than a zero in both."""
    result: Mask = values == np.array(text, TEXT)
    if "\0" in text:
        result[result] = [value == text for value in values[result].tolist()]
    return result
