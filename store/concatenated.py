"""Concatenated vectors: each row's main vector and named vectors joined into one, as heads and evidence use them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NotEnoughRows
from .named_vectors import MAIN, NamedVectors, open_named_vectors
from .records import Ids, Mask, Vectors
from .search.matches import Matches
from .search.prepared_filter import PreparedFilter
from .snapshot import Snapshot
from .space import Space


class ConcatenatedSnapshot(Snapshot):
    """A view of a snapshot whose vectors are several vectors of each row, concatenated.

    Each vector is scaled to unit length and has the same weight, so the inner product of two rows is the mean of their
    cosine similarities. Searches are exact. `concatenated_snapshot` makes one if it is needed.

    A single vector of a space that is not normalised is as it is stored, since its length may tell something; searches
    scale both sides, so that similarities are cosines here too.
    """

    def __init__(self, snapshot: Snapshot, columns: Sequence[str], *, unit: bool = False) -> None:
        """Open the named vectors.

        Parameters
        ----------
        columns : names of vectors, "main" for the store's own
        unit : scale a single vector to unit length, too

        Raises
        ------
        StoreError
            There are no vectors of this name.
        NotEnoughRows
            A row has no vector of this name.
        """
        super().__init__(snapshot.folder, snapshot.manifest, before=snapshot)
        self.columns = tuple(columns)
        self._main = self._source = snapshot
        self._unit_length = unit
        self._vectors: list[NamedVectors | None] = []  # in the order of `columns`, None for the main vectors
        for name in columns:
            if name == MAIN:
                self._vectors.append(None)
                continue
            column = open_named_vectors(snapshot.folder, name)
            column.open_files(snapshot)
            if missing := int(column.missing(snapshot).sum()):
                raise NotEnoughRows(
                    f"{missing} of {len(snapshot)} rows have no vector {name}; "
                    f"add them with `clipfake store add-vectors {name} --encoder {column.space.encoder}`"
                )
            self._vectors.append(column)

    @property
    def space(self) -> Space:
        spaces = [self._main.space if column is None else column.space for column in self._vectors]
        space = concatenated_space(spaces)
        return replace(space, normalised=True) if self._unit_length else space

    def vectors(self, positions: Any = None, dtype: Any = np.float32) -> npt.NDArray[Any]:
        positions = self._positions(positions)
        parts = [
            self._main.vectors(positions) if column is None else column.vectors(self._main, positions)
            for column in self._vectors
        ]
        return joined(parts, self.space).astype(dtype)

    def search_each(
        self, queries: Vectors, k: int, wheres: Sequence[Mask | PreparedFilter | None], recall: float = 0.99
    ) -> list[Matches]:
        if self.space.normalised:
            return super().search_each(queries, k, wheres, recall)
        return self._unit.search_each(concatenate([np.atleast_2d(queries)]), k, wheres, recall)

    @cached_property
    def _unit(self) -> ConcatenatedSnapshot:
        return ConcatenatedSnapshot(self._main, self.columns, unit=True)

    def column(self, name: str) -> npt.NDArray[Any]:
        return self._main.column(name)  # loaded once for both

    @cached_property
    def ids(self) -> Ids:
        return self._main.ids

    @property
    def texts(self) -> dict[str, npt.NDArray[np.float32]]:
        """Empty: text vectors exist in the main space only."""
        return {}

    @cached_property
    def _index(self) -> None:
        return None


def concatenated_snapshot(snapshot: Snapshot, columns: Sequence[str]) -> Snapshot:
    """A `ConcatenatedSnapshot` of these vectors, or the snapshot itself for ("main",)."""
    return snapshot if tuple(columns) == (MAIN,) else ConcatenatedSnapshot(snapshot, columns)


def space_of(snapshot: Snapshot, columns: Sequence[str]) -> Space:
    """Space of the concatenated vectors, without reading a vector; raises StoreError for an unknown name."""
    spaces = [snapshot.space if name == MAIN else open_named_vectors(snapshot.folder, name).space for name in columns]
    return spaces[0] if tuple(columns) == (MAIN,) else concatenated_space(spaces)


def joined(parts: Sequence[Vectors], space: Space) -> npt.NDArray[np.float32]:
    """(n, dim) vectors in a space that `concatenated_space` made: concatenated, or the only part as it is."""
    return concatenate(parts) if space.normalised else np.asarray(parts[0], np.float32)


def concatenate(parts: Sequence[Vectors]) -> npt.NDArray[np.float32]:
    """Concatenate (n, dim) arrays to (n, sum of dims) unit vectors, each part scaled to the same length."""
    norms = [np.linalg.norm(np.asarray(part, np.float32), axis=1, keepdims=True) for part in parts]
    weight = 1 / np.sqrt(len(parts))
    scaled = [weight * part / np.where(norm == 0, 1, norm) for part, norm in zip(parts, norms, strict=True)]
    return np.concatenate(scaled, axis=1).astype(np.float32)


def concatenated_space(spaces: Sequence[Space]) -> Space:
    """Space of vectors concatenated in this order; not normalised if it is a single one that is not."""
    digest = hashlib.blake2b("+".join(space.fingerprint for space in spaces).encode(), digest_size=32).hexdigest()
    names, normalised = " + ".join(space.encoder for space in spaces), len(spaces) > 1 or spaces[0].normalised
    return Space(names, digest, sum(space.dim for space in spaces), normalised)
