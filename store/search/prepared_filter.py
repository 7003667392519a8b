"""Filter prepared for repeated searches: the mask is checked, and its rows are listed and counted, only once."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ...errors import BadBlock
from ..manifest import Manifest
from ..records import Mask
from .matches import Positions


class PreparedFilter:
    """A subset of the rows of one snapshot, or all of them. Make it with `Snapshot.prepare_filter`."""

    def __init__(self, mask: Mask | None, rows: int, manifest: Manifest) -> None:
        """Check the mask.

        Parameters
        ----------
        mask : (rows,) bool, True for the rows that a search may return; None for all
        rows : number of rows in the snapshot
        manifest : the snapshot's manifest

        Raises
        ------
        BadBlock
            The mask is not an array of `rows` bools.
        """
        allowed = None if mask is None else np.asarray(mask)
        if allowed is not None and (allowed.shape != (rows,) or allowed.dtype != np.bool_):
            raise BadBlock(
                f"filter of dtype {allowed.dtype} and shape {allowed.shape} for a snapshot of {rows} rows; "
                f"pass a bool array of shape ({rows},)"
            )
        self.mask = allowed
        self.rows = rows
        self.manifest = manifest

    @cached_property
    def positions(self) -> Positions | None:
        """Positions of the allowed rows, ascending; None for all rows."""
        return None if self.mask is None else np.flatnonzero(self.mask)

    @cached_property
    def _count(self) -> int:
        return self.rows if self.mask is None else int(np.count_nonzero(self.mask))

    def __len__(self) -> int:
        """Number of allowed rows."""
        return self._count
