"""Indexing with a pool of workers: the driver lists images, submits tasks and commits the shards of the workers.

The driver holds the store's lock. A task holds references to images, about 100 bytes each. A worker reads, decodes and
embeds them and writes a shard into the store's `incoming` folder, and the driver adopts that file unchanged. The tasks
of a worker that dies are submitted again. A task that repeatedly kills its worker is halved until the image that does
it is found; that image is refused.
"""

from __future__ import annotations

import signal
import threading
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Self

from ...errors import SourceError
from ...store.records import RowLabels
from ...store.space import Space
from ...store.store import AppendCounts, Store, Writer
from ..index_run import Folders, IndexOptions, IndexRun, Progress
from ..report import IndexReport
from ..shard_inbox import FOLDER, adopt_shard, adopt_shards
from ..sources.image_ref import ImageRef
from .task import Task, TaskLost, TaskResult, task_size
from .worker import readable

WAIT = 1.0  # seconds to wait for a result before checking for Ctrl-C
TRIES = 2  # attempts before a task is blamed for killing its worker
LOSSES = 64  # consecutive worker deaths, without a finished task, that end the run: the machine is at fault
KILLS = "every process that read it died; the file may crash its decoder"


class WorkerPool(ABC):
    """Interface of a pool of workers. A worker that dies is replaced, and its tasks are reported as lost."""

    space: Space  # space of the workers' encoder
    workers: list[str]  # host and process of each worker that is alive
    lost: list[str] = []  # noqa: RUF012 - workers and hosts that were lost or excluded, and why; empty for local pools
    remote = False  # True if workers run on machines that may not see the driver's disks
    capacity: int  # number of tasks that may be submitted and unfinished at the same time

    @abstractmethod
    def submit(self, task: Task) -> None:
        """Submit a task; the number of unfinished tasks must not exceed `capacity`."""

    def submit_avoiding(self, task: Task, host: str) -> None:
        """Submit a task, if possible to a host other than `host`."""
        self.submit(task)

    @abstractmethod
    def collect(self, seconds: float) -> list[TaskResult | TaskLost]:
        """Wait for results and return them; [] after `seconds`. Raises the error that a worker raised."""

    def exclude_host(self, host: str, why: str) -> list[TaskLost]:
        """Submit nothing more to a host and return its lost tasks; raises SourceError if no other host remains."""
        raise SourceError(f"{host}: {why}")

    @abstractmethod
    def close(self) -> None:
        """Stop the workers at once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def index_with(
    pool: WorkerPool,
    folders: Folders,
    store: Store,
    options: IndexOptions = IndexOptions(),
    progress: Progress | None = None,
) -> IndexReport:
    """Index as `index` does, with the images embedded by a pool of workers; the rows are the same.

    >>> with ProcessPool(EncoderSpec("openai/clip-vit-base-patch32"), store.folder) as pool:  # doctest: +SKIP
    ...     index_with(pool, ["data/cycle_gan"], store)

    Parameters
    ----------
    options
        `rows_per_shard` is the largest size of a task.

    Raises
    ------
    SourceError, SpaceMismatch, StoreError
        The run failed; rows stored until then are kept.
    """
    if options.part is not None:
        raise SourceError("--part splits the work among several commands; omit it when one command has workers")
    pool.space.require(store.snapshot().space, f"the store {store.folder}")
    with store.writer("index", rows_per_shard=options.rows_per_shard) as writer:
        adopt_shards(writer, store.folder)
        return _Driver(pool, folders, writer, store.folder, options, progress).run()


class _Driver(IndexRun):
    def __init__(
        self,
        pool: WorkerPool,
        folders: Folders,
        writer: Writer,
        folder: Path,
        options: IndexOptions,
        progress: Progress | None,
    ) -> None:
        super().__init__(folders, writer, folder, options, progress)
        self._pool, self._writer = pool, writer
        self._categories = set(writer.snapshot.texts)  # categories with a text vector, or with an image being read
        self._resubmit: deque[Task] = deque()
        self._under_way: dict[str, Task] = {}
        self._times_lost: Counter[str] = Counter()  # by task id
        self._losses = 0  # consecutive losses since a task was finished
        self._embedded = 0  # images, good or bad
        self._listing_error: Exception | None = None
        self._unread: dict[str, str] = {}  # id of a resubmitted task -> host that could not read its images
        self.report.workers, self.report.lost = pool.workers, pool.lost

    def run(self) -> IndexReport:
        """Run and return the report."""
        try:
            self.report_progress()
            self._run_tasks()
            self.finish()
        except KeyboardInterrupt:
            self.report.interrupted = True
            self.report_progress()
            while self._under_way:  # a second Ctrl-C does not wait for them
                self._collect()
        finally:
            self.update_quarantine()
            self.report.ended = True
            self.report_progress()
        return self.report

    def _run_tasks(self) -> None:
        """Keep the pool busy and record its results; a listing error is raised after the images listed before it."""
        tasks = self._tasks()
        more = True
        while more or self._resubmit or self._under_way:
            while len(self._under_way) < self._pool.capacity:
                task = self._resubmit.popleft() if self._resubmit else next(tasks, None)
                if task is None:
                    more = False
                    break
                with uninterrupted():
                    self._under_way[task.id] = task
                    self._pool.submit_avoiding(task, self._unread.get(task.id, ""))
            if self._under_way or more or self._resubmit:
                self._collect()
        if self._listing_error is not None:
            raise self._listing_error

    def _needs_reading(self, labels: RowLabels) -> bool:
        """One image of each new category is read again: only workers have the encoder that embeds the name."""
        if not self.options.text or not labels.category or labels.category in self._categories:
            return False
        self._categories.add(labels.category)
        return True

    def _tasks(self) -> Iterator[Task]:
        refs = self.images_to_read()
        limit, workers = self.options.rows_per_shard, len(self._pool.workers)
        while self._listing_error is None:
            images: list[ImageRef] = []
            try:
                with self.report.stage("list", 1).busy():
                    for ref in islice(refs, task_size(self._embedded, self.report.seconds, workers, limit)):
                        images.append(ref)  # noqa: PERF402 - kept if the listing fails
            except Exception as e:  # noqa: BLE001 - raised when these images are done
                self._listing_error = e
            if images:
                yield Task.of(images)
            else:
                return

    def _collect(self) -> None:
        with uninterrupted():
            for outcome in self._pool.collect(WAIT):
                task = self._under_way.pop(outcome.task_id, None)
                if task is None:  # resubmitted already, when its host was excluded
                    continue
                if isinstance(outcome, TaskLost):
                    self._record_loss(task)
                else:
                    self._record_result(task, outcome)
            self.report_progress()

    def _record_loss(self, task: Task) -> None:
        self._losses += 1
        for unfinished in (self.folder / FOLDER).glob(f"{task.id}.h5.*"):
            unfinished.unlink(missing_ok=True)
        if self._losses > LOSSES:
            raise SourceError(
                f"{LOSSES} workers died in a row without finishing a task (the last at {task.images[0].key}); find "
                f"out what kills them (too little memory?), then run the same command again"
            )
        self._times_lost[task.id] += 1
        if self._times_lost[task.id] < TRIES:
            self._resubmit.append(task)
        elif len(task.images) > 1:
            for half in task.halves():
                self._times_lost[half.id] = TRIES - 1
                self._resubmit.append(half)
        else:
            self._embedded += 1
            self.record([], AppendCounts(), [(task.images[0], KILLS)])

    def _record_result(self, task: Task, result: TaskResult) -> None:
        self._losses = 0
        if self._pool.remote and self._exclude_blind_host(task, result):
            return
        self._embedded += len(task.images)
        self.report.batch_size = min(self.report.batch_size or result.batch_size, result.batch_size)
        counts = AppendCounts()
        if result.shard:
            with self.report.stage("commit", 1).busy():
                counts = adopt_shard(self._writer, self.folder / FOLDER / result.shard)
        for name, seconds in result.busy.items():
            self.report.stage(name, len(self._pool.workers)).add(seconds)
        for name, images in result.decoded_by.items():
            self.report.decoded_by[name] = self.report.decoded_by.get(name, 0) + images
        self.report.decoder_unused = self.report.decoder_unused or result.decoder_unused
        refused = {ref.key for ref, _ in result.refused}
        bad = self._final_refusals(task, result)
        self.record([ref.key for ref in task.images if ref.key not in refused], counts, bad)

    def _final_refusals(self, task: Task, result: TaskResult) -> list[tuple[ImageRef, str]]:
        """Return the refused images, except those resubmitted because this machine can read their files."""
        if not self._pool.remote or not result.unread:
            return list(result.refused)
        unread = set(result.unread)
        readable_here = {ref.key for ref, _ in result.refused if ref.key in unread and readable(ref)}
        if readable_here and task.id not in self._unread:
            task_again = Task.of([ref for ref, _ in result.refused if ref.key in readable_here])
            self._unread[task_again.id] = result.host
            self._resubmit.append(task_again)
            self._embedded -= len(task_again.images)
            return [(ref, reason) for ref, reason in result.refused if ref.key not in readable_here]
        suffix = f" on {result.host}; this machine can read it"
        return [(ref, reason + suffix if ref.key in readable_here else reason) for ref, reason in result.refused]

    def _exclude_blind_host(self, task: Task, result: TaskResult) -> bool:
        """Exclude the worker's host if it cannot see the task's images or the store; True if it was excluded."""
        folder = self.folder / FOLDER
        unread = task.id not in self._unread and len(task.images) == len(result.unread) > 1
        if result.shard and not any(folder.glob(result.shard)):
            why = f"its shard is not in {folder} on this machine; check that the store's disk is mounted on that host"
        elif unread and any(map(readable, task.images)):
            first, reason = result.refused[0]
            why = (
                f"it could read none of the {len(task.images)} images of a task, and this machine can (the first: "
                f"{first.path}: {reason}); check that their disk is mounted on that host"
            )
        else:
            return False
        self._resubmit.append(task)
        for lost in self._pool.exclude_host(result.host, why):
            self._resubmit.append(self._under_way.pop(lost.task_id))
        return True


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Defer Ctrl-C to the end of the block, so that no message is half sent and no result is left unrecorded."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    signals: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: signals.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if signals and callable(before):
        before(*signals[0])
