"""A crew of processes on this machine: several for a GPU that one could not keep busy, or one for each of several GPUs.

A process has one lock for all its Python, so that part of the work runs on one core however many threads decode beside
it. `benchmarks.feeding` tells what an image costs a worker and what it costs the driver.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from ...errors import ClipfakeError, SourceError
from ...store.space import Space
from ..encoder_spec import EncoderSpec
from ..encoders.load import device_names
from ..index_run import IndexOptions
from ..shard_inbox import remove_torn
from .task import Task, TaskLost, TaskResult
from .worker import AT_ONCE, STARTING, Worker
from .worker_pool import WorkerPool

# On an H100 with 16 cores, 8 processes of 2 decoding threads fed 1.4 times as many images as 4 of 4: one lock holds all
# Python of a process.
CORES = 2  # of a process at a GPU
MOST = 8  # processes at one GPU
GPU_BYTES = 8 * 2**30  # of a GPU's memory for a process: CUDA, the weights, a batch under way and the next
WORTH = 100_000  # images from which several processes save more time than they take to start


def processes_for(device: str, images: Callable[[], int | None], cores: int) -> int:
    """Number of processes that pay off: one, or several for a GPU and many images, which are then counted.

    This process opens no context on the GPU, which would take 500 MB of its memory.

    >>> processes_for("cpu", lambda: 10**7, 16)
    1
    """
    names = device_names(device)
    first = names[0] if names[0] != "auto" else "cuda"
    if not first.startswith("cuda") or not torch.cuda.is_available() or (images() or 0) < WORTH:
        return 1
    if (torch.device(first).index or 0) >= torch.cuda.device_count():
        return 1  # loading the encoder says that it is not there
    memory = torch.cuda.get_device_properties(torch.device(first)).total_memory
    each = min(MOST, cores // (CORES * len(names)), memory // GPU_BYTES)
    return len(names) * max(1, each)


class ProcessPool(WorkerPool):
    """Workers in processes of their own that share this machine's devices and cores."""

    def __init__(
        self, encoder: EncoderSpec, folder: Path, options: IndexOptions = IndexOptions(), count: int = 2
    ) -> None:
        """Start them and wait until each has its encoder.

        Parameters
        ----------
        folder : of the store, which need not be there yet
        options : `threads` are shared by all

        Raises
        ------
        EncoderError, MissingExtra
        """
        # spawned: a process that was forked has no CUDA, and may hold locks of threads it does not have
        self._context = multiprocessing.get_context("spawn")
        devices = device_names(encoder.device)
        cores = max(1, torch.get_num_threads() // count)
        each = replace(options, threads=max(1, options.threads // count))
        self._plans = [
            (replace(encoder, device=devices[i % len(devices)]), folder.resolve(), each, cores) for i in range(count)
        ]
        self._members: list[_WorkerProcess] = []
        try:
            self._members = [self._start(i) for i in range(count)]
            met = [self._met(member) for member in self._members]
        except BaseException:
            self.dismiss()
            raise
        self.workers, self.space = [where for where, _ in met], met[0][1]
        self.room = AT_ONCE * count

    def give(self, unit: Task) -> None:
        member = min(self._members, key=lambda member: len(member.units))
        member.units.append(unit.id)
        with suppress(OSError):  # where it has died, `take` tells
            member.pipe.send(unit)

    def take(self, seconds: float) -> list[TaskResult | TaskLost]:
        results: list[TaskResult | TaskLost] = []
        ready = wait([member.pipe for member in self._members], seconds)
        for i, member in enumerate(self._members):
            if member.pipe not in ready:
                continue
            try:
                receipt = member.pipe.recv()
            except (EOFError, OSError):
                results += [TaskLost(unit) for unit in member.units]
                self._members[i] = self._replaced(i, member)
                continue
            if isinstance(receipt, BaseException):
                raise receipt
            member.units.remove(receipt.unit)
            results.append(receipt)
        return results

    def dismiss(self) -> None:
        for member in self._members:
            member.process.kill()
            member.pipe.close()
        for member in self._members:
            member.process.join()
            remove_torn(self._plans[0][1], member.process.pid)

    def _start(self, i: int) -> _WorkerProcess:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there, *self._plans[i]), name=f"clipfake {i}", daemon=True)
        process.start()
        there.close()  # so that its end is seen when the process dies
        return _WorkerProcess(process, here)

    def _met(self, member: _WorkerProcess) -> tuple[str, Space]:
        """Wait for a new worker to be ready; raises what kept it from that."""
        try:
            reply = member.pipe.recv() if member.pipe.poll(STARTING) else None
        except (EOFError, OSError):
            reply = None
        if isinstance(reply, BaseException):
            raise reply
        if reply is None:
            raise SourceError("a worker died before it had its encoder; is there memory for one in each process?")
        where, space = reply
        return str(where), space

    def _replaced(self, i: int, member: _WorkerProcess) -> _WorkerProcess:
        member.process.join()
        member.pipe.close()
        new = self._start(i)
        self._members[i] = new
        self.workers[i] = self._met(new)[0]
        return new


@dataclass
class _WorkerProcess:
    process: Any
    pipe: Connection[Any, Any]
    units: list[str] = field(default_factory=list)  # that it was given and has not told of


def _serve(pipe: Connection[Any, Any], encoder: EncoderSpec, folder: Path, options: IndexOptions, cores: int) -> None:
    """A worker's process: that it is ready, then a receipt for each unit, or the error that ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to hear
    torch.set_num_threads(cores)
    lock = Lock()

    def reply(what: Any) -> None:
        with lock:
            pipe.send(what)

    try:
        worker = Worker(encoder, folder, options)
    except ClipfakeError as e:
        reply(e)
        return
    reply(worker.ready())

    def end() -> None:
        """The driver is gone."""
        worker.stop()
        os._exit(0)

    def work(unit: Task) -> None:
        try:
            reply(worker.work(unit))
        except OSError:
            end()
        except Exception as e:  # noqa: BLE001 - raised by the driver
            reply(e)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            while True:
                pool.submit(work, pipe.recv())
        except (EOFError, OSError):
            end()
