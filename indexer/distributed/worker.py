"""One device's part of a run whose images are embedded elsewhere: units in, sealed shards and receipts out."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

import numpy.typing as npt

from ... import __version__
from ...errors import ImageError
from ...store.records import Block
from ...store.shard import write_shard
from ...store.space import Space
from ..decoding.nvimagecodec import gpu_decoder_for
from ..decoding.reader import ImageReader
from ..encoder_spec import EncoderSpec
from ..index import block_of, texts_of
from ..index_run import IndexOptions
from ..pipeline import EncodedBatch, Pipeline, batched
from ..shard_inbox import FOLDER
from ..sources.image_ref import ImageRef
from .task import Task, TaskResult

STARTING = 300.0  # seconds, at most, until a worker has its encoder
AT_ONCE = 2  # units a worker has: one is read and decoded while the other is encoded


class Worker:
    """Plain Python: in whose process it is, is another's business.

    `work` may be called from several threads at a time: their units follow each other through one pipeline, and the
    device has the images of the next one as soon as it is done with the last.
    """

    def __init__(self, encoder: EncoderSpec, folder: Path, options: IndexOptions) -> None:
        self._encoder = encoder.load()
        self._folder, self._options = folder, options
        self._size = options.batch_size or self._encoder.batch_size
        self._gpu_decoder = gpu_decoder_for(options.decoder, self._encoder, thumbnails=options.thumbnails)
        reader = ImageReader(
            self._encoder.shrink,
            thumbnails=options.thumbnails,
            encoder_reduces=self._encoder.reduces,
            gpu_decoder=self._gpu_decoder,
        )
        self._pipeline = Pipeline(self._encoder, reader, self._size, options.threads)
        self._told = dict.fromkeys(self._pipeline.stages, 0.0)  # seconds of each stage that stand in receipts
        self._counted = dict.fromkeys(self._pipeline.decoded_by, 0)  # images of each decoder that do
        self._texts: dict[str, npt.NDArray[Any]] = {}
        self._given: SimpleQueue[_Work | None] = SimpleQueue()  # None: there will be no more
        self._under_way: dict[int, _Work] = {}  # by the number of each of their batches
        self._numbers = count()  # of batches, as the pipeline counts them
        self._error: BaseException | None = None
        self._lock = Lock()
        self._sealing = Lock()
        Thread(target=self._run, daemon=True).start()

    def ready(self) -> tuple[str, Space]:
        """Return host and process, and the space of the encoder's vectors."""
        return f"{socket.gethostname()} process {os.getpid()}", self._encoder.space

    def version(self) -> str:
        """The version of clipfake that does the work."""
        return __version__

    def work(self, unit: Task) -> TaskResult:
        """Embed a unit and seal it. Doing it again writes the same file again."""
        work = _Work(unit)
        with self._lock:
            if self._error is not None:
                raise self._error
            self._given.put(work)
        work.done.result()
        shard = f"{unit.id}.h5" if work.blocks else ""
        if work.blocks:
            with self._sealing, self._pipeline.stages["write"].busy():
                write_shard(self._folder / FOLDER / shard, Block.concat(work.blocks))
        unused = self._gpu_decoder.unused if self._gpu_decoder else ""
        size = self._pipeline.batch_size
        refused = tuple(work.refused)
        unread = tuple(entry.key for entry, _ in refused if not readable(entry))
        decoded_by, host = self._decoded_by(), socket.gethostname()
        return TaskResult(unit.id, shard, refused, self._busy(), size, decoded_by, unused, host, unread)

    def close(self) -> None:
        """Accept no further tasks."""
        self._given.put(None)

    def stop(self) -> None:
        """Wait for the shard that is being sealed, and seal no more: its process is about to end."""
        self._sealing.acquire()

    def _run(self) -> None:
        try:
            self._pipeline.run(self._batches(), self._take, self.close)
        except BaseException as e:  # noqa: BLE001 - raised by `work`
            with self._lock:
                self._error = e
                left = {id(work): work for work in self._under_way.values()}
                while not self._given.empty():
                    if (work := self._given.get()) is not None:
                        left[id(work)] = work
            for work in left.values():
                work.done.set_exception(e)

    def _batches(self) -> Iterator[Sequence[ImageRef]]:
        while (work := self._given.get()) is not None:
            batches = list(batched(work.unit.entries, self._size))
            work.left = len(batches)
            with self._lock:  # all of them: a run that fails between two batches has to find the task
                self._under_way |= {next(self._numbers): work for _ in batches}
            yield from batches

    def _take(self, encoded: EncodedBatch) -> None:
        """Keep a batch without its pixels."""
        with self._lock:
            work = self._under_way.pop(encoded.number)
        if encoded.images:
            texts = texts_of(encoded, self._encoder, self._texts) if self._options.text else {}
            work.blocks.append(block_of(encoded, self._encoder, texts, self._options.thumbnails))
        work.refused += encoded.refused
        work.left -= 1
        if not work.left:
            work.done.set_result(None)

    def _busy(self) -> dict[str, float]:
        """Seconds of work a stage since the last receipt; reading and decoding as if one thread did it all."""
        with self._lock:
            now = {name: stage.seconds / stage.workers for name, stage in self._pipeline.stages.items()}
            since = {name: seconds - self._told[name] for name, seconds in now.items()}
            self._told = now
        del since["list"]  # a worker's list stage waits for units; listing is the driver's
        return since

    def _decoded_by(self) -> dict[str, int]:
        """Images each decoder did since the last receipt."""
        with self._lock:
            now = dict(self._pipeline.decoded_by)
            since = {name: images - self._counted[name] for name, images in now.items()}
            self._counted = now
        return since


def readable(entry: ImageRef) -> bool:
    """True if its bytes can be read on this machine, whatever they are."""
    try:
        entry.place.read()
    except ImageError:
        return False
    return True


@dataclass
class _Work:
    """A unit under way."""

    unit: Task
    left: int = 0  # batches
    blocks: list[Block] = field(default_factory=list)
    refused: list[tuple[ImageRef, str]] = field(default_factory=list)
    done: Future[None] = field(default_factory=Future)
