"""Search width of a back end for a given recall, as measured. Independent of any back end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

K = 10  # what recall is measured at
NEAR = 4.0  # a measured filter speaks for filters of a quarter to four times its rows
EXACT_ROWS = 20_000  # a filter for no more rows is searched exactly: a few milliseconds


@dataclass(frozen=True)
class SearchPlan:
    """Number of candidates a search must keep for a recall@10, measured with the store's own vectors and filters."""

    widths: tuple[int, ...] = ()  # rising
    shares: tuple[float, ...] = ()  # of the rows, that each measured filter allowed
    recalls: tuple[tuple[float, ...], ...] = ()  # (filters, widths)
    margin: int = 0  # so many steps wider than the measurement says: it was a sample

    def width(self, recall: float, share: float, k: int = K) -> int | None:
        """Candidates for a filter that allows this share of the rows, None where only an exact search will do.

        Half the misses that were asked for are aimed at, and the dearest of the filters of about that share counts, and
        of those next to it on either side.

        >>> plan = Plan((64, 128), (1.0, 0.1), ((0.99, 1.0), (0.7, 0.9)))
        >>> plan.width(0.98, 1.0), plan.width(0.98, 0.5), plan.width(1.0, 1.0)
        (64, None, None)
        """
        if recall >= 1 or not self.shares:
            return None
        aim = 1 - (1 - recall) / 2
        shares = np.array(self.shares)
        near = (shares * NEAR >= share) & (shares <= share * NEAR)
        for side in (shares >= share, shares <= share):  # and the next one on either side
            if side.any():
                near[np.flatnonzero(side)[np.abs(shares[side] - share).argmin()]] = True
        step = 0
        for measured in np.array(self.recalls)[near]:
            enough = np.flatnonzero(measured >= aim)
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
    """A few more than wanted: an engine adds up in another order, and near-equal rows may change places."""
    return k + max(4, k // 4)


def exactly(rows: int) -> bool:
    """True if a filter for this many rows is searched exactly, whatever the plan."""
    return rows <= EXACT_ROWS
