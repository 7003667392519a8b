"""Monotone curves of several signals, fitted together by logistic regression. Their sum is a log-likelihood ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ...store.records import FAKE

Signals = npt.NDArray[np.float64]  # (rows, signals), higher leans fake, NaN for a missing score
Scores = npt.NDArray[np.float64]  # (rows,) log-likelihood ratios, above 0 leans fake
Labels = npt.NDArray[np.integer[Any]]  # (rows,) 0 real, 1 fake
Curve = Literal["line", "piecewise"]  # of a signal: a line in its normal score, or SEGMENTS pieces in its rank

CURVES: tuple[Curve, ...] = get_args(Curve)
SEGMENTS = 10  # pieces of a "piecewise" curve
QUANTILES = 1001  # values of a signal that are kept, at most
PENALTY = 1.0  # of the squared coefficients of standardised features, for the sum of the rows' losses


@dataclass(frozen=True)
class Curves:
    """One increasing function of each signal; their sum is a log-likelihood ratio."""

    kind: Curve
    values: tuple[Scores, ...]  # of each signal, at most 1001 ascending quantiles of its fitted scores
    means: Signals  # (signals, features) of the features over the fitted rows
    weights: Signals  # (signals, features) at least 0
    offset: float

    @classmethod
    def fit(cls, signals: Signals, labels: Labels, kind: Curve) -> Curves:
        """Fit on (rows, signals) signals of (rows,) labels, of which both classes occur."""
        values = tuple(_quantiles(column[~np.isnan(column)]) for column in signals.T)
        features = _features(signals, values, kind)
        means = np.nan_to_num(_mean(features))
        spread = np.sqrt(np.nan_to_num(_mean((features - means) ** 2)))
        spread[spread < 1e-9] = np.inf  # a constant feature has no weight
        standardised = np.nan_to_num((features - means) / spread).reshape(len(signals), -1)
        weights, offset = monotone_logistic(standardised, labels)
        return cls(kind, values, means, weights.reshape(means.shape) / spread, offset)

    def contributions(self, signals: Signals) -> Signals:
        """(rows, signals) what each signal adds to the score; 0 for a missing one."""
        features = _features(signals, self.values, self.kind) - self.means
        return np.asarray(np.einsum("rsf,sf->rs", np.nan_to_num(features), self.weights))

    def decision_function(self, signals: Signals) -> Scores:
        """(rows,) log-likelihood ratios; NaN for a row without any signal."""
        scores = self.contributions(signals).sum(1) + self.offset
        return np.where(np.isnan(signals).all(1), np.nan, scores)


def monotone_logistic(features: Signals, labels: Labels, penalty: float = PENALTY) -> tuple[Scores, float]:
    """(features,) coefficients, none below 0, and offset of a class-balanced, ridge-penalised logistic regression.

    Both classes have the same total weight, so the logit is a log-likelihood ratio. The problem is convex; it is solved
    by L-BFGS-B (Byrd et al. 1995).
    """
    from scipy.optimize import minimize

    n, fake = len(labels), labels == FAKE
    sign = np.where(fake, 1.0, -1.0)
    share = np.where(fake, 0.5 * n / max(int(fake.sum()), 1), 0.5 * n / max(int((~fake).sum()), 1))

    def loss(parameters: Scores) -> tuple[float, Scores]:
        weights, offset = parameters[:-1], parameters[-1]
        margin = sign * (features @ weights + offset)
        slope = -sign * share * np.exp(-np.logaddexp(0, margin))
        value = float(share @ np.logaddexp(0, -margin) + penalty * (weights @ weights) / 2)
        return value / n, np.append(features.T @ slope + penalty * weights, slope.sum()) / n

    bounds = [(0, None)] * features.shape[1] + [(None, None)]
    options = {"maxiter": 1000, "maxfun": 10_000}
    best = minimize(loss, np.zeros(len(bounds)), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return best[:-1], float(best[-1])


def _quantiles(values: Scores) -> Scores:
    """The values in ascending order, or 1001 of them, evenly spaced."""
    if len(values) <= QUANTILES:
        return np.sort(values)
    return np.asarray(np.quantile(values, np.linspace(0, 1, QUANTILES), method="inverted_cdf"))


def _features(signals: Signals, values: tuple[Scores, ...], kind: Curve) -> npt.NDArray[np.float64]:
    """(rows, signals, features) increasing functions of the signals; NaN where a signal is missing."""
    from scipy.special import ndtri

    ranks = np.column_stack([_ranks(column, known) for column, known in zip(signals.T, values, strict=True)])
    if kind == "line":
        ends = np.array([0.5 / max(len(known), 1) for known in values])
        return np.asarray(ndtri(np.clip(ranks, ends, 1 - ends)))[:, :, None]
    starts = np.arange(SEGMENTS) / SEGMENTS
    return np.clip(ranks[:, :, None] - starts, 0, 1 / SEGMENTS)


def _ranks(column: Scores, known: Scores) -> Scores:
    """(rows,) share of the known values below each value, where equal ones count half; NaN stays NaN."""
    below, upto = (np.searchsorted(known, column, side) for side in ("left", "right"))
    return np.where(np.isnan(column), np.nan, (below + upto) / (2 * max(len(known), 1)))


def _mean(features: npt.NDArray[np.float64]) -> Signals:
    """(signals, features) mean over the rows that have the signal, NaN if none has."""
    count = (~np.isnan(features)).sum(0)
    total = np.nansum(features, axis=0)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))
