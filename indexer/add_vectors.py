"""Add named vectors to the rows of a store. The images are read again; existing data is not changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..store.named_vectors import MAIN, named_vectors_writer
from ..store.search.matches import Positions
from ..store.snapshot import Snapshot
from ..store.store import Store
from .embedding import embed_batches
from .encoders.base import Encoder
from .encoders.external.own_encoder import EncoderLike, as_encoder
from .index_run import Folders
from .pipeline import batched
from .sample import drawn_uniformly
from .sources.folders import images_in
from .sources.image_ref import ImageRef
from .views.create import create_views, encoder_with_views
from .views.kinds import parse_views

FAILURES_KEPT = 1000  # failed rows reported by key
KEYS_PER_LOOKUP = 1024

Progress = Callable[[int, int], None]  # rows done, rows to do


@dataclass
class AddVectorsReport:
    """Report of `add_vectors`."""

    column: str
    encoder: str
    rows: int = 0  # rows of the store
    known: int = 0  # rows that already had a vector
    added: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # key -> reason, for the first `FAILURES_KEPT`
    failures: int = 0

    @property
    def missing(self) -> int:
        """Number of rows that still have no vector."""
        return self.rows - self.known - self.added

    def add_failure(self, key: str, reason: str) -> None:
        """Count a row that could not be embedded; the first `FAILURES_KEPT` are kept by key."""
        self.failures += 1
        if len(self.failed) < FAILURES_KEPT:
            self.failed[key] = reason

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "missing": self.missing}


def add_vectors(
    store: Store,
    name: str,
    encoder: Encoder | EncoderLike,
    folders: Folders | None = None,
    on_progress: Progress | None = None,
) -> AddVectorsReport:
    """Embed the images of the rows that have no vector named `name` yet. Resumable.

    Parameters
    ----------
    name : name of the vectors
    encoder : another encoder, or any object with `encode` and a `space`; or the store's own with views, of which `name`
        is one, see `add_view`
    folders : current location of the images, as passed to `index` (default: the paths stored when they were indexed)
    on_progress : called with the number of rows done and the number of rows to do

    Raises
    ------
    StoreError, SpaceMismatch, SourceError
        The vectors of this name belong to another encoder, or a folder does not exist.
    """
    encoder = as_encoder(encoder)
    vector = name if name in encoder.spaces else MAIN
    with named_vectors_writer(store.folder, name, encoder.spaces[vector]) as writer:
        snapshot = writer.snapshot
        missing = np.flatnonzero(writer.column.missing(snapshot))
        report = AddVectorsReport(name, encoder.space.encoder, len(snapshot), len(snapshot) - len(missing))
        position_of: dict[str, int] = {}  # key -> position, of the images being embedded
        refs = _refs(snapshot, missing, folders, position_of)
        for results in embed_batches(encoder, refs):
            positions = np.array([position_of.pop(result.ref.key) for result in results])
            embedded, vectors = [], []
            for result, position, digest in zip(results, positions, snapshot.digests(positions), strict=True):
                if result.vector is None:
                    report.add_failure(result.ref.key, result.error)
                elif result.digest != digest.tobytes():
                    report.add_failure(
                        result.ref.key, "the file has changed since it was indexed; index it again first"
                    )
                else:
                    embedded.append(position)
                    vectors.append(result.vector)
            if embedded:
                writer.put(np.array(embedded), encoder.split(np.stack(vectors))[vector])
                report.added += len(embedded)
            if on_progress:
                on_progress(report.added + report.failures, len(missing))
    return report


def add_view(
    store: Store, name: str, encoder: Encoder, folders: Folders | None = None, on_progress: Progress | None = None
) -> AddVectorsReport:
    """Add a view of the store's own encoder to the rows that lack it, and create it if needed; see `add_vectors`.

    Parameters
    ----------
    name : name of the view, one of `clipfake.indexer.views.kinds.KINDS`
    encoder : the encoder of the store's main vectors

    Raises
    ------
    InvalidOption
        There is no such view.
    SpaceMismatch, EncoderError
        The encoder is not the store's, or has no such view.
    """
    parse_views(name)
    snapshot = store.snapshot()
    encoder.space.require(snapshot.space, f"the store {store.folder}")

    def images(number: int) -> Iterable[ImageRef]:
        keys = (ImageRef(key, str(position)) for position, key in enumerate(snapshot.column("keys").tolist()))
        drawn = [int(ref.path) for ref in drawn_uniformly(keys, number, seed=0)]
        return _refs(snapshot, np.array(drawn, np.int64), folders, {})

    create_views(store, encoder, [name], images)
    return add_vectors(store, name, encoder_with_views(store, encoder, [name]), folders, on_progress)


def _refs(
    snapshot: Snapshot, missing: Positions, folders: Folders | None, position_of: dict[str, int]
) -> Iterator[ImageRef]:
    """Iterate over the images without a vector; the position of each is added to `position_of` first."""
    if folders is None:
        keys, paths = snapshot.column("keys")[missing].tolist(), snapshot.column("paths")[missing].tolist()
        for position, key, path in zip(missing.tolist(), keys, paths, strict=True):
            position_of[key] = position
            yield ImageRef(key, path)
        return
    remaining = set(missing.tolist())
    for batch in batched((ref for ref in images_in(folders) if not ref.refused), KEYS_PER_LOOKUP):
        for ref, position in zip(batch, snapshot.find([ref.key for ref in batch]).tolist(), strict=True):
            if position in remaining:
                remaining.remove(position)
                position_of[ref.key] = position
                yield ref
