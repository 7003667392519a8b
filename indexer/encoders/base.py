"""Base class of encoders, which map images and texts to unit vectors of one space."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import EncoderError
from ...store.named_vectors import MAIN
from ...store.space import Space
from ..decoding.image import Pixels, reduced

if TYPE_CHECKING:
    import torch

    from .preprocess import Preprocess

Embeddings = npt.NDArray[np.float32]  # (n, dim), unit rows
Features = npt.NDArray[np.float32]  # (n, width), not normalised


class Encoder(ABC):
    """Maps images to vectors of one space. A subclass sets `_space` and defines `encode`."""

    has_text = False  # whether `encode_texts` works
    overlaps = False  # whether `begin` returns before the vectors are computed
    reduces = False  # whether `begin_reduced` reduces images on the device instead of the CPU
    device: torch.device | None = None  # None if the encoder does not run in torch
    preprocess: Preprocess | None = None  # resizing and normalisation; None if a GPU decoder cannot do it

    _space: Space

    @property
    def space(self) -> Space:
        """Embedding space of the main vector; only vectors of the same space may be compared."""
        return self._space

    @property
    def spaces(self) -> dict[str, Space]:
        """Name and space of each vector of an image, in the order in which `encode` returns them side by side."""
        return {MAIN: self.space}

    def split(self, vectors: Embeddings) -> dict[str, Embeddings]:
        """Split what `encode` returned into the (n, dim) vectors of each name."""
        ends = np.cumsum([space.dim for space in self.spaces.values()])
        return dict(zip(self.spaces, np.split(vectors, ends[:-1], axis=1), strict=True))

    @abstractmethod
    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        """Encode n (height, width, 3) uint8 images as (n, dim) unit vectors, followed by their views if it has any."""

    def begin(self, images: Sequence[Pixels]) -> Callable[[], Embeddings]:
        """Start encoding and return a function that waits for the vectors."""
        vectors = self.encode(images)
        return lambda: vectors

    def begin_reduced(self, images: Sequence[Pixels]) -> Callable[[], tuple[Embeddings, Sequence[Pixels]]]:
        """Start encoding and return a function that waits for the vectors and the images reduced for thumbnails."""
        wait = self.begin(images)
        return lambda: (wait(), [reduced(pixels) for pixels in images])

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Encode n texts as (n, dim) unit vectors; raises EncoderError unless `has_text`."""
        raise EncoderError(f"{self.space.encoder} has no text encoder; use --no-text")

    def shrink(self, pixels: Pixels) -> Pixels:
        """Resize a large image to the input size of the encoder, in the thread that decoded it."""
        return pixels

    @property
    def replicas(self) -> Sequence[Encoder]:
        """Copies of the encoder, one per device."""
        return (self,)

    @property
    def batch_size(self) -> int:
        """Default batch size: large on a GPU, small on a CPU, where larger batches are no faster."""
        return 1024 if self.device is not None and self.device.type == "cuda" else 64


class PlainEncoder(Encoder):
    """Reference encoder without weights: each image averaged to 8 x 8 pixels and centred."""

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
    """One encoder on several devices; the indexer sends different batches to each."""

    def __init__(self, replicas: Sequence[Encoder]) -> None:
        self._replicas = tuple(replicas)
        first = self._replicas[0]
        self.has_text, self.device, self.preprocess = first.has_text, first.device, first.preprocess
        self.reduces = first.reduces

    @property
    def space(self) -> Space:
        return self._replicas[0].space

    @property
    def spaces(self) -> dict[str, Space]:
        return self._replicas[0].spaces

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
    """Divide rows by their Euclidean norm; a zero row stays zero, and the store rejects it."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms == 0, 1, norms), np.float32)
