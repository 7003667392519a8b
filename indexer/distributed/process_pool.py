"""Worker processes on this machine: several per GPU when one cannot keep it busy, or one for each of several GPUs.

Each process has its own GIL, so the part of the work that runs in Python uses one core per process, however many
decoding threads it has. `benchmarks.feeding` measures what an image costs a worker and what it costs the driver.
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
from .task import Task, TaskLost, TaskResult
from .worker import START_TIMEOUT, TASKS_PER_WORKER, Worker
from .worker_pool import WorkerPool

# On an H100 with 16 cores, 8 processes of 2 decoding threads fed 1.4 times as many images as 4 of 4: one lock holds all
# Python of a process.
CORES_PER_PROCESS = 2  # cores that the decoding threads of one GPU process keep busy
MAX_PROCESSES = 8  # per GPU
BYTES_PER_PROCESS = 8 * 2**30  # of a GPU's memory: CUDA itself, the weights, a batch under way and the next
MIN_IMAGES = 100_000  # number of images from which several processes save more time than they take to start


def processes_for(device: str, images: Callable[[], int | None], cores: int) -> int:
    """Number of processes that pay off: several for a GPU and many images, otherwise one.

    `images` counts the images and is only called for a GPU.

    This process opens no context on the GPU, which would take 500 MB of its memory.

    >>> processes_for("cpu", lambda: 10**7, 16)
    1
    """
    names = device_names(device)
    first = names[0] if names[0] != "auto" else "cuda"
    if not first.startswith("cuda") or not torch.cuda.is_available() or (images() or 0) < MIN_IMAGES:
        return 1
    if (torch.device(first).index or 0) >= torch.cuda.device_count():
        return 1  # loading the encoder reports that there is no such device
    memory = torch.cuda.get_device_properties(torch.device(first)).total_memory
    each = min(MAX_PROCESSES, cores // (CORES_PER_PROCESS * len(names)), memory // BYTES_PER_PROCESS)
    return len(names) * max(1, each)


class ProcessPool(WorkerPool):
    """Workers in separate processes that share this machine's devices and cores."""

    def __init__(
        self, encoder: EncoderSpec, folder: Path, options: IndexOptions = IndexOptions(), count: int = 2
    ) -> None:
        """Start the processes and wait until each has loaded its encoder.

        Parameters
        ----------
        folder : folder of the store; it need not exist yet
        options : `threads` is divided among the processes
        count : number of processes

        Raises
        ------
        EncoderError, MissingExtra
        """
        # spawn: a forked process cannot use CUDA, and may inherit locks held by threads that it does not have
        self._context = multiprocessing.get_context("spawn")
        devices = device_names(encoder.device)
        cores = max(1, torch.get_num_threads() // count)
        worker_options = replace(options, threads=max(1, options.threads // count))
        self._worker_args = [
            (replace(encoder, device=devices[i % len(devices)]), folder.resolve(), worker_options, cores)
            for i in range(count)
        ]
        self._workers: list[_WorkerProcess] = []
        try:
            self._workers = [self._start(i) for i in range(count)]
            replies = [self._wait_ready(worker) for worker in self._workers]
        except BaseException:
            self.close()
            raise
        self.workers, self.space = [name for name, _ in replies], replies[0][1]
        self.capacity = TASKS_PER_WORKER * count

    def submit(self, task: Task) -> None:
        worker = min(self._workers, key=lambda worker: len(worker.task_ids))
        worker.task_ids.append(task.id)
        with suppress(OSError):  # if the worker has died, `collect` reports it
            worker.pipe.send(task)

    def collect(self, seconds: float) -> list[TaskResult | TaskLost]:
        results: list[TaskResult | TaskLost] = []
        ready = wait([worker.pipe for worker in self._workers], seconds)
        for i, worker in enumerate(self._workers):
            if worker.pipe not in ready:
                continue
            try:
                result = worker.pipe.recv()
            except (EOFError, OSError):
                results += [TaskLost(task_id) for task_id in worker.task_ids]
                self._workers[i] = self._replace(i, worker)
                continue
            if isinstance(result, BaseException):
                raise result
            worker.task_ids.remove(result.task_id)
            results.append(result)
        return results

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join()

    def _start(self, i: int) -> _WorkerProcess:
        driver_end, worker_end = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(worker_end, *self._worker_args[i]), name=f"clipfake {i}", daemon=True
        )
        process.start()
        worker_end.close()  # so that reading from the pipe fails when the process dies
        return _WorkerProcess(process, driver_end)

    def _wait_ready(self, worker: _WorkerProcess) -> tuple[str, Space]:
        """Wait until a new worker has loaded its encoder; raises the error that prevented it."""
        try:
            reply = worker.pipe.recv() if worker.pipe.poll(START_TIMEOUT) else None
        except (EOFError, OSError):
            reply = None
        if isinstance(reply, BaseException):
            raise reply
        if reply is None:
            raise SourceError(
                "a worker process died before it had loaded its encoder; check that memory suffices for one encoder "
                "per process"
            )
        name, space = reply
        return str(name), space

    def _replace(self, i: int, worker: _WorkerProcess) -> _WorkerProcess:
        worker.process.join()
        worker.pipe.close()
        new = self._start(i)
        self._workers[i] = new
        self.workers[i] = self._wait_ready(new)[0]
        return new


@dataclass
class _WorkerProcess:
    process: Any
    pipe: Connection[Any, Any]
    task_ids: list[str] = field(default_factory=list)  # submitted, without a result yet


def _serve(pipe: Connection[Any, Any], encoder: EncoderSpec, folder: Path, options: IndexOptions, cores: int) -> None:
    """Run a worker process: send that it is ready, then a result for each task, or the error that ended it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver handles Ctrl-C
    torch.set_num_threads(cores)
    lock = Lock()

    def reply(message: Any) -> None:
        with lock:
            pipe.send(message)

    try:
        worker = Worker(encoder, folder, options)
    except ClipfakeError as e:
        reply(e)
        return
    reply(worker.ready())

    def end() -> None:
        """End this process because the driver has ended."""
        worker.stop()
        os._exit(0)

    def work(task: Task) -> None:
        try:
            reply(worker.work(task))
        except OSError:
            end()
        except Exception as e:  # noqa: BLE001 - raised by the driver
            reply(e)

    with ThreadPoolExecutor(TASKS_PER_WORKER) as pool:
        try:
            while True:
                pool.submit(work, pipe.recv())
        except (EOFError, OSError):
            end()
