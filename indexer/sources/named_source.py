"""Source with a name and a label set by the user, as with `clipfake bank add`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import SourceError
from ...store.records import FAKE
from .base import CountableSource, Listed, Source
from .image_ref import PassedOver


@dataclass(frozen=True)
class NamedSource:
    """Images of another source, under one source name and one label."""

    inner: Source
    name: str
    label: int

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise SourceError(f"{self.name!r} is not a valid source name; use letters, digits and dashes, no slash")

    @property
    def path(self) -> str:
        return self.inner.path

    def images(self) -> Iterator[Listed]:
        for ref in self.inner.images():
            if isinstance(ref, PassedOver):
                yield ref
                continue
            yield ref._replace(
                key=f"{self.name}/{ref.key.partition('/')[2]}",
                source=self.name,
                label=self.label,
                target=-1,
                generator=self.name if self.label == FAKE else "",
            )

    def count(self) -> int | None:
        return self.inner.count() if isinstance(self.inner, CountableSource) else None
