"""Preprocess images on the encoder's device: resize as two matrix products, crop the centre, normalise.

Resizing on the CPU would be the bottleneck of indexing with a GPU. Two small float32 products with Pillow's
coefficients, each rounded to 8 bits as in Pillow, give Pillow's pixels (a few in a million differ by one level).
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

MAX_SIDE = 8192  # pixels; limits the memory that an untrusted configuration can make us allocate
LARGE = 448 * 448  # pixels; larger images are resized before they are queued for the encoder


@dataclass(frozen=True)
class Preprocess:
    """Parameters of an encoder's preprocessing. Names and values of the fields enter the encoder's fingerprint."""

    height: int  # after resizing; used if `short` is 0
    width: int
    short: int  # shorter side after resizing with the aspect ratio kept; 0: resize to height x width
    crop: int  # side of the centre crop; 0: no crop
    filter: str  # "bicubic", "bilinear" or "lanczos", as Pillow defines them
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        sides = (self.short,) if self.short else (self.height, self.width)
        if not all(1 <= side <= MAX_SIDE for side in sides) or not 0 <= self.crop <= MAX_SIDE:
            raise EncoderError(
                f"the encoder's preprocessing resizes to {' x '.join(map(str, sides))} and crops to {self.crop}; "
                f"sides must be 1 to {MAX_SIDE} pixels (crop 0: none); correct its preprocessor_config.json"
            )
        numbers = np.array([self.scale, *self.mean, *self.std], np.float64)
        if numbers.shape != (7,) or not np.isfinite(numbers).all() or self.scale <= 0 or min(self.std) <= 0:
            raise EncoderError(
                f"the encoder's preprocessing has rescale_factor {self.scale}, image_mean {self.mean} and image_std "
                f"{self.std}; the mean and the standard deviation need three finite numbers each, and the factor and "
                f"the standard deviations must be positive; correct its preprocessor_config.json"
            )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Preprocess:
        """Parse a `preprocessor_config.json`; raises EncoderError if it is invalid or not supported."""
        try:
            return cls._parse(config)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as e:
            raise EncoderError(
                f"the encoder's preprocessing is invalid ({type(e).__name__}: {e}); "
                f"correct its preprocessor_config.json"
            ) from e

    @classmethod
    def _parse(cls, config: dict[str, Any]) -> Preprocess:
        size = config.get("size", 224)
        size = {"shortest_edge": size} if isinstance(size, int) else dict(size)
        crop: Any = config.get("crop_size", 0) if config.get("do_center_crop") else 0
        if isinstance(crop, dict):
            crop = crop.get("height", crop.get("shortest_edge", 0))
        filters = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
        resample = int(config.get("resample", 3))
        if resample not in filters:
            raise EncoderError(f"the encoder's preprocessing uses Pillow's filter {resample}; supported are {filters}")
        normalise = config.get("do_normalize", True)
        return cls(
            height=int(size.get("height", 0)),
            width=int(size.get("width", 0)),
            short=int(size.get("shortest_edge", 0)),
            crop=int(crop),
            filter=filters[resample],
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
        """Preprocess n images to (n, 3, height, width).

        Images of equal size are processed together and are uploaded as uint8.
        """
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
        """Resize and crop (n, h, w, 3) uint8 to (n, 3, height, width) float32 with integer values 0 to 255."""
        height, width = batch.shape[1:3]
        down, across = _matrices(self, height, width, batch.device)
        planes = batch.permute(0, 3, 1, 2).float()
        if height_first((height, width), self.resized_size(height, width)):
            return _rounded(_rounded(down @ planes) @ across)
        return _rounded(down @ _rounded(planes @ across))

    def shrink(self, pixels: Pixels) -> Pixels:
        """Resize a large image with Pillow to the encoder's input size; a small one is returned unchanged.

        Called in the decoding threads, so that queued images are small; the vector is the same.
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
        """Height and width after resizing, before the crop; raises EncoderError if the crop is larger."""
        new_height, new_width = self.height, self.width
        if self.short:
            new_height = self.short if height <= width else int(self.short * height / width)
            new_width = self.short if width <= height else int(self.short * width / height)
        if min(new_height, new_width) < self.crop:
            raise EncoderError(
                f"the encoder's preprocessing crops images of {new_height} x {new_width} pixels to {self.crop}, "
                f"which would pad them with black; correct its preprocessor_config.json"
            )
        return new_height, new_width

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the encoder's input."""
        return (self.crop, self.crop) if self.crop else self.resized_size(height, width)


@lru_cache(maxsize=64)
def _matrices(
    preprocess: Preprocess, height: int, width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the matrices that resize planes of (height, width) when multiplied from the left and from the right."""
    new_height, new_width = preprocess.resized_size(height, width)
    input_height, input_width = preprocess.input_size(height, width)
    down = resize_matrix(height, new_height, preprocess.filter, input_height)
    across = resize_matrix(width, new_width, preprocess.filter, input_width)
    right = torch.from_numpy(np.ascontiguousarray(across.T))
    return torch.from_numpy(np.ascontiguousarray(down)).to(device), right.to(device)


@lru_cache(maxsize=64)
def _normalisation(preprocess: Preprocess, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (3, 1, 1) factor and shift, which express (pixels * scale - mean) / std as one multiply-add."""
    mean, std = (
        torch.tensor(channels, dtype=torch.float64).view(3, 1, 1) for channels in (preprocess.mean, preprocess.std)
    )
    return (preprocess.scale / std).float().to(device), (-mean / std).float().to(device)


def _rounded(planes: torch.Tensor) -> torch.Tensor:
    return torch.floor(planes + 0.5).clamp_(0, 255)
