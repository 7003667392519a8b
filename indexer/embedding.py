"""Embed images that need not be stored: files, folders, archives, standard input, arrays. Results stream, in order."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import ImageOps

from ..errors import ImageError
from .channel import Channel, ChannelStopped
from .decoding.image import Image, Pixels
from .decoding.reader import ImageReader
from .encoders.base import Encoder
from .pipeline import EncodedBatch, Pipeline
from .sources.archive import TARS
from .sources.folders import expand, listing
from .sources.image_ref import ImageRef, InMemory, is_url

FIRST_BATCH = 16  # images in the first batch, so that the first results come soon
ARCHIVES = (".zip", *TARS)
DEGRADATIONS = ("after JPEG quality 60", "at half its size")  # the views that `degraded` makes, in order

ImageInput = str | os.PathLike[str] | bytes | npt.NDArray[np.uint8] | Pillow.Image


@dataclass(frozen=True)
class EmbeddedImage:
    """One image with its vector, or the reason why it has none."""

    name: str
    ref: ImageRef
    image: Image | None = None  # its pixels may have been resized to what the encoder sees
    vector: npt.NDArray[np.float32] | None = None  # (dim,)
    views: npt.NDArray[np.float32] | None = None  # (views, dim), see DEGRADATIONS
    error: str = ""

    @property
    def digest(self) -> bytes:
        """BLAKE2b-128 of the file's bytes; zeros, which say unknown, for pixels that came without a file."""
        return bytes(16) if self.image is None or isinstance(self.ref.where, PixelSource) else self.image.digest


@dataclass(frozen=True)
class PixelSource:
    """Pixels that came without a file, as the bytes of an uncompressed or lossless one."""

    pixels: npt.NDArray[np.uint8] | Pillow.Image

    def facts(self) -> tuple[int, int]:
        return -1, 0

    def read(self) -> tuple[bytes, int]:
        """A file of the same pixels; raises ImageError for an array that is no image."""
        if isinstance(self.pixels, Pillow.Image):
            picture = ImageOps.exif_transpose(self.pixels)
        else:
            array = np.asarray(self.pixels)
            if (
                array.dtype != np.uint8
                or array.ndim not in (2, 3)
                or (array.ndim == 3 and array.shape[2] not in (3, 4))
            ):
                raise ImageError(
                    f"an array of {array.dtype} {array.shape} is no image; give (height, width, 3) uint8, RGB"
                )
            if not array.size:
                raise ImageError(f"an array of shape {array.shape} has no pixels")
            picture = Pillow.fromarray(array)
        content = io.BytesIO()
        picture.save(content, "PPM" if picture.mode == "RGB" else "PNG")
        return content.getvalue(), 0


def embed_images(
    encoder: Encoder,
    images: Iterable[ImageInput],
    *,
    degraded_views: bool = False,
    batch_size: int | None = None,
    threads: int | None = None,
) -> Iterator[EmbeddedImage]:
    """Embed images while they stream by, one result for each, in order; a few batches are in memory.

    Parameters
    ----------
    images : files, folders, zip or tar archives, "-" for one image on standard input, bytes of a file,
        (height, width, 3) uint8 RGB arrays, Pillow images
    degraded_views : embed two degraded copies of each image too, see `degraded`
    batch_size : images encoded at once (default: 64 on a CPU, 1024 on a GPU)
    threads : number of decoding threads (default: one per core)

    Raises
    ------
    SourceError
        A folder or archive is not there. A file that cannot be read is a result with an `error`.
    EncoderError
        The device has no memory for even one image.
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
    batch_size: int | None = None,
    threads: int | None = None,
) -> Iterator[list[EmbeddedImage]]:
    """Embed images that were listed already, as `embed_images` does; the results of each batch come together."""
    reader = ImageReader(encoder.shrink, make_views=make_views)
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
            finally:  # images listed before an error are embedded
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
    """Batches grow to `size`, so that the first results come soon."""
    length = min(FIRST_BATCH, size)
    while True:
        yield length
        length = min(2 * length, size)


def _results(batch: Sequence[ImageRef], encoded: EncodedBatch) -> list[EmbeddedImage]:
    """The results of a batch in the order of its images."""
    results = []
    position = {id(image.entry): i for i, image in enumerate(encoded.images)}
    reasons = {id(ref): reason for ref, reason in encoded.refused}
    for ref in batch:
        if (i := position.get(id(ref))) is None:
            results.append(EmbeddedImage(ref.path, ref, error=reasons[id(ref)]))
        else:
            views = encoded.views[i] if encoded.views.shape[1] else None
            results.append(EmbeddedImage(ref.path, ref, encoded.images[i].image, encoded.vectors[i], views))
    return results


def degraded(pixels: Pixels) -> Sequence[Pixels]:
    """Degrade an image as the web would: as a JPEG of quality 60, and at half its width and height."""
    picture = Pillow.fromarray(pixels)
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=60)
    half = picture.resize((max(picture.width // 2, 1), max(picture.height // 2, 1)), Pillow.Resampling.LANCZOS)
    return [np.asarray(Pillow.open(jpeg).convert("RGB")), np.asarray(half)]


def degraded_by_name(pixels: Pixels) -> dict[str, Pixels]:
    """The degraded copies of an image by what was done to it."""
    return dict(zip(DEGRADATIONS, degraded(pixels), strict=True))


def image_refs(images: Iterable[ImageInput]) -> Iterator[ImageRef]:
    """List the images as references to their bytes; folders and archives are expanded."""
    for number, image in enumerate(images):
        where: Any
        if isinstance(image, np.ndarray | Pillow.Image):
            where, path = PixelSource(image), f"image {number}"
        elif isinstance(image, bytes):
            where, path = InMemory(image, 0), f"image {number}"
        elif (path := os.fspath(image)) == "-":
            where = InMemory(sys.stdin.buffer.read(), 0)
        elif Path(path).is_dir() or path.lower().endswith(ARCHIVES):
            yield from listing(expand([path]))
            continue
        elif is_url(path):
            yield ImageRef(path, path, refused="not on this machine; save the image and name the file")
            continue
        else:  # if it is not there or no image, that is its result
            where = None
        yield ImageRef(path, path, where=where)
