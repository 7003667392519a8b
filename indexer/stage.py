"""Utilisation of the stages of a run, and which of them limits its speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock


@dataclass
class Stage:
    """Utilisation of one stage."""

    workers: int = 1
    seconds: float = 0.0  # seconds of work, summed over the workers
    _lock: Lock = field(default_factory=Lock, repr=False)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count the time spent inside the `with` block as work."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(time.perf_counter() - began)

    def add(self, seconds: float) -> None:
        with self._lock:
            self.seconds += seconds

    def share(self, seconds: float) -> float:
        """Share of `seconds` spent on work, 0 to 1; a stage near 1 limits the run."""
        return min(self.seconds / (seconds * self.workers), 1.0) if seconds else 0.0


def limit_of(stages: dict[str, Stage], seconds: float) -> str:
    """Name of the busiest stage, which the others wait for.

    >>> limit_of({"decode": Stage(4, 20.0), "encode": Stage(1, 9.0)}, 10.0)
    'encode'
    """
    return max(stages, key=lambda name: stages[name].share(seconds), default="")
