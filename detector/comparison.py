"""Comparison of two classifiers on the same rows: is their difference statistically significant?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.records import FAKE
from .metrics import Z95, Interval


@dataclass(frozen=True)
class Comparison:
    """Result of an exact McNemar test (1947) of two classifiers on the same rows."""

    only_first: int  # rows that only the first classifies correctly
    only_second: int
    difference: float  # accuracy of the first minus that of the second
    interval: Interval  # 95 % confidence interval for paired rows (Bonett and Price 2012)
    p: float  # two-sided p-value

    def sentence(self, first: str, second: str) -> str:
        """Report the result in one sentence."""
        points = f"{100 * self.difference:+.2f} points ({100 * self.interval[0]:+.2f} to {100 * self.interval[1]:+.2f})"
        if self.p >= 0.05:
            claim = f"{first} does not differ significantly from {second}"
        else:
            claim = f"{first} is significantly {'better' if self.difference > 0 else 'worse'} than {second}"
        return f"{claim}: {points} of test accuracy, McNemar p = {self.p:.2g}."

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def mcnemar(correct: npt.NDArray[np.bool_], other_correct: npt.NDArray[np.bool_]) -> Comparison:
    """Compare two classifiers by which of the same rows they classify correctly, each (rows,) bool."""
    from scipy.stats import binomtest

    first, second = int((correct & ~other_correct).sum()), int((~correct & other_correct).sum())
    n = len(correct)
    # one more row that only the first gets right and one that only the second does: without a disagreement the
    # interval would have no width, although rows that agree do not prove the classifiers to be equal
    share, other_share = (first + 1) / (n + 2), (second + 1) / (n + 2)
    shift = share - other_share
    half = Z95 * float(np.sqrt((share + other_share - shift**2) / (n + 2)))
    interval = max(-1.0, shift - half), min(1.0, shift + half)
    p = float(binomtest(first, first + second).pvalue) if first + second else 1.0
    return Comparison(first, second, (first - second) / max(n, 1), interval, p)


def auc_difference(
    labels: npt.NDArray[np.integer[Any]], scores: npt.NDArray[np.float64], others: npt.NDArray[np.float64]
) -> tuple[float, Interval]:
    """AUC of (rows,) scores minus that of other scores of the same rows, and its 95 % interval (DeLong et al. 1988)."""
    from scipy.stats import rankdata

    fake = labels == FAKE
    above, below = [], []  # of each classifier: (fakes,) share of reals below each, (reals,) share of fakes above each
    for values in (scores, others):
        ranks = rankdata(values)
        above.append((ranks[fake] - rankdata(values[fake])) / max(int((~fake).sum()), 1))
        below.append(1 - (ranks[~fake] - rankdata(values[~fake])) / max(int(fake.sum()), 1))
    of_fakes, of_reals = above[0] - above[1], below[0] - below[1]
    difference = float(of_fakes.mean())
    half = Z95 * float(np.sqrt(of_fakes.var(ddof=1) / len(of_fakes) + of_reals.var(ddof=1) / len(of_reals)))
    return difference, (difference - half, difference + half)
