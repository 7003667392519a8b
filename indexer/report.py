"""Report of an indexing run, updated while it runs: counts, reasons, speed, and the limiting stage."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from ..store.records import FAKE, LABELS
from .sources.image_ref import ImageRef, PassedOver
from .stage import Stage, limit_of

RECENT = 30.0  # seconds over which the current speed is averaged


@dataclass
class IndexReport:
    """Report of an indexing run, updated while it runs."""

    added: int = 0
    known: int = 0
    replaced: int = 0
    relabelled: int = 0  # rows of unchanged images whose label, target, source, generator or category was corrected
    labels_kept: int = 0  # rows of unchanged images whose stored label or category stays, as none is listed any more
    dropped: int = 0  # rows whose file is gone
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (key, reason)
    sources: Counter[tuple[str, str]] = field(default_factory=Counter)  # (source, label) -> rows listed
    targets: Counter[tuple[str, int]] = field(default_factory=Counter)  # (source, raw target) -> rows listed
    generators: dict[str, set[str]] = field(default_factory=dict)  # source -> generators of its fake images
    roots: set[str] = field(default_factory=set)  # first parts of the keys of listed images
    passed_over: dict[str, PassedOver] = field(default_factory=dict)  # reason -> files that are not indexed
    tried: int = 0  # images read, good or bad
    bad: int = 0  # images read that were bad
    seconds: float = 0.0
    interrupted: bool = False
    ended: bool = False  # True in the last update
    batch_size: int = 0  # at the end of the run; smaller than the requested size if memory ran out
    stages: dict[str, Stage] = field(default_factory=dict)
    decoded_by: dict[str, int] = field(default_factory=dict)  # decoder -> images
    decoder_unused: str = ""  # why the GPU decoder is not used, "" if it is
    workers: list[str] = field(default_factory=list)  # host and process of each worker of a pool
    lost: list[str] = field(default_factory=list)  # workers and hosts that were lost or excluded, and why
    _ticks: deque[tuple[float, int]] = field(default_factory=deque, repr=False)

    @property
    def done(self) -> int:
        """Images stored by this run."""
        return self.added + self.replaced

    @property
    def listed(self) -> int:
        return sum(self.sources.values())

    @property
    def images_per_second(self) -> float:
        """Images stored per second, averaged over the whole run."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def images_per_second_now(self) -> float:
        """Images stored per second, averaged over the last `RECENT` seconds."""
        (first, before), (last, now) = (self._ticks[0], self._ticks[-1]) if self._ticks else ((0.0, 0), (0.0, 0))
        return (now - before) / (last - first) if last > first else self.images_per_second

    @property
    def limit(self) -> str:
        """Stage that the others waited for: "list", "decode", "encode", "write" or "commit"."""
        return limit_of(self.stages, self.seconds)

    def stage(self, name: str, workers: int) -> Stage:
        """Return the stage of this name, created if it does not exist."""
        return self.stages.setdefault(name, Stage(workers))

    def tick(self, seconds: float) -> None:
        """Record the progress of the run after `seconds`."""
        self.seconds = seconds
        now = time.monotonic()
        self._ticks.append((now, self.done))
        while len(self._ticks) > 2 and now - self._ticks[0][0] > RECENT:
            self._ticks.popleft()

    def count_listed(self, ref: ImageRef) -> None:
        """Count a listed image by source, label and target."""
        self.sources[ref.source, LABELS[ref.label]] += 1
        self.targets[ref.source, ref.target] += 1
        self.roots.add(ref.key.partition("/")[0])
        if ref.generator:
            self.generators.setdefault(ref.source, set()).add(ref.generator)

    def add_passed_over(self, files: PassedOver) -> None:
        """Add files of a source that are not indexed."""
        before = self.passed_over.get(files.reason)
        number = files.files + (before.files if before else 0)
        self.passed_over[files.reason] = PassedOver(files.reason, number, (before or files).example)

    def distribution(self) -> list[dict[str, Any]]:
        """Listed rows of each source by target (the data set's class code) and by label."""
        return [
            {
                "source": source,
                "targets": {str(t): n for (s, t), n in sorted(self.targets.items()) if s == source},
                "labels": {label: self.sources[source, label] for label in LABELS.values()},
            }
            for source in sorted({source for source, _ in self.sources})
        ]

    def _generators(self, source: str, label: str) -> list[str]:
        return sorted(self.generators.get(source, ())) if label == LABELS[FAKE] else []

    def to_dict(self) -> dict[str, Any]:
        return {
            "added": self.added,
            "known": self.known,
            "replaced": self.replaced,
            "relabelled": self.relabelled,
            "labels_kept": self.labels_kept,
            "dropped": self.dropped,
            "skipped": [{"key": key, "reason": reason} for key, reason in self.skipped],
            "passed_over": [files._asdict() for files in self.passed_over.values()],
            "sources": [
                {"source": source, "label": label, "rows": rows, "generators": self._generators(source, label)}
                for (source, label), rows in sorted(self.sources.items())
            ],
            "distribution": self.distribution(),
            "images_per_second": round(self.images_per_second, 2),
            "seconds": round(self.seconds, 3),
            # with several processes, a run in which every image is known has no such stage
            "encoder_busy": round(self.stages["encode"].share(self.seconds), 4) if "encode" in self.stages else 0.0,
            "stages": {
                name: {"busy": round(stage.share(self.seconds), 4), "workers": stage.workers}
                for name, stage in self.stages.items()
            },
            "limit": self.limit,
            "decoded_by": dict(self.decoded_by),
            "decoder_unused": self.decoder_unused,
            "batch_size": self.batch_size,
            "workers": self.workers,
            "lost": self.lost,
            "interrupted": self.interrupted,
        }
