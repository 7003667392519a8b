"""Fusion: scores of several detectors for the same images become one log-likelihood ratio with prediction sets.

Only the order of a detector's scores counts, so probabilities that are saturated at 0 or 1, logits, margins and
distances can be fused alike. Never sees a store: arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...errors import BadBlock, InvalidOption, NotEnoughRows
from ...store.records import FAKE, REAL
from .curves import CURVES, Curve, Curves, Labels, Scores, Signals
from .fusion_report import FusionReport, measure_fusion

FOLDS = 5
MIN_ROWS = 10  # of each class, to fit a fusion


@dataclass(frozen=True)
class Fusion:
    """A monotone additive classifier of several signals: a higher signal never lowers the score.

    The score is a sum of one curve per signal, fitted together by logistic regression with both classes weighted
    equally. All coefficients are at least 0: a signal that misleads on the fitted rows is ignored rather than
    inverted. A missing signal adds the mean of its curve over the fitted rows.

    The prediction sets are cross-conformal (Vovk 2015, class-conditional): each fitted row is scored by a fusion that
    was fitted without it, and these scores are kept.
    """

    names: tuple[str, ...]  # (signals,)
    curves: Curves
    real: Scores  # scores of the real rows, each by curves fitted without it, ascending
    fake: Scores  # the same of the fake rows

    @classmethod
    def fit(
        cls,
        signals: npt.ArrayLike,
        labels: npt.ArrayLike,
        names: Sequence[str] = (),
        *,
        curve: Curve | Literal["auto"] = "auto",
        seed: int = 0,
    ) -> Fusion:
        """Fit on labelled rows.

        Parameters
        ----------
        signals : (rows, signals) float, of any scale, higher leans fake; NaN for a missing score
        labels : (rows,) 0 real, 1 fake
        names : (signals,) names of the signals (default: their numbers)
        curve : "auto" takes the one with the lower log loss on rows that it was not fitted on
        seed : of the folds

        Raises
        ------
        BadBlock
            The shapes differ, or a label is neither 0 nor 1.
        NotEnoughRows
            A class has fewer than ten rows with a score.
        InvalidOption
            There is no such curve.
        """
        if curve not in (*CURVES, "auto"):
            raise InvalidOption(f"there is no curve {curve!r}; choose {', '.join(CURVES)} or auto")
        table, truth, names = _checked(signals, labels, names)
        used = ~np.isnan(table).all(1)
        table, truth = table[used], truth[used]
        require_rows(truth, MIN_ROWS)
        folds = stratified_folds(truth, FOLDS, seed)
        kinds = CURVES if curve == "auto" else (curve,)
        held_out = {kind: _out_of_fold(table, truth, folds, kind) for kind in kinds}
        best = min(kinds, key=lambda kind: log_loss(truth, held_out[kind]))
        real, fake = (np.sort(held_out[best][truth == label]) for label in (REAL, FAKE))
        return cls(names, Curves.fit(table, truth, best), real, fake)

    def contributions(self, signals: npt.ArrayLike) -> Signals:
        """(rows, signals) what each signal adds to the score; 0 for a missing one."""
        return self.curves.contributions(self._table(signals))

    def decision_function(self, signals: npt.ArrayLike) -> Scores:
        """(rows,) log-likelihood ratios, above 0 leans fake; NaN for a row without any signal."""
        return self.curves.decision_function(self._table(signals))

    def prediction_sets(self, scores: Scores, error: float) -> npt.NDArray[np.bool_]:
        """(rows, 2) whether real and whether fake cannot be ruled out at a nominal error rate; both for NaN.

        For `error` of the rows of each class the true one is ruled out, if they are like the fitted rows.
        """
        p_real = (len(self.real) - np.searchsorted(self.real, scores, "left") + 1) / (len(self.real) + 1)
        p_fake = (np.searchsorted(self.fake, scores, "right") + 1) / (len(self.fake) + 1)
        return np.asarray((np.column_stack([p_real, p_fake]) > error) | np.isnan(scores)[:, None])

    def _table(self, signals: npt.ArrayLike) -> Signals:
        table = np.asarray(signals, np.float64)
        if table.ndim != 2 or table.shape[1] != len(self.names):
            raise BadBlock(
                f"the fusion has {len(self.names)} signals ({', '.join(self.names)}), found an array of shape "
                f"{table.shape}; give (rows, {len(self.names)})"
            )
        return table


def require_rows(labels: Labels, least: int) -> None:
    """Raise NotEnoughRows unless there are `least` rows of each class."""
    real, fake = (int((labels == label).sum()) for label in (REAL, FAKE))
    if min(real, fake) < least:
        raise NotEnoughRows(
            f"a fusion needs at least {least} real and {least} fake rows with a score, found {real} real and {fake} "
            f"fake; label more rows"
        )


def stratified_folds(labels: Labels, folds: int, seed: int) -> npt.NDArray[np.int64]:
    """(rows,) fold of each row at random, with the rows of each class spread evenly."""
    result, rng = np.zeros(len(labels), np.int64), np.random.default_rng(seed)
    for label in (REAL, FAKE):
        members = rng.permutation(np.flatnonzero(labels == label))
        result[members] = np.arange(len(members)) % folds
    return result


def log_loss(labels: Labels, scores: Scores) -> float:
    """Mean negative log-likelihood in nats, with both classes weighted equally; log 2 if the scores say nothing."""
    losses = np.logaddexp(0, np.where(labels == FAKE, -scores, scores))
    return float(np.mean([losses[labels == label].mean() for label in (REAL, FAKE)]))


@dataclass(frozen=True)
class FusedTable:
    """Fused scores of a table of signals; labelled rows are scored by a fusion that was not fitted on them."""

    fusion: Fusion  # fitted on all labelled rows
    scores: Scores  # (rows,) log-likelihood ratios, NaN for a row without any signal
    possible: npt.NDArray[np.bool_]  # (rows, 2) whether real and whether fake are in the prediction set
    report: FusionReport

    @property
    def answers(self) -> list[str]:
        """(rows,) real, fake or unsure."""
        names = {(True, False): "real", (False, True): "fake"}
        return [names.get((real, fake), "unsure") for real, fake in self.possible.tolist()]


def fuse(
    signals: npt.ArrayLike,
    labels: npt.ArrayLike,
    names: Sequence[str] = (),
    *,
    error: float = 0.05,
    curve: Curve | Literal["auto"] = "auto",
    seed: int = 0,
) -> FusedTable:
    """Fuse a table of signals, and measure the fusion on rows that it was not fitted on.

    The labelled rows are divided into halves, and each half is scored by a fusion fitted on the other. Rows without a
    label are scored by a fusion fitted on all labelled rows.

    Parameters
    ----------
    signals : (rows, signals) float, of any scale, higher leans fake; NaN for a missing score
    labels : (rows,) 0 real, 1 fake, -1 unknown
    error : nominal error rate of the prediction sets

    Raises
    ------
    BadBlock, InvalidOption
        Raised by `Fusion.fit`; BadBlock also for a signal without any score.
    NotEnoughRows
        A class has fewer than twenty labelled rows with a score, ten for each half.
    """
    table, truth, names = _checked(signals, labels, names, unknown=True)
    if empty := [name for name, column in zip(names, table.T, strict=True) if np.isnan(column).all()]:
        raise BadBlock(f"the signal {empty[0]} has no score in any row; leave it out")
    known = np.flatnonzero((truth >= 0) & ~np.isnan(table).all(1))
    require_rows(truth[known], 2 * MIN_ROWS)
    fusion = Fusion.fit(table[known], truth[known], names, curve=curve, seed=seed)
    scores = fusion.decision_function(table)
    possible = fusion.prediction_sets(scores, error)
    halves = stratified_folds(truth[known], 2, seed)
    for half in (0, 1):
        held_out, fitted = known[halves == half], known[halves != half]
        of_half = Fusion.fit(table[fitted], truth[fitted], names, curve=curve, seed=seed)
        scores[held_out] = of_half.decision_function(table[held_out])
        possible[held_out] = of_half.prediction_sets(scores[held_out], error)
    measured = table[known], truth[known], scores[known], possible[known]
    report = measure_fusion(names, fusion.curves, *measured, nominal=error)
    return FusedTable(fusion, scores, possible, report)


def _out_of_fold(signals: Signals, labels: Labels, folds: npt.NDArray[np.int64], curve: Curve) -> Scores:
    """(rows,) scores, each by curves that were fitted on the other folds."""
    scores = np.zeros(len(labels))
    for fold in np.unique(folds):
        held_out = folds == fold
        curves = Curves.fit(signals[~held_out], labels[~held_out], curve)
        scores[held_out] = curves.decision_function(signals[held_out])
    return scores


def _checked(
    signals: npt.ArrayLike, labels: npt.ArrayLike, names: Sequence[str], *, unknown: bool = False
) -> tuple[Signals, Labels, tuple[str, ...]]:
    """The arguments as arrays of the right type; raises BadBlock."""
    table, truth = np.asarray(signals, np.float64), np.asarray(labels)
    if table.ndim != 2 or not table.shape[1] or truth.shape != table.shape[:1]:
        raise BadBlock(
            f"signals of shape {table.shape} and labels of shape {truth.shape} do not match; give (rows, signals) and "
            f"(rows,)"
        )
    names = tuple(names) or tuple(str(i) for i in range(table.shape[1]))
    if len(names) != table.shape[1] or len(set(names)) != len(names):
        raise BadBlock(f"{len(names)} names for {table.shape[1]} signals; give a different name for each")
    allowed = (REAL, FAKE, -1) if unknown else (REAL, FAKE)
    if not np.isin(truth, allowed).all():
        wrong = truth[~np.isin(truth, allowed)][0]
        raise BadBlock(f"a label is {wrong}; give one of {', '.join(map(str, allowed))} (0 real, 1 fake, -1 unknown)")
    return table, truth.astype(np.int64), names
