"""Filter prepared for repeated searches: its cost is paid once."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from ...errors import BadBlock
from ..records import Mask
from .matches import Positions


class PreparedFilter:
    """Some rows of one snapshot, or all. Make it with `Snapshot.scope`; searches leave in it what they work out."""

    def __init__(self, mask: Mask | None, rows: int, of: object) -> None:
        """Raises BadBlock unless the mask has a bool for each of so many rows; `of` is whose they are."""
        allowed = None if mask is None else np.asarray(mask)
        if allowed is not None and (allowed.shape != (rows,) or allowed.dtype != np.bool_):
            raise BadBlock(f"a filter of {allowed.dtype} {allowed.shape}; give one bool for each of {rows} rows")
        self.mask = allowed
        self.rows = rows  # of the snapshot
        self.of = of  # its manifest, which views of it share
        self.indexed: Any = None  # what the snapshot's index keeps for it

    @cached_property
    def positions(self) -> Positions | None:
        """(n,) of the rows, ascending; None for all."""
        return None if self.mask is None else np.flatnonzero(self.mask)

    @cached_property
    def _count(self) -> int:
        return self.rows if self.mask is None else int(np.count_nonzero(self.mask))

    def __len__(self) -> int:
        return self._count
