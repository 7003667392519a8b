"""Text vectors beside an image's: that of a given category, of the nearest one, or the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import HeadError
from ..store.records import TEXT, Names, TextIndex, Vectors

Mode = Literal["zero-shot", "given", "mean"]
MODES: tuple[Mode, ...] = ("zero-shot", "given", "mean")


@dataclass(frozen=True)
class Vocabulary:
    """The categories of a store and their text vectors."""

    categories: Names  # (categories,)
    vectors: npt.NDArray[np.float32]  # (categories, dim), unit length

    def __len__(self) -> int:
        return len(self.categories)

    @classmethod
    def from_texts(cls, texts: dict[str, npt.NDArray[np.float32]]) -> Vocabulary:
        """Make a vocabulary of a snapshot's text vectors by category; raises HeadError if there are none."""
        categories = sorted(texts)
        if not categories:
            raise HeadError(
                "this store holds no text vectors, which a head that reads text needs; "
                "index it with --text and an encoder with a text side (CLIP), or train an image-only head"
            )
        return cls(np.array(categories, TEXT), np.stack([np.asarray(texts[c], np.float32) for c in categories]))

    @cached_property
    def _index(self) -> TextIndex:
        return TextIndex(self.categories)

    def nearest(self, vectors: Vectors) -> npt.NDArray[np.int64]:
        """(n,) positions of the categories whose text has the largest inner product with each of (n, dim) vectors."""
        return np.asarray(np.argmax(np.asarray(vectors, np.float32) @ self.vectors.T, axis=1), np.int64)

    def text_vectors(
        self, vectors: Vectors, mode: Mode = "zero-shot", given: Sequence[str] | Names | None = None
    ) -> Vectors:
        """(n, dim) text vectors, one for each of (n, dim) image vectors.

        Parameters
        ----------
        mode : where the category of an image comes from: the nearest text, `given`, or the mean of all texts
        given : (n,) categories for mode "given"; "" stands for the nearest one

        Raises
        ------
        HeadError
            A given category has no text vector.
        """
        if mode == "mean":
            return np.broadcast_to(self.vectors.mean(0), (len(vectors), self.vectors.shape[1]))
        if mode == "zero-shot":
            return self.vectors[self.nearest(vectors)]
        if given is None or len(given) != len(vectors):
            raise HeadError(
                f"{len(vectors)} images need {len(vectors)} categories, found {0 if given is None else len(given)}; "
                f"give one for each image, or use mode 'zero-shot'"
            )
        position = self._index.find(given)
        empty = np.array([category == "" for category in given], bool)
        missing = np.flatnonzero((position < 0) & ~empty)
        if len(missing):
            raise HeadError(
                f"no text vector of category {str(given[missing[0]])!r} is stored; the stored ones are"
                f" {', '.join(self.categories[:12].tolist())}{' …' if len(self) > 12 else ''}"
            )
        if empty.any():
            position[empty] = self.nearest(np.asarray(vectors)[empty])
        return self.vectors[position]
