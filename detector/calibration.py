"""Calibration: scores to log-likelihood ratios, probabilities and conformal prediction sets.

A log-likelihood ratio (natural logarithm, above 0 leans fake) is the weight of evidence of a score, independent of the
share of fakes among the queried images; `fake_probability` takes that share into account. Conformal prediction gives
the set of classes that cannot be ruled out at a nominal error rate (Vovk, Gammerman & Shafer 2005; class-conditional:
Vovk 2012; rows with weights: Tibshirani et al. 2019; scores of cross-validated models: Vovk 2015).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.atomic_files import read_json, require_readable, write_text
from ..core.sealed_json import PARSE_ERRORS
from ..errors import HeadError, NotEnoughRows
from ..store.records import FAKE, REAL

Scores = npt.NDArray[np.float64]  # (rows,)
Labels = npt.NDArray[np.integer[Any]]  # (rows,)

MIN_ROWS = 10  # of each class
QUANTILES = 1001
ROUNDING = 1e-9  # of sums of weights
NAME = "calibration-{}.json"  # name of the file in the head's folder, with the start of the head's digest


@dataclass(frozen=True)
class Platt:
    """Log-likelihood ratio of a score: slope · score + offset (Platt 1999, with both classes weighted equally)."""

    slope: float
    offset: float

    def __call__(self, scores: Scores) -> Scores:
        return np.asarray(self.slope * scores + self.offset)

    @classmethod
    def fit(cls, scores: Scores, labels: Labels, row_weights: Scores | None = None) -> Platt:
        weights, offset = logistic(scores[:, None], labels, row_weights)
        return cls(float(weights[0]), offset)


def logistic(
    signals: npt.NDArray[np.float64], labels: Labels, row_weights: Scores | None = None
) -> tuple[Scores, float]:
    """Weights and offset of a class-balanced logistic regression on (rows, signals); its logit is an LLR.

    Negative weights are set to 0. A signal that misleads on the calibration rows is ignored rather than inverted:
    inverted, it would contradict the evidence that is shown.

    Parameters
    ----------
    row_weights : (rows,) how much each row counts within its class; all the same by default
    """
    from sklearn.linear_model import LogisticRegression

    spread = signals.std(0)
    spread[spread == 0] = 1
    balanced = _balanced(labels, row_weights)
    weights, used = np.zeros(signals.shape[1]), np.arange(signals.shape[1])
    while len(used):
        model = LogisticRegression(C=10.0, max_iter=1000)
        model.fit(signals[:, used] / spread[used], labels, sample_weight=balanced)
        coefficients = model.coef_[0]
        if (coefficients >= 0).all():
            weights[used] = coefficients / spread[used]
            return weights, float(model.intercept_[0])
        used = np.delete(used, coefficients.argmin())
    return weights, 0.0


def _balanced(labels: Labels, row_weights: Scores | None) -> Scores:
    """(rows,) weights of mean 1 in which both classes count the same."""
    weights = np.ones(len(labels)) if row_weights is None else np.array(row_weights, np.float64)
    for label in (REAL, FAKE):
        of_class = labels == label
        weights[of_class] *= len(labels) / 2 / weights[of_class].sum()
    return weights


@dataclass(frozen=True)
class WeightedScores:
    """Scores of the calibration rows of one class, to which the score of an image is compared."""

    scores: Scores  # (rows,) ascending
    weights: Scores  # (rows,) of each row, with the sum 1

    @classmethod
    def make(cls, scores: Scores, weights: Scores | None = None) -> WeightedScores:
        """Sort scores; all rows count the same unless they have weights above 0."""
        order = np.argsort(scores, kind="stable")
        weights = np.ones(len(scores)) if weights is None else weights[order]
        return cls(np.asarray(scores)[order], weights / weights.sum())

    @property
    def rows(self) -> float:
        """Effective number of rows: of equal rows that would vary as much by chance (Kish 1965)."""
        return float(1 / (self.weights**2).sum())

    def at_or_above(self, scores: Scores) -> Scores:
        """(n,) weighted share of the rows at or above each score, where the new row itself counts as one more row."""
        return self._with_itself(1 - self._cumulative[np.searchsorted(self.scores, scores, side="left")])

    def at_or_below(self, scores: Scores) -> Scores:
        """(n,) weighted share of the rows at or below each score, where the new row itself counts as one more row."""
        return self._with_itself(self._cumulative[np.searchsorted(self.scores, scores, side="right")])

    @cached_property
    def _cumulative(self) -> Scores:
        """(rows + 1,) weight of the rows below each position."""
        return np.concatenate([[0.0], np.cumsum(self.weights)])

    def _with_itself(self, share: Scores) -> Scores:
        return np.asarray((np.maximum(share, 0) * self.rows + 1) / (self.rows + 1))

    def to_dict(self) -> dict[str, Any]:
        return {"scores": self.scores.tolist(), "weights": self.weights.tolist()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> WeightedScores:
        """Convert back; raises KeyError, TypeError or ValueError for fields of the wrong kind."""
        scores = _ascending("scores", fields["scores"])
        weights = np.asarray(fields["weights"], np.float64)
        if weights.shape != scores.shape or not (weights > 0).all() or abs(weights.sum() - 1) > 1e-6:
            raise ValueError(f"weights must be {len(scores)} positive numbers with the sum 1")
        return cls(scores, weights)


def _ascending(name: str, values: Any) -> Scores:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all() or (array[1:] < array[:-1]).any():
        raise ValueError(f"{name} must hold finite numbers in ascending order, found shape {array.shape}")
    return array


@dataclass(frozen=True)
class Calibration:
    """Calibration of the two signals, the head's margin and the neighbours' similarity.

    It is fitted on rows that neither head nor bank had seen when they were scored: rows of the stored sources, and rows
    of sources that were left out.
    """

    svm: Platt
    neighbors: Platt
    weights: tuple[float, float]  # of the two log-likelihood ratios
    offset: float
    real: WeightedScores
    fake: WeightedScores
    nearest: Scores  # (1001,) quantiles of the similarity of a calibration row to its nearest neighbour
    head: str = ""  # digest of the calibrated head; the calibration does not apply to any other
    notice: str = ""  # what the nominal error rate does not cover, a sentence for every answer; "" if it holds

    @classmethod
    def fit(
        cls,
        svm: Scores,
        neighbors: Scores,
        nearest: Scores,
        labels: Labels,
        *,
        line_weights: Scores | None = None,
        set_weights: Scores | None = None,
    ) -> Calibration:
        """Fit on the two signals of rows that neither head nor bank had seen.

        Parameters
        ----------
        svm, neighbors : (rows,) the signals
        nearest : (rows,) similarity of the nearest neighbour
        labels : (rows,) 0 real, 1 fake
        line_weights : (rows,) how much each row counts for slopes and offsets; all the same by default
        set_weights : (rows,) how much each row counts for the prediction sets; all the same by default

        Raises
        ------
        NotEnoughRows
            A class has fewer than ten rows.
        """
        counts = {name: int((labels == label).sum()) for label, name in ((REAL, "real"), (FAKE, "fake"))}
        if min(counts.values()) < MIN_ROWS:
            raise NotEnoughRows(
                f"calibration needs at least {MIN_ROWS} held-out rows of each class, found {counts['real']} real "
                f"and {counts['fake']} fake; index more images"
            )
        svm_llr = Platt.fit(svm, labels, line_weights)
        neighbors_llr = Platt.fit(neighbors, labels, line_weights)
        both = np.column_stack([svm_llr(svm), neighbors_llr(neighbors)])
        weights, offset = logistic(both, labels, line_weights)
        scores = both @ weights + offset
        set_weights = np.ones(len(labels)) if set_weights is None else set_weights
        real, fake = (
            WeightedScores.make(scores[labels == label], set_weights[labels == label]) for label in (REAL, FAKE)
        )
        quantiles = np.quantile(nearest, np.linspace(0, 1, QUANTILES), weights=set_weights, method="inverted_cdf")
        return cls(svm_llr, neighbors_llr, (float(weights[0]), float(weights[1])), offset, real, fake, quantiles)

    def decision_function(self, svm: Scores, neighbors: Scores) -> Scores:
        """(rows,) log-likelihood ratios of the two (rows,) signals combined."""
        return np.asarray(self.weights[0] * self.svm(svm) + self.weights[1] * self.neighbors(neighbors) + self.offset)

    def prediction_sets(self, scores: Scores, error: float) -> npt.NDArray[np.bool_]:
        """(rows, 2) whether real and whether fake cannot be ruled out at a nominal error rate.

        A class is ruled out if at most `error` of its calibration rows, counting the row itself, conform as little to
        it. The true class is therefore ruled out for `error` of the rows of each class, if these are like the
        calibration rows. This is not a share of the answers: where the scores separate the classes poorly, few answers
        are given and more of them are wrong.
        """
        p_values = np.column_stack([self.real.at_or_above(scores), self.fake.at_or_below(scores)])
        return np.asarray(p_values > error + ROUNDING)

    def fake_probability(self, score: Any, prior: float) -> Any:
        """P(fake) at a score, limited to what the number of calibration rows can support.

        n rows cannot show that something is rarer than one in n + 1. The score itself is not limited: it goes on by
        the fitted line, still orders images, and decides the prediction sets.
        """
        limits = np.log(self.fake.rows + 1), np.log(self.real.rows + 1)
        return probability(np.clip(score, -limits[0], limits[1]), prior)

    @property
    def rows(self) -> int:
        """Effective number of calibration rows of the smaller class."""
        return int(min(self.real.rows, self.fake.rows) + ROUNDING)

    @property
    def least_error(self) -> float:
        """Smallest nominal error rate at which either class can be ruled out, given the number of calibration rows."""
        return 1 / (min(self.real.rows, self.fake.rows) + 1)

    def percentile(self, nearest: Scores) -> Scores:
        """(rows,) percentage of calibration rows that were less similar to their nearest neighbour."""
        return np.searchsorted(self.nearest, nearest) / len(self.nearest) * 100

    def to_dict(self) -> dict[str, Any]:
        return {
            "svm": {"slope": self.svm.slope, "offset": self.svm.offset},
            "neighbors": {"slope": self.neighbors.slope, "offset": self.neighbors.offset},
            "weights": list(self.weights),
            "offset": self.offset,
            "real": self.real.to_dict(),
            "fake": self.fake.to_dict(),
            "nearest": self.nearest.tolist(),
            "head": self.head,
            "notice": self.notice,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Calibration:
        """Convert back; raises KeyError, TypeError, ValueError or OverflowError for fields of the wrong kind."""
        if "held_out" in fields:
            raise ValueError("it is of an earlier release, whose error rates did not hold for unseen sources")
        svm_weight, neighbors_weight = map(float, fields["weights"])
        lines = [Platt(float(fields[name]["slope"]), float(fields[name]["offset"])) for name in ("svm", "neighbors")]
        offset = float(fields["offset"])
        if not np.isfinite(
            [svm_weight, neighbors_weight, offset, *(number for line in lines for number in (line.slope, line.offset))]
        ).all():
            raise ValueError("slopes, weights and offsets must be finite numbers")
        svm, neighbors = lines
        real, fake = (WeightedScores.from_dict(fields[name]) for name in ("real", "fake"))
        nearest, weights = _ascending("nearest", fields["nearest"]), (svm_weight, neighbors_weight)
        return cls(
            svm, neighbors, weights, offset, real, fake, nearest, head=str(fields["head"]), notice=str(fields["notice"])
        )

    def save(self, folder: Path) -> None:
        """Save into the head's folder, beside an earlier head's calibration until `Head.save` replaces that head.

        Save it before the head, so that at any moment there is a head with its own calibration.
        """
        write_text(folder / NAME.format(self.head[:16]), json.dumps(self.to_dict()) + "\n")

    @classmethod
    def load(cls, folder: Path, head: str) -> Calibration:
        """Load the calibration of the head with this digest from its folder; raises HeadError or Unreadable."""
        path = folder / NAME.format(head[:16])
        try:
            calibration = cls.from_dict(read_json(path))
            if calibration.head != head:
                raise ValueError(f"it belongs to the head {calibration.head[:16]}")
            return calibration
        except FileNotFoundError as e:
            raise HeadError(
                f"{folder} has no calibration of its head ({path.name}), perhaps because training was interrupted; "
                f"train the head again with `clipfake train`"
            ) from e
        except PARSE_ERRORS as e:
            require_readable(path, e)
            why = f"no field {e}" if isinstance(e, KeyError) else e
            raise HeadError(
                f"{path} is not a readable calibration ({why}); train the head again with `clipfake train`"
            ) from e


def probability(score: Any, prior: float = 0.5) -> Any:
    """P(fake) from a log-likelihood ratio and the expected share of fakes."""
    logit = np.clip(score + np.log(prior) - np.log1p(-prior), -500, 500)
    return 1 / (1 + np.exp(-logit))
