"""Machine-readable progress: JSON lines, and a text file for Prometheus' node exporter.

Each class is a `progress` callback for `index`; `all_of` combines several.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..core.atomic_files import write_text
from .report import IndexReport

Clock = Callable[[], float]  # seconds


class JsonLines:
    """Write one JSON object per line, at most one every `every` seconds, and a last one with `"event": "end"`.

    Fields: event, seconds, added, known, replaced, relabelled, bad, images_per_second (of the whole run),
    images_per_second_now, busy (share of each stage) and limit (the busiest stage).
    """

    def __init__(self, stream: TextIO, *, every: float = 1.0, clock: Clock = time.monotonic) -> None:
        self._stream, self._due = stream, _Due(every, clock)

    def __call__(self, report: IndexReport) -> None:
        if self._due(report):
            event = "end" if report.ended else "progress"
            self._stream.write(json.dumps({"event": event, **figures(report)}) + "\n")
            self._stream.flush()


class PrometheusFile:
    """Write the figures of a run to a `.prom` file, atomically; its counters start from 0 with each run."""

    def __init__(self, path: Path, *, every: float = 15.0, clock: Clock = time.monotonic) -> None:
        self._path, self._due = path, _Due(every, clock)

    def __call__(self, report: IndexReport) -> None:
        if self._due(report):
            from prometheus_client import CollectorRegistry, generate_latest

            registry = CollectorRegistry()
            registry.register(RunCollector(report))
            write_text(self._path, generate_latest(registry).decode())


def all_of(*writers: Callable[[IndexReport], None]) -> Callable[[IndexReport], None]:
    """Return a callback that calls the given ones in order."""

    def write_all(report: IndexReport) -> None:
        for writer in writers:
            writer(report)

    return write_all


def figures(report: IndexReport) -> dict[str, Any]:
    """State of a run as plain numbers."""
    return {
        "seconds": round(report.seconds, 3),
        "added": report.added,
        "known": report.known,
        "replaced": report.replaced,
        "relabelled": report.relabelled,
        "bad": len(report.skipped),
        "images_per_second": round(report.images_per_second, 2),
        "images_per_second_now": round(report.images_per_second_now, 2),
        "busy": {name: round(stage.share(report.seconds), 4) for name, stage in report.stages.items()},
        "limit": report.limit,
    }


@dataclass(frozen=True, eq=False)  # a registry keeps its collectors by identity
class RunCollector:
    """The state of a run as Prometheus' metric families."""

    report: IndexReport

    def collect(self) -> Iterator[Any]:
        """Yield the families."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        values = figures(self.report)
        images = CounterMetricFamily("clipfake_index_images", "Images processed by the run.", labels=["outcome"])
        for outcome in ("added", "known", "replaced", "relabelled", "bad"):
            images.add_metric([outcome], values[outcome])
        yield images
        busy = GaugeMetricFamily(
            "clipfake_index_stage_busy_ratio", "Share of the time that each stage was busy.", labels=["stage"]
        )
        for stage, share in values["busy"].items():
            busy.add_metric([stage], share)
        yield busy
        for name, description, value in (
            ("images_per_second", "Images stored per second.", values["images_per_second_now"]),
            ("seconds", "Seconds since the run began.", values["seconds"]),
            ("running", "1 while the run is going on, 0 when it has ended.", int(not self.report.ended)),
        ):
            yield GaugeMetricFamily(f"clipfake_index_{name}", description, value)


class _Due:
    """Limit of updates: True at most once every `every` seconds, and at the end of a run."""

    def __init__(self, every: float, clock: Clock) -> None:
        self._every, self._clock, self._next = every, clock, float("-inf")

    def __call__(self, report: IndexReport) -> bool:
        now = self._clock()
        if now < self._next and not report.ended:
            return False
        self._next = now + self._every
        return True
