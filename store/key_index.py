"""Index of keys by hash, in sorted runs: sixteen bytes per row, extended without a rebuild."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .records import Ids

Hashes = npt.NDArray[np.uint64]


class KeyIndex:
    """Row ids by the hash of their key.

    Adding takes amortised logarithmic time: runs of similar size are merged, as in a binary counter. Ids of deleted
    rows stay in the index; callers must check that rows are live, and compare the keys themselves.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[Hashes, Ids]] = []  # each sorted by hash, every run at least twice the next one's size

    def add(self, hashes: Hashes, ids: Ids) -> None:
        """Add rows by (rows,) hashes of their keys and (rows,) ids."""
        if not len(hashes):
            return
        while self._runs and len(self._runs[-1][0]) < 2 * len(hashes):
            more_hashes, more_ids = self._runs.pop()
            hashes, ids = np.concatenate([more_hashes, hashes]), np.concatenate([more_ids, ids])
        order = np.argsort(hashes, kind="stable")  # merges sorted runs in linear time
        self._runs.append((hashes[order], ids[order]))

    def candidates(self, hashes: Hashes) -> tuple[Ids, Ids]:
        """All ids whose key has one of these hashes: (hits,) index of the hash and (hits,) id, in any order."""
        queried, matched_ids = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        order = np.argsort(hashes)
        sorted_hashes = hashes[order]  # in order, lookups touch fewer memory pages of a long run
        for run, ids in self._runs:
            first = np.searchsorted(run, sorted_hashes)
            hits = np.flatnonzero(run[np.minimum(first, len(run) - 1)] == sorted_hashes)
            if not len(hits):  # the usual case while a store is filled
                continue
            first, last = first[hits], np.searchsorted(run, sorted_hashes[hits], side="right")
            counts = last - first
            queried.append(np.repeat(order[hits], counts))
            before = np.cumsum(counts) - counts  # number of hits of preceding hashes
            matched_ids.append(ids[np.arange(counts.sum()) - np.repeat(before - first, counts)])
        return np.concatenate(queried), np.concatenate(matched_ids)
