"""Calibration: scores to log-likelihood ratios, probabilities and conformal prediction sets.

A log-likelihood ratio (natural logarithm, above 0 leans fake) is the weight of evidence of a score, independent of the
share of fakes among the queried images; `fake_probability` takes that share into account. Conformal prediction gives
the set of classes that cannot be ruled out at a nominal error rate (Vovk, Gammerman & Shafer 2005; class-conditional:
Vovk 2012).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
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

MIN_ROWS = 5  # of each class, in each half of the held-out rows
QUANTILES = 1001
NAME = "calibration-{}.json"  # name of the file in the head's folder, with the start of the head's digest


@dataclass(frozen=True)
class Platt:
    """Log-likelihood ratio of a score: slope · score + offset (Platt 1999, with both classes weighted equally)."""

    slope: float
    offset: float

    def __call__(self, scores: Scores) -> Scores:
        return np.asarray(self.slope * scores + self.offset)

    @classmethod
    def fit(cls, scores: Scores, labels: Labels) -> Platt:
        weights, offset = logistic(scores[:, None], labels)
        return cls(float(weights[0]), offset)


def logistic(signals: npt.NDArray[np.float64], labels: Labels) -> tuple[Scores, float]:
    """Weights and offset of a class-balanced logistic regression on (rows, signals); its logit is an LLR.

    Negative weights are set to 0. A signal that misleads on the held-out generators is ignored rather than inverted:
    inverted, it would be wrong on every known generator and contradict the evidence that is shown.
    """
    from sklearn.linear_model import LogisticRegression

    spread = signals.std(0)
    spread[spread == 0] = 1
    weights, used = np.zeros(signals.shape[1]), np.arange(signals.shape[1])
    while len(used):
        model = LogisticRegression(class_weight="balanced", C=10.0, max_iter=1000)
        model.fit(signals[:, used] / spread[used], labels)
        coefficients = model.coef_[0]
        if (coefficients >= 0).all():
            weights[used] = coefficients / spread[used]
            return weights, float(model.intercept_[0])
        used = np.delete(used, coefficients.argmin())
    return weights, 0.0


@dataclass(frozen=True)
class Calibration:
    """Calibration of the two signals, the head's margin and the neighbours' similarity.

    Slopes and weights are fitted on one half of the held-out rows, the scores of the other half are kept.
    """

    svm: Platt
    neighbors: Platt
    weights: tuple[float, float]  # of the two log-likelihood ratios
    offset: float
    real: Scores  # scores of held-out real rows, ascending
    fake: Scores  # scores of held-out fake rows, ascending
    nearest: Scores  # (1001,) quantiles of the similarity of a held-out row to its nearest neighbour
    held_out: str  # "generators" that neither bank nor head had seen, or "rows" of generators they had
    head: str = ""  # digest of the calibrated head; the calibration does not apply to any other

    @classmethod
    def fit(
        cls, svm: Scores, neighbors: Scores, nearest: Scores, labels: Labels, *, held_out: str, seed: int = 0
    ) -> Calibration:
        """Fit on the two signals of held-out rows.

        Parameters
        ----------
        svm, neighbors : (rows,) the signals
        nearest : (rows,) similarity of the nearest neighbour
        labels : (rows,) 0 real, 1 fake
        held_out : what was held out, "generators" or "rows"

        Raises
        ------
        NotEnoughRows
            A class has fewer than ten rows.
        """
        counts = {name: int((labels == label).sum()) for label, name in ((REAL, "real"), (FAKE, "fake"))}
        if min(counts.values()) < 2 * MIN_ROWS:
            raise NotEnoughRows(
                f"calibration needs at least {2 * MIN_ROWS} held-out rows of each class, found {counts['real']} real "
                f"and {counts['fake']} fake; index more images"
            )
        fitted = np.zeros(len(labels), bool)
        rng = np.random.default_rng(seed)
        for label in (REAL, FAKE):
            members = rng.permutation(np.flatnonzero(labels == label))
            fitted[members[: len(members) // 2]] = True
        svm_llr = Platt.fit(svm[fitted], labels[fitted])
        neighbors_llr = Platt.fit(neighbors[fitted], labels[fitted])
        both = np.column_stack([svm_llr(svm), neighbors_llr(neighbors)])
        weights, offset = logistic(both[fitted], labels[fitted])
        scores, kept = both @ weights + offset, ~fitted
        return cls(
            svm_llr,
            neighbors_llr,
            (float(weights[0]), float(weights[1])),
            offset,
            np.sort(scores[kept & (labels == REAL)]),
            np.sort(scores[kept & (labels == FAKE)]),
            np.quantile(nearest, np.linspace(0, 1, QUANTILES)),
            held_out,
        )

    def decision_function(self, svm: Scores, neighbors: Scores) -> Scores:
        """(rows,) log-likelihood ratios of the two (rows,) signals combined."""
        return np.asarray(self.weights[0] * self.svm(svm) + self.weights[1] * self.neighbors(neighbors) + self.offset)

    def prediction_sets(self, scores: Scores, error: float) -> npt.NDArray[np.bool_]:
        """(rows, 2) whether real and whether fake cannot be ruled out at a nominal error rate.

        A class is ruled out if at most `error` of its held-out rows, counting the row itself, conform as little to it.
        The true class is therefore ruled out for `error` of the rows of each class. This is not a share of the
        answers: where the scores separate the classes poorly, few answers are given and more of them are wrong.
        """
        beyond_real = len(self.real) - np.searchsorted(self.real, scores, side="left")
        beyond_fake = np.searchsorted(self.fake, scores, side="right")
        p_real = (beyond_real + 1) / (len(self.real) + 1)
        p_fake = (beyond_fake + 1) / (len(self.fake) + 1)
        return np.column_stack([p_real, p_fake]) > error

    def fake_probability(self, score: Any, prior: float) -> Any:
        """P(fake) at a score, limited to what the number of held-out rows can support.

        n rows cannot show that something is rarer than one in n + 1. The score itself is not limited: it goes on by
        the fitted line, still orders images, and decides the prediction sets.
        """
        limits = np.log(len(self.fake) + 1), np.log(len(self.real) + 1)
        return probability(np.clip(score, -limits[0], limits[1]), prior)

    @property
    def rows(self) -> int:
        """Number of kept scores of the smaller class."""
        return min(len(self.real), len(self.fake))

    @property
    def least_error(self) -> float:
        """Smallest nominal error rate at which either class can be ruled out, given the number of held-out rows."""
        return 1 / (self.rows + 1)

    def percentile(self, nearest: Scores) -> Scores:
        """(rows,) percentage of held-out rows that were less similar to their nearest neighbour."""
        return np.searchsorted(self.nearest, nearest) / len(self.nearest) * 100

    def to_dict(self) -> dict[str, Any]:
        return {
            "svm": {"slope": self.svm.slope, "offset": self.svm.offset},
            "neighbors": {"slope": self.neighbors.slope, "offset": self.neighbors.offset},
            "weights": list(self.weights),
            "offset": self.offset,
            "real": self.real.tolist(),
            "fake": self.fake.tolist(),
            "nearest": self.nearest.tolist(),
            "held_out": self.held_out,
            "head": self.head,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Calibration:
        """Convert back; raises KeyError, TypeError, ValueError or OverflowError for fields of the wrong kind."""
        svm_weight, neighbors_weight = map(float, fields["weights"])
        arrays = {name: np.asarray(fields[name], np.float64) for name in ("real", "fake", "nearest")}
        for name, array in arrays.items():
            if array.ndim != 1 or not len(array) or not np.isfinite(array).all() or (array[1:] < array[:-1]).any():
                raise ValueError(f"{name} must hold finite numbers in ascending order, found shape {array.shape}")
        lines = [Platt(float(fields[name]["slope"]), float(fields[name]["offset"])) for name in ("svm", "neighbors")]
        offset = float(fields["offset"])
        if not np.isfinite(
            [svm_weight, neighbors_weight, offset, *(number for line in lines for number in (line.slope, line.offset))]
        ).all():
            raise ValueError("slopes, weights and offsets must be finite numbers")
        svm, neighbors = lines
        held_out, head = str(fields["held_out"]), str(fields["head"])
        return cls(svm, neighbors, (svm_weight, neighbors_weight), offset, held_out=held_out, head=head, **arrays)

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
