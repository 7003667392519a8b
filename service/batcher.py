"""Images of many requests into one forward pass: a bounded queue, and one thread that empties it in batches."""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EncoderError, ImageError
from .limits import Limits
from .metrics import ServiceMetrics
from .problems import HttpProblem

Vector = npt.NDArray[np.float32]  # (dim,)
Encode = Callable[[Sequence[Any]], npt.NDArray[np.float32]]  # images to (n, dim)


@dataclass(frozen=True)
class Job:
    """One image that waits, and who waits for it."""

    pixels: Any
    answer: asyncio.Future[Vector]
    since: float


class Batcher:
    """Gathers images while the encoder is busy and gives it all of them at once, up to `limits.batch`."""

    def __init__(self, encode: Encode, limits: Limits, metrics: ServiceMetrics) -> None:
        self._encode, self._limits, self._metrics = encode, limits, metrics
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._taken = 0  # places given away; touched by the event loop alone
        self._rate = 0.0  # images per second, of late
        self._thread = threading.Thread(target=self._work, name="encoder", daemon=True)
        self._thread.start()

    @contextmanager
    def places(self, images: int) -> Iterator[None]:
        """Room for so many images, all or none; raises Problem (busy) with the time after which to try again."""
        if self._taken + images > self._limits.waiting:
            seconds = str(retry_after(self._taken + images - self._limits.waiting, self._rate))
            message = f"{self._taken} images wait already, {images} more are too many; try again in {seconds} s"
            raise HttpProblem("busy", message, headers={"Retry-After": seconds})
        self._take(images)
        try:
            yield
        finally:
            self._take(-images)

    def _take(self, images: int) -> None:
        self._taken += images
        self._metrics.waiting.set(self._taken)

    async def vector(self, pixels: Any) -> Vector:
        """The unit vector of one image, when its batch has been encoded; raises ImageError if it has none."""
        answer: asyncio.Future[Vector] = asyncio.get_running_loop().create_future()
        self._queue.put(Job(pixels, answer, time.perf_counter()))
        return await answer

    def close(self) -> None:
        """Encode what was taken in, then stop."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while batch := self._gather():
            begun = time.perf_counter()
            for job in batch:
                self._metrics.stage_seconds.labels("wait").observe(begun - job.since)
            self._metrics.batch.observe(len(batch))
            with self._metrics.stage("encode"):
                answers = self._encoded(batch)
            rate = len(batch) / (time.perf_counter() - begun)
            self._rate = 0.8 * self._rate + 0.2 * rate if self._rate else rate
            batch[0].answer.get_loop().call_soon_threadsafe(_deliver, batch, answers)

    def _gather(self) -> list[Job]:
        """The next batch: all that waits, and what comes within a moment; none when closed."""
        batch: list[Job] = []
        until = math.inf
        while len(batch) < self._limits.batch:
            try:
                job = self._queue.get(timeout=None if until == math.inf else max(0.0, until - time.perf_counter()))
            except queue.Empty:
                break
            if job is None:
                self._queue.put(None)  # for the next turn
                break
            if not job.answer.cancelled():  # nobody waits any more
                batch.append(job)
                until = min(until, time.perf_counter() + self._limits.linger)
        return batch

    def _encoded(self, batch: Sequence[Job]) -> list[Vector | Exception]:
        try:
            vectors = self._encode([job.pixels for job in batch])
            if len(vectors) != len(batch):
                raise EncoderError(f"{len(batch)} images, but {len(vectors)} vectors of them")
        except Exception as e:  # noqa: BLE001  whatever an encoder may raise, the thread goes on
            if len(batch) == 1:
                return [e]
            return [answer for job in batch for answer in self._encoded([job])]  # one bad image fails alone
        return [checked(vector) for vector in vectors]


def checked(vector: Vector) -> Vector | ImageError:
    """The vector, or why it is none."""
    if np.isfinite(vector).all() and vector.any():
        return vector
    return ImageError("the encoder gives no usable vector for it; convert it to JPEG or PNG and try again")


def _deliver(batch: Sequence[Job], answers: Sequence[Vector | Exception]) -> None:
    for job, answer in zip(batch, answers, strict=True):
        if job.answer.done():
            continue
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)


def retry_after(images: int, rate: float) -> int:
    """Whole seconds until so many images too many are done, from 1 to 60.

    >>> retry_after(30, 8.0), retry_after(5, 0.0)
    (4, 1)
    """
    return min(60, max(1, math.ceil(images / rate))) if rate else 1
