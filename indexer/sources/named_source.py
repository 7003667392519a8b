"""A source under a name and a label that someone gave it: what `clipfake bank add` says of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import SourceError
from ...store.records import FAKE
from .base import CountableSource, Source
from .image_ref import ImageRef


@dataclass(frozen=True)
class NamedSource:
    """Another source's images, all of one label and one source name."""

    inner: Source
    name: str
    label: int

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise SourceError(f"{self.name!r} is no name for a source; use letters, digits and dashes, no slash")

    @property
    def at(self) -> str:
        return self.inner.at

    def entries(self) -> Iterator[ImageRef]:
        for entry in self.inner.entries():
            yield entry._replace(
                key=f"{self.name}/{entry.key.partition('/')[2]}",
                source=self.name,
                label=self.label,
                target=-1,
                generator=self.name if self.label == FAKE else "",
            )

    def count(self) -> int | None:
        return self.inner.count() if isinstance(self.inner, CountableSource) else None
