"""Guard an external search back end: its errors become problems that do not reveal its address."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from ..errors import BackendError, BackendTimeout, BackendUnavailable, Locked, StoreError
from ..store.records import Mask, Vectors
from ..store.search.matches import Matches, Searcher
from ..store.snapshot import Snapshot
from .problems import HttpProblem

SearcherFactory = Callable[[Snapshot], Searcher]
# Seconds until a failed back end is tried again, since every request that waits for it holds a thread.
PAUSE_SECONDS = 5.0
LOG = logging.getLogger("clipfake.service")


class GuardedBackend:
    """An external search back end. Its failures become HttpProblems; the log has the details."""

    def __init__(self, searcher_for: SearcherFactory) -> None:
        self._searcher_for = searcher_for
        self._failure: StoreError | None = None  # the last failure, None after a success
        self._paused_until = 0.0

    def of(self, snapshot: Snapshot) -> Searcher:
        """Return a guarded searcher for a snapshot; raises HttpProblem if the back end fails or holds other rows."""
        with self.guarded(StoreError):
            return GuardedSearcher(self, self._searcher_for(snapshot))

    @contextmanager
    def guarded(self, *failures: type[StoreError]) -> Iterator[None]:
        """Convert these errors inside the `with` block to HttpProblems."""
        previous = self._failure
        if previous and (remaining := self._paused_until - monotonic()) > 0:
            raise backend_problem(previous, remaining)
        try:
            yield
        except failures as e:
            self._log(e)
            pause = PAUSE_SECONDS if isinstance(e, BackendUnavailable | BackendTimeout) else 0.0
            self._failure, self._paused_until = e, monotonic() + pause
            raise backend_problem(e, pause) from e
        if previous:
            LOG.warning("the search back end works again")
            self._failure = None

    def _log(self, failure: StoreError) -> None:
        if str(failure) != str(self._failure):  # once, not with every request
            LOG.error("the search back end fails: %s", failure)


@dataclass(frozen=True)
class GuardedSearcher:
    """Searcher of one snapshot by a guarded back end."""

    backend: GuardedBackend
    searcher: Searcher

    def search(self, queries: Vectors, k: int, where: Mask | None = None, recall: float = 0.99) -> Matches:
        with self.backend.guarded(BackendError, Locked):  # other errors are about the store or the query
            return self.searcher.search(queries, k, where, recall)


def backend_problem(failure: StoreError, pause: float = 0.0) -> HttpProblem:
    """Convert a failure of the back end to a problem that does not reveal its address.

    >>> backend_problem(BackendUnavailable("http://10.0.0.7:6333 cannot be reached")).status
    503
    """
    seconds = str(max(1, math.ceil(pause)))
    if isinstance(failure, BackendTimeout):
        message = f"the search back end of this service did not respond in time; try again in {seconds} s"
        return HttpProblem("engine-slow", message, headers={"Retry-After": seconds})
    if isinstance(failure, BackendUnavailable | Locked):
        message = f"the search back end of this service cannot be reached; try again in {seconds} s"
        return HttpProblem("engine-down", message, headers={"Retry-After": seconds})
    message = "the search back end of this service failed or does not hold the rows of this store"
    return HttpProblem("engine-failed", f"{message}; ask the operator to read the service's log")
