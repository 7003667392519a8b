"""Several vectors of each row as one: what heads, evidence and evaluations see when they use more than one column."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NotEnoughRows
from .named_vectors import MAIN, NamedVectors, open_named_vectors
from .records import Vectors
from .snapshot import Snapshot
from .space import Space


class ConcatenatedSnapshot(Snapshot):
    """A snapshot whose vectors are those of several columns, one after the other. Make it with `concatenated_snapshot`.

    Each column's vector is brought to unit length and weighs the same, so the inner product of two rows is the mean of
    their cosines. Searches are exact.
    """

    columns: tuple[str, ...]
    _made_of: list[tuple[Snapshot | NamedVectors, Space]]

    @property
    def space(self) -> Space:
        return concatenated_space([space for _, space in self._made_of])

    def vectors(self, positions: Any = None, dtype: Any = np.float32) -> npt.NDArray[Any]:
        wanted = self._positions(positions)
        parts = []
        for column, _ in self._made_of:
            of_these = column.vectors(wanted) if isinstance(column, Snapshot) else column.vectors(self, wanted)
            parts.append(of_these)
        return concatenate(parts).astype(dtype)

    @property
    def texts(self) -> dict[str, npt.NDArray[np.float32]]:
        """None: a text has a vector beside the store's own images alone."""
        return {}

    @cached_property
    def _index(self) -> None:
        return None


def concatenated_snapshot(snapshot: Snapshot, columns: Sequence[str]) -> Snapshot:
    """The snapshot with the vectors of these columns, "main" being the store's own; itself for that one alone.

    Raises
    ------
    StoreError
        There is no such column.
    NotEnoughRows
        A row has no vector in one of them.
    """
    if tuple(columns) == (MAIN,):
        return snapshot
    result = ConcatenatedSnapshot.__new__(ConcatenatedSnapshot)
    made = copy(snapshot)
    for name in ("_index", "_exact", "texts"):  # of the store's own vectors
        vars(made).pop(name, None)
    vars(result).update(vars(made))
    result.columns, result._made_of, result._held = tuple(columns), [], snapshot
    for name in columns:
        if name == MAIN:
            result._made_of.append((snapshot, snapshot.space))
            continue
        column = open_named_vectors(snapshot.folder, name).held(snapshot)
        if lacking := int(column.missing(snapshot).sum()):
            raise NotEnoughRows(
                f"the column {name} has no vector for {lacking} of {len(snapshot)} rows; "
                f"fill it with `clipfake store column {name} --encoder {column.space.encoder}`"
            )
        result._made_of.append((column, column.space))
    return result


def space_of(snapshot: Snapshot, columns: Sequence[str]) -> Space:
    """Space of the concatenated vectors; raises StoreError for unknown names. No vector is read."""
    spaces = [snapshot.space if name == MAIN else open_named_vectors(snapshot.folder, name).space for name in columns]
    return spaces[0] if tuple(columns) == (MAIN,) else concatenated_space(spaces)


def concatenate(parts: Sequence[Vectors]) -> npt.NDArray[np.float32]:
    """(n, sum of dims) unit vectors of several (n, dim): each part brought to the same length."""
    lengths = [np.linalg.norm(np.asarray(part, np.float32), axis=1, keepdims=True) for part in parts]
    share = 1 / np.sqrt(len(parts))
    whole = [share * part / np.where(length == 0, 1, length) for part, length in zip(parts, lengths, strict=True)]
    return np.concatenate(whole, axis=1).astype(np.float32)


def concatenated_space(spaces: Sequence[Space]) -> Space:
    """The space of vectors that were joined in this order."""
    digest = hashlib.blake2b("+".join(space.fingerprint for space in spaces).encode(), digest_size=32).hexdigest()
    return Space(" + ".join(space.encoder for space in spaces), digest, sum(space.dim for space in spaces))
