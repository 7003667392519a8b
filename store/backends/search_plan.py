"""Choose the width of a search from measured recalls. Independent of the back end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

K = 10  # recall is measured at 10
NEAR = 4.0  # a measurement applies to filters that allow a quarter to four times its rows
EXACT_ROWS = 20_000  # filters that allow no more rows are searched exactly, which takes a few milliseconds


@dataclass(frozen=True)
class SearchPlan:
    """Number of candidates a search must keep for a recall@10, measured with the store's own vectors and filters."""

    widths: tuple[int, ...] = ()  # ascending
    shares: tuple[float, ...] = ()  # share of the rows that each measured filter allows
    recalls: tuple[tuple[float, ...], ...] = ()  # (filters, widths)
    margin: int = 0  # steps in `widths` added to the measured one, which came from a sample

    def width(self, recall: float, share: float, k: int = K) -> int | None:
        """Number of candidates for a filter that allows this share of the rows; None if only an exact search will do.

        The target is half the allowed misses. The width is the largest needed by any measured filter of about this
        share, including the nearest one on either side.

        >>> plan = SearchPlan((64, 128), (1.0, 0.1), ((0.99, 1.0), (0.7, 0.9)))
        >>> plan.width(0.98, 1.0), plan.width(0.98, 0.5), plan.width(1.0, 1.0)
        (64, None, None)
        """
        if recall >= 1 or not self.shares:
            return None
        target = 1 - (1 - recall) / 2
        shares = np.array(self.shares)
        near = (shares * NEAR >= share) & (shares <= share * NEAR)
        for side in (shares >= share, shares <= share):  # the nearest on either side
            if side.any():
                near[np.flatnonzero(side)[np.abs(shares[side] - share).argmin()]] = True
        step = 0
        for measured in np.array(self.recalls)[near]:
            enough = np.flatnonzero(measured >= target)
            if not len(enough):
                return None
            step = max(step, int(enough[0]))
        if step + self.margin >= len(self.widths):
            return None
        return round(self.widths[step + self.margin] * max(1.0, k / K))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> SearchPlan:
        recalls = tuple(tuple(map(float, row)) for row in fields["recalls"])
        return cls(tuple(fields["widths"]), tuple(fields["shares"]), recalls, int(fields["margin"]))


def fetched(k: int) -> int:
    """Number of rows to fetch for k results: a back end's rounding differs, and near-equal rows may swap ranks."""
    return k + max(4, k // 4)


def exactly(rows: int) -> bool:
    """True if a filter that allows this many rows is searched exactly, whatever the plan."""
    return rows <= EXACT_ROWS
