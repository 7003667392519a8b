"""Read and decode images, several at a time, on the CPU or where it costs less.

Several threads may use one reader. Large images are resized to what the encoder sees as soon as they are decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Lock

from ...errors import ImageError
from ..sources.image_ref import ImageRef
from .gpu_decoder import TOGETHER_PIXELS, GpuDecoder, ReducedImage
from .image import Image, JpegHeader, Pixels, decode, digest_of, reduced, thumbnail, thumbnail_of

CORES = "cpu"  # the decoder that is always there


@dataclass(frozen=True)
class DecodedImage:
    """An image on its way to the encoder."""

    entry: ImageRef
    image: Image  # its pixels may have been resized; width and height below are the file's
    width: int
    height: int
    time: int  # of the file, nanoseconds
    thumbnail: bytes | None  # None: to be made of `reduced`, which comes from the encoder
    views: Sequence[Pixels] = ()  # further images made of it, to be encoded with it
    reduced: Pixels | None = None

    def thumbnail_jpeg(self) -> bytes:
        """The thumbnail, b"" where none was wanted."""
        if self.thumbnail is None:
            return thumbnail_of(reduced(self.image.pixels) if self.reduced is None else self.reduced)
        return self.thumbnail


@dataclass(frozen=True)
class LargeJpeg:
    """A large JPEG that was read and is not yet decoded."""

    at: int  # among the entries opened together
    entry: ImageRef
    content: bytes
    time: int  # of the file, nanoseconds
    header: JpegHeader


@dataclass(frozen=True)
class DecodedBatch:
    """Some images that were read together."""

    images: list[DecodedImage]
    refused: list[tuple[ImageRef, str]]  # those that could not be read, and why


class ImageReader:
    """Reads and decodes the images of one run."""

    def __init__(
        self,
        shrink: Callable[[Pixels], Pixels] = lambda pixels: pixels,
        *,
        thumbnails: bool = False,
        encoder_reduces: bool = False,
        gpu_decoder: GpuDecoder | None = None,
        make_views: Callable[[Pixels], Sequence[Pixels]] | None = None,
    ) -> None:
        """Set what to do with each image.

        Parameters
        ----------
        shrink : resizes pixels to what the encoder sees, see `Encoder.shrink`
        thumbnails : make a small JPEG of each image
        encoder_reduces : leave the thumbnail of an image that `shrink` does not change to the encoder
        gpu_decoder : decodes large JPEGs beside the CPU
        make_views : makes further images of each, from its full size; not with `gpu_decoder`
        """
        self._shrink, self._thumbnails, self._offload = shrink, thumbnails, gpu_decoder
        self._make_views = make_views
        self.leaves_thumbnails = thumbnails and encoder_reduces
        self._lock = Lock()
        self.counts = {CORES: 0} | ({gpu_decoder.name: 0} if gpu_decoder else {})  # images by what decoded them

    def open(self, entries: Sequence[ImageRef]) -> DecodedBatch:
        """Decode these images, in their order; those that cannot be read are among the refused."""
        found: dict[int, DecodedImage | ImageError] = {}  # by place among the entries
        large: list[LargeJpeg] = []
        for i, entry in enumerate(entries):
            try:
                if entry.refused:
                    raise ImageError(entry.refused)
                content, when = entry.place.read()
                if self._offload is not None and (header := self._offload.wants(content)):
                    if header.pixels + sum(one.header.pixels for one in large) > TOGETHER_PIXELS:
                        self._decode_large(large, found)
                    large.append(LargeJpeg(i, entry, content, when, header))
                else:
                    found[i] = self._decode(entry, content, when)
            except ImageError as e:
                found[i] = e
        self._decode_large(large, found)
        opened = DecodedBatch([], [])
        for i, entry in enumerate(entries):
            if isinstance(one := found[i], ImageError):
                opened.refused.append((entry, str(one)))
            else:
                opened.images.append(one)
        return opened

    def _decode_large(self, large: list[LargeJpeg], found: dict[int, DecodedImage | ImageError]) -> None:
        """Decode the images together, or one by one here while another thread has the decoder; none is left."""
        while large and self._offload is not None:
            here, large[:] = large[:], []
            given = self._offload.decode([one.content for one in here])
            if given is None:
                here, large[:] = here[:1], here[1:]
            for one, small in zip(here, given or [None], strict=True):
                if small is not None:
                    found[one.at] = self._offloaded(one, small)
                    continue
                try:
                    found[one.at] = self._decode(one.entry, one.content, one.time)
                except ImageError as e:
                    found[one.at] = e

    def _offloaded(self, large: LargeJpeg, small: ReducedImage) -> DecodedImage:
        content, header = large.content, large.header
        image = Image(small.pixels, "JPEG", header.quality, len(content), digest_of(content))
        picture = b"" if small.reduced is None else thumbnail_of(small.reduced)
        self._count(self._offload.name if self._offload else CORES)
        return DecodedImage(large.entry, image, header.width, header.height, large.time, picture)

    def _decode(self, entry: ImageRef, content: bytes, when: int) -> DecodedImage:
        image = decode(content)
        height, width = image.height, image.width
        views = [self._shrink(view) for view in self._make_views(image.pixels)] if self._make_views else ()
        shrunk = self._shrink(image.pixels)
        small: bytes | None = None
        if not (self.leaves_thumbnails and shrunk is image.pixels):
            small = thumbnail(image.pixels) if self._thumbnails else b""
        image = replace(image, pixels=shrunk)
        self._count(CORES)
        return DecodedImage(entry, image, width, height, when, small, views)

    def _count(self, decoder: str) -> None:
        with self._lock:
            self.counts[decoder] += 1
