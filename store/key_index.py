"""Index of keys, for millions: hashes in sorted runs, sixteen bytes a row, extended without a rebuild."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .records import Ids

Hashes = npt.NDArray[np.uint64]


class KeyIndex:
    """Row ids by the hash of their key.

    Adding costs the logarithm of what is there: runs of like size are merged, as in a binary counter. Ids of rows that
    were deleted since stay in; whoever asks knows which are alive, and compares the keys themselves.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[Hashes, Ids]] = []  # each sorted by hash, every run at least twice the next one's size

    def add(self, hashes: Hashes, ids: Ids) -> None:
        """Take in rows, both arrays of shape (rows,)."""
        if not len(hashes):
            return
        while self._runs and len(self._runs[-1][0]) < 2 * len(hashes):
            more_hashes, more_ids = self._runs.pop()
            hashes, ids = np.concatenate([more_hashes, hashes]), np.concatenate([more_ids, ids])
        order = np.argsort(hashes, kind="stable")  # merges what is sorted already in linear time
        self._runs.append((hashes[order], ids[order]))

    def candidates(self, hashes: Hashes) -> tuple[Ids, Ids]:
        """Every id whose key has one of these hashes: (hits,) which hash it was, and (hits,) the id; in any order."""
        which, found = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        order = np.argsort(hashes)
        wanted = hashes[order]  # one after the other touches less of a long run
        for run, ids in self._runs:
            first = np.searchsorted(run, wanted)
            hits = np.flatnonzero(run[np.minimum(first, len(run) - 1)] == wanted)
            if not len(hits):  # most keys are new while a store is filled
                continue
            first, last = first[hits], np.searchsorted(run, wanted[hits], side="right")
            counts = last - first
            which.append(np.repeat(order[hits], counts))
            before = np.cumsum(counts) - counts  # hits ahead of each hash's own
            found.append(ids[np.arange(counts.sum()) - np.repeat(before - first, counts)])
        return np.concatenate(which), np.concatenate(found)
