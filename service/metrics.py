"""Prometheus metrics of the service."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class ServiceMetrics:
    """One set of figures; each app has its own."""

    def __init__(self) -> None:
        self.registry = at = CollectorRegistry()
        self.requests = Counter("clipfake_requests", "Requests answered.", ["method", "route", "status"], registry=at)
        self.request_seconds = Histogram(
            "clipfake_request_seconds", "From a request to its answer.", ["route"], buckets=SECONDS, registry=at
        )
        stages = "Time by stage: read, decode, wait, encode, judge."
        self.stage_seconds = Histogram("clipfake_stage_seconds", stages, ["stage"], buckets=SECONDS, registry=at)
        self.batch = Histogram("clipfake_batch_images", "Images the encoder saw at once.", buckets=IMAGES, registry=at)
        waiting = "Images taken in whose vectors are not there yet."
        self.waiting = Gauge("clipfake_waiting_images", waiting, registry=at)
        kinds = "Refusals by kind; one for each image refused."
        self.problems = Counter("clipfake_problems", kinds, ["kind"], registry=at)
        self.verdicts = Counter("clipfake_verdicts", "Verdicts given.", ["verdict"], registry=at)
        self.rows = Gauge("clipfake_bank_rows", "Rows of the store that is served.", registry=at)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.stage_seconds.labels(name).observe(time.perf_counter() - begun)

    def text(self) -> bytes:
        return generate_latest(self.registry)
