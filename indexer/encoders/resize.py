"""Pillow's resampling (its Resample.c) as numbers: a matrix for each axis, or a few integer weights for each pixel.

The matrix form is two float32 products, quick on a CPU; a few pixels in a million differ from Pillow's by one level.
The integer form is Pillow's own arithmetic, so that a GPU kernel that gathers by it gives Pillow's pixels exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL

PILLOW = int(PIL.__version__.partition(".")[0])
BITS = 22  # of the fixed-point weights, Pillow's PRECISION_BITS


@dataclass(frozen=True)
class Taps:
    """Resampling of one axis: each new pixel is a weighted sum of consecutive old ones."""

    first: npt.NDArray[np.int32]  # (new,) index of the first old pixel
    weights: npt.NDArray[np.int32]  # (new, taps) in units of 2 ** -BITS; 0 beyond the last old pixel


@lru_cache(maxsize=4096)
def taps_of(length: int, new: int, filter_: str, seen: int = 0) -> Taps:
    """Integer weights of one axis, see `resize_matrix` for the arguments."""
    at, weights = _weights(length, new, filter_, seen or new)
    rounded = np.trunc(weights * 2**BITS + np.copysign(0.5, weights))
    return Taps(at[:, 0].astype(np.int32), np.ascontiguousarray(rounded, np.int32))


@lru_cache(maxsize=64)
def resize_matrix(length: int, new: int, filter_: str, seen: int = 0) -> Any:
    """(new, length) float32: Pillow's antialiased resampling of one axis as a matrix.

    (seen, length), the rows in its middle, where fewer are asked for: of a long image most are cropped away.
    """
    seen = seen or new
    at, weights = _weights(length, new, filter_, seen)
    matrix = np.zeros((seen, length + at.shape[1]), np.float32)  # taps beyond the end, of no weight, are cut off
    np.put_along_axis(matrix, at, weights, axis=1)
    return np.ascontiguousarray(matrix[:, :length])


def _weights(length: int, new: int, filter_: str, seen: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """(seen, taps) indices of old pixels and their weights, which sum to 1."""
    kernel, reach = _KERNELS[filter_]
    scale = length / new
    stretch = max(scale, 1.0)  # when shrinking, the kernel widens: antialiasing
    centre = (np.arange((new - seen) // 2, (new - seen) // 2 + seen)[:, None] + 0.5) * scale
    first = np.maximum((centre - reach * stretch + 0.5).astype(int), 0)
    last = np.minimum((centre + reach * stretch + 0.5).astype(int), length)
    at = first + np.arange((last - first).max())
    weights = np.where(at < last, kernel((at - centre + 0.5) / stretch), 0.0)
    return at, weights / weights.sum(1, keepdims=True)


def height_first(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """True if Pillow reduces the height of this image before its width; it rounds in between.

    Since Pillow 13 where the height loses more than twice what the width does: of a tall image seen as a square, one
    pixel in seven is another by a level or two.
    """
    lower, narrower = old[0] - new[0], old[1] - new[1]
    return PILLOW >= 13 and lower > max(2 * narrower, 0)


def _bicubic(x: Any, a: float = -0.5) -> Any:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _bilinear(x: Any) -> Any:
    return np.maximum(1 - np.abs(x), 0.0)


def _lanczos(x: Any) -> Any:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


_KERNELS = {"bicubic": (_bicubic, 2.0), "bilinear": (_bilinear, 1.0), "lanczos": (_lanczos, 3.0)}
