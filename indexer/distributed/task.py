"""Tasks for workers: references to images on the way out, a result on the way back, never pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..sources.image_ref import ImageRef

FIRST = 64  # images of a unit while nobody knows how fast they are encoded
SECONDS = 10.0  # that a unit should take its worker: what is lost with one, and how long Ctrl-C waits


@dataclass(frozen=True)
class Task:
    """Images that are embedded together; its id says which, whoever listed them and whenever."""

    id: str
    entries: tuple[ImageRef, ...]

    @classmethod
    def of(cls, entries: Sequence[ImageRef]) -> Task:
        digest = hashlib.blake2b(digest_size=16)
        for entry in entries:
            digest.update(entry.key.encode() + b"\0")
        return cls(digest.hexdigest(), tuple(entries))

    def halves(self) -> tuple[Task, Task]:
        """Two units of half its images each; it has two or more."""
        middle = len(self.entries) // 2
        return Task.of(self.entries[:middle]), Task.of(self.entries[middle:])


@dataclass(frozen=True)
class TaskResult:
    """Result of a task."""

    unit: str
    shard: str  # its file name in the store's `incoming` folder, "" where no image of the unit could be read
    refused: tuple[tuple[ImageRef, str], ...]
    busy: dict[str, float]  # stage -> seconds of work
    batch_size: int  # that the worker's device had memory for
    decoded_by: dict[str, int] = field(default_factory=dict)  # decoder -> images of the worker since its last receipt
    unused: str = ""  # why a decoder beside the cores' own is not used
    host: str = ""  # of the worker
    unread: tuple[str, ...] = ()  # keys of those refused whose bytes the worker could not get


@dataclass(frozen=True)
class TaskLost:
    """A unit whose worker died over it; nothing of it is stored."""

    unit: str


def task_size(images: int, seconds: float, workers: int, most: int) -> int:
    """Images of the next unit, after so many were embedded in so many seconds.

    >>> unit_size(0, 0.0, 4, 16_384), unit_size(60_000, 2.0, 4, 16_384), unit_size(100, 10.0, 2, 16_384)
    (64, 16384, 50)
    """
    if not images:
        return min(FIRST, most)
    return max(1, min(round(images / seconds / workers * SECONDS), most))
