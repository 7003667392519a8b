"""Batch images of concurrent requests into one forward pass: a bounded queue, in turns, and one encoder thread."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import EncoderError, ImageError
from ..limits import Limits
from ..metrics import ServiceMetrics
from ..problems import HttpProblem
from .fair_queue import FairQueue, Share

Vector = npt.NDArray[np.float32]  # (dim,)
Encode = Callable[[Sequence[Any]], npt.NDArray[np.float32]]  # images to (n, dim)


@dataclass(frozen=True)
class Job:
    """One queued image and the future of its vector."""

    pixels: Any
    answer: asyncio.Future[Vector]
    since: float


class Batcher:
    """Collects images while the encoder is busy and encodes them together, at most `limits.batch` at a time."""

    def __init__(self, encode: Encode, limits: Limits, metrics: ServiceMetrics) -> None:
        self._encode, self._limits, self._metrics = encode, limits, metrics
        self._queue = FairQueue[Job]()
        self._closed = False
        self._changed = threading.Condition()  # of the two above
        self._reserved = 0  # images of accepted requests; changed in the event loop only
        self._rate = 0.0  # images per second, a moving average
        self._thread = threading.Thread(target=self._work, name="encoder", daemon=True)
        self._thread.start()

    @contextmanager
    def reserve(self, images: int) -> Iterator[None]:
        """Reserve room in the queue for all images of a request; raises HttpProblem (busy) with a Retry-After."""
        if self._reserved + images > self._limits.waiting:
            seconds = str(retry_after(self._reserved + images - self._limits.waiting, self._rate))
            message = (
                f"{self._reserved} images are waiting and {images} more exceed the limit of {self._limits.waiting}; "
                f"try again in {seconds} s"
            )
            raise HttpProblem("busy", message, headers={"Retry-After": seconds})
        self._add_reserved(images)
        try:
            yield
        finally:
            self._add_reserved(-images)

    def _add_reserved(self, images: int) -> None:
        self._reserved += images
        self._metrics.waiting.set(self._reserved)

    async def vector(self, pixels: Any, share: Share | None = None) -> Vector:
        """Return the unit vector of one image once its batch is encoded; raises ImageError if it has none.

        Images of one share take turns with those of others.
        """
        answer: asyncio.Future[Vector] = asyncio.get_running_loop().create_future()
        with self._changed:
            self._queue.put(share or Share(), 1, Job(pixels, answer, time.perf_counter()))
            self._changed.notify()
        return await answer

    def close(self) -> None:
        """Encode the queued images, then stop the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while self._encode_next():
            pass

    def _encode_next(self) -> bool:
        """Encode a batch; False if closed. Its images are freed on return, not when the next batch arrives."""
        if not (batch := self._gather()):
            return False
        begun = time.perf_counter()
        for job in batch:
            self._metrics.stage_seconds.labels("wait").observe(begun - job.since)
        self._metrics.batch.observe(len(batch))
        with self._metrics.stage("encode"):
            answers = self._encode_batch(batch)
        rate = len(batch) / (time.perf_counter() - begun)
        self._rate = 0.8 * self._rate + 0.2 * rate if self._rate else rate
        batch[0].answer.get_loop().call_soon_threadsafe(_deliver, batch, answers)
        return True

    def _gather(self) -> list[Job]:
        """Return the queued images and those that arrive within `limits.linger`; empty when closed."""
        batch: list[Job] = []
        until = math.inf
        with self._changed:
            while len(batch) < self._limits.batch:
                if self._queue:
                    job = self._queue.get()
                    if not job.answer.cancelled():
                        batch.append(job)
                        until = min(until, time.perf_counter() + self._limits.linger)
                elif self._closed or (rest := until - time.perf_counter()) <= 0:
                    break
                else:
                    self._changed.wait(None if rest == math.inf else rest)
        return batch

    def _encode_batch(self, batch: Sequence[Job]) -> list[Vector | Exception]:
        try:
            vectors = self._encode([job.pixels for job in batch])
            if len(vectors) != len(batch):
                raise EncoderError(f"the encoder returned {len(vectors)} vectors for {len(batch)} images")
        except Exception as e:  # noqa: BLE001  the thread must survive anything an encoder raises
            if len(batch) == 1:
                return [e]
            return [answer for job in batch for answer in self._encode_batch([job])]  # one bad image fails alone
        return [check_vector(vector) for vector in vectors]


def check_vector(vector: Vector) -> Vector | ImageError:
    """Return the vector, or an error if it is zero or not finite."""
    if np.isfinite(vector).all() and vector.any():
        return vector
    return ImageError("the encoder returned no usable vector; convert the image to JPEG or PNG and try again")


def _deliver(batch: Sequence[Job], answers: Sequence[Vector | Exception]) -> None:
    for job, answer in zip(batch, answers, strict=True):
        if job.answer.done():
            continue
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)


def retry_after(images: int, rate: float) -> int:
    """Whole seconds until this many surplus images are encoded, from 1 to 60.

    >>> retry_after(30, 8.0), retry_after(5, 0.0)
    (4, 1)
    """
    return min(60, max(1, math.ceil(images / rate))) if rate else 1
