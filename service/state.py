"""State that all requests share: the encoder and its queue, the store, and the detector for its newest snapshot."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from starlette.requests import ClientDisconnect, Request

from ..core.file_identity import FileDigests
from ..detector.detector import QueryOptions, VectorDetector
from ..detector.evidence import EvidenceOptions
from ..detector.head import head_folder, vector_names_of
from ..detector.patches.patch_head import TOKENS
from ..detector.verdict import Refusal, Verdict
from ..errors import HeadError, NotEnoughRows, SpaceMismatch, StoreError, Unreadable
from ..store.concatenated import space_of
from ..store.maintenance.info import info
from ..store.manifest import numbers, path_of
from ..store.named_vectors import MAIN
from ..store.snapshot import Snapshot
from ..store.space import Space
from ..store.store import Store
from .bank_map import BankMap
from .image_decoder import ImageDecoder, UploadedImage
from .limits import Limits
from .metrics import ServiceMetrics
from .problems import EscapedJSONResponse, HttpProblem, to_problem
from .scheduling.batcher import Batcher, Vector
from .scheduling.decode_lanes import DecodeLanes, Turns
from .scheduling.memory import IdleRelease, release_memory
from .search_backend import GuardedBackend, SearcherFactory
from .uploads import Upload

R = TypeVar("R")
# Number of the snapshot, -1 for none; names and digests of its manifest and of the files of the head. A store that was
# made again has other digests, whatever its numbers.
Version = tuple[int, tuple[tuple[str, str], ...]]
VIEWS = 5  # vectors of an image with its four degraded copies
LOG = logging.getLogger("clipfake.service")
LOCAL_FOLDER = re.compile(r"(^|:|/)[/~.](?:[^:]*/)?(?=[^/:]+)")  # of a path within an encoder's name


@dataclass(frozen=True)
class EmbeddedUpload:
    """An uploaded image with its vector."""

    name: str
    image: UploadedImage
    vector: Vector  # (dim,)
    patches: Vector  # (rows * columns * dim,) where maps are shown, else empty
    views: dict[str, Vector] = field(default_factory=dict)  # of degraded copies, if requested


@dataclass(frozen=True)
class RefusedUpload:
    """An upload without a vector. The other uploads of the request are not affected."""

    name: str
    problem: HttpProblem

    def to_dict(self) -> dict[str, Any]:
        return Refusal(self.name, self.problem.detail).to_dict()


@dataclass(frozen=True)
class LoadedDetector:
    """A snapshot of the store with its detector, or the problem that prevents judging."""

    version: Version | None  # None if the next request must load again although the version is the same
    snapshot: Snapshot
    detector_or_none: VectorDetector | None
    problem: HttpProblem | None = None  # why there is no detector, and what to do

    @classmethod
    def of(
        cls,
        store: Store,
        head: str,
        evidence: EvidenceOptions,
        version: Version,
        backend: GuardedBackend | None,
        space: Space,
    ) -> LoadedDetector:
        """Load a detector; raises SpaceMismatch if the store has vectors of another encoder than `space`."""
        require_space(store, head, space)
        try:
            detector = VectorDetector.load(store, head, evidence, backend.of if backend else None)
        except (HeadError, NotEnoughRows, SpaceMismatch) as e:
            return cls(version, store.snapshot(), None, to_problem(e, store.folder))
        except StoreError as e:
            return cls(None, store.snapshot(), None, HttpProblem("cannot-judge", to_problem(e, store.folder).detail))
        except HttpProblem as e:  # a back end can recover without any change in the store
            return cls(None, store.snapshot(), None, e)
        return cls(version, detector.snapshot, detector)

    def precedes(self, version: Version) -> bool:
        """True if a version is of the same store: of the same snapshot, or of one that followed."""
        same = self.version is not None and version[1][:1] == self.version[1][:1]
        return same or version[0] > self.snapshot.number

    @property
    def why(self) -> str:
        """Reason why there is no detector, and what to do; empty if there is one."""
        return self.problem.detail if self.problem else ""

    @property
    def detector(self) -> VectorDetector:
        """The detector; raises HttpProblem (cannot-judge, or a failure of the search back end) if there is none."""
        if self.detector_or_none is None:
            assert self.problem
            raise HttpProblem(self.problem.kind, self.problem.detail, headers=self.problem.headers)
        return self.detector_or_none

    @cached_property
    def map(self) -> BankMap:
        return BankMap.of(self.detector)


def require_space(store: Store, head: str, space: Space) -> None:
    """Raise SpaceMismatch unless an encoder's vectors are those of the store and the head."""
    stored = space_of(store.folder, store.snapshot().space, vector_names_of(head_folder(store.folder, head)))
    space.require(stored, f"the store {store.folder}")


def usable(uploads: Sequence[EmbeddedUpload | RefusedUpload]) -> list[EmbeddedUpload]:
    """Return the uploads that have a vector; raises the first one's HttpProblem if there are none."""
    embedded = [upload for upload in uploads if isinstance(upload, EmbeddedUpload)]
    refused = [upload for upload in uploads if isinstance(upload, RefusedUpload)]
    if not embedded:
        first = refused[0].problem
        more = {"images": [upload.to_dict() for upload in refused]} if len(refused) > 1 else {}
        raise HttpProblem(first.kind, first.detail, headers=first.headers, **more)
    return embedded


class AppState:
    """Embeds uploads in batches and judges them by the store's newest snapshot."""

    def __init__(
        self,
        store: Store,
        image_decoder: ImageDecoder,
        *,
        head: str,
        evidence: EvidenceOptions,
        limits: Limits,
        metrics: ServiceMetrics,
        searcher_for: SearcherFactory | None = None,
    ) -> None:
        require_space(store, head, image_decoder.encoder.space)
        self.store, self.image_decoder, self.limits, self.metrics = store, image_decoder, limits, metrics
        self._head, self.evidence = head, evidence
        self._backend = GuardedBackend(searcher_for) if searcher_for else None
        self._loaded: LoadedDetector | None = None
        self._figures: tuple[Any, dict[str, Any]] | None = None
        self._files = FileDigests()
        self._loading = threading.Lock()
        self.writing = threading.Lock()

    def start(self) -> None:
        """Start the threads. Call `stop` at the end."""
        self._pool = ThreadPoolExecutor(max(2, os.cpu_count() or 2), "service")
        self.lanes = DecodeLanes(self.limits.decoding_bytes)
        self.batcher = Batcher(self.image_decoder.encoder.encode, self.limits, self.metrics)
        self._memory = IdleRelease(lambda: self._pool.submit(release_memory))

    def stop(self) -> None:
        """Encode the images in the queue, then stop the threads."""
        self._memory.stop()
        self.lanes.close()
        self.batcher.close()
        self._pool.shutdown()

    async def run(self, function: Callable[..., R], *arguments: Any) -> R:
        """Call a blocking function in the thread pool."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def respond(self, function: Callable[..., Any], *arguments: Any) -> EscapedJSONResponse:
        """Return the result of a blocking function as JSON; long answers are written in the thread too."""
        return await self.run(lambda: EscapedJSONResponse(function(*arguments)))

    async def embed(
        self,
        request: Request,
        uploads: Sequence[Upload],
        *,
        thumbnails: bool = False,
        views: bool = False,
        to_judge: bool = False,
    ) -> list[EmbeddedUpload | RefusedUpload]:
        """Decode and encode uploads, with their degraded copies if `views` is set; one result per upload, in order.

        If `to_judge` is set, images with nothing to judge are refused. The images of several requests take turns.
        Raises HttpProblem: busy if the queue has no room for all images, too-many if it never will. Raises
        ClientDisconnect, without decoding the remaining images, if the client disconnects.
        """
        if views and self.image_decoder.degraded is None:
            raise HttpProblem("invalid", "this service makes no degraded copies; send the request without `steady`")
        images = len(uploads) * (VIEWS if views else 1)
        if images > self.limits.waiting:  # retrying would never help
            message = f"{len(uploads)} images with their degraded copies exceed the limit of {self.limits.waiting}"
            raise HttpProblem("too-many", f"{message} waiting images; send fewer")
        options = {"thumbnail": thumbnails, "views": views, "to_judge": to_judge}
        turns = Turns()
        with self.batcher.reserve(images):
            try:
                work = asyncio.gather(*(self._embed_upload(upload, options, turns) for upload in uploads))
                return await while_connected(request, work)
            finally:
                self._memory.note_work()

    async def _embed_upload(
        self, upload: Upload, options: dict[str, bool], turns: Turns
    ) -> EmbeddedUpload | RefusedUpload:
        try:
            return await self._decode_and_encode(upload, options, turns)
        except Exception as e:
            problem = to_problem(e)
            if problem.status == 500:
                LOG.error("image failed", exc_info=e)
            self.metrics.problems.labels(problem.kind).inc()
            return RefusedUpload(upload.name, problem)

    async def _decode_and_encode(self, upload: Upload, options: dict[str, bool], turns: Turns) -> EmbeddedUpload:
        content, decoder = upload.content, self.image_decoder
        async with self.lanes.small.admit(turns.small, len(content)) as admission:  # headers can be made slow to read
            needed = await admission.run(lambda: decoder.memory_needed(content, self.limits, views=options["views"]))
        async with self.lanes.admit(turns, needed) as admission:
            image = await admission.run(self._decode, content, options)
            admission.keep(image.nbytes)
            inputs = [image.pixels, *image.views.values()]
            vector, *view_vectors = await asyncio.gather(
                *(self.batcher.vector(pixels, turns.encoder) for pixels in inputs)
            )
        parts = decoder.encoder.split(np.stack([vector, *view_vectors]))
        vector, *view_vectors = parts[MAIN]
        views = dict(zip(image.views, view_vectors, strict=True))
        patches = parts[TOKENS][0] if TOKENS in parts else vector[:0]
        return EmbeddedUpload(upload.name, image.without_pixels(), vector, patches, views)

    def _decode(self, content: bytes, options: dict[str, bool]) -> UploadedImage:
        with self.metrics.stage("decode"):
            return self.image_decoder.open(content, self.limits, **options)

    def judge(
        self, uploads: Sequence[EmbeddedUpload], options: QueryOptions, *, on_map: bool
    ) -> tuple[list[Verdict], int, npt.NDArray[np.float64] | None]:
        """Return the verdicts, the number of the snapshot, and the (n, 2) map coordinates if `on_map` is set.

        Raises HttpProblem (cannot-judge).
        """
        loaded = self.loaded()
        with self.metrics.stage("judge"):
            vectors = np.stack([upload.vector for upload in uploads])
            digests = np.frombuffer(b"".join(upload.image.digest for upload in uploads), "V16")
            names, thumbnails = [upload.name for upload in uploads], [upload.image.thumbnail for upload in uploads]
            verdicts = loaded.detector.judge(names, vectors, digests, options, thumbnails=thumbnails)
            same_patches, none = self._encodes_patches_of(loaded.detector), np.zeros(0, np.float32)
            for i, upload in enumerate(uploads):
                if upload.views:
                    verdicts[i] = loaded.detector.check_stability(
                        verdicts[i], upload.views, upload.image.digest, options
                    )
                area = self.image_decoder.covered(upload.image.height, upload.image.width)
                verdicts[i] = loaded.detector.with_map(verdicts[i], upload.patches if same_patches else none, area)
            coordinates = loaded.map.place(loaded.detector, vectors) if on_map else None
        for verdict in verdicts:
            self.metrics.verdicts.labels(verdict.verdict).inc()
        return verdicts, loaded.snapshot.number, coordinates

    def _encodes_patches_of(self, detector: VectorDetector) -> bool:
        """Whether the encoder computes the patches that a detector scores, which may have been trained meanwhile."""
        space = self.image_decoder.encoder.spaces.get(TOKENS)
        return space is not None and detector.patches is not None and space.same(detector.patches.space)

    def loaded(self, *, wait: bool = False) -> LoadedDetector:
        """Return the detector for the store's newest rows and head, loading it if they changed.

        While another thread loads it, the previous one of the same store is returned, unless `wait` is set.

        Raises
        ------
        StoreError
            There is no store any more, it cannot be read, or it has vectors of another encoder.
        """
        current, version = self._loaded, self._version()
        if current and current.version == version:
            return current
        if current is None or wait or not current.precedes(version):
            self._loading.acquire()
        elif not self._loading.acquire(blocking=False):
            return current
        try:
            version = self._version()
            if self._loaded is None or self._loaded.version != version:
                self._loaded = self._load(version)
                self.metrics.rows.set(len(self._loaded.snapshot))
            return self._loaded
        finally:
            self._loading.release()

    def _load(self, version: Version) -> LoadedDetector:
        space = self.image_decoder.encoder.space
        try:
            return LoadedDetector.of(self.store, self._head, self.evidence, version, self._backend, space)
        except BaseException:
            self._loaded = None  # the old rows are not served any more
            raise

    def _version(self) -> Version:
        folder, snapshots = head_folder(self.store.folder, self._head), numbers(self.store.folder)
        newest = [path_of(self.store.folder, snapshots[-1])] if snapshots else []
        named = sorted((self.store.folder / "columns").glob("*/column.json"))
        files = ("head.json", "calibration-*.json", "patches.json")
        head = sorted(path for name in files for path in folder.glob(name))
        try:
            return snapshots[-1] if snapshots else -1, self._files.of([*newest, *head, *named])
        except OSError as e:
            raise Unreadable(f"the store {self.store.folder} cannot be read ({e.strerror or e})") from e

    def figures(self) -> dict[str, Any]:
        """Return the report of `clipfake store info` without the store's path."""
        version = self._version(), self._artifacts()
        if self._figures is None or self._figures[0] != version:
            report = info(self.store).to_dict()
            del report["path"]
            report["space"]["encoder"] = without_folders(report["space"]["encoder"])
            self._figures = version, report
        return self._figures[1]

    def _artifacts(self) -> list[tuple[str, int]]:
        """Paths and times of indexes, heads and named vectors."""
        found = []
        for kind in ("indexes", "heads", "columns"):
            for path in sorted((self.store.folder / kind).glob("*")):
                with suppress(OSError):  # removed meanwhile
                    found.append((str(path), path.stat().st_mtime_ns))
        return found

    def embed_text(self, text: str) -> npt.NDArray[np.float32]:
        """(dim,) vector of a text; raises HttpProblem if the encoder has no text encoder."""
        if not self.image_decoder.encoder.has_text:
            raise HttpProblem("invalid", "the encoder of this store cannot embed text; send an image or a vector")
        return np.asarray(self.image_decoder.encoder.encode_texts([text])[0], np.float32)


async def while_connected(request: Request, work: asyncio.Future[R]) -> R:
    """Wait for the work of a request whose body was read; if the client disconnects, cancel it.

    Raises ClientDisconnect.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.add_done_callback(lambda done: done.cancelled() or done.exception())  # else asyncio logs a traceback
        work.cancel()
        watch.cancel()


def without_folders(encoder: str) -> str:
    """Return an encoder's name for clients: of a local directory or file only the last part.

    >>> without_folders("untrained:0:/models/clip"), without_folders("openai/clip-vit-base-patch32")
    ('untrained:0:clip', 'openai/clip-vit-base-patch32')
    >>> without_folders("/home/me/my_encoders.py:tiny"), without_folders("open_clip:ViT-B-32//models/w.pt")
    ('my_encoders.py:tiny', 'open_clip:ViT-B-32/w.pt')
    """
    return LOCAL_FOLDER.sub(r"\1", encoder)
