"""List, decode, encode, write: four stages at work at the same time, with short queues between them.

Listing and writing have a thread each, decoding has several, encoding has one a device. Memory holds a few batches,
however many images there are. Where one process is not enough for a GPU, `processes.py` has several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Lock, Thread
from typing import Any, TypeVar

import numpy as np
import torch

from ..errors import EncoderError
from ..store.records import invalid_rows, to_float16
from .channel import Channel, ChannelStopped
from .decoding.gpu_decoder import GpuDecoder
from .decoding.image import Pixels
from .decoding.reader import DecodedBatch, DecodedImage, ImageReader
from .encoders.base import Embeddings, Encoder
from .sources.image_ref import ImageRef
from .stage import Stage

T = TypeVar("T")

AHEAD = 3  # batches decoded before an encoder asks for them
UNWRITTEN = 4  # batches encoded before the writer asks for them
TOGETHER = 16  # images a thread opens at a time, at most: handing over each alone costs a tenth of decoding it


@dataclass(frozen=True)
class PendingBatch:
    """A batch that is being read."""

    batch: Sequence[ImageRef]
    parts: Sequence[Future[DecodedBatch]]

    def wait(self) -> DecodedBatch:
        """All of it, but for what was given up."""
        images, refused = [], []
        for part in self.parts:
            with suppress(CancelledError):
                some = part.result()
                images += some.images
                refused += some.refused
        return DecodedBatch(images, refused)


@dataclass(frozen=True)
class InFlightBatch:
    """A batch that is on a device."""

    batch: Sequence[ImageRef]
    opened: DecodedBatch
    wait: Callable[[], Embeddings]


@dataclass(frozen=True)
class EncodedBatch:
    """A batch on its way to the store."""

    batch: Sequence[ImageRef]  # as it was given
    images: Sequence[DecodedImage]
    vectors: Embeddings  # (images, dim)
    refused: Sequence[tuple[ImageRef, str]]  # those of the batch that could not be read, and why


class Pipeline:
    """One run. Make it, `run` it once.

    Parameters
    ----------
    encoder : one with `replicas` has each encode its own batches; one with `begin` has the next batch ahead
    batch_size : images an encoder sees at once; halved for good where the device's memory runs out
    threads : that decode
    thumbnails : whether a small JPEG of each image is made
    offload : decodes large JPEGs beside the threads
    """

    def __init__(
        self, encoder: Encoder, batch_size: int, threads: int, *, thumbnails: bool, offload: GpuDecoder | None = None
    ) -> None:
        self._encoders: Sequence[Encoder] = getattr(encoder, "replicas", (encoder,))
        self.batch_size = batch_size  # that an encoder sees at once; it may become smaller than the batches given
        self._threads = threads
        shrink: Callable[[Pixels], Pixels] | None = getattr(self._encoders[0], "shrink", None)
        self._reader = ImageReader(shrink, thumbnails=thumbnails, offload=offload)
        self.decoded_by = self._reader.counts
        self._decoded = Channel[PendingBatch](AHEAD * len(self._encoders))
        self._encoded = Channel[EncodedBatch](UNWRITTEN)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._left = len(self._encoders)
        self._lock = Lock()
        self._error: BaseException | None = None
        self._failed: Callable[[], None] = lambda: None
        self.stages = {"list": Stage(), "decode": Stage(threads), "encode": Stage(self._left), "write": Stage()}

    def run(
        self,
        batches: Iterable[Sequence[ImageRef]],
        write: Callable[[EncodedBatch], None],
        failed: Callable[[], None] = lambda: None,
    ) -> bool:
        """Take every batch through to `write`, which is called from one thread; False if Ctrl-C cut it short.

        `failed` is called where a later stage fails: `batches` that wait for something are then to end.

        Whatever ends the run early, batches that are with an encoder are finished and written. A second Ctrl-C does
        not wait for them.

        Raises
        ------
        EncoderError
            The device has no memory for even one image.
        Exception
            What `batches`, the encoder or `write` raised, the first of it.
        """
        work: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(self._list, (batches,)), (self._write, (write,))]
        work += [(self._encode, (encoder,)) for encoder in self._encoders]
        threads = [Thread(target=do, args=given, daemon=True) for do, given in work]
        self._failed = failed
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
        self._failed()

    def _list(self, batches: Iterable[Sequence[ImageRef]]) -> None:
        try:
            waiting = iter(batches)
            while True:
                with self.stages["list"].busy():
                    batch = next(waiting, None)
                if batch is None:
                    return
                size = min(TOGETHER, -(-len(batch) // (2 * self._threads)))
                parts = [self._pool.submit(self._open, some) for some in batched(batch, max(size, 1))]
                self._decoded.put(PendingBatch(batch, parts))
        except ChannelStopped:
            pass
        except BaseException as e:  # noqa: BLE001 - raised again by run(); what was listed before is finished first
            self._error = self._error or e
        finally:
            self._decoded.close()

    def _open(self, entries: Sequence[ImageRef]) -> DecodedBatch:
        with self.stages["decode"].busy():
            return self._reader.open(entries)

    def _encode(self, encoder: Encoder) -> None:
        """Have the next batch under way on the device while the one before is waited for."""
        ahead: InFlightBatch | None = None
        try:
            for opening in self._decoded:
                opened = opening.wait()
                with self.stages["encode"].busy():
                    begun = self._begin(encoder, [found.image.pixels for found in opened.images])
                    done, ahead = ahead, InFlightBatch(opening.batch, opened, begun)
                self._finish(done)
                if not getattr(encoder, "overlaps", False) or not len(self._decoded):  # nothing to overlap with
                    done, ahead = ahead, None
                    self._finish(done)
        except ChannelStopped:
            return
        except BaseException as e:  # noqa: BLE001 - raised again by run()
            self._fail(e)
        finally:
            try:
                self._finish(ahead)
            except ChannelStopped:
                pass
            except BaseException as e:  # noqa: BLE001 - raised again by run()
                self._fail(e)
            with self._lock:
                self._left -= 1
                if self._left == 0:
                    self._encoded.close()

    def _finish(self, begun: InFlightBatch | None) -> None:
        if begun is not None:
            with self.stages["encode"].busy():
                vectors = begun.wait()
            self._encoded.put(storable(EncodedBatch(begun.batch, begun.opened.images, vectors, begun.opened.refused)))

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

    def _write(self, write: Callable[[EncodedBatch], None]) -> None:
        try:
            for batch in self._encoded:
                with self.stages["write"].busy():
                    write(batch)
        except BaseException as e:  # noqa: BLE001 - raised again by run()
            self._fail(e)
            self._encoded.stop()


def storable(encoded: EncodedBatch) -> EncodedBatch:
    """Without images whose vector cannot be stored: they are refused, the others of their batch are not held up."""
    wrong = set(invalid_rows(to_float16(encoded.vectors)).tolist())
    if not wrong:
        return encoded
    keep = [i for i in range(len(encoded.images)) if i not in wrong]
    refused = [(encoded.images[i].entry, "the encoder gave it a vector that is zero or not finite") for i in wrong]
    return replace(
        encoded,
        images=[encoded.images[i] for i in keep],
        vectors=encoded.vectors[keep],
        refused=[*encoded.refused, *refused],
    )


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


def _join(threads: Sequence[Thread]) -> None:
    """Wait for those that were started."""
    for thread in threads:
        if thread.ident is not None:
            thread.join()
