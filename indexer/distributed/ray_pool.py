"""A crew of Ray's actors, on many machines. Units and receipts cross Ray, never pixels. Needs the extra `ray`.

Each worker is bound to its host: so a host can be left out, and one that joins gets its own.
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
from .worker import AT_ONCE, STARTING, Worker
from .worker_pool import WorkerPool

LOOK = 5.0  # seconds after which hosts are looked for that joined, and whether the head is there
SILENT = 20.0  # seconds without a word of the head that end a run: after 60 Ray itself would end our process, wordless
CONNECT = 5.0  # seconds for the head to take a connection
DEATHS = 3  # workers of a host in a row before any of them did a unit: it is left out


class RayPool(WorkerPool):
    """Workers as Ray's actors, one a GPU of each host, or one a host where there is none."""

    elsewhere = True

    def __init__(
        self,
        encoder: EncoderSpec,
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
        address : of a running Ray cluster ("auto", "head:6379"), to which this machine belongs; None starts one here
        count : of workers, hosts in turn; None: one a GPU of the cluster, or one a host where there is none, and hosts
            that join later get theirs

        Raises
        ------
        MissingExtra
            Ray is not installed.
        SourceError
            No cluster answers at the address, or a host lacks what a worker needs; named.
        EncoderError, SpaceMismatch
            Of a host, named.
        """
        self._ray = _ray()
        self._mine = not self._ray.is_initialized()
        self._told = (encoder, folder.resolve(), options)  # absolute: a worker's working directory is its own
        self._hands: list[_WorkerHandle] = []
        self._promised: dict[
            Any, tuple[Task, _WorkerHandle]
        ] = {}  # the promise of a receipt -> the unit and its worker
        self._hosts: dict[str, str] = {}  # Ray's name of a host -> its own; all that ever had a worker
        self._left_out: set[str] = set()  # hosts by Ray's name, that get no worker
        self._deaths: Counter[str] = Counter()  # by host, since it did a unit
        self._given_up = False
        self._fixed = count is not None
        self.workers, self.lost = [], []
        if self._mine:
            _join(self._ray, address)
        try:
            self._head = self._ray.get_runtime_context().gcs_address
            self._looked = self._heard = time.monotonic()
            nodes = self._nodes()
            if not nodes:
                raise SourceError(
                    "no host of this Ray has a core or a GPU to give; run `ray start` without --num-cpus 0"
                )
            self._on_gpu = encoder.device in ("auto", "cuda", "all") and any(_gpus(node) for node in nodes)
            for node in _places(nodes, self._on_gpu, count):
                self._hire(node)
            self._await_all()
        except BaseException:
            self.dismiss()
            raise

    def give(self, unit: Task) -> None:
        self.give_elsewhere(unit, "")

    def give_elsewhere(self, unit: Task, host: str) -> None:
        free = [hand for hand in self._hands if hand.ready is None and len(hand.units) < AT_ONCE]
        hand = min(free, key=lambda hand: (hand.host == host, len(hand.units)))
        hand.units.append(unit.id)
        self._promised[hand.actor.work.remote(unit)] = (unit, hand)

    def take(self, seconds: float) -> list[TaskResult | TaskLost]:
        self._look()
        hired = {hand.ready: hand for hand in self._hands if hand.ready is not None}
        ready, _ = self._ray.wait([*self._promised, *hired], num_returns=1, timeout=seconds)
        results: list[TaskResult | TaskLost] = []
        for promise in ready:
            if promise in hired:
                self._welcome(hired[promise])
                continue
            if promise not in self._promised:  # its worker was lost over the other unit it had
                continue
            unit, hand = self._promised.pop(promise)
            hand.units.remove(unit.id)
            try:
                receipt = self._ray.get(promise)
            except self._ray.exceptions.RayTaskError as e:
                raise _of_host(hand.host, _cause(e)) from e
            except self._ray.exceptions.RayError:
                results += [TaskLost(unit.id), *self._lose(hand)]
            else:
                self._deaths[hand.node] = 0
                results.append(receipt)
        self.room = AT_ONCE * sum(hand.ready is None for hand in self._hands)
        return results

    def leave_out(self, host: str, why: str) -> list[TaskLost]:
        nodes = {hand.node for hand in self._hands if hand.host == host}
        self._left_out |= nodes
        self.lost.append(f"{host} was left out: {why}")
        lost = [unit for hand in list(self._hands) if hand.node in nodes for unit in self._let_go(hand)]
        self.room = AT_ONCE * sum(hand.ready is None for hand in self._hands)
        if not self._hands:
            raise SourceError(self._nobody())
        return lost

    def dismiss(self) -> None:
        if self._given_up:  # whatever asks a silent head waits for minutes; the workers end by themselves
            atexit.register(_leave)
            return
        for hand in self._hands:
            self._ray.kill(hand.actor)
        if self._mine:
            self._ray.shutdown()

    def _nodes(self) -> list[dict[str, Any]]:
        """Hosts that are there and have something to work with."""
        return [node for node in self._ray.nodes() if node["Alive"] and (_gpus(node) or node["Resources"].get("CPU"))]

    def _hire(self, node: dict[str, Any]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        where = node["NodeID"]
        self._hosts.setdefault(where, node["NodeManagerHostname"])
        actor = self._ray.remote(Worker).options(
            max_concurrency=AT_ONCE,
            num_gpus=1 if self._on_gpu else 0,
            num_cpus=0,  # the workers' threads are told in the options
            scheduling_strategy=NodeAffinitySchedulingStrategy(where, soft=False),
        )
        made = actor.remote(*self._told)
        self._hands.append(_WorkerHandle(made, where, self._hosts[where], made.ready.remote(), made.version.remote()))

    def _await_all(self) -> None:
        """Wait for the first workers; raises what kept one from its work."""
        until = time.monotonic() + STARTING
        while waiting := {hand.ready: hand for hand in self._hands if hand.ready is not None}:
            ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=LOOK)
            for promise in ready:
                hand = waiting[promise]
                try:
                    self._meet(hand)
                except self._ray.exceptions.RayError:  # it died, perhaps with its host
                    self._lose(hand)
            self._mind_the_head()
            if time.monotonic() > until:
                names = ", ".join(sorted({hand.host for hand in waiting.values()}))
                raise SourceError(f"{names}: no worker after {STARTING:.0f} seconds; is the encoder on a slow disk?")
        self.room = AT_ONCE * len(self._hands)

    def _meet(self, hand: _WorkerHandle) -> None:
        """Take a worker on; raises what kept it from its work, with its host, or Ray's own error where it died."""
        promise, hand.ready = hand.ready, None
        try:
            where, space = self._ray.get(promise)
            version = self._ray.get(hand.version)
        except self._ray.exceptions.RayTaskError as e:
            raise _of_host(hand.host, _cause(e)) from e
        except self._ray.exceptions.RayActorError as e:
            if (cause := getattr(e, "cause", None)) is not None:
                raise _of_host(hand.host, cause) from e
            if "creation task" in str(e):  # what it raised is of a kind that is not there, or here
                raise _of_host(hand.host, RuntimeError(_short(e))) from e
            raise
        if version != __version__:
            raise SourceError(
                f"{hand.host} has clipfake {version}, this machine {__version__}; install the same on every host"
            )
        self.space: Space = getattr(self, "space", space)
        if not self.space.same(space):
            raise SpaceMismatch(
                f"{where} and {self.workers[0]} have two encoders of one name: {space} and {self.space}; "
                f"copy one directory to every host"
            )
        hand.name = where
        self.workers.append(where)

    def _welcome(self, hand: _WorkerHandle) -> None:
        """A worker that was hired in the middle of the run; where it cannot work its host is left out, not the run."""
        try:
            self._meet(hand)
        except ClipfakeError as e:
            self.leave_out(hand.host, str(e).removeprefix(f"{hand.host}: "))
        except self._ray.exceptions.RayError:
            self._lose(hand)

    def _lose(self, hand: _WorkerHandle) -> list[TaskLost]:
        """Note that a worker is gone, hire another if its host is there, and tell the other units it had."""
        lost = self._let_go(hand)
        node = next((node for node in self._nodes() if node["NodeID"] == hand.node), None)
        self._deaths[hand.node] += 1
        why = "its host is gone" if node is None else "its process died"
        units = f"; {len(lost) + 1} of its units were given to others" if hand.name else ""
        self.lost.append(f"{hand.name or hand.host} was lost ({why}){units}")
        if node is not None and self._deaths[hand.node] < DEATHS:
            self._hire(node)
        elif node is not None:
            self._left_out.add(hand.node)
            self.lost.append(f"{hand.host} was left out: {DEATHS} of its workers died and no unit was done between")
        if not self._hands:
            raise SourceError(self._nobody())
        return lost

    def _let_go(self, hand: _WorkerHandle) -> list[TaskLost]:
        self._hands.remove(hand)
        if hand.name in self.workers:
            self.workers.remove(hand.name)
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(hand.actor)  # it may be alive behind a network that is not: it must not come back
        self._promised = {promise: given for promise, given in self._promised.items() if given[1] is not hand}
        return [TaskLost(unit) for unit in hand.units]

    def _look(self) -> None:
        """Check from time to time that the head node is alive, and whether a host has joined."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._mind_the_head()
        self._looked = time.monotonic()
        if not self._fixed:
            new = [node for node in self._nodes() if node["NodeID"] not in self._hosts]
            for node in _places(new, self._on_gpu, None):
                self._hire(node)

    def _mind_the_head(self) -> None:
        """Raise SourceError where the head has been silent for long; Ray would hang, then end this process."""
        while not _answers(self._head):
            if time.monotonic() - self._heard > SILENT:
                self._given_up = True
                raise SourceError(
                    f"the head of Ray at {self._head} does not answer any more. What was embedded is stored; start Ray "
                    f"anew (`ray stop`, then `ray start` on every host) and run the same command again"
                )
            time.sleep(1.0)
        self._heard = time.monotonic()

    def _nobody(self) -> str:
        return "no host is left that can work: " + "; ".join(self.lost or ["none joined"])


@dataclass(eq=False)
class _WorkerHandle:
    """A worker and what it is at."""

    actor: Any
    node: str  # Ray's name of its host
    host: str
    ready: Any  # the promise that it is, None once it is kept
    version: Any  # the promise of its clipfake's
    name: str = ""  # host and process
    units: list[str] = field(default_factory=list)


def _ray() -> Any:
    """Ray, told to keep quiet."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # else it writes of lost hosts to standard output
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of a change to come
    try:
        import ray
    except ImportError as e:
        raise MissingExtra("--engine ray", "ray") from e
    return ray


def _show_token() -> None:
    """Make Ray use its token where there is one; for a named address it does not by itself."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if "RAY_AUTH_MODE" in os.environ or not ("RAY_AUTH_TOKEN" in os.environ or token.is_file()):
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    with suppress(ImportError, AttributeError):  # releases without tokens
        raylet: Any = import_module("ray._raylet")
        raylet.Config.initialize("")  # it read the environment when it was imported


def _join(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start one here; raises SourceError."""
    if address and address != "auto" and "://" not in address and not _answers(address):
        raise SourceError(
            f"no Ray answers at {address}; run `ray start --head --port=PORT` there, or look at the address"
        )
    if address:
        _show_token()
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
    except ray.exceptions.AuthenticationError as e:
        raise SourceError(_no_token(address)) from e
    except (ConnectionError, RuntimeError, ValueError) as e:
        whole = f"{e} {e.__cause__}"
        if "uthentication" in whole or "Unauthenticated" in whole:
            raise SourceError(_no_token(address)) from e
        if "No node info" in whole:
            raise SourceError(
                f"this machine is no part of the Ray at {address}; run `ray start --address={address}` here first "
                f"(with --num-cpus=0 it lists and stores, and gets no worker)"
            ) from e
        raise SourceError(f"Ray cannot be used at {address or 'this machine'}: {_short(e)}") from e


def _no_token(address: str | None) -> str:
    return (
        f"the Ray at {address} asks for a token that this machine does not have; copy ~/.ray/auth_token from its head "
        f"to every host"
    )


def _leave() -> None:
    """End a process that lost its head before Ray, at its own end, waits for minutes or crashes over it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _answers(address: str) -> bool:
    """True if something accepts a connection there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT).close()
    except (OSError, ValueError):
        return False
    return True


def _gpus(node: dict[str, Any]) -> int:
    return int(node["Resources"].get("GPU", 0))


def _places(nodes: Sequence[dict[str, Any]], on_gpu: bool, count: int | None) -> list[dict[str, Any]]:
    """Assign each worker to a node: one per GPU, or one per host, or a given number in turn.

    >>> here, there = {"Resources": {"GPU": 2.0}}, {"Resources": {"CPU": 1.0}}
    >>> [node is here for node in _places([here, there], True, None)]
    [True, True]
    >>> [node is here for node in _places([here, there], False, 3)]
    [True, False, True]
    """
    room = [_gpus(node) if on_gpu else count or 1 for node in nodes]
    turns = [
        node for turn in range(max(room, default=0)) for node, most in zip(nodes, room, strict=True) if turn < most
    ]
    return turns[:count]


def _cause(error: Any) -> Exception:
    """Unwrap the error that a worker raised."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def _of_host(host: str, error: Exception) -> ClipfakeError:
    """Return the same error with the host on which it happened."""
    if isinstance(error, ModuleNotFoundError) or "ModuleNotFoundError" in str(error) or "No module named" in str(error):
        name = getattr(error, "name", None) or "clipfake"
        return SourceError(
            f"{host}: {name} is not installed there; run `pip install 'clipfake[ray]'` on every host, "
            f"in the Python that runs Ray"
        )
    if isinstance(error, AttributeError) or "AttributeError" in str(error):  # a method that it lacks
        return SourceError(f"{host} has another clipfake than this machine; install {__version__} on every host")
    if isinstance(error, ClipfakeError) and not isinstance(error, MissingExtra):  # which makes its own message
        return type(error)(f"{host}: {error}")
    error_name, _, rest = str(error).partition(": ")  # "clipfake.errors.EncoderError: …" of one whose type is lost
    kind = getattr(errors, error_name.rpartition(".")[2], None) if error_name.startswith("clipfake.") else None
    if isinstance(kind, type) and issubclass(kind, ClipfakeError) and kind is not MissingExtra:
        return kind(f"{host}: {rest}")
    return SourceError(f"{host}: {rest if kind else error}")


def _short(error: BaseException) -> str:
    """The last line that says something of what is often pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
