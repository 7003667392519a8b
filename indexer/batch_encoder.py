"""Encode any number of images in batches that fit into the device's memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

from ..errors import EncoderError
from ..store.space import Space
from .decoding.image import Pixels
from .encoders.base import Embeddings, Encoder

Wait = TypeVar("Wait")


class BatchEncoder(Encoder):
    """Encoder whose batch size is permanently halved whenever the device runs out of memory."""

    def __init__(self, encoder: Encoder, batch_size: int | None = None) -> None:
        """Wrap an encoder; `batch_size` is the number of images per batch (default: `encoder.batch_size`)."""
        self.encoder = encoder
        self.has_text, self.overlaps, self.device = encoder.has_text, encoder.overlaps, encoder.device
        self.preprocess, self.reduces = encoder.preprocess, encoder.reduces
        self._size = batch_size or encoder.batch_size

    @property
    def space(self) -> Space:
        return self.encoder.space

    @property
    def spaces(self) -> dict[str, Space]:
        return self.encoder.spaces

    @property
    def batch_size(self) -> int:
        """Current number of images per batch."""
        return self._size

    def shrink(self, pixels: Pixels) -> Pixels:
        return self.encoder.shrink(pixels)

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        return self.encoder.encode_texts(texts)

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        """Encode n images, see `Encoder.encode`; raises EncoderError if memory does not suffice for one image."""
        vectors = [np.zeros((0, sum(space.dim for space in self.spaces.values())), np.float32)]
        first = 0
        while first < len(images):
            batch = images[first : first + self._size]
            try:
                vectors.append(self.encoder.encode(batch))
                first += len(batch)
                continue
            except torch.OutOfMemoryError:
                pass  # halve outside the handler, as the exception keeps the tensors that should be freed
            self._halve(len(batch))
        return np.concatenate(vectors)

    def begin(self, images: Sequence[Pixels]) -> Callable[[], Embeddings]:
        """Start encoding; the returned function waits for the vectors."""
        if (wait := self._start(self.encoder.begin, images)) is not None:
            return wait
        vectors = self.encode(images)
        return lambda: vectors

    def begin_reduced(self, images: Sequence[Pixels]) -> Callable[[], tuple[Embeddings, Sequence[Pixels]]]:
        """Start encoding; the returned function waits for the vectors and the images reduced for thumbnails."""
        wait = self._start(self.encoder.begin_reduced, images)
        return super().begin_reduced(images) if wait is None else wait

    def _start(self, begin: Callable[[Sequence[Pixels]], Wait], images: Sequence[Pixels]) -> Wait | None:
        """Start a batch, or return None if it is too large for the device."""
        if not 0 < len(images) <= self._size:
            return None
        try:
            return begin(images)
        except torch.OutOfMemoryError:
            pass
        self._halve(len(images))
        return None

    def _halve(self, images: int) -> None:
        if images == 1:
            raise EncoderError("the device has too little memory for even one image; free some, or use --device cpu")
        self._size = max(min(self._size, images // 2), 1)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
