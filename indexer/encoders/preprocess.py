"""Pixels to the encoder's input, on its device: Pillow's resize as two matrix products, centre crop, normalisation.

A CPU resize is the bottleneck of a GPU indexer; two small float32 products with Pillow's own coefficients, and
Pillow's rounding to 8 bits after each, give Pillow's pixels (a few in a million differ by one level).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow

from ...errors import EncoderError
from ..decoding.image import Pixels
from .resize import height_first, resize_matrix

SIDE = 8192  # pixels of what an encoder sees, at most: a number of a configuration is what memory is taken by
LARGE = 448 * 448  # pixels; beyond it, an image waits for the encoder resized


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing of an encoder: what is done to an image before it is encoded. Part of the encoder's fingerprint."""

    height: int  # after resizing, where `short` is 0
    width: int
    short: int  # the shorter side after resizing, keeping the proportions; 0: resize to height x width
    crop: int  # side of the centre crop, 0 for none
    filter: str  # "bicubic", "bilinear" or "lanczos", as Pillow defines them
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        sides = (self.short,) if self.short else (self.height, self.width)
        if not all(1 <= side <= SIDE for side in sides) or not 0 <= self.crop <= SIDE:
            raise EncoderError(
                f"the encoder's preprocessing makes images of {' x '.join(map(str, sides))}, cropped to {self.crop}; "
                f"sides are of 1 to {SIDE} pixels"
            )
        numbers = np.array([self.scale, *self.mean, *self.std], np.float64)
        if numbers.shape != (7,) or not np.isfinite(numbers).all() or self.scale <= 0 or min(self.std) <= 0:
            raise EncoderError(
                f"the encoder's preprocessing multiplies by {self.scale}, takes the mean {self.mean} and divides by "
                f"{self.std}; three numbers each are needed, and none to divide by that is not above 0"
            )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Preprocess:
        """Parse a `preprocessor_config.json`; raises EncoderError for what is not supported."""
        try:
            return cls._told(config)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as e:
            raise EncoderError(f"the encoder's preprocessing makes no sense ({type(e).__name__}: {e})") from e

    @classmethod
    def _told(cls, config: dict[str, Any]) -> Preprocess:
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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __call__(
        self,
        images: Sequence[Pixels],
        device: torch.device,
        dtype: torch.dtype,
        upload: Callable[[Sequence[Pixels]], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """(images, 3, height, width): images of one size go through together, uint8 until they are on the device."""
        upload = upload or (lambda members: torch.from_numpy(np.stack(members)).to(device))
        sizes: dict[tuple[int, int], list[int]] = {}
        for i, pixels in enumerate(images):
            sizes.setdefault((pixels.shape[0], pixels.shape[1]), []).append(i)
        groups = [self.resize(upload([images[i] for i in members])) for members in sizes.values()]
        planes = groups[0] if len(groups) == 1 else torch.cat(groups)
        factor, shift = _normalisation(self, device)
        planes = (planes * factor + shift).to(dtype)
        if len(groups) == 1:
            return planes
        order = np.argsort([i for members in sizes.values() for i in members])
        return planes[torch.from_numpy(order).to(device)]

    def resize(self, batch: torch.Tensor) -> torch.Tensor:
        """(n, h, w, 3) uint8 to (n, 3, height, width) float32 with whole values 0..255, resized and cropped."""
        height, width = batch.shape[1:3]
        down, across = _matrices(self, height, width, batch.device)
        planes = batch.permute(0, 3, 1, 2).float()
        if height_first((height, width), self.resized_size(height, width)):
            return _rounded(_rounded(down @ planes) @ across)
        return _rounded(down @ _rounded(planes @ across))

    def shrink(self, pixels: Pixels) -> Pixels:
        """A large image as (height, width, 3) of the size the encoder sees, by Pillow; a small one as it is.

        For decoding threads: what waits for the encoder is then small, and its vector is the same.
        """
        if pixels.shape[0] * pixels.shape[1] <= LARGE:
            return pixels
        height, width = self.resized_size(*pixels.shape[:2])
        filter_ = Pillow.Resampling[self.filter.upper()]
        resized = np.asarray(Pillow.fromarray(pixels).resize((width, height), filter_))
        if not self.crop:
            return resized
        top, left = (height - self.crop) // 2, (width - self.crop) // 2
        return np.ascontiguousarray(resized[top : top + self.crop, left : left + self.crop])

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing, before the crop; raises EncoderError where the crop is larger."""
        new_height, new_width = self.height, self.width
        if self.short:
            new_height = self.short if height <= width else int(self.short * height / width)
            new_width = self.short if width <= height else int(self.short * width / height)
        if min(new_height, new_width) < self.crop:
            raise EncoderError(f"a crop of {self.crop} from {new_height} x {new_width} would pad with black")
        return new_height, new_width

    def seen_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the encoder's input."""
        return (self.crop, self.crop) if self.crop else self.resized_size(height, width)


@lru_cache(maxsize=64)
def _matrices(
    preprocess: Preprocess, height: int, width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the matrices that planes of (height, width) are multiplied with, from the left and from the right."""
    new_height, new_width = preprocess.resized_size(height, width)
    seen_height, seen_width = preprocess.seen_size(height, width)
    down = resize_matrix(height, new_height, preprocess.filter, seen_height)
    across = resize_matrix(width, new_width, preprocess.filter, seen_width)
    right = torch.from_numpy(np.ascontiguousarray(across.T))
    return torch.from_numpy(np.ascontiguousarray(down)).to(device), right.to(device)


@lru_cache(maxsize=64)
def _normalisation(preprocess: Preprocess, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, 1, 1) factor and shift: (pixels * scale - mean) / std as one product and one sum."""
    mean, std = (
        torch.tensor(channels, dtype=torch.float64).view(3, 1, 1) for channels in (preprocess.mean, preprocess.std)
    )
    return (preprocess.scale / std).float().to(device), (-mean / std).float().to(device)


def _rounded(planes: torch.Tensor) -> torch.Tensor:
    return torch.floor(planes + 0.5).clamp_(0, 255)
