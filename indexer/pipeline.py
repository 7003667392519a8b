"""Pipeline of four concurrent stages (list, decode, encode, write) with short queues between them.

Listing and writing have one thread each, decoding has several, and encoding has one per device. Only a few batches are
in memory, however many images there are. If one process cannot keep a GPU busy, `distributed/` runs several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from threading import Lock, Thread
from typing import Any, TypeVar

import numpy as np

from ..store.records import invalid_rows
from .batch_encoder import BatchEncoder
from .channel import Channel, ChannelStopped
from .decoding.image import Pixels
from .decoding.reader import DecodedBatch, DecodedImage, ImageReader
from .encoders.base import Embeddings, Encoder
from .sources.image_ref import ImageRef
from .stage import Stage

T = TypeVar("T")

AHEAD = 3  # decoded batches that may wait for each encoder
UNWRITTEN = 4  # encoded batches that may wait for the writer
MAX_PART = 16  # images that a thread opens at a time; handing over single images costs a tenth of decoding them


@dataclass(frozen=True)
class PendingBatch:
    """A batch whose images are being decoded."""

    number: int
    parts: Sequence[Future[DecodedBatch]]

    def wait(self) -> DecodedBatch:
        """Wait until all parts are decoded; cancelled parts are omitted."""
        images, refused = [], []
        for part in self.parts:
            with suppress(CancelledError):
                decoded = part.result()
                images += decoded.images
                refused += decoded.refused
        return DecodedBatch(images, refused)


@dataclass(frozen=True)
class InFlightBatch:
    """A batch that is being encoded."""

    number: int
    decoded: DecodedBatch
    wait: Callable[[], tuple[Embeddings, Sequence[Pixels]]]  # vectors, and images reduced where thumbnails need them


@dataclass(frozen=True)
class EncodedBatch:
    """A batch with its vectors."""

    number: int  # number of the batch, from 0 in the order of listing
    images: Sequence[DecodedImage]
    vectors: Embeddings  # (images, dim), or the vectors of each image side by side, see `Encoder.split`
    refused: Sequence[tuple[ImageRef, str]]  # images without a vector, and why
    views: Embeddings  # (images, views, dim), vectors of the views that the reader made of each image


class Pipeline:
    """Pipeline of one run; `run` may be called once.

    Parameters
    ----------
    encoder : encoder; each of its replicas encodes its own batches
    reader : decodes images
    batch_size : number of images per batch; permanently halved if the device's memory runs out
    threads : number of decoding threads
    """

    def __init__(self, encoder: Encoder, reader: ImageReader, batch_size: int, threads: int) -> None:
        self._encoders = [BatchEncoder(replica, batch_size) for replica in encoder.replicas]
        self._threads = threads
        self._reader = reader
        self.decoded_by = self._reader.counts
        self._decoded = Channel[PendingBatch](AHEAD * len(self._encoders))
        self._encoded = Channel[EncodedBatch](UNWRITTEN)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._running_encoders = len(self._encoders)
        self._lock = Lock()
        self._error: BaseException | None = None
        self._failed: Callable[[], None] = lambda: None
        self.stages = {
            "list": Stage(),
            "decode": Stage(threads),
            "encode": Stage(len(self._encoders)),
            "write": Stage(),
        }

    @property
    def batch_size(self) -> int:
        """Current number of images per batch; smaller than requested if memory ran out."""
        return min(encoder.batch_size for encoder in self._encoders)

    def run(
        self,
        batches: Iterable[Sequence[ImageRef]],
        write: Callable[[EncodedBatch], None],
        failed: Callable[[], None] = lambda: None,
    ) -> bool:
        """Pass every batch through the stages to `write`; False if Ctrl-C ended the run early.

        If the run ends early, batches that are being encoded are still finished and written. A second Ctrl-C does not
        wait for them.

        Parameters
        ----------
        batches : images of each batch
        write : called with each encoded batch, always from the same thread
        failed : called if a later stage fails; a `batches` that is blocked must then end

        Raises
        ------
        EncoderError
            The device has too little memory for even one image.
        Exception
            The first error raised by `batches`, the encoder or `write`.
        """
        work: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(self._list, (batches,)), (self._write, (write,))]
        work += [(self._encode, (encoder,)) for encoder in self._encoders]
        threads = [Thread(target=stage, args=arguments, daemon=True) for stage, arguments in work]
        self._failed = failed
        try:
            try:
                for thread in threads:
                    thread.start()
                _join(threads)
            except KeyboardInterrupt as e:
                self._fail(e)
                if any(thread.ident is None for thread in threads):  # Ctrl-C came while the threads were started
                    self._encoded.stop()
                _join(threads)
        finally:
            self._decoded.stop()
            self._encoded.stop()
            self._pool.shutdown(wait=False, cancel_futures=True)
            _join(threads[1:2])  # let the writer finish its shard before the caller leaves the store
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
            remaining = iter(batches)
            for number in count():
                with self.stages["list"].busy():
                    batch = next(remaining, None)
                if batch is None:
                    return
                size = min(MAX_PART, -(-len(batch) // (2 * self._threads)))
                parts = [self._pool.submit(self._open, part) for part in batched(batch, max(size, 1))]
                self._decoded.put(PendingBatch(number, parts))
        except ChannelStopped:
            pass
        except BaseException as e:  # noqa: BLE001 - raised again by run() after the images listed before it
            self._error = self._error or e
        finally:
            self._decoded.close()

    def _open(self, images: Sequence[ImageRef]) -> DecodedBatch:
        with self.stages["decode"].busy():
            return self._reader.open(images)

    def _encode(self, encoder: BatchEncoder) -> None:
        """Overlap: launch batch n+1 before waiting for batch n."""
        ahead: InFlightBatch | None = None
        try:
            for pending in self._decoded:
                decoded = pending.wait()
                with self.stages["encode"].busy():
                    pixels = [image.image.pixels for image in decoded.images]
                    pixels += [view for image in decoded.images for view in image.views]
                    done, ahead = ahead, InFlightBatch(pending.number, decoded, self._begin(encoder, pixels))
                self._finish(encoder, done)
                if not encoder.overlaps or not len(self._decoded):  # nothing to overlap with
                    done, ahead = ahead, None
                    self._finish(encoder, done)
        except ChannelStopped:
            return
        except BaseException as e:  # noqa: BLE001 - raised again by run()
            self._fail(e)
        finally:
            try:
                self._finish(encoder, ahead)
            except ChannelStopped:
                pass
            except BaseException as e:  # noqa: BLE001 - raised again by run()
                self._fail(e)
            with self._lock:
                self._running_encoders -= 1
                if self._running_encoders == 0:
                    self._encoded.close()

    def _begin(
        self, encoder: BatchEncoder, pixels: Sequence[Pixels]
    ) -> Callable[[], tuple[Embeddings, Sequence[Pixels]]]:
        if self._reader.leaves_thumbnails:
            return encoder.begin_reduced(pixels)
        wait = encoder.begin(pixels)
        return lambda: (wait(), ())

    def _finish(self, encoder: Encoder, batch: InFlightBatch | None) -> None:
        if batch is not None:
            with self.stages["encode"].busy():
                vectors, small = batch.wait()
            images = batch.decoded.images
            if small:
                images = [replace(image, reduced=pixels) for image, pixels in zip(images, small, strict=False)]
            count = (len(vectors) - len(images)) // max(len(images), 1)  # number of views per image
            views = vectors[len(images) :].reshape(len(images), count, vectors.shape[1])
            encoded = EncodedBatch(batch.number, images, vectors[: len(images)], batch.decoded.refused, views)
            self._encoded.put(storable(encoded, encoder))

    def _write(self, write: Callable[[EncodedBatch], None]) -> None:
        try:
            for batch in self._encoded:
                with self.stages["write"].busy():
                    write(batch)
        except BaseException as e:  # noqa: BLE001 - raised again by run()
            self._fail(e)
            self._encoded.stop()


def storable(batch: EncodedBatch, encoder: Encoder) -> EncodedBatch:
    """Refuse the images of a batch whose vectors cannot be stored or compared."""
    of_inputs = [batch.vectors, *(batch.views[:, view] for view in range(batch.views.shape[1]))]
    vectors = [of_name for of_input in of_inputs for of_name in encoder.split(of_input).values()]
    invalid = {int(row) for of_name in vectors for row in invalid_rows(np.ascontiguousarray(of_name))}
    if not invalid:
        return batch
    keep = [i for i in range(len(batch.images)) if i not in invalid]
    refused = [(batch.images[i].ref, "the encoder returned a vector that is zero or not finite") for i in invalid]
    return replace(
        batch,
        images=[batch.images[i] for i in keep],
        vectors=batch.vectors[keep],
        views=batch.views[keep],
        refused=[*batch.refused, *refused],
    )


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Split values into lists of `size`; the last may be shorter. Values before an error are yielded first.

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
    """Wait for the threads that were started."""
    for thread in threads:
        if thread.ident is not None:
            thread.join()
