"""Read and decode images, several at a time, on the CPU or, for large JPEGs, on the GPU.

Several threads may share one reader. Each image is resized to the encoder's input size as soon as it is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Lock

from ...errors import ImageError
from ..sources.image_ref import ImageRef
from .gpu_decoder import BATCH_PIXELS, GpuDecoder, ReducedImage
from .image import Image, JpegHeader, Pixels, decode, digest_of, thumbnail, thumbnail_of
from .image import reduced as reduce_pixels

CPU = "cpu"  # name of the CPU decoder in reports


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image, ready for the encoder."""

    ref: ImageRef
    image: Image  # its pixels may have been resized; width and height below are the file's
    width: int
    height: int
    time: int  # modification time of the file, nanoseconds since the epoch
    thumbnail: bytes | None  # None: to be made of `reduced`, which comes from the encoder
    views: Sequence[Pixels] = ()  # further images made of it, to be encoded with it
    reduced: Pixels | None = None

    def thumbnail_jpeg(self) -> bytes:
        """The thumbnail, b"" where none was wanted."""
        if self.thumbnail is None:
            return thumbnail_of(reduce_pixels(self.image.pixels) if self.reduced is None else self.reduced)
        return self.thumbnail


@dataclass(frozen=True)
class LargeJpeg:
    """A large JPEG that was read and is not yet decoded."""

    index: int  # among the images opened together
    ref: ImageRef
    content: bytes
    time: int  # modification time of the file, nanoseconds since the epoch
    header: JpegHeader


@dataclass(frozen=True)
class DecodedBatch:
    """Images that were read together."""

    images: list[DecodedImage]
    refused: list[tuple[ImageRef, str]]  # images that could not be read, and why


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
        check: Callable[[Pixels], None] | None = None,
    ) -> None:
        """Set what to do with each image.

        Parameters
        ----------
        shrink : resizes pixels to the encoder's input size, see `Encoder.shrink`
        thumbnails : make a small JPEG of each image
        encoder_reduces : leave the thumbnail of an image that `shrink` does not change to the encoder
        gpu_decoder : decodes large JPEGs beside the CPU
        make_views : makes further images of each one, from its full size; not with `gpu_decoder`
        check : raises ImageError for full-size pixels that are not wanted; not with `gpu_decoder`
        """
        self._shrink, self._thumbnails, self._gpu_decoder = shrink, thumbnails, gpu_decoder
        self._make_views, self._check = make_views, check
        self.leaves_thumbnails = thumbnails and encoder_reduces
        self._lock = Lock()
        self.counts = {CPU: 0} | ({gpu_decoder.name: 0} if gpu_decoder else {})  # decoder -> images

    def open(self, refs: Sequence[ImageRef]) -> DecodedBatch:
        """Decode images, in order; those that cannot be read are returned as refused."""
        outcomes: dict[int, DecodedImage | ImageError] = {}  # by index into `refs`
        large: list[LargeJpeg] = []
        for i, ref in enumerate(refs):
            try:
                if ref.refused:
                    raise ImageError(ref.refused)
                content, time = ref.byte_source.read()
                if self._gpu_decoder is not None and (header := self._gpu_decoder.accepts(content)):
                    if header.pixels + sum(jpeg.header.pixels for jpeg in large) > BATCH_PIXELS:
                        self._decode_large(large, outcomes)
                    large.append(LargeJpeg(i, ref, content, time, header))
                else:
                    outcomes[i] = self._decode(ref, content, time)
            except ImageError as e:
                outcomes[i] = e
            except MemoryError:
                outcomes[i] = ImageError("it takes more memory than there is")
        self._decode_large(large, outcomes)
        batch = DecodedBatch([], [])
        for i, ref in enumerate(refs):
            if isinstance(outcome := outcomes[i], ImageError):
                batch.refused.append((ref, str(outcome)))
            else:
                batch.images.append(outcome)
        return batch

    def _decode_large(self, large: list[LargeJpeg], outcomes: dict[int, DecodedImage | ImageError]) -> None:
        """Decode the images together on the GPU, or one by one on the CPU while another thread uses the GPU.

        `large` is empty afterwards.
        """
        while large and self._gpu_decoder is not None:
            jpegs, large[:] = large[:], []
            decoded = self._gpu_decoder.decode([jpeg.content for jpeg in jpegs])
            if decoded is None:
                jpegs, large[:] = jpegs[:1], jpegs[1:]
            for jpeg, reduced in zip(jpegs, decoded or [None], strict=True):
                if reduced is not None:
                    outcomes[jpeg.index] = self._from_gpu(jpeg, reduced)
                    continue
                try:
                    outcomes[jpeg.index] = self._decode(jpeg.ref, jpeg.content, jpeg.time)
                except ImageError as e:
                    outcomes[jpeg.index] = e

    def _from_gpu(self, jpeg: LargeJpeg, reduced: ReducedImage) -> DecodedImage:
        content, header = jpeg.content, jpeg.header
        image = Image(reduced.pixels, "JPEG", header.quality, len(content), digest_of(content))
        small = b"" if reduced.thumbnail is None else thumbnail_of(reduced.thumbnail)
        self._count(self._gpu_decoder.name if self._gpu_decoder else CPU)
        return DecodedImage(jpeg.ref, image, header.width, header.height, jpeg.time, small)

    def _decode(self, ref: ImageRef, content: bytes, time: int) -> DecodedImage:
        image = decode(content)
        height, width = image.height, image.width
        if self._check:
            self._check(image.pixels)
        views = [self._shrink(view) for view in self._make_views(image.pixels)] if self._make_views else ()
        shrunk = self._shrink(image.pixels)
        small: bytes | None = None
        if not (self.leaves_thumbnails and shrunk is image.pixels):
            small = thumbnail(image.pixels) if self._thumbnails else b""
        image = replace(image, pixels=shrunk)
        self._count(CPU)
        return DecodedImage(ref, image, width, height, time, small, views)

    def _count(self, decoder: str) -> None:
        with self._lock:
            self.counts[decoder] += 1
