"""Base class of encoders: images and texts to unit vectors of one space."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import EncoderError
from ...store.space import Space
from ..decoding.image import Pixels, reduced

if TYPE_CHECKING:
    import torch

    from .preprocess import Preprocess

Embeddings = npt.NDArray[np.float32]  # (n, dim), unit rows


class Encoder(ABC):
    """Turns images into vectors of one space. A subclass sets `_space` and defines `encode`."""

    has_text = False  # whether `encode_texts` works
    overlaps = False  # whether `begin` returns before the work is done
    reduces = False  # whether `begin_reduced` reduces images on the device, which saves the CPU that work
    device: torch.device | None = None  # None where it is no device of torch
    preprocess: Preprocess | None = None  # how images are resized and normalised, where a GPU decoder may do it

    _space: Space

    @property
    def space(self) -> Space:
        """Space of its vectors, which says what they may be compared with."""
        return self._space

    @abstractmethod
    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        """(n, dim) unit vectors of n (height, width, 3) uint8 images."""

    def begin(self, images: Sequence[Pixels]) -> Callable[[], Embeddings]:
        """Start encoding; the function returned waits for the vectors."""
        vectors = self.encode(images)
        return lambda: vectors

    def begin_reduced(self, images: Sequence[Pixels]) -> Callable[[], tuple[Embeddings, Sequence[Pixels]]]:
        """Start encoding; the function returned waits for the vectors and the images reduced for thumbnails."""
        wait = self.begin(images)
        return lambda: (wait(), [reduced(pixels) for pixels in images])

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """(n, dim) unit vectors of n texts; raises EncoderError unless `has_text`."""
        raise EncoderError(f"{self.space.encoder} has no text tower; use --no-text")

    def shrink(self, pixels: Pixels) -> Pixels:
        """Resize a large image to what the encoder sees, in the thread that decoded it."""
        return pixels

    @property
    def replicas(self) -> Sequence[Encoder]:
        """Copies of the encoder, one for each of its devices."""
        return (self,)

    @property
    def batch_size(self) -> int:
        """Images to encode at once by default: a GPU needs many, on a CPU more are no faster."""
        return 1024 if self.device is not None and self.device.type == "cuda" else 64


class PlainEncoder(Encoder):
    """A reference encoder without weights: each image averaged to 8 x 8 pixels and centred."""

    def __init__(self) -> None:
        self._space = Space("plain", hashlib.blake2b(b"8x8 box mean, centred", digest_size=32).hexdigest(), dim=192)

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        rows = []
        for pixels in images:
            if min(pixels.shape[:2]) < 8:
                pixels = pixels.repeat(8, 0).repeat(8, 1)
            bands = np.array_split(pixels.astype(np.float32), 8, axis=0)
            cells = [[cell.mean((0, 1)) for cell in np.array_split(band, 8, axis=1)] for band in bands]
            row = np.array(cells).reshape(-1) / 255
            rows.append(row - row.mean() + 1e-3)
        return unit(np.array(rows, np.float32))


class Replicas(Encoder):
    """One encoder on several devices; the indexer gives each its own batches."""

    def __init__(self, replicas: Sequence[Encoder]) -> None:
        self._replicas = tuple(replicas)
        first = self._replicas[0]
        self.has_text, self.device, self.preprocess = first.has_text, first.device, first.preprocess
        self.reduces = first.reduces

    @property
    def space(self) -> Space:
        return self._replicas[0].space

    @property
    def batch_size(self) -> int:
        return self._replicas[0].batch_size

    @property
    def replicas(self) -> Sequence[Encoder]:
        return self._replicas

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        return self._replicas[0].encode(images)

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        return self._replicas[0].encode_texts(texts)

    def shrink(self, pixels: Pixels) -> Pixels:
        return self._replicas[0].shrink(pixels)


def unit(vectors: npt.NDArray[Any]) -> Embeddings:
    """Rows divided by their Euclidean length; a zero row stays zero, for the store to refuse."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths == 0, 1, lengths), np.float32)
