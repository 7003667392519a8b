"""Pillow's resampling (its Resample.c) as a float matrix per axis or as integer weights per output pixel.

The matrix form is fast on a CPU; a few pixels in a million differ from Pillow's by one level. The integer form is
Pillow's fixed-point arithmetic, with which a GPU kernel gives Pillow's pixels exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL

PILLOW_MAJOR = int(PIL.__version__.partition(".")[0])
BITS = 22  # fractional bits of the integer weights, Pillow's PRECISION_BITS


@dataclass(frozen=True)
class Taps:
    """Resampling of one axis: each output pixel is a weighted sum of consecutive input pixels."""

    first: npt.NDArray[np.int32]  # (new,) index of the first input pixel
    weights: npt.NDArray[np.int32]  # (new, taps) in units of 2 ** -BITS; 0 beyond the last input pixel


def crop_start(length: int, cropped: int, half_even: bool = False) -> int:
    """Return the index of the first pixel of a centre crop; negative if the crop is larger than the image.

    Half a pixel is rounded down as in `transformers`, or with `half_even` to an even index as in torchvision.

    >>> crop_start(7, 4), crop_start(7, 4, half_even=True)
    (1, 2)
    """
    return round((length - cropped) / 2) if half_even else (length - cropped) // 2


@lru_cache(maxsize=4096)
def taps_of(length: int, new: int, filter_: str, cropped: int = 0, half_even: bool = False) -> Taps:
    """Return the integer weights of one axis. The arguments are those of `resize_matrix`."""
    indices, weights = _weights(length, new, filter_, cropped or new, half_even)
    rounded = np.trunc(weights * 2**BITS + np.copysign(0.5, weights))
    return Taps(indices[:, 0].astype(np.int32), np.ascontiguousarray(rounded, np.int32))


@lru_cache(maxsize=64)
def resize_matrix(length: int, new: int, filter_: str, cropped: int = 0, half_even: bool = False) -> Any:
    """Return Pillow's antialiased resampling of one axis as a (new, length) float32 matrix.

    With `cropped`, only that many rows from the middle of the matrix are computed: the size after a centre crop.
    `half_even` is that of `crop_start`.
    """
    cropped = cropped or new
    indices, weights = _weights(length, new, filter_, cropped, half_even)
    matrix = np.zeros((cropped, length + indices.shape[1]), np.float32)  # indices beyond the end have weight 0
    np.put_along_axis(matrix, indices, weights, axis=1)
    return np.ascontiguousarray(matrix[:, :length])


@lru_cache(maxsize=64)
def exact_matrix(length: int, new: int, filter_: str, cropped: int = 0, half_even: bool = False) -> Any:
    """Return `resize_matrix` in float64 with Pillow's integer weights, whose products and sums are exact."""
    taps = taps_of(length, new, filter_, cropped, half_even)
    indices = taps.first[:, None] + np.arange(taps.weights.shape[1])
    matrix = np.zeros((len(indices), length + indices.shape[1]))
    np.put_along_axis(matrix, indices.astype(np.int64), taps.weights / 2**BITS, axis=1)
    return np.ascontiguousarray(matrix[:, :length])


def _weights(
    length: int, new: int, filter_: str, cropped: int, half_even: bool = False
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return (cropped, taps) indices of input pixels and their weights.

    The weights of a row sum to 1, or are 0 outside of the image, if the crop is larger.
    """
    start = crop_start(new, cropped, half_even)
    rows = np.arange(start, start + cropped)[:, None]
    if cropped > new:
        indices, weights = _weights(length, new, filter_, new)
        inside, rows = (rows >= 0) & (rows < new), np.clip(rows[:, 0], 0, new - 1)
        return indices[rows], np.where(inside, weights[rows], 0.0)
    if filter_ == "nearest":
        return _nearest(length, new)[rows], np.ones((cropped, 1))
    kernel, radius = _KERNELS[filter_]
    scale = length / new
    stretch = max(scale, 1.0)  # antialiasing: the kernel widens when the image shrinks
    centre = (rows + 0.5) * scale
    first = np.maximum((centre - radius * stretch + 0.5).astype(int), 0)
    last = np.minimum((centre + radius * stretch + 0.5).astype(int), length)
    indices = first + np.arange((last - first).max())
    weights = np.where(indices < last, kernel((indices - centre + 0.5) / stretch), 0.0)
    return indices, weights / weights.sum(1, keepdims=True)


def _nearest(length: int, new: int) -> npt.NDArray[np.int64]:
    """Return (new,) indices of input pixels; Pillow adds up the step, and its rounding errors with it."""
    step = length / new
    positions = np.add.accumulate(np.concatenate([[step / 2], np.full(new - 1, step)]))
    return np.minimum(positions.astype(np.int64), length - 1)


def height_first(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """True if Pillow resizes the height before the width; it rounds in between, so the order changes pixels.

    Pillow 13 and later do so if the height shrinks by more than twice as many pixels as the width. The wrong order
    changes one pixel in seven of a tall image resized to a square, by one or two levels.
    """
    height_loss, width_loss = old[0] - new[0], old[1] - new[1]
    return PILLOW_MAJOR >= 13 and height_loss > max(2 * width_loss, 0)


def _bicubic(x: Any, a: float = -0.5) -> Any:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _bilinear(x: Any) -> Any:
    return np.maximum(1 - np.abs(x), 0.0)


def _lanczos(x: Any) -> Any:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def _box(x: Any) -> Any:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


def _hamming(x: Any) -> Any:
    return np.where(np.abs(x) < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0.0)


_KERNELS = {
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_bilinear, 1.0),
    "lanczos": (_lanczos, 3.0),
    "box": (_box, 0.5),
    "hamming": (_hamming, 1.0),
}
