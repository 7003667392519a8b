"""Tasks for workers: references to images are sent out, results come back; pixels are never sent."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..sources.image_ref import ImageRef

FIRST = 64  # images of a task before the encoding speed is known
SECONDS = 10.0  # target duration of a task: the work lost with a worker, and the longest wait after Ctrl-C


@dataclass(frozen=True)
class Task:
    """Images that are embedded together; the id depends only on their keys."""

    id: str
    images: tuple[ImageRef, ...]

    @classmethod
    def of(cls, images: Sequence[ImageRef]) -> Task:
        digest = hashlib.blake2b(digest_size=16)
        for ref in images:
            digest.update(ref.key.encode() + b"\0")
        return cls(digest.hexdigest(), tuple(images))

    def halves(self) -> tuple[Task, Task]:
        """Split a task of two or more images into two tasks."""
        middle = len(self.images) // 2
        return Task.of(self.images[:middle]), Task.of(self.images[middle:])


@dataclass(frozen=True)
class TaskResult:
    """Result of a task."""

    task_id: str
    shard: str  # file name in the store's `incoming` folder, "" if none of the images could be read
    refused: tuple[tuple[ImageRef, str], ...]  # images without a vector, and why
    busy: dict[str, float]  # stage -> seconds of work
    batch_size: int  # largest batch that the worker's device has memory for
    decoded_by: dict[str, int] = field(default_factory=dict)  # decoder -> images since the worker's last result
    decoder_unused: str = ""  # why the GPU decoder is not used, "" if it is
    host: str = ""  # host name of the worker
    unread: tuple[str, ...] = ()  # keys of the refused images whose bytes the worker could not read


@dataclass(frozen=True)
class TaskLost:
    """A task whose worker died before it was done; none of it is stored."""

    task_id: str


def task_size(images: int, seconds: float, workers: int, limit: int) -> int:
    """Number of images in the next task, given that `images` were embedded in `seconds`; at most `limit`.

    >>> task_size(0, 0.0, 4, 16_384), task_size(60_000, 2.0, 4, 16_384), task_size(100, 10.0, 2, 16_384)
    (64, 16384, 50)
    """
    if not images:
        return min(FIRST, limit)
    return max(1, min(round(images / seconds / workers * SECONDS), limit))
