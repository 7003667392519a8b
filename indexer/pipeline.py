"""List, decode, encode, write: four stages at work at the same time, with short queues between them.

Listing and writing have a thread each, decoding has several, encoding has one a device. Memory holds a few batches,
however many images there are; large ones wait for the encoder resized.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from threading import Lock, Thread
from typing import Any, TypeVar

import numpy as np
import torch

from ..store.errors import EncoderError, ImageError
from .channel import Channel, Stopped
from .encoder import Embeddings, Encoder
from .entry import Entry
from .image import Image, Pixels, decode, thumbnail

T = TypeVar("T")

AHEAD = 3  # batches decoded before an encoder asks for them
UNWRITTEN = 4  # batches encoded before the writer asks for them


@dataclass(frozen=True)
class Decoded:
    """An image on its way to the encoder."""

    entry: Entry
    image: Image  # its pixels may have been resized; width and height below are the file's
    width: int
    height: int
    time: int  # of the file, nanoseconds
    thumbnail: bytes


@dataclass(frozen=True)
class Encoded:
    """A batch on its way to the store."""

    images: Sequence[Decoded]
    vectors: Embeddings  # (images, dim)
    refused: Sequence[tuple[Entry, str]]  # those of the batch that could not be read, and why


@dataclass
class Stage:
    """How busy one of the stages is."""

    workers: int = 1
    seconds: float = 0.0  # of work, all workers together
    _lock: Lock = field(default_factory=Lock, repr=False)

    @contextmanager
    def busy(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(time.perf_counter() - began)

    def add(self, seconds: float) -> None:
        with self._lock:
            self.seconds += seconds

    def share(self, seconds: float) -> float:
        """Of the run's seconds, 0 to 1: a stage near 1 is the limit."""
        return min(self.seconds / (seconds * self.workers), 1.0) if seconds else 0.0


def limit_of(stages: dict[str, Stage], seconds: float) -> str:
    """The stage that the others wait for: the busiest.

    >>> limit_of({"decode": Stage(4, 20.0), "encode": Stage(1, 9.0)}, 10.0)
    'encode'
    """
    return max(stages, key=lambda name: stages[name].share(seconds), default="")


class Pipeline:
    """One run. Make it, `run` it once."""

    def __init__(self, encoder: Encoder, batch_size: int, threads: int, *, thumbnails: bool) -> None:
        self._encoders: Sequence[Encoder] = getattr(encoder, "replicas", (encoder,))
        self._shrink: Callable[[Pixels], Pixels] | None = getattr(self._encoders[0], "shrink", None)
        self.batch_size = batch_size
        self._listed_size = batch_size  # of the batches that are decoded; an encoder may take them in smaller ones
        self._thumbnails = thumbnails
        self._decoded = Channel[list[tuple[Entry, "Future[Decoded]"]]](AHEAD * len(self._encoders))
        self._encoded = Channel[Encoded](UNWRITTEN)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._left = len(self._encoders)
        self._lock = Lock()
        self._error: BaseException | None = None
        self.stages = {"list": Stage(), "decode": Stage(threads), "encode": Stage(self._left), "write": Stage()}

    def run(self, entries: Iterable[Entry], write: Callable[[Encoded], None]) -> bool:
        """Take every entry through to `write`, which is called from one thread; False if Ctrl-C cut it short.

        Whatever ends the run early, batches that are with an encoder are finished and written. A second Ctrl-C does
        not wait for them.
        """
        work: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(self._list, (entries,)), (self._write, (write,))]
        work += [(self._encode, (encoder,)) for encoder in self._encoders]
        threads = [Thread(target=do, args=given, daemon=True) for do, given in work]
        try:
            try:
                for thread in threads:
                    thread.start()
                _join(threads)
            except KeyboardInterrupt as e:
                self._fail(e)
                if any(thread.ident is None for thread in threads):  # it came while they were being started
                    self._encoded.stop()
                _join(threads)
        finally:
            self._decoded.stop()
            self._encoded.stop()
            self._pool.shutdown(wait=False, cancel_futures=True)
            _join(threads[1:2])  # a shard that is being written is soon done, and its store is about to be left
        if self._error is not None and not isinstance(self._error, KeyboardInterrupt):
            raise self._error
        return self._error is None

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
        self._decoded.stop()

    def _list(self, entries: Iterable[Entry]) -> None:
        try:
            batches = batched(entries, self._listed_size)
            while True:
                with self.stages["list"].busy():
                    batch = next(batches, None)
                if batch is None:
                    return
                self._decoded.put([(entry, self._pool.submit(self._open, entry)) for entry in batch])
        except Stopped:
            pass
        except BaseException as e:  # noqa: BLE001 - raised again by run(); what was listed before is finished first
            self._error = self._error or e
        finally:
            self._decoded.close()

    def _open(self, entry: Entry) -> Decoded:
        with self.stages["decode"].busy():
            content, when = entry.place.read()
            image = decode(content)
            height, width = image.height, image.width
            small = thumbnail(image.pixels) if self._thumbnails else b""
            if self._shrink is not None:
                image = replace(image, pixels=self._shrink(image.pixels))
            return Decoded(entry, image, width, height, when, small)

    def _encode(self, encoder: Encoder) -> None:
        """Have the next batch under way on the device while the one before is waited for."""
        ahead: tuple[Callable[[], Embeddings], list[Decoded], list[tuple[Entry, str]]] | None = None
        try:
            for batch in self._decoded:
                images, refused = _opened(batch)
                with self.stages["encode"].busy():
                    begun = self._begin(encoder, [found.image.pixels for found in images])
                    done, ahead = ahead, (begun, images, refused)
                self._finish(done)
                if not getattr(encoder, "overlaps", False):
                    done, ahead = ahead, None
                    self._finish(done)
        except Stopped:
            return
        except BaseException as e:  # noqa: BLE001 - raised again by run()
            self._fail(e)
        finally:
            try:
                self._finish(ahead)
            except Stopped:
                pass
            except BaseException as e:  # noqa: BLE001 - raised again by run()
                self._fail(e)
            with self._lock:
                self._left -= 1
                if self._left == 0:
                    self._encoded.close()

    def _finish(self, begun: tuple[Callable[[], Embeddings], list[Decoded], list[tuple[Entry, str]]] | None) -> None:
        if begun is not None:
            wait, images, refused = begun
            with self.stages["encode"].busy():
                vectors = wait()
            self._encoded.put(Encoded(images, vectors, refused))

    def _begin(self, encoder: Encoder, pixels: list[Pixels]) -> Callable[[], Embeddings]:
        begin: Callable[[list[Pixels]], Callable[[], Embeddings]] | None = getattr(encoder, "begin", None)
        if begin is None or not pixels or len(pixels) > self.batch_size:
            found = self._encode_all(encoder, pixels)
            return lambda: found
        try:
            return begin(pixels)
        except torch.OutOfMemoryError:
            pass  # outside of the handler: the error holds on to what is to be freed
        self._halve(len(pixels))
        found = self._encode_all(encoder, pixels)
        return lambda: found

    def _encode_all(self, encoder: Encoder, pixels: list[Pixels]) -> Embeddings:
        """In batches that the device's memory can hold: each time it runs out, they are halved for good."""
        vectors = [np.zeros((0, encoder.space.dim), np.float32)]
        at = 0
        while at < len(pixels):
            some = pixels[at : at + self.batch_size]
            try:
                vectors.append(encoder.encode(some))
                at += len(some)
                continue
            except torch.OutOfMemoryError:
                pass
            self._halve(len(some))
        return np.concatenate(vectors)

    def _halve(self, images: int) -> None:
        if images == 1:
            raise EncoderError("the device has no memory for even one image; free some, or use --device cpu")
        with self._lock:
            self.batch_size = max(min(self.batch_size, images // 2), 1)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _write(self, write: Callable[[Encoded], None]) -> None:
        try:
            for batch in self._encoded:
                with self.stages["write"].busy():
                    write(batch)
        except BaseException as e:  # noqa: BLE001 - raised again by run()
            self._fail(e)
            self._encoded.stop()


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` values, the last may be shorter; where the values end in an error, those before come first.

    >>> list(batched("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    batch: list[T] = []
    error: Exception | None = None
    try:
        for value in values:
            batch.append(value)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception as e:  # noqa: BLE001 - raised below
        error = e
    if batch:
        yield batch
    if error is not None:
        raise error


def _opened(batch: list[tuple[Entry, Future[Decoded]]]) -> tuple[list[Decoded], list[tuple[Entry, str]]]:
    images, refused = [], []
    for entry, future in batch:
        with suppress(CancelledError):
            try:
                images.append(future.result())
            except ImageError as e:
                refused.append((entry, str(e)))
    return images, refused


def _join(threads: Sequence[Thread]) -> None:
    """Wait for those that were started."""
    for thread in threads:
        if thread.ident is not None:
            thread.join()
