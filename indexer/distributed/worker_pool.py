"""A run whose images are embedded by a crew: the driver lists, hands out units and commits what workers have sealed.

The driver holds the store's lock. Units (names of images, about 100 bytes each) go out; a worker reads, decodes,
embeds and seals its unit as a shard in the store's `incoming` folder, and the driver takes that file in as it is. A
worker that dies costs the units it was at: they are done again. A unit over which workers die again and again is halved
until the image is found that kills them; that one is refused.
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
from ...store.space import Space
from ...store.store import AppendCounts, Store, Writer
from ..index_run import Folders, IndexOptions, IndexRun, Progress
from ..report import IndexReport
from ..shard_inbox import FOLDER, take_in, take_in_one
from ..sources.image_ref import ImageRef
from .task import Task, TaskLost, TaskResult, task_size
from .worker import readable

WAIT = 1.0  # seconds without a receipt before Ctrl-C is looked for
TRIES = 2  # of a unit, before the worker's death is laid at its door
LOSSES = 64  # workers that may die in a row without one unit done between: then the machine is at fault
KILLS = "whatever process read it died; the file may crash its decoder"


class WorkerPool(ABC):
    """Workers that embed units, wherever they are. One that dies is replaced, and what it was at is told as lost."""

    space: Space  # that the workers embed into
    workers: list[str]  # host and process of each that is there now
    lost: list[str] = []  # noqa: RUF012 - workers and hosts that were lost or left out, and why; none is, of this machine
    elsewhere = False  # on machines that may not see the disks the driver sees
    room: int  # units that can be with the workers at a time, under way or next

    @abstractmethod
    def give(self, unit: Task) -> None:
        """Submit a task; never more than there is room for."""

    def give_elsewhere(self, unit: Task, host: str) -> None:
        """Submit a task to another host than this, if one is free."""
        self.give(unit)

    @abstractmethod
    def take(self, seconds: float) -> list[TaskResult | TaskLost]:
        """Wait for results of tasks and return them; [] after so many seconds. Raises what a worker raised."""

    def leave_out(self, host: str, why: str) -> list[TaskLost]:
        """Give a host nothing more, and tell what it was at; raises SourceError where no other is left."""
        raise SourceError(f"{host}: {why}")

    @abstractmethod
    def dismiss(self) -> None:
        """Stop the workers, whatever they are doing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.dismiss()


def index_with(
    crew: WorkerPool,
    folders: Folders,
    store: Store,
    options: IndexOptions = IndexOptions(),
    progress: Progress | None = None,
) -> IndexReport:
    """`index` with the embedding done by a crew; the same rows come out.

    >>> with Processes(EncoderName("openai/clip-vit-base-patch32"), store.folder) as crew:  # doctest: +SKIP
    ...     index_with(crew, ["data/cycle_gan"], store)

    Parameters
    ----------
    options
        `rows_per_shard` is the size of the largest units.

    Raises
    ------
    SourceError, SpaceMismatch, StoreError
        What was stored stays.
    """
    if options.part is not None:
        raise SourceError("--part splits the work of several commands; leave it out where one command has workers")
    crew.space.require(store.snapshot().space, f"the store {store.folder}")
    with store.writer("index", rows_per_shard=options.rows_per_shard) as writer:
        take_in(writer, store.folder)
        return _Driver(crew, folders, writer, store.folder, options, progress).go()


class _Driver(IndexRun):
    def __init__(
        self,
        crew: WorkerPool,
        folders: Folders,
        writer: Writer,
        folder: Path,
        options: IndexOptions,
        progress: Progress | None,
    ) -> None:
        super().__init__(folders, writer, folder, options, progress)
        self._crew, self._writer = crew, writer
        self._again: deque[Task] = deque()
        self._under_way: dict[str, Task] = {}
        self._lost: Counter[str] = Counter()  # by unit
        self._losses = 0  # since a unit was done
        self._embedded = 0  # images, good or bad
        self._listing: Exception | None = None  # what ended it early
        self._unread: dict[str, str] = {}  # by unit that was asked for again: the host that could not read it
        self.report.workers, self.report.lost = crew.workers, crew.lost

    def go(self) -> IndexReport:
        try:
            self.report_progress()
            self._spread()
            self.finish()
        except KeyboardInterrupt:
            self.report.interrupted = True
            self.report_progress()
            while self._under_way:  # a second Ctrl-C does not wait for them
                self._take()
        finally:
            self.note_bad()
            self.report.ended = True
            self.report_progress()
        return self.report

    def _spread(self) -> None:
        """Keep the crew's room filled, and settle what comes back; what was listed before an error is done first."""
        units = self._units()
        more = True
        while more or self._again or self._under_way:
            while len(self._under_way) < self._crew.room:
                unit = self._again.popleft() if self._again else next(units, None)
                if unit is None:
                    more = False
                    break
                with uninterrupted():
                    self._under_way[unit.id] = unit
                    self._crew.give_elsewhere(unit, self._unread.get(unit.id, ""))
            if self._under_way or more or self._again:
                self._take()
        if self._listing is not None:
            raise self._listing

    def _units(self) -> Iterator[Task]:
        entries = self.fresh()
        most, crew = self.options.rows_per_shard, len(self._crew.workers)
        while self._listing is None:
            found: list[ImageRef] = []
            try:
                with self.report.stage("list", 1).busy():
                    for entry in islice(entries, task_size(self._embedded, self.report.seconds, crew, most)):
                        found.append(entry)  # noqa: PERF402 - kept where the listing fails
            except Exception as e:  # noqa: BLE001 - raised when these are done
                self._listing = e
            if found:
                yield Task.of(found)
            else:
                return

    def _take(self) -> None:
        with uninterrupted():
            for outcome in self._crew.take(WAIT):
                unit = self._under_way.pop(outcome.unit, None)
                if unit is None:  # told before the host of both was left out
                    continue
                if isinstance(outcome, TaskLost):
                    self._lose(unit)
                else:
                    self._settle_receipt(unit, outcome)
            self.report_progress()

    def _lose(self, unit: Task) -> None:
        self._losses += 1
        for torn in (self.folder / FOLDER).glob(f"{unit.id}.h5.*"):  # what its worker was writing
            torn.unlink(missing_ok=True)
        if self._losses > LOSSES:
            raise SourceError(
                f"{LOSSES} workers died one after the other and nothing was done in between (the last over "
                f"{unit.entries[0].key}); look for what kills them (memory?), then run the same command again"
            )
        self._lost[unit.id] += 1
        if self._lost[unit.id] < TRIES:
            self._again.append(unit)
        elif len(unit.entries) > 1:
            for half in unit.halves():
                self._lost[half.id] = TRIES - 1
                self._again.append(half)
        else:
            self._embedded += 1
            self.settle([], AppendCounts(), [(unit.entries[0], KILLS)])

    def _settle_receipt(self, unit: Task, receipt: TaskResult) -> None:
        self._losses = 0
        if self._crew.elsewhere and self._out_of_sight(unit, receipt):
            return
        self._embedded += len(unit.entries)
        self.report.batch_size = min(self.report.batch_size or receipt.batch_size, receipt.batch_size)
        counts = AppendCounts()
        if receipt.shard:
            with self.report.stage("commit", 1).busy():
                counts = take_in_one(self._writer, self.folder / FOLDER / receipt.shard)
        for name, seconds in receipt.busy.items():
            self.report.stage(name, len(self._crew.workers)).add(seconds)
        for name, images in receipt.decoded_by.items():
            self.report.decoded_by[name] = self.report.decoded_by.get(name, 0) + images
        self.report.unused = self.report.unused or receipt.unused
        refused = {entry.key for entry, _ in receipt.refused}
        bad = self._told_bad(unit, receipt)
        self.settle([entry.key for entry in unit.entries if entry.key not in refused], counts, bad)

    def _told_bad(self, unit: Task, receipt: TaskResult) -> list[tuple[ImageRef, str]]:
        """Return the refused images, without those that another host should try because it may see their files."""
        if not self._crew.elsewhere or not receipt.unread:
            return list(receipt.refused)
        unread = set(receipt.unread)
        ours = {entry.key for entry, _ in receipt.refused if entry.key in unread and readable(entry)}
        if ours and unit.id not in self._unread:
            again = Task.of([entry for entry, _ in receipt.refused if entry.key in ours])
            self._unread[again.id] = receipt.host
            self._again.append(again)
            self._embedded -= len(again.entries)
            return [(entry, reason) for entry, reason in receipt.refused if entry.key not in ours]
        where = f" on {receipt.host}; this machine can read it"
        return [(entry, reason + where if entry.key in ours else reason) for entry, reason in receipt.refused]

    def _out_of_sight(self, unit: Task, receipt: TaskResult) -> bool:
        """True if the worker's host sees neither the task's images nor the store; then it is excluded."""
        folder = self.folder / FOLDER
        unread = unit.id not in self._unread and len(unit.entries) == len(receipt.unread) > 1
        if receipt.shard and not any(folder.glob(receipt.shard)):
            why = f"what it sealed is not in {folder} here; is the store's disk mounted there?"
        elif unread and any(map(readable, unit.entries)):
            first, reason = receipt.refused[0]
            why = (
                f"it could read none of the {len(unit.entries)} images of a unit and this machine can (the first: "
                f"{first.path}: {reason}); is their disk mounted there?"
            )
        else:
            return False
        self._again.append(unit)
        for lost in self._crew.leave_out(receipt.host, why):
            self._again.append(self._under_way.pop(lost.unit))
        return True


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C is heard at the end of the block: a half message, or a receipt nobody settles, would be waited for."""
    if threading.current_thread() is not threading.main_thread():  # no other hears it
        yield
        return
    heard: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if heard and callable(before):
        before(*heard[0])
