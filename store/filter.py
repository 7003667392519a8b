"""Which rows: by label, source, generator, category or key. One expression for masks, deletion and other engines."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadBlock
from .records import TEXT, Mask, Names

if TYPE_CHECKING:
    from .snapshot import Snapshot
    from .store import Store


@dataclass(frozen=True)
class Filter:
    """Rows that have one of the values in every column that is named; no names at all are all rows.

    >>> Filter(labels=(1,), sources=("ffhq", "celebahq"))
    Filter(labels=(1,), sources=('ffhq', 'celebahq'), generators=(), categories=(), keys=(), but_sources=())
    """

    labels: Sequence[int] = ()
    sources: Sequence[str] = ()
    generators: Sequence[str] = ()
    categories: Sequence[str] = ()
    keys: Sequence[str] = ()
    but_sources: Sequence[str] = ()  # rows of these sources are left out

    @property
    def everything(self) -> bool:
        """Whether it allows all rows."""
        return not any(getattr(self, f.name) for f in fields(self))

    def mask(self, snapshot: Snapshot) -> Mask:
        """(rows,) True for the rows it allows."""
        result = np.ones(len(snapshot), bool)
        for name in ("labels", "sources", "generators", "categories"):
            if wanted := list(getattr(self, name)):
                result &= _one_of(snapshot.column(name), wanted)
        if self.but_sources:
            result &= ~_one_of(snapshot.column("sources"), list(self.but_sources))
        if self.keys:
            positions = snapshot.find(list(self.keys))
            named = np.zeros(len(snapshot), bool)
            named[positions[positions >= 0]] = True
            result &= named
        return result


@dataclass(frozen=True)
class DeleteReport:
    """What `delete` did."""

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
    if which.everything:
        raise BadBlock("this would delete every row; name sources, labels, categories or keys, or remove the folder")
    with store.writer(note) as writer:
        before = writer.snapshot.number
        rows = writer.delete(which.mask(writer.snapshot))
        return DeleteReport(rows, writer.snapshot.number, before)


def _one_of(values: Any, wanted: list[Any]) -> Mask:
    """Whether each value is one of a few; numpy's own test sorts millions of texts for that."""
    result = np.zeros(len(values), bool)
    for one in wanted:
        with suppress(UnicodeEncodeError):  # half a character, which no store can hold
            result |= _equal(values, one) if values.dtype == TEXT else values == one
    return result


def _equal(values: Names, text: str) -> Mask:
    """Which of them are this text, for numpy a hard question (2.4.6): it forgets zeros at the end of a plain string,
    and of two texts of one length looks no further than a zero in both."""
    result: Mask = values == np.array(text, TEXT)
    if "\0" in text:
        result[result] = [value == text for value in values[result].tolist()]
    return result
