"""Preprocess images on the encoder's device: resize as two matrix products, crop the centre, normalise.

Resizing on the CPU would be the bottleneck of indexing with a GPU. Two small float32 products with Pillow's
coefficients, each rounded to 8 bits as in Pillow, give Pillow's pixels (a few in a million differ by one level).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow

from ...errors import EncoderError, ImageError
from ..decoding.image import Pixels
from .checkpoint_rules.image_processors import preprocess_fields
from .resize import crop_start, exact_matrix, height_first, resize_matrix

MAX_SIDE = 8192  # pixels; limits the memory that an untrusted configuration can make us allocate
LARGE = 448 * 448  # pixels; larger images are resized before they are queued for the encoder


@dataclass(frozen=True)
class Preprocess:
    """Parameters of an encoder's preprocessing. Names and values of the fields enter the encoder's fingerprint.

    The size after resizing is `height` x `width`, or given by `short`, or rounded down to `multiple`. If all of these
    are 0, images are not resized.
    """

    height: int  # after resizing; used if `short` is 0
    width: int
    short: int  # shorter side after resizing with the aspect ratio kept; 0: resize to height x width
    crop: int  # height of the centre crop, and its width unless `crop_width` is set; 0: no crop
    filter: str  # name of a filter in `Pillow.Resampling`, in lower case
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    # Fields from here on enter the fingerprint only if they are set, so that older stores keep theirs.
    crop_width: int = 0
    longest: int = 0  # limit of the longer side, which goes before `short`; 0: none
    keep_aspect: bool = False  # scale by one factor, so that the side that needs less scaling fits height x width
    multiple: int = 0  # of which both sides after resizing are multiples, with `keep_aspect` or without any size
    flip: bool = False  # channels in the order blue, green, red
    half_even: bool = False  # crop as torchvision does, see `resize.crop_start`

    def __post_init__(self) -> None:
        sides = (self.short,) if self.short else (self.height, self.width)
        resizes = any(sides)
        crops = (self.crop, self.crop_width, self.longest, self.multiple)
        if (resizes and not all(1 <= side <= MAX_SIDE for side in sides)) or not all(
            0 <= side <= MAX_SIDE for side in crops
        ):
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
    def from_config(cls, config: dict[str, Any], model_type: str = "clip") -> Preprocess:
        """Parse a `preprocessor_config.json`; raises EncoderError if it is invalid or not supported.

        `model_type` is that in config.json, whose image processor is meant if the file names none.
        """
        try:
            return cls(**preprocess_fields(config, model_type))
        except EncoderError as e:
            reason = str(e)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, ZeroDivisionError) as e:
            reason = f"invalid: {type(e).__name__}: {e}"
        if reason.startswith("the encoder's preprocessing"):
            raise EncoderError(reason)
        raise EncoderError(
            f"the encoder's preprocessing cannot be used ({reason}); correct its preprocessor_config.json"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, without those that later versions added unless they are set."""
        values = asdict(self)
        added = [field.name for field in fields(self)][8:]
        return {name: value for name, value in values.items() if name not in added or value}

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width of the encoder's input, or None if they depend on the image."""
        if self.crop:
            return self.crop, self.crop_width or self.crop
        if self.short or self.keep_aspect or not self.height:
            return None
        return self.height, self.width

    @property
    def without_crop(self) -> Preprocess:
        return replace(self, crop=0, crop_width=0)

    @property
    def shrinking(self) -> Preprocess | None:
        """The part of the preprocessing that may be done early, since doing all of it afterwards changes nothing.

        None if even resizing twice is not the same as once.
        """
        if self.longest or self.multiple or self.keep_aspect:
            return None
        if not (self.short or self.height):
            return self
        crop = self.fixed_size if self.crop else None
        resized = (self.short, self.short) if self.short else (self.height, self.width)
        return self if crop in (None, resized) else self.without_crop

    @property
    def on_gpu(self) -> bool:
        """Whether the GPU kernel does all of it: one input size, cut from within the image, channels in their order."""
        if self.fixed_size is None or self.flip or self.longest or self.multiple or self.keep_aspect:
            return False
        resized = (self.short, self.short) if self.short else (self.height, self.width)
        return self.fixed_size[0] <= resized[0] and self.fixed_size[1] <= resized[1]

    def __call__(
        self,
        images: Sequence[Pixels],
        device: torch.device,
        dtype: torch.dtype,
        upload: Callable[[Sequence[Pixels]], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Preprocess n images to (n, 3, height, width).

        Images of equal size are processed together and are uploaded as uint8. All must have one input size; see
        `by_input_size`.
        """
        upload = upload or (lambda members: torch.from_numpy(np.stack(members)).to(device))
        sizes: dict[tuple[int, int], list[int]] = {}
        for i, pixels in enumerate(images):
            sizes.setdefault((pixels.shape[0], pixels.shape[1]), []).append(i)
        groups = [self.resize(upload([images[i] for i in members])) for members in sizes.values()]
        planes = groups[0] if len(groups) == 1 else torch.cat(groups)
        factor, shift = _normalisation(self, device)
        planes = (planes * factor + shift).to(dtype)
        if self.flip:
            planes = planes.flip(1)
        if len(groups) == 1:
            return planes
        order = np.argsort([i for members in sizes.values() for i in members])
        return planes[torch.from_numpy(order).to(device)]

    def resize(self, batch: torch.Tensor) -> torch.Tensor:
        """Resize and crop (n, h, w, 3) uint8 to (n, 3, height, width) float32 with integer values 0 to 255."""
        height, width = batch.shape[1:3]
        down, across = _matrices(self, height, width, batch.device)
        planes = batch.permute(0, 3, 1, 2).to(down.dtype)
        if height_first((height, width), self.resized_size(height, width)):
            return _rounded(_rounded(down @ planes) @ across).float()
        return _rounded(down @ _rounded(planes @ across)).float()

    def by_input_size(
        self, images: Sequence[Pixels], compute: Callable[[Sequence[Pixels]], torch.Tensor]
    ) -> torch.Tensor:
        """Call `compute` with the images of each input size; return its (n, ...) results in the order of the images."""
        if self.fixed_size is not None or not images:
            return compute(images)
        groups: dict[tuple[int, int], list[int]] = {}
        for i, pixels in enumerate(images):
            groups.setdefault(self.input_size(*pixels.shape[:2]), []).append(i)
        results = torch.cat([compute([images[i] for i in members]) for members in groups.values()])
        order = np.argsort([i for members in groups.values() for i in members])
        return results[torch.from_numpy(order).to(results.device)]

    def shrink(self, pixels: Pixels) -> Pixels:
        """Resize a large image with Pillow towards the encoder's input size; a small one is returned unchanged.

        Called in the decoding threads, so that queued images are small; the vector is the same. Raises ImageError if
        the image has no usable size after resizing.
        """
        self.resized_size(*pixels.shape[:2])
        if pixels.shape[0] * pixels.shape[1] <= LARGE or self.shrinking is None:
            return pixels
        return np.ascontiguousarray(self.shrinking.with_pillow(pixels))

    def with_pillow(self, pixels: Pixels) -> Pixels:
        """Resize and crop an image with Pillow; the reference for `resize`."""
        height, width = self.resized_size(*pixels.shape[:2])
        if (height, width) != pixels.shape[:2]:
            filter_ = Pillow.Resampling[self.filter.upper()]
            pixels = np.asarray(Pillow.fromarray(pixels).resize((width, height), filter_))
        return _centre(pixels, *(self.fixed_size or (height, width)), self.half_even)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing, before the crop; raises ImageError if a side is 0 or too long."""
        new_height, new_width = self._resized_size(height, width)
        too_long = self.fixed_size is None and max(new_height, new_width) > MAX_SIDE
        if min(new_height, new_width) < 1 or too_long:
            raise ImageError(
                f"the encoder's preprocessing resizes an image of {height} x {width} pixels to {new_height} x "
                f"{new_width}; sides must be 1 to {MAX_SIDE} pixels"
            )
        return new_height, new_width

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        if self.short and self.longest:
            return _limited_size(height, width, self.short, self.longest)
        if self.short:
            new_height = self.short if height <= width else int(self.short * height / width)
            return new_height, self.short if width <= height else int(self.short * width / height)
        if self.keep_aspect:
            return self._fitted_size(height, width)
        if self.height:
            return self.height, self.width
        if self.multiple:
            return height // self.multiple * self.multiple, width // self.multiple * self.multiple
        return height, width

    def _fitted_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of DPT: scaled as little as possible, so that one side fits, and rounded to `multiple`."""
        down, across = self.height / height, self.width / width
        factor = across if abs(1 - across) < abs(1 - down) else down
        step = self.multiple or 1
        return round(factor * height / step) * step, round(factor * width / step) * step

    def covered(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The part of an image that the encoder sees: left, top, right, bottom as shares of its width and height.

        Shares below 0 or above 1 lie outside the image, where the encoder sees black. Raises ImageError like `shrink`.
        """
        resized = self.resized_size(height, width)
        seen = self.input_size(height, width)
        (top, left), (bottom, right) = (
            [((whole - cut) // 2 + add * cut) / whole for whole, cut in zip(resized, seen, strict=True)]
            for add in (0, 1)
        )
        return left, top, right, bottom

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the encoder's input."""
        return self.fixed_size or self.resized_size(height, width)


def _limited_size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """Return the size with the aspect ratio kept and a limit of the longer side, rounded as in `transformers`."""
    exact = float(short)
    if max(height, width) / min(height, width) * short > longest:
        exact = longest * min(height, width) / max(height, width)
    rounded = round(exact)
    if min(height, width) == rounded:
        return height, width
    if width < height:
        return int(exact * height / width), rounded
    return rounded, int(exact * width / height)


def _centre(pixels: Pixels, height: int, width: int, half_even: bool) -> Pixels:
    """Cut height x width pixels from the centre; what lies outside the image is black."""
    top, left = crop_start(pixels.shape[0], height, half_even), crop_start(pixels.shape[1], width, half_even)
    if top >= 0 and left >= 0:
        return pixels[top : top + height, left : left + width]
    inside = pixels[max(top, 0) :, max(left, 0) :][:height, :width]
    above, before = max(-top, 0), max(-left, 0)
    padded: npt.NDArray[np.uint8] = np.zeros((height, width, 3), np.uint8)
    padded[above : above + inside.shape[0], before : before + inside.shape[1]] = inside
    return padded


@lru_cache(maxsize=64)
def _matrices(
    preprocess: Preprocess, height: int, width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the matrices that resize planes of (height, width) when multiplied from the left and from the right."""
    new_height, new_width = preprocess.resized_size(height, width)
    input_height, input_width = preprocess.input_size(height, width)
    # with these filters, many sums end in exactly .5, which only Pillow's own integer weights round as Pillow does
    exact = preprocess.filter in ("bilinear", "box") and (new_height, new_width) != (height, width)
    matrix = exact_matrix if exact and device.type == "cpu" else resize_matrix
    down = matrix(height, new_height, preprocess.filter, input_height, preprocess.half_even)
    across = matrix(width, new_width, preprocess.filter, input_width, preprocess.half_even)
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
