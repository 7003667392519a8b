"""A crew of Ray's actors, on many machines. Units and receipts cross Ray, never pixels. Needs the extra `ray`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..store.errors import MissingExtra
from .crew import Crew
from .run import IndexOptions
from .unit import Lost, Receipt, Unit
from .worker import AT_ONCE, STARTING, EncoderName, Worker


class Actors(Crew):
    """Workers as Ray's actors."""

    def __init__(
        self,
        encoder: EncoderName,
        folder: Path,
        options: IndexOptions = IndexOptions(),
        *,
        address: str | None = None,
        count: int | None = None,
    ) -> None:
        """Start them and wait until each has its encoder.

        Parameters
        ----------
        folder : of the store, which need not be there yet; all machines see it under this path
        address : of a running Ray cluster ("auto", "ray://..."); None starts one on this machine
        count : of workers; None: one a GPU of the cluster, or one a machine where there is none

        Raises
        ------
        MissingExtra
            Ray is not installed.
        EncoderError
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as e:
            raise MissingExtra("--engine ray", "ray") from e
        self._ray: Any = ray
        self._mine = not ray.is_initialized()
        self._actors: list[Any] = []
        if self._mine:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
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
            ready = ray.get([actor.ready.remote() for actor in self._actors])
        except ray.exceptions.RayActorError as e:  # what a worker raised while it was made
            self.dismiss()
            raise getattr(e, "cause", None) or e from e
        except BaseException:
            self.dismiss()
            raise
        self.workers, self.space = [where for where, _ in ready], ready[0][1]
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
            except self._ray.exceptions.RayActorError:
                told.append(Lost(unit.id))
                self._wait_for(worker)
        return told

    def _wait_for(self, worker: Any) -> None:
        """Ray starts a worker that died again; a unit that it is given before it is there would be lost too."""
        ready = worker.ready.options(max_task_retries=-1).remote()
        self.workers[self._actors.index(worker)], _ = self._ray.get(ready, timeout=STARTING)

    def dismiss(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._mine:
            self._ray.shutdown()
