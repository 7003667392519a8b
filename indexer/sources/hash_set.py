"""Set of names, for millions: 13 to 27 bytes each, where a Python set takes over 60 and the strings 100 more."""

from __future__ import annotations

from array import array

import numpy as np

FULL = 0.6  # of the slots taken: beyond it, finding a free one takes long


class HashSet:
    """Names by their 64-bit hashes; among ten million, two share one with a chance of 1 in 370,000.

    >>> seen = Seen()
    >>> [seen.again(name) for name in ("a", "b", "a")]
    [False, False, True]
    """

    def __init__(self) -> None:
        self._take(array("q", bytes(8 << 10)), 0)

    def __len__(self) -> int:
        return int(FULL * len(self._slots)) - self._free

    def again(self, name: str) -> bool:
        """True if a name was added before; adds it."""
        mark = hash(name) or 1
        slots = self._slots
        at = mark >> self._shift & self._last  # its own slot, by its first bits: so slots are in the order of hashes
        while found := slots[at]:
            if found == mark:
                return True
            at = at + 1 & self._last
        slots[at] = mark
        self._free -= 1
        if not self._free:
            self._grow()
        return False

    def _take(self, slots: array[int], count: int) -> None:
        self._slots = slots  # each hash in the first free one from its own on; 0: free
        self._last = len(slots) - 1
        self._shift = 64 - self._last.bit_length()
        self._free = int(FULL * len(slots)) - count

    def _grow(self) -> None:
        """Twice as many slots. In the order of hashes, each takes its own or the one after the hash before it."""
        marks = np.asarray(self._slots).view(np.uint64)
        marks = marks[marks != 0]
        marks.sort()
        self._take(array("q", bytes(16 * len(self._slots))), len(marks))
        steps = np.arange(len(marks))
        places = (marks >> np.uint64(self._shift)).view(np.int64)
        places -= steps
        np.maximum.accumulate(places, out=places)
        places += steps
        slots = np.asarray(self._slots).view(np.uint64)
        inside = np.searchsorted(places, len(slots))
        slots[places[:inside]] = marks[:inside]
        for mark in marks[inside:]:  # beyond the last slot comes the first
            slots[np.argmin(slots != 0)] = mark
