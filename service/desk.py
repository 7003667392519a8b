"""What all requests share: the encoder and its queue, the store, and the detector of its newest rows."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..detector.detector import Detector, Question
from ..detector.evidence import Rules
from ..detector.head import head_folder
from ..detector.verdict import Refusal, Verdict
from ..store.errors import ClipfakeError, ImageError
from ..store.info import info
from ..store.manifest import numbers
from ..store.snapshot import Snapshot
from ..store.store import Store
from .batcher import Batcher, Vector
from .limits import Limits
from .map import Map
from .metrics import Metrics
from .problem import Problem, problem_of
from .seeing import Eyes, Picture

R = TypeVar("R")
Version = tuple[int, int]  # number of the snapshot, and when the head was written


@dataclass(frozen=True)
class Upload:
    """One file of a request."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Seen:
    """One file with its vector."""

    name: str
    picture: Picture
    vector: Vector  # (dim,)


@dataclass(frozen=True)
class Refused:
    """One file that could not be used; the others of its request go on."""

    name: str
    problem: Problem

    def as_json(self) -> dict[str, Any]:
        return Refusal(self.name, self.problem.detail).as_json()


@dataclass(frozen=True)
class Loaded:
    """A detector, and what is made from it once."""

    detector: Detector
    version: Version

    @cached_property
    def map(self) -> Map:
        return Map.of(self.detector)


class Desk:
    """Takes images in, has them encoded in batches, and judges them."""

    def __init__(self, store: Store, eyes: Eyes, *, head: str, rules: Rules, limits: Limits, metrics: Metrics) -> None:
        eyes.encoder.space.require(store.snapshot().space, f"the store {store.folder}")
        self.store, self.eyes, self.limits, self.metrics = store, eyes, limits, metrics
        self._head, self._rules = head, rules
        self._loaded: Loaded | None = None
        self._figures: tuple[Version, dict[str, Any]] | None = None
        self._loading = threading.Lock()
        self.writing = threading.Lock()

    def start(self) -> None:
        """Begin to work; `stop` ends it."""
        self._pool = ThreadPoolExecutor(max(2, os.cpu_count() or 2), "desk")
        self.batcher = Batcher(self.eyes.encoder.encode, self.limits, self.metrics)

    def stop(self) -> None:
        """Finish what was taken in."""
        self.batcher.close()
        self._pool.shutdown()

    async def run(self, function: Callable[..., R], *arguments: Any) -> R:
        """Call a function that takes its time, beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def see(self, uploads: Sequence[Upload], *, thumbnails: bool = False) -> list[Seen | Refused]:
        """A vector for each image, or why there is none; raises Problem (busy) if there is no room for all of them."""
        with self.batcher.places(len(uploads)):
            return list(await asyncio.gather(*(self._see(upload, thumbnails) for upload in uploads)))

    async def _see(self, upload: Upload, thumbnail: bool) -> Seen | Refused:
        try:
            picture = await self.run(self._open, upload.content, thumbnail)
            return Seen(upload.name, picture, await self.batcher.vector(picture.pixels))
        except (ImageError, Problem) as e:
            problem = problem_of(e)
            self.metrics.problems.labels(problem.kind).inc()
            return Refused(upload.name, problem)

    def _open(self, content: bytes, thumbnail: bool) -> Picture:
        with self.metrics.stage("decode"):
            return self.eyes.open(content, self.limits, thumbnail=thumbnail)

    def judge(self, seen: Sequence[Seen], question: Question, *, places: bool) -> tuple[list[Verdict], int, Any]:
        """Verdicts, the number of the snapshot that gave them, and where the images lie on the map (or None)."""
        loaded = self.loaded()
        with self.metrics.stage("judge"):
            vectors = np.stack([one.vector for one in seen])
            digests = np.frombuffer(b"".join(one.picture.digest for one in seen), "V16")
            verdicts = loaded.detector.judge([one.name for one in seen], vectors, digests, question)
            where = loaded.map.place(loaded.detector, vectors) if places else None
        for verdict in verdicts:
            self.metrics.verdicts.labels(verdict.verdict).inc()
        return verdicts, loaded.detector.snapshot.number, where

    def loaded(self, *, wait: bool = False) -> Loaded:
        """The detector of the store's newest rows and newest head.

        While another request loads it, the one before answers, unless told to wait. Raises what `Detector.load` raises.
        """
        version = self._version()
        known = self._loaded
        if known and known.version == version:
            return known
        if not self._loading.acquire(blocking=wait or known is None):
            assert known is not None
            return known
        try:
            if self._loaded is None or self._loaded.version != version:
                self._loaded = Loaded(Detector.load(self.store, self._head, self._rules), version)
                self.metrics.rows.set(len(self._loaded.detector.snapshot))
            return self._loaded
        finally:
            self._loading.release()

    def _version(self) -> Version:
        known = numbers(self.store.folder)
        try:
            written = (head_folder(self.store.folder, self._head) / "head.json").stat().st_mtime_ns
        except OSError:
            written = 0
        return (known[-1] if known else -1, written)

    def snapshot(self) -> Snapshot:
        """The newest rows, whether or not they can be judged by."""
        if self._loaded and self._loaded.version == self._version():
            return self._loaded.detector.snapshot
        return self.store.snapshot()

    def unready(self) -> str:
        """Why no verdict can be given now, "" if it can."""
        try:
            self.loaded()
        except ClipfakeError as e:
            return str(e)
        return ""

    def figures(self) -> dict[str, Any]:
        """The store in figures, without its path."""
        version = self._version()
        if self._figures is None or self._figures[0] != version:
            told = info(self.store).as_json()
            told.pop("path", None)
            self._figures = version, told
        return self._figures[1]

    def text(self, words: str) -> npt.NDArray[np.float32]:
        """(dim,) the vector of some words; raises Problem where the encoder knows no words."""
        if not self.eyes.encoder.has_text:
            raise Problem("invalid", "the encoder of this store has no text side; send an image or a vector")
        vectors = self.eyes.encoder.encode_texts([words])
        return np.asarray(vectors[0], np.float32)
