"""A batch of images of any sizes to an encoder's input on a CUDA device: one upload, one kernel.

The images lie in one pinned buffer with the tables that the kernels read. Pixels are exactly Pillow's, whatever torch
is set to (its float32 products may be rounded to TF32). Where Triton is missing, `preprocess.py` does the same with
matrix products.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow

from ....errors import EncoderError
from ...decoding.image import Pixels, reduced, thumbnail_factor
from ..preprocess import Preprocess
from ..resize import height_first, taps_of
from .pinned_upload import PinnedUploader

ALIGN = 16  # bytes; every part of a buffer starts at a multiple of it
FIELDS = 8  # int32 values an image in the kernels' tables
CHECK_SIZES = ((200, 200), (256, 192), (97, 430))  # of the images that are compared with Pillow at the start
Upload = Callable[[Sequence[npt.NDArray[np.uint8]], int], torch.Tensor]  # flat arrays, bytes in all -> (bytes,) uint8
logger = logging.getLogger(__name__)
Table = npt.NDArray[np.int32]

_PADDING = np.zeros(ALIGN, np.uint8)


@dataclass(frozen=True)
class PackedArrays:
    """Arrays as parts of one buffer."""

    parts: list[npt.NDArray[np.uint8]]  # (bytes,) each, with padding between; they share the arrays' memory
    offsets: npt.NDArray[np.int32]  # (arrays,) in units of ALIGN bytes
    size: int  # bytes

    @classmethod
    def of(cls, arrays: Sequence[npt.NDArray[Any]]) -> PackedArrays:
        parts: list[npt.NDArray[np.uint8]] = []
        offsets, size = np.empty(len(arrays), np.int32), 0
        for i, array in enumerate(arrays):
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            parts.append(flat)
            offsets[i] = size // ALIGN
            size += len(flat)
            if gap := -size % ALIGN:
                parts.append(_PADDING[:gap])
                size += gap
        return cls(parts, offsets, size)


@dataclass(frozen=True)
class ReducedImages:
    """Images reduced for their thumbnails, as parts of one buffer."""

    buffer: torch.Tensor  # (bytes,) uint8
    shapes: Sequence[tuple[int, int]]  # height and width of each
    offsets: npt.NDArray[np.int32]  # (n,) in units of ALIGN bytes

    def download(self) -> ReducedImages:
        """A copy in pinned memory. It is on its way: wait for the current stream before reading it."""
        here = torch.empty(self.buffer.shape, dtype=torch.uint8, pin_memory=self.buffer.is_cuda)
        here.copy_(self.buffer, non_blocking=True)
        return ReducedImages(here, self.shapes, self.offsets)

    def images(self) -> list[Pixels]:
        """(height, width, 3) uint8 each; they share the buffer's memory, which is on the CPU."""
        values = self.buffer.numpy()
        starts = self.offsets.astype(np.int64) * ALIGN
        return [values[at : at + h * w * 3].reshape(h, w, 3) for at, (h, w) in zip(starts, self.shapes, strict=True)]


class GpuInput:
    """Prepares batches for an encoder on one CUDA device, on its current stream."""

    def __init__(self, preprocess: Preprocess, device: torch.device, upload: Upload) -> None:
        """Raises ImportError without Triton, EncoderError where the device's pixels are not Pillow's."""
        from . import kernels

        self._kernels = kernels
        self._preprocess, self._device, self._upload = preprocess, device, upload
        mean, std = np.array(preprocess.mean), np.array(preprocess.std)
        self._scale = torch.from_numpy(np.concatenate([preprocess.scale / std, -mean / std])).float().to(device)

    def __call__(self, images: Sequence[Pixels], dtype: torch.dtype) -> torch.Tensor:
        """(n, 3, height, width): the encoder's input of n (height, width, 3) uint8 images."""
        return self.with_reduced(images, dtype, reduce=False)[0]

    def with_reduced(
        self, images: Sequence[Pixels], dtype: torch.dtype, *, reduce: bool = True
    ) -> tuple[torch.Tensor, ReducedImages | None]:
        """The encoder's input, and the images reduced as `decoding.image.reduced` does."""
        resizing, weights, (height, width) = _resize_tables(self._preprocess, images)
        reducing, shapes = _reduce_table(images) if reduce else (np.zeros((0, FIELDS), np.int32), [])
        packed = PackedArrays.of([*images, resizing, weights, reducing])
        starts = packed.offsets[: len(images)]
        resizing[:, 0] = starts  # the parts share its memory
        if reduce:
            reducing[:, 0] = starts
        buffer = self._upload(packed.parts, packed.size)
        resizing_there, weights_there, reducing_there = (
            buffer[int(offset) * ALIGN :][: table.nbytes].view(torch.int32)
            for offset, table in zip(packed.offsets[len(images) :], (resizing, weights, reducing), strict=True)
        )
        out = torch.empty((len(images), 3, height, width), dtype=dtype, device=self._device)
        self._kernels.resize(buffer, resizing_there, weights_there, self._scale, out)
        if not reduce:
            return out, None
        sizes = [h * w * 3 for h, w in shapes]
        end = int(reducing[-1, 4]) * ALIGN + sizes[-1]
        small = torch.empty(end, dtype=torch.uint8, device=self._device)
        self._kernels.reduce(buffer, reducing_there.view(-1, FIELDS), small, max(sizes))
        return out, ReducedImages(small, shapes, reducing[:, 4].copy())

    def check(self) -> None:
        """Compare a few images with Pillow's; raises EncoderError where one value differs."""
        images = _check_images()
        values, small = self.with_reduced(images, torch.float32)
        assert small is not None
        thumbnails = small.download()
        rows = values.cpu().numpy().transpose(0, 2, 3, 1)  # waits for the stream
        scale, shift = self._scale.cpu().numpy().reshape(2, 3)
        for image, row, thumbnail in zip(images, rows, thumbnails.images(), strict=True):
            expected = _with_pillow(self._preprocess, image) * scale + shift
            if np.abs(row - expected).max() > 1e-4 or not np.array_equal(thumbnail, reduced(image)):
                raise EncoderError(f"{self._device} resizes an image of {image.shape[:2]} differently from Pillow")


def _resize_tables(preprocess: Preprocess, images: Sequence[Pixels]) -> tuple[Table, Table, tuple[int, int]]:
    """Return (n, FIELDS) of the images, the weights they refer to, and height and width of the input.

    The fields: offset of the image (filled in later), height, width; index of the weights and taps across; the same
    down; 1 where the height is resampled first.
    """
    table = np.zeros((len(images), FIELDS), np.int32)
    rows: dict[tuple[int, int], Table] = {}
    weights: list[Table] = []
    places: dict[tuple[int, int, int], tuple[int, int]] = {}  # by length, new length and seen length
    size, seen = 0, (0, 0)
    for i, image in enumerate(images):
        old = (image.shape[0], image.shape[1])
        if old not in rows:
            new = preprocess.resized_size(*old)
            target = preprocess.seen_size(*old)
            if seen not in ((0, 0), target):
                raise EncoderError(f"the preprocessing makes inputs of {seen} and of {target} from one batch")
            seen = target
            for axis in zip(old, new, seen, strict=True):
                if axis not in places:
                    taps = taps_of(axis[0], axis[1], preprocess.filter, axis[2])
                    places[axis] = size, taps.weights.shape[1]
                    weights += [taps.first, taps.weights.reshape(-1)]
                    size += taps.first.size + taps.weights.size
            down, across = (places[axis] for axis in zip(old, new, seen, strict=True))
            rows[old] = np.array([0, *old, *across, *down, height_first(old, new)], np.int32)
        table[i] = rows[old]
    return table, np.concatenate(weights), seen


def _reduce_table(images: Sequence[Pixels]) -> tuple[Table, list[tuple[int, int]]]:
    """Return (n, FIELDS): offset of the image (filled in later), height, width, factor, offset of the result."""
    table, shapes, at = np.zeros((len(images), FIELDS), np.int32), [], 0
    for i, image in enumerate(images):
        height, width = image.shape[:2]
        factor = thumbnail_factor(height, width)
        table[i, 1:5] = height, width, factor, at
        shapes.append((-(-height // factor), -(-width // factor)))
        at += -(-shapes[-1][0] * shapes[-1][1] * 3 // ALIGN)
    return table, shapes


def _with_pillow(preprocess: Preprocess, image: Pixels) -> npt.NDArray[np.uint8]:
    (height, width), (rows, columns) = preprocess.resized_size(*image.shape[:2]), preprocess.seen_size(*image.shape[:2])
    filter_ = Pillow.Resampling[preprocess.filter.upper()]
    resized = np.asarray(Pillow.fromarray(image).resize((width, height), filter_))
    top, left = (height - rows) // 2, (width - columns) // 2
    return resized[top : top + rows, left : left + columns]


def gpu_input_for(preprocess: Preprocess, device: torch.device, uploader: PinnedUploader) -> GpuInput | None:
    """A GpuInput whose pixels have been compared with Pillow's, or None where Triton cannot run it.

    Raises
    ------
    EncoderError
        The matrix products that take its place give other pixels than Pillow's.
    """
    try:
        made = GpuInput(preprocess, device, uploader.upload_bytes)
        made.check()
    except Exception as e:  # noqa: BLE001 - Triton is not installed, finds no compiler, or does not know the device
        logger.warning("Images are resized by matrix products on %s, which is slower: %s", device, e)
        check_products(preprocess, device)
        return None
    return made


def check_products(preprocess: Preprocess, device: torch.device) -> None:
    """Compare `Preprocess.resize` with Pillow; raises EncoderError where a value differs by more than one level."""
    for image in _check_images():
        found = preprocess.resize(torch.from_numpy(image[None]).to(device))[0].permute(1, 2, 0).cpu().numpy()
        if np.abs(found - _with_pillow(preprocess, image)).max() > 1:
            raise EncoderError(
                f"{device} resizes images differently from Pillow; set torch.backends.cuda.matmul.allow_tf32 = False"
            )


def _check_images() -> list[Pixels]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in CHECK_SIZES]
