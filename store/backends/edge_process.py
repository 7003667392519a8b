"""Qdrant Edge in a process of its own, which its signals do not outlive.

Edge maps its files, for writing too. A full disk, a file that is cut short and a disk that fails end a process that
has them mapped by SIGBUS. Here this ends a child process, and the caller gets a BackendDamaged.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ...errors import BackendDamaged, BackendError, StoreError
from ..records import Ids, Vectors
from ..space import Space
from .base import BackendFilter, SearchBackend
from .qdrant_base import CollectionLayout
from .qdrant_edge import QdrantEdge

THREADS = 16  # requests that the child process handles at a time
CLOSE_SECONDS = 60  # for flushing; then the process is killed


class EdgeProcess(SearchBackend):
    """A Qdrant Edge folder that a child process has open. The process is started by the first request that needs it."""

    def __init__(self, folder: Path, layout: CollectionLayout = CollectionLayout()) -> None:
        self._edge = QdrantEdge(folder, layout)  # never opened here
        self._arguments = folder.absolute(), layout
        self._lock = threading.Lock()
        self._child: _Child | None = None

    @property
    def name(self) -> str:
        return self._edge.name

    def exists(self) -> bool:
        return self._edge.exists()

    def remove(self) -> None:
        self.close()
        self._edge.remove()

    def close(self) -> None:
        with self._lock:
            child, self._child = self._child, None
        if child:
            child.close()

    def create(self, space: Space) -> None:
        self._request("create", space)

    def write_note(self, note_id: int, content: dict[str, Any]) -> None:
        self._request("write_note", note_id, content)

    def put(self, ids: Ids, vectors: Vectors, payloads: Sequence[dict[str, Any]]) -> None:
        self._request("put", ids, vectors, payloads)

    def drop(self, ids: Sequence[int]) -> None:
        self._request("drop", list(ids))

    def drop_shard(self, number: int) -> None:
        self._request("drop_shard", number)

    def ids_of(self, number: int) -> Ids:
        ids: Ids = self._request("ids_of", number)
        return ids

    def counts(self) -> dict[int, int]:
        counts: dict[int, int] = self._request("counts")
        return counts

    def count(self, allowed: BackendFilter) -> int:
        count: int = self._request("count", allowed)
        return count

    def search(self, queries: Vectors, k: int, allowed: BackendFilter, width: int | None) -> tuple[Ids, Vectors]:
        found: tuple[Ids, Vectors] = self._request("search", queries, k, allowed, width)
        return found

    def payloads(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        payloads: dict[int, dict[str, Any]] = self._request("payloads", list(ids))
        return payloads

    def build_indexes(self) -> None:
        self._request("build_indexes")

    def _request(self, method: str, *arguments: Any) -> Any:
        """The result of a method in the child process; raises its error, or BackendDamaged if the process ends."""
        with self._lock:
            if self._child is None or self._child.ended:
                self._child = _Child(*self._arguments)
                weakref.finalize(self, self._child.close)
            child = self._child
        try:
            return child.request(method, arguments).result()
        except EOFError as e:
            code = child.process.wait()
            if code == -signal.SIGBUS:
                raise BackendDamaged(
                    f"the process that had {self.name} open was ended by SIGBUS: the disk is full, or a file in the "
                    f"folder was cut short or cannot be read. Free disk space, check the disk, then delete the folder "
                    f"and run `clipfake store push` again"
                ) from e
            reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise BackendError(
                f"the process that had {self.name} open ended ({reason}); run the same command again. If it ends "
                f"again, delete the folder and run `clipfake store push` again"
            ) from e


class _Child:
    """The child process and the requests that it has not answered yet."""

    def __init__(self, folder: Path, layout: CollectionLayout) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            )
        self._connection = Connection(ours.detach())
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}
        self._requests = 0
        self.ended = False
        self._connection.send((folder, layout))
        threading.Thread(target=self._receive, name="qdrant edge", daemon=True).start()

    def request(self, method: str, arguments: tuple[Any, ...]) -> Future[Any]:
        """Send a request. Its result is the method's; its error is the method's, or EOFError if the process ends."""
        result: Future[Any] = Future()
        with self._lock:
            if self.ended:
                result.set_exception(EOFError())
                return result
            self._requests += 1
            self._waiting[self._requests] = result
            with suppress(OSError):  # the process has ended, which _receive finds
                self._connection.send((self._requests, method, arguments))
        return result

    def close(self) -> None:
        """Close the folder and end the process."""
        with self._lock, suppress(OSError):
            if not self.ended:
                self._connection.send(None)
        try:
            self.process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _receive(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                number, result, error = self._connection.recv()
                with self._lock:
                    future = self._waiting.pop(number)
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)
        with self._lock:
            self.ended = True
            self._connection.close()
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(EOFError())


def main() -> None:
    """Answer the requests on the socket whose number is the argument. The request None closes the folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the folder
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lock = threading.Lock()
    connection = Connection(int(sys.argv[1]))
    edge = QdrantEdge(*connection.recv())

    def answer(number: int, method: str, arguments: tuple[Any, ...]) -> None:
        result, error = None, None
        try:
            result = getattr(edge, method)(*arguments)
        except StoreError as e:
            error = e
        except (TypeError, ValueError, MemoryError, OSError) as e:  # of Python's side; those of Edge are translated
            error = BackendError(f"{edge.name} cannot be used ({e!r})")
        with lock, suppress(OSError):  # the parent has ended
            connection.send((number, result, error))

    with ThreadPoolExecutor(THREADS) as threads:
        try:
            while (request := connection.recv()) is not None:
                threads.submit(answer, *request)
        except (EOFError, OSError):  # the parent was killed, and the folder must not stay locked
            os._exit(1)
    edge.close()


if __name__ == "__main__":
    main()
