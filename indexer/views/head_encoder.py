"""An encoder of the vectors that a head uses: the main vector, views and vectors of other encoders, joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...store.concatenated import concatenated_space, joined
from ..decoding.image import Pixels
from ..encoders.base import Embeddings, Encoder


class HeadEncoder(Encoder):
    """Encodes images as the concatenated vectors that a head was trained on, see `clipfake.store.concatenated.joined`.

    Parameters
    ----------
    names : names of the vectors, in the order of the head
    own : encoder of the store, with the views among the names
    others : name -> encoder of each of the other named vectors
    """

    def __init__(self, names: Sequence[str], own: Encoder, others: Mapping[str, Encoder]) -> None:
        self._names, self._own, self._others = tuple(names), own, dict(others)
        self.overlaps, self.device = own.overlaps, own.device
        spaces = own.spaces | {name: encoder.space for name, encoder in others.items()}
        self._space = concatenated_space([spaces[name] for name in names])

    @property
    def batch_size(self) -> int:
        return self._own.batch_size

    def shrink(self, pixels: Pixels) -> Pixels:
        return pixels if self._others else self._own.shrink(pixels)  # another encoder may need more pixels

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        return self.begin(images)()

    def begin(self, images: Sequence[Pixels]) -> Callable[[], Embeddings]:
        wait = self._own.begin(images)
        others = {name: encoder.encode(images) for name, encoder in self._others.items()}

        def wait_for_vectors() -> Embeddings:
            vectors = self._own.split(wait()) | others
            return joined([vectors[name] for name in self._names], self._space)

        return wait_for_vectors

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        return self._own.encode_texts(texts)
