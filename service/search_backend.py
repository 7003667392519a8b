"""The search engine behind the service, where there is one: how it fails is told to people without where it is."""

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

Elsewhere = Callable[[Snapshot], Searcher]  # who is asked for the nearest rows of a snapshot
REST = 5.0  # seconds for which an engine that is away or slow is not asked again: each who waits for it keeps a thread
LOG = logging.getLogger("clipfake.service")


class GuardedBackend:
    """Search back end behind the service. All its failures become HttpProblems; the log has the details."""

    def __init__(self, elsewhere: Elsewhere) -> None:
        self._elsewhere = elsewhere
        self._failure: StoreError | None = None  # the last one, if nothing went well since
        self._rests_until = 0.0

    def of(self, snapshot: Snapshot) -> Searcher:
        """Return a guarded searcher for a snapshot; raises HttpProblem if the back end fails or holds other rows."""
        with self.guarded(StoreError):
            return GuardedSearcher(self, self._elsewhere(snapshot))

    @contextmanager
    def guarded(self, *failures: type[StoreError]) -> Iterator[None]:
        """Inside, these errors are the engine's and become Problems."""
        before = self._failure
        if before and (left := self._rests_until - monotonic()) > 0:
            raise problem_of_engine(before, left)
        try:
            yield
        except failures as e:
            self._log(e)
            rest = REST if isinstance(e, BackendUnavailable | BackendTimeout) else 0.0
            self._failure, self._rests_until = e, monotonic() + rest
            raise problem_of_engine(e, rest) from e
        if before:
            LOG.warning("the search engine answers again")
            self._failure = None

    def _log(self, failure: StoreError) -> None:
        if str(failure) != str(self._failure):  # once, not with every request
            LOG.error("the search engine fails: %s", failure)


@dataclass(frozen=True)
class GuardedSearcher:
    """An engine as one snapshot's search."""

    engine: GuardedBackend
    searches: Searcher

    def search(self, queries: Vectors, k: int, where: Mask | None = None, recall: float = 0.99) -> Matches:
        with self.engine.guarded(BackendError, Locked):  # what else may be wrong is so with the store or the question
            return self.searches.search(queries, k, where, recall)


def problem_of_engine(failure: StoreError, rest: float = 0.0) -> HttpProblem:
    """A failure in words that tell nothing of where the engine is.

    >>> problem_of_engine(BackendUnavailable("http://10.0.0.7:6333 cannot be reached")).status
    503
    """
    seconds = str(max(1, math.ceil(rest)))
    if isinstance(failure, BackendTimeout):
        message = f"the search engine behind this service did not answer in time; try again in {seconds} s"
        return HttpProblem("engine-slow", message, headers={"Retry-After": seconds})
    if isinstance(failure, BackendUnavailable | Locked):
        message = f"the search engine behind this service cannot be reached; try again in {seconds} s"
        return HttpProblem("engine-down", message, headers={"Retry-After": seconds})
    message = "the search engine behind this service refuses, or does not hold the rows of this store"
    return HttpProblem("engine-failed", f"{message}; whoever runs the service finds the reason in its log")
