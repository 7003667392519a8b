"""Two classifiers on the same rows: does one do better than the other beyond chance?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .metrics import Z95, Interval


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same rows (McNemar 1947, exact): do they differ beyond chance?"""

    only_first: int  # rows that only the first gets right
    only_second: int
    difference: float  # accuracy of the first minus that of the second
    interval: Interval  # 95 % of the difference over pairs (Bonett and Price 2012)
    p: float  # two-sided

    def sentence(self, first: str, second: str) -> str:
        """The result in one sentence."""
        points = f"{100 * self.difference:+.2f} points ({100 * self.interval[0]:+.2f} to {100 * self.interval[1]:+.2f})"
        if self.p >= 0.05:
            claim = f"{first} does not differ from {second} beyond chance"
        else:
            claim = f"{first} {'beats' if self.difference > 0 else 'falls below'} {second} beyond chance"
        return f"{claim}: {points} of test accuracy, McNemar p = {self.p:.2g}."

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def mcnemar(right: npt.NDArray[np.bool_], other_right: npt.NDArray[np.bool_]) -> Comparison:
    """Compare which of the same rows two classifiers get right, each (rows,) bool."""
    from scipy.stats import binomtest

    first, second = int((right & ~other_right).sum()), int((~right & other_right).sum())
    n = len(right)
    # as if either were right alone on one row more, and both alike on none: rows that agree are no proof of sameness
    one, other = (first + 1) / (n + 2), (second + 1) / (n + 2)
    half = Z95 * float(np.sqrt((one + other - (one - other) ** 2) / (n + 2)))
    interval = max(-1.0, one - other - half), min(1.0, one - other + half)
    p = float(binomtest(first, first + second).pvalue) if first + second else 1.0
    return Comparison(first, second, (first - second) / max(n, 1), interval, p)
