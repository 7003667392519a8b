"""Another encoder's vector for the rows of a store: their images are read once more, whatever was stored stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from ..errors import ImageError
from ..store.concatenated import concatenate, concatenated_space
from ..store.named_vectors import named_vectors_writer
from ..store.search.matches import Positions
from ..store.snapshot import Snapshot
from ..store.store import Store
from .decoding.image import Image, Pixels, decode
from .encoders.base import Embeddings, Encoder
from .index_run import Folders
from .sources.folders import listing
from .sources.image_ref import ByteSource, LocalFile

BATCH = 64
TOLD = 1000  # rows that failed, at most, told one by one

Progress = Callable[[int, int], None]  # rows done, rows to do


@dataclass
class AddVectorsReport:
    """What `add_vectors` did."""

    column: str
    encoder: str
    rows: int = 0  # of the store
    known: int = 0  # had a vector already
    added: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # key -> why, of the first thousand
    failures: int = 0

    @property
    def missing(self) -> int:
        """Rows that still have none."""
        return self.rows - self.known - self.added

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "missing": self.missing}


def add_vectors(
    store: Store, name: str, encoder: Encoder, folders: Folders | None = None, progress: Progress | None = None
) -> AddVectorsReport:
    """Give each row that has none its vector in a column; stopped and run again it goes on.

    Parameters
    ----------
    folders : where the images are now, as they were indexed; without them, where they were then

    Raises
    ------
    StoreError, SpaceMismatch, SourceError
        The column is another encoder's, or a folder is not there.
    """
    with named_vectors_writer(store, name, encoder.space) as writer:
        snapshot = writer.snapshot
        lacking = np.flatnonzero(writer.column.missing(snapshot))
        told = AddVectorsReport(name, encoder.space.encoder, len(snapshot), len(snapshot) - len(lacking))
        places = _places(snapshot, lacking, folders)
        with ThreadPoolExecutor(2) as pool:
            while batch := list(islice(places, BATCH)):
                read = list(pool.map(lambda one: _read(snapshot, *one), batch))
                good = [(at, image) for (at, _), image in zip(batch, read, strict=True) if isinstance(image, Image)]
                if good:
                    vectors = encoder.encode([image.pixels for _, image in good])
                    writer.put(np.array([at for at, _ in good]), vectors)
                    told.added += len(good)
                for (at, _), image in zip(batch, read, strict=True):
                    if isinstance(image, ImageError):
                        told.failures += 1
                        if len(told.failed) < TOLD:
                            told.failed[str(snapshot.column("keys")[at])] = str(image)
                if progress:
                    progress(told.added + told.failures, len(lacking))
    return told


def _places(snapshot: Snapshot, lacking: Positions, folders: Folders | None) -> Iterator[tuple[int, ByteSource]]:
    """Each row without a vector and where its image is."""
    if folders is None:
        paths = snapshot.column("paths")
        yield from ((at, LocalFile(str(paths[at]))) for at in lacking.tolist())
        return
    wanted = set(lacking.tolist())
    entries = (entry for entry in listing(folders) if not entry.refused)
    while batch := list(islice(entries, 1024)):
        for entry, at in zip(batch, snapshot.find([entry.key for entry in batch]).tolist(), strict=True):
            if at in wanted:
                wanted.remove(at)
                yield at, entry.place


def _read(snapshot: Snapshot, position: int, place: ByteSource) -> Image | ImageError:
    """The image of a row, if it is still the one that was indexed."""
    try:
        image = decode(place.read()[0])
    except ImageError as e:
        return e
    if snapshot.digests(np.array([position]))[0].tobytes() != image.digest:
        return ImageError("the file has changed since it was indexed; index it again first")
    return image


class ConcatenatedEncoder:
    """Several encoders as one, for a head that was trained on several columns."""

    has_text = False

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        self._encoders = tuple(encoders)
        self.space = concatenated_space([encoder.space for encoder in encoders])

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        return concatenate([encoder.encode(images) for encoder in self._encoders])

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        return self._encoders[0].encode_texts(texts)
