"""Worker of a pool: embeds the images of tasks on one device, writes them as shards and returns results."""

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
from ...store.store import Store
from ..decoding.nvimagecodec import gpu_decoder_for
from ..decoding.reader import ImageReader
from ..encoder_spec import EncoderSpec
from ..index import block_of, texts_of
from ..index_run import IndexOptions
from ..pipeline import EncodedBatch, Pipeline, batched
from ..shard_inbox import FOLDER
from ..sources.image_ref import ImageRef
from ..views.create import encoder_with_views
from .task import Task, TaskResult

START_TIMEOUT = 300.0  # seconds that a worker may take to load its encoder
TASKS_PER_WORKER = 2  # one task is read and decoded while the other is encoded


class Worker:
    """Worker that embeds tasks in the current process; a `WorkerPool` decides which process that is.

    `work` may be called from several threads: their tasks pass through one pipeline one after another, so the device
    goes from one task to the next without waiting.
    """

    def __init__(self, encoder: EncoderSpec, folder: Path, options: IndexOptions) -> None:
        self._encoder = encoder.load()
        if options.views:
            self._encoder = encoder_with_views(Store(folder), self._encoder, options.views)
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
        self._reported_seconds = dict.fromkeys(self._pipeline.stages, 0.0)  # stage -> seconds in earlier results
        self._reported_images = dict.fromkeys(self._pipeline.decoded_by, 0)  # decoder -> images in earlier results
        self._texts: dict[str, npt.NDArray[Any]] = {}
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()  # None: no more tasks
        self._under_way: dict[int, _Work] = {}  # batch number -> its task
        self._numbers = count()  # batch numbers, as the pipeline counts them
        self._error: BaseException | None = None
        self._lock = Lock()
        self._sealing = Lock()
        Thread(target=self._run, daemon=True).start()

    def ready(self) -> tuple[str, Space]:
        """Return host and process, and the space of the encoder's vectors."""
        return f"{socket.gethostname()} process {os.getpid()}", self._encoder.space

    def version(self) -> str:
        """Version of clipfake in the worker's process."""
        return __version__

    def work(self, task: Task) -> TaskResult:
        """Embed a task and write its shard. Repeating a task writes the same file again."""
        work = _Work(task)
        with self._lock:
            if self._error is not None:
                raise self._error
            self._queue.put(work)
        work.done.result()
        shard = f"{task.id}.h5" if work.blocks else ""
        if work.blocks:
            with self._sealing, self._pipeline.stages["write"].busy():
                write_shard(self._folder / FOLDER / shard, Block.concat(work.blocks))
        unused = self._gpu_decoder.unused if self._gpu_decoder else ""
        size = self._pipeline.batch_size
        refused = tuple(work.refused)
        unread = tuple(ref.key for ref, _ in refused if not readable(ref))
        decoded_by, host = self._decoded_by(), socket.gethostname()
        return TaskResult(task.id, shard, refused, self._busy(), size, decoded_by, unused, host, unread)

    def close(self) -> None:
        """Accept no further tasks."""
        self._queue.put(None)

    def stop(self) -> None:
        """Wait until the shard being written is complete and write no more, before the process ends."""
        self._sealing.acquire()

    def _run(self) -> None:
        try:
            self._pipeline.run(self._batches(), self._keep, self.close)
        except BaseException as e:  # noqa: BLE001 - raised by `work`
            with self._lock:
                self._error = e
                unfinished = {id(work): work for work in self._under_way.values()}
                while not self._queue.empty():
                    if (work := self._queue.get()) is not None:
                        unfinished[id(work)] = work
            for work in unfinished.values():
                work.done.set_exception(e)

    def _batches(self) -> Iterator[Sequence[ImageRef]]:
        while (work := self._queue.get()) is not None:
            batches = list(batched(work.task.images, self._size))
            work.batches_left = len(batches)
            with self._lock:  # register all batches first, so that a failure between two of them fails the task
                self._under_way |= {next(self._numbers): work for _ in batches}
            yield from batches

    def _keep(self, encoded: EncodedBatch) -> None:
        """Keep a batch, without its pixels, until its task is done."""
        with self._lock:
            work = self._under_way.pop(encoded.number)
        if encoded.images:
            texts = texts_of(encoded, self._encoder, self._texts) if self._options.text else {}
            work.blocks.append(block_of(encoded, self._encoder, texts, self._options.thumbnails))
        work.refused += encoded.refused
        work.batches_left -= 1
        if not work.batches_left:
            work.done.set_result(None)

    def _busy(self) -> dict[str, float]:
        """Seconds of work per stage and thread since the last result."""
        with self._lock:
            now = {name: stage.seconds / stage.workers for name, stage in self._pipeline.stages.items()}
            since = {name: seconds - self._reported_seconds[name] for name, seconds in now.items()}
            self._reported_seconds = now
        del since["list"]  # a worker's list stage only waits for tasks; the driver lists the images
        return since

    def _decoded_by(self) -> dict[str, int]:
        """Number of images decoded by each decoder since the last result."""
        with self._lock:
            now = dict(self._pipeline.decoded_by)
            since = {name: images - self._reported_images[name] for name, images in now.items()}
            self._reported_images = now
        return since


def readable(ref: ImageRef) -> bool:
    """True if the file can be read on this machine, whether or not it is an image."""
    try:
        ref.byte_source.read()
    except ImageError:
        return False
    return True


@dataclass
class _Work:
    """A task in progress."""

    task: Task
    batches_left: int = 0
    blocks: list[Block] = field(default_factory=list)
    refused: list[tuple[ImageRef, str]] = field(default_factory=list)
    done: Future[None] = field(default_factory=Future)
