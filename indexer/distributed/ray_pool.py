"""Pool of Ray actors on many machines. Tasks and results pass through Ray, pixels never do. Needs the extra `ray`.

Each worker is bound to its host, so that a host can be excluded and a host that joins gets workers of its own.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from ... import __version__, errors
from ...errors import ClipfakeError, MissingExtra, SourceError, SpaceMismatch
from ...store.space import Space
from ..encoder_spec import EncoderSpec
from ..index_run import IndexOptions
from .task import Task, TaskLost, TaskResult
from .worker import START_TIMEOUT, TASKS_PER_WORKER, Worker
from .worker_pool import WorkerPool

CHECK_INTERVAL = 5.0  # seconds between checks for new hosts and for the head node
HEAD_TIMEOUT = 20.0  # seconds without the head node that end a run; after 60 Ray would exit our process silently
CONNECT_TIMEOUT = 5.0  # seconds for connecting to the head node
MAX_DEATHS = 3  # consecutive deaths of a host's workers, without a finished task, after which it is excluded


class RayPool(WorkerPool):
    """Workers as Ray actors: one per GPU, or one per host if no host has a GPU."""

    remote = True

    def __init__(
        self,
        encoder: EncoderSpec,
        folder: Path,
        options: IndexOptions = IndexOptions(),
        *,
        address: str | None = None,
        count: int | None = None,
    ) -> None:
        """Start the workers and wait until each has loaded its encoder.

        Parameters
        ----------
        folder : folder of the store; it need not exist yet, and must have the same path on all machines
        address : address of a running Ray cluster ("auto", "head:6379") that this machine belongs to (default: start
            a cluster on this machine)
        count : number of workers, assigned to hosts in turn (default: one per GPU, or one per host if there is no GPU,
            including hosts that join later)

        Raises
        ------
        MissingExtra
            Ray is not installed.
        SourceError
            No cluster answers at the address, or a host lacks something that a worker needs.
        EncoderError, SpaceMismatch
            The encoder of a host cannot be loaded or is a different one.
        """
        self._ray = _ray()
        self._started_here = not self._ray.is_initialized()
        self._worker_args = (encoder, folder.resolve(), options)  # absolute: workers have another working directory
        self._handles: list[_WorkerHandle] = []
        self._pending: dict[Any, tuple[Task, _WorkerHandle]] = {}  # future of a result -> task and worker
        self._hosts: dict[str, str] = {}  # node ID -> host name, of every node that ever had a worker
        self._excluded: set[str] = set()  # node IDs
        self._deaths: Counter[str] = Counter()  # node ID -> worker deaths since its last finished task
        self._head_lost = False
        self._fixed = count is not None
        self.workers, self.lost = [], []
        if self._started_here:
            _join(self._ray, address)
        try:
            self._head = self._ray.get_runtime_context().gcs_address
            self._checked_at = self._head_seen_at = time.monotonic()
            nodes = self._nodes()
            if not nodes:
                raise SourceError(
                    "no host of this Ray cluster offers a CPU or a GPU; run `ray start` without --num-cpus 0"
                )
            self._on_gpu = encoder.device in ("auto", "cuda", "all") and any(_gpus(node) for node in nodes)
            for node in _assign(nodes, self._on_gpu, count):
                self._start_worker(node)
            self._wait_all_ready()
        except BaseException:
            self.close()
            raise

    def submit(self, task: Task) -> None:
        self.submit_avoiding(task, "")

    def submit_avoiding(self, task: Task, host: str) -> None:
        free = [handle for handle in self._handles if handle.ready is None and len(handle.tasks) < TASKS_PER_WORKER]
        handle = min(free, key=lambda handle: (handle.host == host, len(handle.tasks)))
        handle.tasks.append(task.id)
        self._pending[handle.actor.work.remote(task)] = (task, handle)

    def collect(self, seconds: float) -> list[TaskResult | TaskLost]:
        self._check_cluster()
        starting = {handle.ready: handle for handle in self._handles if handle.ready is not None}
        ready, _ = self._ray.wait([*self._pending, *starting], num_returns=1, timeout=seconds)
        results: list[TaskResult | TaskLost] = []
        for future in ready:
            if future in starting:
                self._add_late_worker(starting[future])
                continue
            if future not in self._pending:  # its worker was lost at another task
                continue
            task, handle = self._pending.pop(future)
            handle.tasks.remove(task.id)
            try:
                result = self._ray.get(future)
            except self._ray.exceptions.RayTaskError as e:
                raise _with_host(handle.host, _cause(e)) from e
            except self._ray.exceptions.RayError:
                results += [TaskLost(task.id), *self._replace_lost(handle)]
            else:
                self._deaths[handle.node_id] = 0
                results.append(result)
        self.capacity = TASKS_PER_WORKER * sum(handle.ready is None for handle in self._handles)
        return results

    def exclude_host(self, host: str, why: str) -> list[TaskLost]:
        node_ids = {handle.node_id for handle in self._handles if handle.host == host}
        self._excluded |= node_ids
        self.lost.append(f"{host} was excluded: {why}")
        lost = [task for handle in list(self._handles) if handle.node_id in node_ids for task in self._remove(handle)]
        self.capacity = TASKS_PER_WORKER * sum(handle.ready is None for handle in self._handles)
        if not self._handles:
            raise SourceError(self._no_worker())
        return lost

    def close(self) -> None:
        if self._head_lost:  # any call to a silent head node blocks for minutes; the workers end by themselves
            atexit.register(_exit)
            return
        for handle in self._handles:
            self._ray.kill(handle.actor)
        if self._started_here:
            self._ray.shutdown()

    def _nodes(self) -> list[dict[str, Any]]:
        """Nodes that are alive and offer a CPU or a GPU."""
        return [node for node in self._ray.nodes() if node["Alive"] and (_gpus(node) or node["Resources"].get("CPU"))]

    def _start_worker(self, node: dict[str, Any]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node_id = node["NodeID"]
        host = self._hosts.setdefault(node_id, node["NodeManagerHostname"])
        actor_class = self._ray.remote(Worker).options(
            max_concurrency=TASKS_PER_WORKER,
            num_gpus=1 if self._on_gpu else 0,
            num_cpus=0,  # the number of threads is part of the options
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        actor = actor_class.remote(*self._worker_args)
        self._handles.append(_WorkerHandle(actor, node_id, host, actor.ready.remote(), actor.version.remote()))

    def _wait_all_ready(self) -> None:
        """Wait for the first workers; raises the error that kept one of them from starting."""
        until = time.monotonic() + START_TIMEOUT
        while waiting := {handle.ready: handle for handle in self._handles if handle.ready is not None}:
            ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=CHECK_INTERVAL)
            for future in ready:
                handle = waiting[future]
                try:
                    self._wait_ready(handle)
                except self._ray.exceptions.RayError:  # the worker died, perhaps with its host
                    self._replace_lost(handle)
            self._check_head()
            if time.monotonic() > until:
                names = ", ".join(sorted({handle.host for handle in waiting.values()}))
                raise SourceError(
                    f"{names}: no worker after {START_TIMEOUT:.0f} seconds; is the encoder on a slow disk?"
                )
        self.capacity = TASKS_PER_WORKER * len(self._handles)

    def _wait_ready(self, handle: _WorkerHandle) -> None:
        """Wait for a worker to start; raises its error with the name of its host, or RayError if the worker died."""
        future, handle.ready = handle.ready, None
        try:
            name, space = self._ray.get(future)
            version = self._ray.get(handle.version)
        except self._ray.exceptions.RayTaskError as e:
            raise _with_host(handle.host, _cause(e)) from e
        except self._ray.exceptions.RayActorError as e:
            if (cause := getattr(e, "cause", None)) is not None:
                raise _with_host(handle.host, cause) from e
            if "creation task" in str(e):  # it raised an exception whose type is missing on one of the two machines
                raise _with_host(handle.host, RuntimeError(_last_line(e))) from e
            raise
        if version != __version__:
            raise SourceError(
                f"{handle.host} has clipfake {version}, this machine has {__version__}; install one version everywhere"
            )
        self.space: Space = getattr(self, "space", space)
        if not self.space.same(space):
            raise SpaceMismatch(
                f"{name} and {self.workers[0]} have different encoders of the same name: {space} and {self.space}; "
                f"copy one directory to every host"
            )
        handle.name = name
        self.workers.append(name)

    def _add_late_worker(self, handle: _WorkerHandle) -> None:
        """Add a worker started during the run; if it fails, only its host is excluded and the run goes on."""
        try:
            self._wait_ready(handle)
        except ClipfakeError as e:
            self.exclude_host(handle.host, str(e).removeprefix(f"{handle.host}: "))
        except self._ray.exceptions.RayError:
            self._replace_lost(handle)

    def _replace_lost(self, handle: _WorkerHandle) -> list[TaskLost]:
        """Record that a worker died, start another if its host is alive, and return the worker's other tasks."""
        lost = self._remove(handle)
        node = next((node for node in self._nodes() if node["NodeID"] == handle.node_id), None)
        self._deaths[handle.node_id] += 1
        why = "its host is gone" if node is None else "its process died"
        tasks = f"; {len(lost) + 1} of its tasks were given to others" if handle.name else ""
        self.lost.append(f"{handle.name or handle.host} was lost ({why}){tasks}")
        if node is not None and self._deaths[handle.node_id] < MAX_DEATHS:
            self._start_worker(node)
        elif node is not None:
            self._excluded.add(handle.node_id)
            self.lost.append(
                f"{handle.host} was excluded: {MAX_DEATHS} of its workers died in a row without finishing a task"
            )
        if not self._handles:
            raise SourceError(self._no_worker())
        return lost

    def _remove(self, handle: _WorkerHandle) -> list[TaskLost]:
        self._handles.remove(handle)
        if handle.name in self.workers:
            self.workers.remove(handle.name)
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(handle.actor)  # it may be alive behind a broken network, and must not come back
        self._pending = {future: pair for future, pair in self._pending.items() if pair[1] is not handle}
        return [TaskLost(task_id) for task_id in handle.tasks]

    def _check_cluster(self) -> None:
        """Check at intervals that the head node is alive, and whether a host has joined."""
        if time.monotonic() - self._checked_at < CHECK_INTERVAL:
            return
        self._check_head()
        self._checked_at = time.monotonic()
        if not self._fixed:
            new = [node for node in self._nodes() if node["NodeID"] not in self._hosts]
            for node in _assign(new, self._on_gpu, None):
                self._start_worker(node)

    def _check_head(self) -> None:
        """Raise SourceError if the head node is silent for too long; Ray would hang, then exit this process."""
        while not _answers(self._head):
            if time.monotonic() - self._head_seen_at > HEAD_TIMEOUT:
                self._head_lost = True
                raise SourceError(
                    f"the Ray head node at {self._head} no longer answers. Rows embedded so far are stored; restart "
                    f"Ray (`ray stop`, then `ray start` on every host) and run the same command again"
                )
            time.sleep(1.0)
        self._head_seen_at = time.monotonic()

    def _no_worker(self) -> str:
        return "no usable host remains: " + "; ".join(self.lost or ["none joined"])


@dataclass(eq=False)
class _WorkerHandle:
    """A worker and its unfinished tasks."""

    actor: Any
    node_id: str
    host: str
    ready: Any  # future of `Worker.ready`, None once the worker is ready
    version: Any  # future of `Worker.version`
    name: str = ""  # host and process
    tasks: list[str] = field(default_factory=list)  # their ids


def _ray() -> Any:
    """Import Ray with its messages turned off."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # otherwise Ray reports lost hosts on standard output
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # otherwise Ray warns of a future change
    try:
        import ray
    except ImportError as e:
        raise MissingExtra("--engine ray", "ray") from e
    return ray


def _use_token() -> None:
    """Make Ray use its token if there is one; it does not by itself for an explicit address."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if "RAY_AUTH_MODE" in os.environ or not ("RAY_AUTH_TOKEN" in os.environ or token.is_file()):
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    with suppress(ImportError, AttributeError):  # releases without tokens
        raylet: Any = import_module("ray._raylet")
        raylet.Config.initialize("")  # Ray read the environment when it was imported


def _join(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start one on this machine; raises SourceError."""
    if address and address != "auto" and "://" not in address and not _answers(address):
        raise SourceError(
            f"no Ray cluster answers at {address}; run `ray start --head --port=PORT` there, or check the address"
        )
    if address:
        _use_token()
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
    except ray.exceptions.AuthenticationError as e:
        raise SourceError(_no_token(address)) from e
    except (ConnectionError, RuntimeError, ValueError) as e:
        message = f"{e} {e.__cause__}"
        if "uthentication" in message or "Unauthenticated" in message:
            raise SourceError(_no_token(address)) from e
        if "No node info" in message:
            raise SourceError(
                f"this machine is not part of the Ray cluster at {address}; run `ray start --address={address}` here "
                f"first (with --num-cpus=0 it only lists and stores, without a worker)"
            ) from e
        raise SourceError(f"Ray cannot be used at {address or 'this machine'}: {_last_line(e)}") from e


def _no_token(address: str | None) -> str:
    return (
        f"the Ray cluster at {address} requires a token that this machine does not have; copy ~/.ray/auth_token from "
        f"its head node to every host"
    )


def _exit() -> None:
    """Exit before Ray's own exit handlers, which block for minutes or crash once the head node is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _answers(address: str) -> bool:
    """True if something accepts connections at `address`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT).close()
    except (OSError, ValueError):
        return False
    return True


def _gpus(node: dict[str, Any]) -> int:
    return int(node["Resources"].get("GPU", 0))


def _assign(nodes: Sequence[dict[str, Any]], on_gpu: bool, count: int | None) -> list[dict[str, Any]]:
    """Return the node of each worker: one worker per GPU or per host, or `count` workers on the nodes in turn.

    >>> gpu_node, cpu_node = {"Resources": {"GPU": 2.0}}, {"Resources": {"CPU": 1.0}}
    >>> [node is gpu_node for node in _assign([gpu_node, cpu_node], True, None)]
    [True, True]
    >>> [node is gpu_node for node in _assign([gpu_node, cpu_node], False, 3)]
    [True, False, True]
    """
    workers = [_gpus(node) if on_gpu else count or 1 for node in nodes]
    assigned = [
        node
        for turn in range(max(workers, default=0))
        for node, most in zip(nodes, workers, strict=True)
        if turn < most
    ]
    return assigned[:count]


def _cause(error: Any) -> Exception:
    """Unwrap the error that a worker raised."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def _with_host(host: str, error: Exception) -> ClipfakeError:
    """Return the error of a worker with the name of its host."""
    if isinstance(error, ModuleNotFoundError) or "ModuleNotFoundError" in str(error) or "No module named" in str(error):
        name = getattr(error, "name", None) or "clipfake"
        return SourceError(
            f"{host}: {name} is not installed there; run `pip install 'clipfake[ray]'` on every host, "
            f"in the Python that runs Ray"
        )
    if isinstance(error, AttributeError) or "AttributeError" in str(error):  # the other version lacks a method
        return SourceError(f"{host} has another version of clipfake; install {__version__} on every host")
    if isinstance(error, ClipfakeError) and not isinstance(error, MissingExtra):  # MissingExtra composes its message
        return type(error)(f"{host}: {error}")
    error_name, _, rest = str(error).partition(": ")  # "clipfake.errors.EncoderError: …" if the type was lost
    kind = getattr(errors, error_name.rpartition(".")[2], None) if error_name.startswith("clipfake.") else None
    if isinstance(kind, type) and issubclass(kind, ClipfakeError) and kind is not MissingExtra:
        return kind(f"{host}: {rest}")
    return SourceError(f"{host}: {rest if kind else error}")


def _last_line(error: BaseException) -> str:
    """Last non-empty line of an error, since Ray's errors can be pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
