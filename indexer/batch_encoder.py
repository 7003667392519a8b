"""Encode any number of images in batches that the device's memory can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..errors import EncoderError
from .decoding.image import Pixels
from .encoders.base import Embeddings, Encoder


class BatchEncoder:
    """An encoder with a batch size that is halved, for good, whenever the device runs out of memory."""

    def __init__(self, encoder: Encoder, batch_size: int | None = None) -> None:
        """`batch_size` is the number of images at once (default: `encoder.batch_size`)."""
        self.encoder = encoder
        self.batch_size = batch_size or encoder.batch_size

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        """(n, dim) unit vectors of n images; raises EncoderError where there is no memory for even one image."""
        vectors = [np.zeros((0, self.encoder.space.dim), np.float32)]
        first = 0
        while first < len(images):
            batch = images[first : first + self.batch_size]
            try:
                vectors.append(self.encoder.encode(batch))
                first += len(batch)
                continue
            except torch.OutOfMemoryError:
                pass  # leave the handler first: the error keeps the tensors that are to be freed
            self._halve(len(batch))
        return np.concatenate(vectors)

    def begin(self, images: Sequence[Pixels]) -> Callable[[], Embeddings]:
        """Start encoding; the function returned waits for the vectors."""
        if 0 < len(images) <= self.batch_size:
            try:
                return self.encoder.begin(images)
            except torch.OutOfMemoryError:
                pass
            self._halve(len(images))
        vectors = self.encode(images)
        return lambda: vectors

    def _halve(self, images: int) -> None:
        if images == 1:
            raise EncoderError("the device has no memory for even one image; free some, or use --device cpu")
        self.batch_size = max(min(self.batch_size, images // 2), 1)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
