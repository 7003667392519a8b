"""Set of millions of names in 13 to 27 bytes each; a Python set takes over 60, and the strings another 100."""

from __future__ import annotations

from array import array

import numpy as np

MAX_LOAD = 0.6  # share of occupied slots, beyond which finding a free one takes long


class HashSet:
    """Set of names, stored as 64-bit hashes; ten million names contain a collision with probability 1 in 370,000.

    >>> seen = HashSet()
    >>> [seen.contains_or_add(name) for name in ("a", "b", "a")]
    [False, False, True]
    """

    def __init__(self) -> None:
        self._set_slots(array("q", bytes(8 << 10)), 0)

    def __len__(self) -> int:
        return int(MAX_LOAD * len(self._slots)) - self._free

    def __contains__(self, name: str) -> bool:
        value = hash(name) or 1
        index = value >> self._shift & self._last
        while occupant := self._slots[index]:
            if occupant == value:
                return True
            index = index + 1 & self._last
        return False

    def contains_or_add(self, name: str) -> bool:
        """Add a name; True if it was in the set before."""
        value = hash(name) or 1
        slots = self._slots
        index = value >> self._shift & self._last  # home slot from the first bits, so slots are in the order of hashes
        while occupant := slots[index]:
            if occupant == value:
                return True
            index = index + 1 & self._last
        slots[index] = value
        self._free -= 1
        if not self._free:
            self._grow()
        return False

    def _set_slots(self, slots: array[int], count: int) -> None:
        self._slots = slots  # each hash is in the first free slot from its home slot on; 0: free
        self._last = len(slots) - 1
        self._shift = 64 - self._last.bit_length()
        self._free = int(MAX_LOAD * len(slots)) - count

    def _grow(self) -> None:
        """Double the slots. In sorted order, each hash takes its home slot or the one after the previous hash."""
        hashes = np.asarray(self._slots).view(np.uint64)
        hashes = hashes[hashes != 0]
        hashes.sort()
        self._set_slots(array("q", bytes(16 * len(self._slots))), len(hashes))
        steps = np.arange(len(hashes))
        indices = (hashes >> np.uint64(self._shift)).view(np.int64)
        indices -= steps
        np.maximum.accumulate(indices, out=indices)
        indices += steps
        slots = np.asarray(self._slots).view(np.uint64)
        inside = np.searchsorted(indices, len(slots))
        slots[indices[:inside]] = hashes[:inside]
        for value in hashes[inside:]:  # past the end, wrap around to the first free slot
            slots[np.argmin(slots != 0)] = value
