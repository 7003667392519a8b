"""A bound on what is logged when clients can repeat a message at will: a few lines a minute, then a count."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOGGERS = ("clipfake.service", "uvicorn.error", "asyncio")
LINES = 5  # of one message in a period
SECONDS = 60.0  # of a period
KINDS = 1000  # different messages remembered
Kind = tuple[str, int, str, str]  # logger, level, first line, type of the exception


class RepeatedLogFilter(logging.Filter):
    """Let a few lines of each message through in a period, and count the others. Thread-safe."""

    def __init__(
        self, lines: int = LINES, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._lines, self._seconds, self._clock = lines, seconds, clock
        self._lock = threading.Lock()
        self._seen: dict[Kind, tuple[float, int]] = {}  # end of the period, records in it

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "counts_repeats", False):
            return True
        error = record.exc_info[0] if record.exc_info else None
        first = str(record.msg).strip().partition("\n")[0][:200]
        kind = (record.name, record.levelno, first, error.__name__ if error else "")
        with self._lock:
            if kind not in self._seen and len(self._seen) >= KINDS:
                return False
            end, count = self._seen.get(kind, (self._clock() + self._seconds, 0))
            self._seen[kind] = end, count + 1
            return count < self._lines

    def flush(self, *, final: bool = False) -> None:
        """Log how often each message was repeated in a period that has ended; in every period if `final` is set."""
        now = self._clock()
        with self._lock:
            ended = {kind: count for kind, (end, count) in self._seen.items() if final or end <= now}
            for kind in ended:
                del self._seen[kind]
        for (name, level, first, _), count in ended.items():
            if count > self._lines:
                message = "%d more times within %g s: %s"
                extra = {"counts_repeats": True}
                logging.getLogger(name).log(level, message, count - self._lines, self._seconds, first, extra=extra)


@contextmanager
def few_repeats(limited: RepeatedLogFilter) -> Iterator[None]:
    """Bound what the loggers of the service, of uvicorn and of asyncio write inside the `with` block."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(limited)
    try:
        yield
    finally:
        limited.flush(final=True)
        for logger in loggers:
            logger.removeFilter(limited)
