"""A crew of Ray's actors, on many machines. Units and receipts cross Ray, never pixels. Needs the extra `ray`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..store.errors import MissingExtra
from ..store.store import Store
from .crew import index_with
from .report import IndexReport
from .run import Folders, IndexOptions, Progress
from .unit import Lost, Receipt, Unit
from .worker import AT_ONCE, EncoderName, Worker


def index_with_ray(
    folders: Folders,
    store: Store,
    encoder: EncoderName,
    options: IndexOptions = IndexOptions(),
    progress: Progress | None = None,
    *,
    address: str | None = None,
    workers: int | None = None,
) -> IndexReport:
    """`index` with the embedding done by Ray's workers; the same rows come out.

    Parameters
    ----------
    options
        `rows_per_shard` is the size of the largest units.
    address
        Of a running Ray cluster ("auto", "ray://..."); None starts one on this machine.
    workers
        None: one a GPU of the cluster, or one a machine where there is none.

    Raises
    ------
    MissingExtra
        Ray is not installed.
    SourceError, SpaceMismatch, StoreError
        What was stored stays.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as e:
        raise MissingExtra("--engine ray", "ray") from e
    mine = not ray.is_initialized()
    if mine:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        crew = _Actors(ray, encoder, store.folder, options, workers)
        return index_with(crew, folders, store, options, progress)
    finally:
        if mine:
            ray.shutdown()


class _Actors:
    """Workers as Ray's actors; it is a `Crew`."""

    def __init__(self, ray: Any, encoder: EncoderName, folder: Path, options: IndexOptions, count: int | None) -> None:
        self._ray = ray
        gpus = int(ray.cluster_resources().get("GPU", 0))
        on_gpu = gpus > 0 and encoder.device in ("auto", "cuda", "all")
        actor = ray.remote(Worker).options(
            max_restarts=-1,
            max_concurrency=AT_ONCE,
            num_gpus=1 if on_gpu else 0,
            num_cpus=0,  # the workers' threads are told in the options; Ray's count of cores only spreads them
            scheduling_strategy="SPREAD",
        )
        # Absolute: a worker's working directory is its own.
        told = (encoder, folder.resolve(), options)
        self._actors = [actor.remote(*told) for _ in range(count or (gpus if on_gpu else len(ray.nodes())))]
        self.workers = [
            f"{host} process {process}" for host, process in ray.get([w.where.remote() for w in self._actors])
        ]
        self.room = AT_ONCE * len(self._actors)
        self._free = [actor for actor in self._actors for _ in range(AT_ONCE)]
        self._promised: dict[Any, tuple[Unit, Any]] = {}  # the promise of a receipt -> the unit and its worker

    def give(self, unit: Unit) -> None:
        worker = self._free.pop(0)
        self._promised[worker.work.remote(unit)] = (unit, worker)

    def take(self, seconds: float) -> list[Receipt | Lost]:
        told: list[Receipt | Lost] = []
        ready, _ = self._ray.wait(list(self._promised), num_returns=1, timeout=seconds)
        for promise in ready:
            unit, worker = self._promised.pop(promise)
            self._free.append(worker)
            try:
                told.append(self._ray.get(promise))
            except self._ray.exceptions.RayActorError:  # Ray starts it again
                told.append(Lost(unit.id))
        return told

    def dismiss(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
