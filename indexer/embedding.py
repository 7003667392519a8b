"""Embed images without storing them: files, folders, archives, standard input, arrays. Results stream in order."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from ..errors import ImageError
from .channel import Channel, ChannelStopped
from .decoding.image import Image, Pixels, pixels_of
from .decoding.reader import ImageReader
from .degradations import degraded
from .encoders.base import Encoder
from .pipeline import EncodedBatch, Pipeline
from .sources.archives.tar_archive import TARS
from .sources.file_names import FileKind
from .sources.folders import expand, listing
from .sources.image_ref import BYTES_LIMIT, ImageRef, InMemory, LocalFile, too_large
from .sources.urls import is_url

FIRST_BATCH = 16  # images in the first batch, so that the first results arrive early
ARCHIVES = (".zip", *TARS)

ImageInput = str | os.PathLike[str] | bytes | npt.NDArray[np.uint8] | Pillow.Image


@dataclass(frozen=True)
class EmbeddedImage:
    """An image with its vector, or the reason why it has none."""

    name: str
    ref: ImageRef
    image: Image | None = None  # its pixels may have been resized to the encoder's input size
    vector: npt.NDArray[np.float32] | None = None  # (dim,)
    views: npt.NDArray[np.float32] | None = None  # (views, dim), see DEGRADATIONS
    thumbnail: bytes = b""  # a small JPEG as indexing makes it, if it was wanted
    error: str = ""
    width: int = 0  # of the file, in pixels
    height: int = 0

    @property
    def digest(self) -> bytes:
        """BLAKE2b-128 of the file's content; zeros, which mean unknown, for pixels without a file."""
        return bytes(16) if self.image is None or isinstance(self.ref.location, PixelSource) else self.image.digest


@dataclass(frozen=True)
class PixelSource:
    """Pixels without a file, read as the content of a lossless file."""

    pixels: npt.NDArray[np.uint8] | Pillow.Image

    def stat(self) -> tuple[int, int]:
        return -1, 0

    def read(self) -> tuple[bytes, int]:
        """Encode the pixels losslessly; raises ImageError for an array or a Pillow image that cannot be read."""
        if isinstance(self.pixels, Pillow.Image):
            image = Pillow.fromarray(pixels_of(self.pixels))
        else:
            array = np.asarray(self.pixels)
            if (
                array.dtype != np.uint8
                or array.ndim not in (2, 3)
                or (array.ndim == 3 and array.shape[2] not in (3, 4))
            ):
                raise ImageError(
                    f"an array of {array.dtype} {array.shape} is not an image; give (height, width, 3) uint8, RGB"
                )
            if not array.size:
                raise ImageError(f"an array of shape {array.shape} has no pixels")
            image = Pillow.fromarray(array)
        content = io.BytesIO()
        image.save(content, "PPM" if image.mode == "RGB" else "PNG")
        return content.getvalue(), 0


def embed_images(
    encoder: Encoder,
    images: Iterable[ImageInput],
    *,
    degraded_views: bool = False,
    batch_size: int | None = None,
    threads: int | None = None,
) -> Iterator[EmbeddedImage]:
    """Embed a stream of images and yield one result for each, in order; only a few batches are kept in memory.

    Parameters
    ----------
    images : files, folders, zip or tar archives, "-" for one image on standard input, bytes of a file,
        (height, width, 3) uint8 RGB arrays, Pillow images
    degraded_views : also embed degraded copies of each image, see `clipfake.indexer.degradations`
    batch_size : number of images per batch (default: `Encoder.batch_size`)
    threads : number of decoding threads (default: one per core)

    Raises
    ------
    SourceError
        A folder or archive does not exist. An unreadable file gives a result with an `error` instead.
    EncoderError
        The device has too little memory for even one image.
    """
    make_views = degraded if degraded_views else None
    for batch in embed_batches(
        encoder, image_refs(images), make_views=make_views, batch_size=batch_size, threads=threads
    ):
        yield from batch


def embed_batches(
    encoder: Encoder,
    refs: Iterable[ImageRef],
    *,
    make_views: Callable[[Pixels], Sequence[Pixels]] | None = None,
    check: Callable[[Pixels], None] | None = None,
    thumbnails: bool = False,
    batch_size: int | None = None,
    threads: int | None = None,
) -> Iterator[list[EmbeddedImage]]:
    """Embed listed images as `embed_images` does, and yield the results of each batch together.

    `check` raises ImageError for full-size pixels that are not to be embedded; `thumbnails` adds a small JPEG to each.
    """
    reader = ImageReader(encoder.shrink, thumbnails=thumbnails, make_views=make_views, check=check)
    size = batch_size or encoder.batch_size
    pipeline = Pipeline(encoder, reader, size, threads or len(os.sched_getaffinity(0)))
    batches: dict[int, list[ImageRef]] = {}
    results = Channel[EncodedBatch](1)
    errors: list[BaseException] = []

    def numbered() -> Iterator[list[ImageRef]]:
        remaining = iter(refs)
        for number, length in enumerate(_batch_lengths(size)):
            batch: list[ImageRef] = []
            try:
                batch.extend(islice(remaining, length))
            finally:  # images listed before an error are still embedded
                batches[number] = batch
                if batch:
                    yield batch
            if not batch:
                return

    def run() -> None:
        try:
            pipeline.run(numbered(), results.put)
        except ChannelStopped:
            pass
        except BaseException as e:  # noqa: BLE001 - raised by the generator below
            errors.append(e)
        finally:
            results.close()

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    try:
        waiting: dict[int, EncodedBatch] = {}  # batches that overtook an earlier one on another device
        number = 0
        for encoded in results:
            waiting[encoded.number] = encoded
            while number in waiting:
                yield _results(batches.pop(number), waiting.pop(number))
                number += 1
        if errors:
            raise errors[0]
    finally:
        results.stop()
        worker.join()


def _batch_lengths(size: int) -> Iterator[int]:
    """Yield lengths that grow to `size`, so that the first results arrive early."""
    length = min(FIRST_BATCH, size)
    while True:
        yield length
        length = min(2 * length, size)


def _results(batch: Sequence[ImageRef], encoded: EncodedBatch) -> list[EmbeddedImage]:
    """Results of a batch in the order of its images."""
    results = []
    position = {id(image.ref): i for i, image in enumerate(encoded.images)}
    reasons = {id(ref): reason for ref, reason in encoded.refused}
    for ref in batch:
        if (i := position.get(id(ref))) is None:
            results.append(EmbeddedImage(ref.path, ref, error=reasons[id(ref)]))
        else:
            views = encoded.views[i] if encoded.views.shape[1] else None
            image, vector = encoded.images[i], encoded.vectors[i]
            small = image.thumbnail_jpeg()
            results.append(
                EmbeddedImage(ref.path, ref, image.image, vector, views, small, width=image.width, height=image.height)
            )
    return results


def image_refs(images: Iterable[ImageInput], *, follow_links: bool = False) -> Iterator[ImageRef]:
    """List the images as references to their bytes; folders and archives are expanded.

    `follow_links` follows symbolic links inside a folder that lead out of it.
    """
    for number, image in enumerate(images):
        location: Any
        if isinstance(image, np.ndarray | Pillow.Image):
            location, path = PixelSource(image), f"image {number}"
        elif isinstance(image, bytes):
            location, path = InMemory(image, 0), f"image {number}"
        elif (path := os.fspath(image)) == "-":
            content = sys.stdin.buffer.read(BYTES_LIMIT + 1)
            if reason := too_large(len(content)):
                yield ImageRef(path, path, refused=reason)
                continue
            location = InMemory(content, 0)
        elif os.path.isdir(path) or path.lower().endswith(ARCHIVES):  # noqa: PTH112 - takes a path that is too long
            for listed in listing(expand([path], labels=False, follow_links=follow_links)):
                if isinstance(listed, ImageRef):
                    yield listed
                elif listed.reason != FileKind.foreign:
                    yield ImageRef(
                        listed.example, listed.example, refused=f"not read: {listed.reason} ({listed.files:,})"
                    )
            continue
        elif is_url(path):
            yield ImageRef(path, path, refused="not on this machine; save the image and name the file")
            continue
        else:  # a missing file or one that is not an image gives a result with an error
            location = LocalFile(path)
        yield ImageRef(path, path, location=location)
