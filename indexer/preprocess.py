"""Pixels to the encoder's input, on its device: Pillow's resize as two matrix products, centre crop, normalisation.

A CPU resize is the bottleneck of a GPU indexer; two small float32 products with Pillow's own coefficients, and
Pillow's rounding to 8 bits after each, give Pillow's pixels (a few in a million differ by one level).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ..store.errors import EncoderError
from .image import Pixels


@dataclass(frozen=True)
class Preprocess:
    """What an encoder wants done to an image before it sees it; part of the encoder's fingerprint."""

    height: int  # after resizing, where `short` is 0
    width: int
    short: int  # the shorter side after resizing, keeping the proportions; 0: resize to height x width
    crop: int  # side of the centre crop, 0 for none
    filter: str  # "bicubic", "bilinear" or "lanczos", as Pillow defines them
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Preprocess:
        """From a `preprocessor_config.json`; raises EncoderError for what we cannot do."""
        size = config.get("size", 224)
        size = {"shortest_edge": size} if isinstance(size, int) else dict(size)
        crop: Any = config.get("crop_size", 0) if config.get("do_center_crop") else 0
        if isinstance(crop, dict):
            crop = crop.get("height", crop.get("shortest_edge", 0))
        filters = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
        code = int(config.get("resample", 3))
        if code not in filters:
            raise EncoderError(f"the encoder's preprocessing resizes with Pillow filter {code}; known are {filters}")
        normalise = config.get("do_normalize", True)
        return cls(
            height=int(size.get("height", 0)),
            width=int(size.get("width", 0)),
            short=int(size.get("shortest_edge", 0)),
            crop=int(crop),
            filter=filters[code],
            scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
            mean=tuple(map(float, config["image_mean"])) if normalise else (0.0, 0.0, 0.0),  # type: ignore[arg-type]
            std=tuple(map(float, config["image_std"])) if normalise else (1.0, 1.0, 1.0),  # type: ignore[arg-type]
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __call__(self, images: Sequence[Pixels], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """(images, 3, height, width): images of one size go through together, uint8 until they are on the device."""
        result: list[torch.Tensor] = [torch.empty(0)] * len(images)
        sizes: dict[tuple[int, int], list[int]] = {}
        for i, pixels in enumerate(images):
            sizes.setdefault((pixels.shape[0], pixels.shape[1]), []).append(i)
        for members in sizes.values():
            batch = torch.from_numpy(np.stack([images[i] for i in members])).to(device)
            for i, tensor in zip(members, self.resize(batch), strict=True):
                result[i] = tensor
        mean = torch.tensor(self.mean, device=device).view(3, 1, 1)
        std = torch.tensor(self.std, device=device).view(3, 1, 1)
        return ((torch.stack(result) * self.scale - mean) / std).to(dtype)

    def resize(self, batch: torch.Tensor) -> torch.Tensor:
        """(n, h, w, 3) uint8 to (n, 3, height, width) float32 with whole values 0..255, resized and cropped."""
        height, width = batch.shape[1:3]
        down, across = self._matrices(height, width)
        planes = batch.permute(0, 3, 1, 2).float()
        planes = _rounded(planes @ torch.from_numpy(across.T).to(batch.device))
        return _rounded(torch.from_numpy(down).to(batch.device) @ planes)

    def _matrices(self, height: int, width: int) -> tuple[Any, Any]:
        new_height, new_width = self.height, self.width
        if self.short:
            new_height = self.short if height <= width else int(self.short * height / width)
            new_width = self.short if width <= height else int(self.short * width / height)
        down, across = resize_matrix(height, new_height, self.filter), resize_matrix(width, new_width, self.filter)
        if self.crop:
            if min(new_height, new_width) < self.crop:
                raise EncoderError(f"a crop of {self.crop} from {new_height} x {new_width} would pad with black")
            top, left = (new_height - self.crop) // 2, (new_width - self.crop) // 2
            down, across = down[top : top + self.crop], across[left : left + self.crop]
        return np.ascontiguousarray(down), np.ascontiguousarray(across)


def _rounded(planes: torch.Tensor) -> torch.Tensor:
    return torch.floor(planes + 0.5).clamp_(0, 255)


@lru_cache(maxsize=256)
def resize_matrix(length: int, new: int, filter_: str) -> Any:
    """(new, length) float32: Pillow's antialiased resampling of one axis as a matrix (Pillow's Resample.c)."""
    kernel, reach = _KERNELS[filter_]
    scale = length / new
    stretch = max(scale, 1.0)  # when shrinking, the kernel widens: antialiasing
    matrix = np.zeros((new, length))
    for i in range(new):
        centre = (i + 0.5) * scale
        first = max(int(centre - reach * stretch + 0.5), 0)
        last = min(int(centre + reach * stretch + 0.5), length)
        weights = np.array([kernel((x - centre + 0.5) / stretch) for x in range(first, last)])
        matrix[i, first:last] = weights / weights.sum()
    return matrix.astype(np.float32)


def _bicubic(x: float, a: float = -0.5) -> float:
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _bilinear(x: float) -> float:
    return max(1 - abs(x), 0.0)


def _lanczos(x: float) -> float:
    if x == 0:
        return 1.0
    return 3 * math.sin(math.pi * x) * math.sin(math.pi * x / 3) / (math.pi * x) ** 2 if abs(x) < 3 else 0.0


_KERNELS = {"bicubic": (_bicubic, 2.0), "bilinear": (_bilinear, 1.0), "lanczos": (_lanczos, 3.0)}
