"""Preprocess a batch of images of any sizes on a CUDA device with one upload and one kernel.

The images and the tables that the kernels read are packed into one pinned buffer. The pixels equal Pillow's, whatever
the settings of torch (whose float32 products may be rounded to TF32). Without Triton, `preprocess.py` does the same
with matrix products.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ....errors import EncoderError
from ...decoding.image import Pixels, reduced, thumbnail_factor
from ..preprocess import Preprocess
from ..resize import height_first, taps_of
from .pinned_upload import PinnedUploader

ALIGN = 16  # bytes; each part of a buffer starts at a multiple of this
FIELDS = 8  # int32 values per image in the kernels' tables
CHECK_SIZES = ((200, 200), (256, 192), (97, 430))  # of the images that `check` compares with Pillow
Upload = Callable[[Sequence[npt.NDArray[np.uint8]], int], torch.Tensor]  # (flat arrays, total bytes) to (bytes,) uint8
logger = logging.getLogger(__name__)
Table = npt.NDArray[np.int32]

_PADDING = np.zeros(ALIGN, np.uint8)


@dataclass(frozen=True)
class PackedArrays:
    """Arrays as consecutive parts of one buffer."""

    parts: list[npt.NDArray[np.uint8]]  # (bytes,) each, with padding between them; they share the arrays' memory
    offsets: npt.NDArray[np.int32]  # (arrays,) in units of ALIGN bytes
    size: int  # bytes

    @classmethod
    def from_arrays(cls, arrays: Sequence[npt.NDArray[Any]]) -> PackedArrays:
        """Lay out arrays one after the other, each aligned to ALIGN bytes."""
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
    """Images reduced for thumbnails, as parts of one buffer."""

    buffer: torch.Tensor  # (bytes,) uint8
    shapes: Sequence[tuple[int, int]]  # height and width of each
    offsets: npt.NDArray[np.int32]  # (n,) in units of ALIGN bytes

    def download(self) -> ReducedImages:
        """Start a copy to pinned memory; synchronise with the current stream before reading it."""
        pinned = torch.empty(self.buffer.shape, dtype=torch.uint8, pin_memory=self.buffer.is_cuda)
        pinned.copy_(self.buffer, non_blocking=True)
        return ReducedImages(pinned, self.shapes, self.offsets)

    def images(self) -> list[Pixels]:
        """Return (height, width, 3) uint8 images that share the memory of the buffer, which must be on the CPU."""
        values = self.buffer.numpy()
        starts = self.offsets.astype(np.int64) * ALIGN
        return [values[i : i + h * w * 3].reshape(h, w, 3) for i, (h, w) in zip(starts, self.shapes, strict=True)]


class GpuInput:
    """Prepares batches for an encoder on one CUDA device, on its current stream."""

    def __init__(self, preprocess: Preprocess, device: torch.device, upload: Upload) -> None:
        """Raise ImportError without Triton. Call `check` before use."""
        from . import kernels

        self._kernels = kernels
        self._preprocess, self._device, self._upload = preprocess, device, upload
        mean, std = np.array(preprocess.mean), np.array(preprocess.std)
        self._scale = torch.from_numpy(np.concatenate([preprocess.scale / std, -mean / std])).float().to(device)

    def __call__(self, images: Sequence[Pixels], dtype: torch.dtype) -> torch.Tensor:
        """Preprocess n (height, width, 3) uint8 images to (n, 3, height, width)."""
        return self.with_reduced(images, dtype, reduce=False)[0]

    def with_reduced(
        self, images: Sequence[Pixels], dtype: torch.dtype, *, reduce: bool = True
    ) -> tuple[torch.Tensor, ReducedImages | None]:
        """Return the encoder's input, and the images reduced as by `decoding.image.reduced` (None without `reduce`)."""
        resize_table, weights, (height, width) = _resize_tables(self._preprocess, images)
        reduce_table, shapes = _reduce_table(images) if reduce else (np.zeros((0, FIELDS), np.int32), [])
        packed = PackedArrays.from_arrays([*images, resize_table, weights, reduce_table])
        starts = packed.offsets[: len(images)]
        resize_table[:, 0] = starts  # `packed.parts` share the memory of the tables
        if reduce:
            reduce_table[:, 0] = starts
        buffer = self._upload(packed.parts, packed.size)
        device_resize_table, device_weights, device_reduce_table = (
            buffer[int(offset) * ALIGN :][: table.nbytes].view(torch.int32)
            for offset, table in zip(packed.offsets[len(images) :], (resize_table, weights, reduce_table), strict=True)
        )
        out = torch.empty((len(images), 3, height, width), dtype=dtype, device=self._device)
        self._kernels.resize(buffer, device_resize_table, device_weights, self._scale, out)
        if not reduce:
            return out, None
        sizes = [h * w * 3 for h, w in shapes]
        end = int(reduce_table[-1, 4]) * ALIGN + sizes[-1]
        reduced_pixels = torch.empty(end, dtype=torch.uint8, device=self._device)
        self._kernels.reduce(buffer, device_reduce_table.view(-1, FIELDS), reduced_pixels, max(sizes))
        return out, ReducedImages(reduced_pixels, shapes, reduce_table[:, 4].copy())

    def check(self) -> None:
        """Compare the pixels of a few images with Pillow's; raises EncoderError if any value differs."""
        images = _check_images()
        values, reduced_images = self.with_reduced(images, torch.float32)
        assert reduced_images is not None
        thumbnails = reduced_images.download()
        rows = values.cpu().numpy().transpose(0, 2, 3, 1)  # synchronises with the stream
        scale, shift = self._scale.cpu().numpy().reshape(2, 3)
        for image, row, thumbnail in zip(images, rows, thumbnails.images(), strict=True):
            expected = self._preprocess.with_pillow(image) * scale + shift
            if np.abs(row - expected).max() > 1e-4 or not np.array_equal(thumbnail, reduced(image)):
                raise EncoderError(f"{self._device} resizes images of {image.shape[:2]} differently from Pillow")


def _resize_tables(preprocess: Preprocess, images: Sequence[Pixels]) -> tuple[Table, Table, tuple[int, int]]:
    """Return an (n, FIELDS) table of the images, the weights it refers to, and height and width of the input.

    The fields are: offset of the image (filled in later), height, width, horizontal weights' index and number of taps,
    vertical weights' index and number of taps, and 1 if the height is resized first (else 0).
    """
    table = np.zeros((len(images), FIELDS), np.int32)
    rows: dict[tuple[int, int], Table] = {}
    weights: list[Table] = []
    axes: dict[tuple[int, int, int], tuple[int, int]] = {}  # (length, resized, cropped) to (index, taps)
    size, input_size = 0, (0, 0)
    for i, image in enumerate(images):
        old = (image.shape[0], image.shape[1])
        if old not in rows:
            new = preprocess.resized_size(*old)
            cropped = preprocess.input_size(*old)
            if input_size not in ((0, 0), cropped):
                raise EncoderError(
                    f"the encoder's preprocessing gives inputs of {input_size} and of {cropped} pixels in one batch; "
                    f"its preprocessor_config.json needs a centre crop or a fixed height and width"
                )
            input_size = cropped
            for axis in zip(old, new, cropped, strict=True):
                if axis not in axes:
                    taps = taps_of(axis[0], axis[1], preprocess.filter, axis[2], preprocess.half_even)
                    axes[axis] = size, taps.weights.shape[1]
                    weights += [taps.first, taps.weights.reshape(-1)]
                    size += taps.first.size + taps.weights.size
            down, across = (axes[axis] for axis in zip(old, new, cropped, strict=True))
            rows[old] = np.array([0, *old, *across, *down, height_first(old, new)], np.int32)
        table[i] = rows[old]
    return table, np.concatenate(weights), input_size


def _reduce_table(images: Sequence[Pixels]) -> tuple[Table, list[tuple[int, int]]]:
    """Return an (n, FIELDS) table and the shapes of the reduced images.

    The fields are: offset of the image (filled in later), height, width, factor, offset of the reduced image.
    """
    table, shapes, offset = np.zeros((len(images), FIELDS), np.int32), [], 0
    for i, image in enumerate(images):
        height, width = image.shape[:2]
        factor = thumbnail_factor(height, width)
        table[i, 1:5] = height, width, factor, offset
        shapes.append((-(-height // factor), -(-width // factor)))
        offset += -(-shapes[-1][0] * shapes[-1][1] * 3 // ALIGN)
    return table, shapes


def gpu_input_for(preprocess: Preprocess, device: torch.device, uploader: PinnedUploader) -> GpuInput | None:
    """Return a GpuInput whose pixels equal Pillow's, or None if the kernel or this device cannot do it.

    Raises
    ------
    EncoderError
        The fallback, matrix products, gives pixels that differ from Pillow's.
    """
    if not preprocess.on_gpu:
        check_products(preprocess, device)
        return None
    try:
        gpu_input = GpuInput(preprocess, device, uploader.upload_bytes)
        gpu_input.check()
    except Exception as e:  # noqa: BLE001 - Triton is not installed, finds no compiler, or does not know the device
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        logger.warning("Resizing images with matrix products on %s, which is slower than Triton: %s", device, reason)
        check_products(preprocess, device)
        return None
    return gpu_input


def check_products(preprocess: Preprocess, device: torch.device) -> None:
    """Compare `Preprocess.resize` with Pillow; raises EncoderError if a value differs by more than one level."""
    for image in _check_images():
        resized = preprocess.resize(torch.from_numpy(image[None]).to(device))[0].permute(1, 2, 0).cpu().numpy()
        if np.abs(resized - preprocess.with_pillow(image)).max() > 1:
            raise EncoderError(
                f"{device} resizes images differently from Pillow; set torch.backends.cuda.matmul.allow_tf32 = False"
            )


def _check_images() -> list[Pixels]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in CHECK_SIZES]
