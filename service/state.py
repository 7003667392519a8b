"""Shared state of all requests: the encoder and its queue, the store, and the detector of its newest rows."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..detector.detector import QueryOptions, VectorDetector
from ..detector.evidence import EvidenceOptions
from ..detector.head import head_folder, vector_names_of
from ..detector.verdict import Refusal, Verdict
from ..errors import HeadError, NotEnoughRows, SpaceMismatch, StoreError
from ..store.concatenated import space_of
from ..store.maintenance.info import info
from ..store.manifest import numbers
from ..store.snapshot import Snapshot
from ..store.store import Store
from .bank_map import BankMap
from .batcher import Batcher, Vector
from .image_decoder import ImageDecoder, UploadedImage
from .limits import Limits
from .metrics import ServiceMetrics
from .problems import HttpProblem, problem_of
from .search_backend import Elsewhere, GuardedBackend
from .uploads import Upload

R = TypeVar("R")
Version = tuple[int, tuple[tuple[str, int], ...]]  # number of the snapshot; the head's files and when they were written
VIEWS = 3  # vectors of an image that is asked about with its two degraded copies
LOG = logging.getLogger("clipfake.service")


@dataclass(frozen=True)
class EmbeddedUpload:
    """One file with its vector."""

    name: str
    picture: UploadedImage
    vector: Vector  # (dim,)
    views: dict[str, Vector] = field(default_factory=dict)  # of degraded copies, if asked for


@dataclass(frozen=True)
class RefusedUpload:
    """One file that could not be used; the others of its request go on."""

    name: str
    problem: HttpProblem

    def to_dict(self) -> dict[str, Any]:
        return Refusal(self.name, self.problem.detail).to_dict()


@dataclass(frozen=True)
class LoadedDetector:
    """The rows at one version, and who judges by them."""

    version: Version | None  # None if it may be another the next time, although nothing here has changed
    snapshot: Snapshot
    found: VectorDetector | None
    refused: HttpProblem | None = None  # why there is no detector, and what to do

    @classmethod
    def of(
        cls, store: Store, head: str, rules: EvidenceOptions, version: Version, engine: GuardedBackend | None
    ) -> LoadedDetector:
        try:
            detector = VectorDetector.load(store, head, rules, engine.of if engine else None)
        except (HeadError, NotEnoughRows, SpaceMismatch) as e:
            return cls(version, store.snapshot(), None, problem_of(e, store.folder))
        except StoreError as e:
            return cls(None, store.snapshot(), None, HttpProblem("cannot-judge", problem_of(e, store.folder).detail))
        except HttpProblem as e:  # an engine that is down, or not filled yet, comes back without a sign in the store
            return cls(None, store.snapshot(), None, e)
        return cls(version, detector.snapshot, detector)

    @property
    def why(self) -> str:
        """Reason why there is no detector, and what to do; empty if there is one."""
        return self.refused.detail if self.refused else ""

    @property
    def detector(self) -> VectorDetector:
        """Raises Problem (cannot-judge, or what is wrong with the engine) if there is none."""
        if self.found is None:
            assert self.refused
            raise HttpProblem(self.refused.kind, self.refused.detail, headers=self.refused.headers)
        return self.found

    @cached_property
    def map(self) -> BankMap:
        return BankMap.of(self.detector)


def usable(seen: Sequence[EmbeddedUpload | RefusedUpload]) -> list[EmbeddedUpload]:
    """Return the uploads that have a vector; raises the first one's HttpProblem if there are none."""
    good = [one for one in seen if isinstance(one, EmbeddedUpload)]
    bad = [one for one in seen if isinstance(one, RefusedUpload)]
    if not good:
        first = bad[0].problem
        more = {"images": [one.to_dict() for one in bad]} if len(bad) > 1 else {}
        raise HttpProblem(first.kind, first.detail, headers=first.headers, **more)
    return good


class AppState:
    """Takes images in, has them encoded in batches, and judges them."""

    def __init__(
        self,
        store: Store,
        eyes: ImageDecoder,
        *,
        head: str,
        rules: EvidenceOptions,
        limits: Limits,
        metrics: ServiceMetrics,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        space = space_of(store.snapshot(), vector_names_of(head_folder(store.folder, head)))
        eyes.encoder.space.require(space, f"the store {store.folder}")
        self.store, self.eyes, self.limits, self.metrics = store, eyes, limits, metrics
        self._head, self.rules, self._engine = head, rules, GuardedBackend(elsewhere) if elsewhere else None
        self._loaded: LoadedDetector | None = None
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

    async def see(
        self, uploads: Sequence[Upload], *, thumbnails: bool = False, views: bool = False
    ) -> list[EmbeddedUpload | RefusedUpload]:
        """A vector for each image, or why there is none; raises Problem (busy) if there is no room for all of them.

        With `views`, one for each of its degraded copies too.
        """
        if views and self.eyes.degraded is None:
            raise HttpProblem("invalid", "this service makes no degraded copies; ask without `steady`")
        places = len(uploads) * (VIEWS if views else 1)
        if places > self.limits.waiting:  # however often one came back
            raise HttpProblem("too-many", f"{len(uploads)} images with their copies are more than can wait; send fewer")
        with self.batcher.places(places):
            return list(await asyncio.gather(*(self._see(upload, thumbnails, views) for upload in uploads)))

    async def _see(self, upload: Upload, thumbnail: bool, views: bool) -> EmbeddedUpload | RefusedUpload:
        try:
            picture = await self.run(self._open, upload.content, thumbnail, views)
            all_of_them = [picture.pixels, *picture.views.values()]
            vector, *copies = await asyncio.gather(*(self.batcher.vector(pixels) for pixels in all_of_them))
            return EmbeddedUpload(upload.name, picture, vector, dict(zip(picture.views, copies, strict=True)))
        except Exception as e:
            problem = problem_of(e)
            if problem.status == 500:
                LOG.error("an image failed", exc_info=e)
            self.metrics.problems.labels(problem.kind).inc()
            return RefusedUpload(upload.name, problem)

    def _open(self, content: bytes, thumbnail: bool, views: bool) -> UploadedImage:
        with self.metrics.stage("decode"):
            return self.eyes.open(content, self.limits, thumbnail=thumbnail, views=views)

    def judge(
        self, seen: Sequence[EmbeddedUpload], question: QueryOptions, *, places: bool
    ) -> tuple[list[Verdict], int, Any]:
        """Verdicts, the number of the snapshot that gave them, and where the images lie on the map (or None).

        Raises Problem (cannot-judge).
        """
        loaded = self.loaded()
        with self.metrics.stage("judge"):
            vectors = np.stack([one.vector for one in seen])
            digests = np.frombuffer(b"".join(one.picture.digest for one in seen), "V16")
            verdicts = loaded.detector.judge([one.name for one in seen], vectors, digests, question)
            for i, one in enumerate(seen):
                if one.views:
                    verdicts[i] = loaded.detector.check_stability(verdicts[i], one.views, one.picture.digest, question)
            where = loaded.map.place(loaded.detector, vectors) if places else None
        for verdict in verdicts:
            self.metrics.verdicts.labels(verdict.verdict).inc()
        return verdicts, loaded.snapshot.number, where

    def loaded(self, *, wait: bool = False) -> LoadedDetector:
        """The store's newest rows and newest head.

        While another request loads them it is the ones before, unless told to wait.
        """
        known = self._loaded
        if known and known.version == self._version():
            return known
        if known is None or wait:
            self._loading.acquire()
        elif not self._loading.acquire(blocking=False):
            return known
        try:
            version = self._version()
            if self._loaded is None or self._loaded.version != version:
                self._loaded = LoadedDetector.of(self.store, self._head, self.rules, version, self._engine)
                self.metrics.rows.set(len(self._loaded.snapshot))
            return self._loaded
        finally:
            self._loading.release()

    def _version(self) -> Version:
        known, folder = numbers(self.store.folder), head_folder(self.store.folder, self._head)
        written = []
        for path in sorted([*folder.glob("head.json"), *folder.glob("calibration-*.json")]):
            with suppress(FileNotFoundError):  # training has just taken it away
                written.append((path.name, path.stat().st_mtime_ns))
        return (known[-1] if known else -1, tuple(written))

    def figures(self) -> dict[str, Any]:
        """The store in figures, without its path."""
        version = self._version()
        if self._figures is None or self._figures[0] != version:
            report = info(self.store).to_dict()
            del report["path"]
            report["space"]["encoder"] = without_folders(report["space"]["encoder"])
            self._figures = version, report
        return self._figures[1]

    def text(self, words: str) -> npt.NDArray[np.float32]:
        """(dim,) the vector of some words; raises Problem where the encoder knows no words."""
        if not self.eyes.encoder.has_text:
            raise HttpProblem("invalid", "the encoder of this store has no text side; send an image or a vector")
        return np.asarray(self.eyes.encoder.encode_texts([words])[0], np.float32)


def without_folders(encoder: str) -> str:
    """An encoder's name as others may know it: where its directory lies is nobody's business.

    >>> without_folders("untrained:0:/models/clip"), without_folders("openai/clip-vit-base-patch32")
    ('untrained:0:clip', 'openai/clip-vit-base-patch32')
    """
    before, colon, place = encoder.rpartition(":")
    local = place.startswith((".", "~")) or Path(place).is_absolute()
    return before + colon + (Path(place).name if local else place)
