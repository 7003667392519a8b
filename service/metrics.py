"""Prometheus metrics of the service."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class ServiceMetrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "clipfake_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "clipfake_request_seconds",
            "Time from request to response.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "clipfake_stage_seconds",
            "Time by stage: read, decode, wait, encode, judge.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "clipfake_batch_images", "Images in one forward pass.", buckets=IMAGES, registry=self.registry
        )
        self.waiting = Gauge("clipfake_waiting_images", "Accepted images without a vector yet.", registry=self.registry)
        self.problems = Counter(
            "clipfake_problems", "Problems by kind, one for each refused image.", ["kind"], registry=self.registry
        )
        self.verdicts = Counter("clipfake_verdicts", "Verdicts by answer.", ["verdict"], registry=self.registry)
        self.rows = Gauge("clipfake_bank_rows", "Rows of the store that is served.", registry=self.registry)
        self.connections = Gauge("clipfake_connections", "Open connections.", registry=self.registry)
        self.closed = Counter(
            "clipfake_connections_closed",
            "Connections closed by the service: late, stalled, replaced or refused.",
            ["reason"],
            registry=self.registry,
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record the time spent inside the `with` block as one stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stage_seconds.labels(name).observe(time.perf_counter() - started)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)
