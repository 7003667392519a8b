"""Quality of a fusion beside that of its signals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...store.records import FAKE, REAL
from ..comparison import auc_difference
from ..metrics import Interval, auc, auc_interval, expected_calibration_error, wilson
from ..verdict import format_percent
from .curves import Curve, Curves, Labels, Scores, Signals


@dataclass(frozen=True)
class SignalReport:
    """One signal of a fusion."""

    auc: float | None  # of the signal alone, on the rows that have it
    weight: float  # standard deviation of its contribution to the score, in nats; 0 if the fusion ignores it
    missing: float  # share of rows without it


@dataclass(frozen=True)
class FusionReport:
    """Quality of a fusion on rows that it was not fitted on."""

    n: int
    real: int
    fake: int
    curve: Curve
    auc: float
    auc_interval: Interval | None  # 95 % confidence
    best: str  # the signal with the highest AUC on these rows
    gain: float  # AUC of the fusion minus that of the best signal, on the rows that have it
    gain_interval: Interval  # 95 % confidence, paired
    ece: float | None  # expected calibration error of the probability
    nominal: float  # nominal error rate
    answered: float  # share of rows whose answer is real or fake, not unsure
    wrong: float | None  # share of these answers that are wrong
    wrong_interval: Interval | None
    real_excluded: float  # share of real rows for which real was ruled out; should be `nominal`
    fake_excluded: float
    signals: dict[str, SignalReport]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def sentences(self) -> list[str]:
        """Results on held-out rows, in sentences."""
        return [
            f"The fusion has an AUC of {self.auc:.3f}{_interval(self.auc_interval)} on {self.n:,} labelled rows, each "
            f"scored by a fusion that was not fitted on it; that is {self.gain:+.3f}{_interval(self.gain_interval)} "
            f"beside {self.best}, the best signal.",
            f"{self.answered:.0%} of these rows got an answer{self._errors}; the true class was ruled out for "
            f"{self.real_excluded:.1%} of the real rows, {self.fake_excluded:.1%} of the fake rows (nominal "
            f"{format_percent(self.nominal)}).",
        ]

    @property
    def _errors(self) -> str:
        if self.wrong is None or self.wrong_interval is None:
            return ""
        low, high = self.wrong_interval
        return f", {self.wrong:.1%} of the answers are wrong ({low:.1%} to {high:.1%})"


def measure_fusion(
    names: tuple[str, ...],
    curves: Curves,
    signals: Signals,
    labels: Labels,
    scores: Scores,
    possible: npt.NDArray[np.bool_],
    *,
    nominal: float,
) -> FusionReport:
    """Measure (rows,) fused scores and (rows, 2) prediction sets of labelled rows with some signal.

    Parameters
    ----------
    curves : of the fusion whose weights are reported
    nominal : nominal error rate of the prediction sets
    """
    spreads = curves.contributions(signals).std(0)
    reports = {}
    for name, column, spread in zip(names, signals.T, spreads, strict=True):
        has = ~np.isnan(column)
        reports[name] = SignalReport(auc(labels[has], _order(column[has])), float(spread), float((~has).mean()))
    best = max(reports, key=lambda name: reports[name].auc or 0.0)
    column = signals[:, names.index(best)]
    has = ~np.isnan(column)
    gain, gain_interval = auc_difference(labels[has], scores[has], _order(column[has]))
    true, answered = possible[np.arange(len(labels)), labels], possible.sum(1) == 1
    wrong = int((~true & answered).sum())
    return FusionReport(
        n=len(labels),
        real=int((labels == REAL).sum()),
        fake=int((labels == FAKE).sum()),
        curve=curves.kind,
        auc=auc(labels, scores) or 0.0,
        auc_interval=auc_interval(labels, scores),
        best=best,
        gain=gain,
        gain_interval=gain_interval,
        ece=_balanced_ece(labels, scores),
        nominal=nominal,
        answered=float(answered.mean()),
        wrong=wrong / int(answered.sum()) if answered.any() else None,
        wrong_interval=wilson(wrong, int(answered.sum())),
        real_excluded=float((~true[labels == REAL]).mean()),
        fake_excluded=float((~true[labels == FAKE]).mean()),
        signals=reports,
    )


def _balanced_ece(labels: Labels, scores: Scores) -> float | None:
    """Expected calibration error at the share of fakes among the rows."""
    share = float((labels == FAKE).mean())
    logit = np.clip(scores + np.log(share) - np.log1p(-share), -500, 500)
    return expected_calibration_error(labels, 1 / (1 + np.exp(-logit)))


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"


def _order(column: Scores) -> Scores:
    """The place of each value in ascending order, the same for equal ones; infinite values have one too."""
    return np.unique(column, return_inverse=True)[1].astype(np.float64)
