"""Text vectors beside an image's: that of a given category, of the nearest one, or the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import HeadError
from ..store.records import TEXT, Names, Vectors

Mode = Literal["zero-shot", "given", "mean"]
MODES: tuple[Mode, ...] = ("zero-shot", "given", "mean")


@dataclass(frozen=True)
class Vocabulary:
    """The categories of a store with their text vectors."""

    categories: Names  # (categories,)
    vectors: npt.NDArray[np.float32]  # (categories, dim), unit length

    def __len__(self) -> int:
        return len(self.categories)

    @classmethod
    def from_texts(cls, texts: dict[str, npt.NDArray[np.float32]]) -> Vocabulary:
        """Read the texts of a snapshot, in alphabetical order."""
        chosen = sorted(texts)
        if not chosen:
            raise HeadError(
                "this store holds no text vectors, which a head on image and text needs; "
                "index it with --text and an encoder with a text side (CLIP), or train an image-only head"
            )
        return cls(np.array(chosen, TEXT), np.stack([np.asarray(texts[c], np.float32) for c in chosen]))

    def nearest(self, vectors: Vectors) -> npt.NDArray[np.int64]:
        """(n,) zero-shot: which category's text has the largest inner product with each of (n, dim) vectors."""
        return np.asarray(np.argmax(np.asarray(vectors, np.float32) @ self.vectors.T, axis=1), np.int64)

    def text_vectors(
        self, vectors: Vectors, mode: Mode = "zero-shot", given: Sequence[str] | Names | None = None
    ) -> Vectors:
        """(n, dim) a text vector for each of (n, dim) image vectors.

        Parameters
        ----------
        given : (n,) categories for mode "given"; where one is "" the nearest is taken

        Raises
        ------
        HeadError
            A given category without a text vector here.
        """
        if mode == "mean":
            return np.broadcast_to(self.vectors.mean(0), (len(vectors), self.vectors.shape[1]))
        if mode == "zero-shot":
            return self.vectors[self.nearest(vectors)]
        if given is None or len(given) != len(vectors):
            raise HeadError(f"{len(vectors)} images need {len(vectors)} categories; say one for each, or use zero-shot")
        queries = np.asarray(given, TEXT)
        place = np.minimum(np.searchsorted(self.categories, queries), len(self) - 1)
        unsaid, unknown = queries == "", self.categories[place] != queries
        if np.any(unknown & ~unsaid):
            raise HeadError(
                f"no text vector of category {queries[unknown & ~unsaid][0]!r} is stored; "
                f"known are {', '.join(self.categories[:12].tolist())}{' …' if len(self) > 12 else ''}"
            )
        if unsaid.any():
            place[unsaid] = self.nearest(np.asarray(vectors)[unsaid])
        return self.vectors[place]
