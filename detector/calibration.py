"""Calibrate signals: scores to log-likelihood ratios, and to the set of answers that cannot be excluded.

A log-likelihood ratio (natural logarithm, above 0 leans fake) is what a score says by itself, whatever the share of
fakes among the pictures asked about; `probability` brings that share in. Conformal prediction says which of the two
answers are still possible at a chosen rate of error (Vovk, Gammerman & Shafer 2005; class-conditional: Vovk 2012).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.atomic_files import read_json, write_text
from ..core.sealed_json import PARSE_ERRORS
from ..errors import HeadError, NotEnoughRows
from ..store.records import FAKE, REAL

Scores = npt.NDArray[np.float64]  # (rows,)
Labels = npt.NDArray[np.integer[Any]]  # (rows,)

LEAST = 5  # rows of each class to calibrate with
QUANTILES = 1001
NAME = "calibration-{}.json"  # in a head's folder, after the head's digest


@dataclass(frozen=True)
class Platt:
    """A score as a log-likelihood ratio: slope · score + offset (Platt 1999, with both classes weighted alike)."""

    slope: float
    offset: float

    def __call__(self, scores: Scores) -> Scores:
        return np.asarray(self.slope * scores + self.offset)

    @classmethod
    def fit(cls, scores: Scores, labels: Labels) -> Platt:
        weights, offset = logistic(scores[:, None], labels)
        return cls(float(weights[0]), offset)


def logistic(signals: npt.NDArray[np.float64], labels: Labels) -> tuple[Scores, float]:
    """Weights and offset of a class-balanced logistic regression on (rows, signals): its logit is an LLR.

    No weight is below 0. A signal that misleads about the held-out generators is worth nothing, not its opposite:
    turned round it would be wrong about all generators that are known, and speak against the evidence that is shown.
    """
    from sklearn.linear_model import LogisticRegression

    spread = signals.std(0)
    spread[spread == 0] = 1
    weights, used = np.zeros(signals.shape[1]), np.arange(signals.shape[1])
    while len(used):
        model = LogisticRegression(class_weight="balanced", C=10.0, max_iter=1000)
        model.fit(signals[:, used] / spread[used], labels)
        found = model.coef_[0]
        if (found >= 0).all():
            weights[used] = found / spread[used]
            return weights, float(model.intercept_[0])
        used = np.delete(used, found.argmin())
    return weights, 0.0


@dataclass(frozen=True)
class Calibration:
    """Calibration of the two signals. Fitted on one half of the held-out rows, measured on the other."""

    svm: Platt
    neighbors: Platt
    weights: tuple[float, float]  # of the two log-likelihood ratios
    offset: float
    real: Scores  # sorted scores of held-out real rows
    fake: Scores  # sorted scores of held-out fake rows
    nearest: Scores  # (1001,) quantiles of how similar a held-out row is to its nearest witness
    held_out: str  # "generators" that bank and head had not seen, or "rows" of generators they had
    head: str = ""  # digest of the head whose scores are read; another's would be read wrongly

    @classmethod
    def fit(
        cls, svm: Scores, neighbors: Scores, nearest: Scores, labels: Labels, *, held_out: str, seed: int = 0
    ) -> Calibration:
        """Fit on the two signals of held-out rows; raises NotEnoughRows with fewer than ten rows of a class."""
        counts = {name: int((labels == label).sum()) for label, name in ((REAL, "real"), (FAKE, "fake"))}
        if min(counts.values()) < 2 * LEAST:
            raise NotEnoughRows(
                f"{counts['real']} real and {counts['fake']} fake rows to calibrate with; at least {2 * LEAST} of each "
                f"are needed: index more images"
            )
        half = np.zeros(len(labels), bool)
        rng = np.random.default_rng(seed)
        for label in (REAL, FAKE):
            members = rng.permutation(np.flatnonzero(labels == label))
            half[members[: len(members) // 2]] = True
        one = Platt.fit(svm[half], labels[half])
        two = Platt.fit(neighbors[half], labels[half])
        both = np.column_stack([one(svm), two(neighbors)])
        weights, offset = logistic(both[half], labels[half])
        scores, rest = both @ weights + offset, ~half
        return cls(
            one,
            two,
            (float(weights[0]), float(weights[1])),
            offset,
            np.sort(scores[rest & (labels == REAL)]),
            np.sort(scores[rest & (labels == FAKE)]),
            np.quantile(nearest, np.linspace(0, 1, QUANTILES)),
            held_out,
        )

    def decision_function(self, svm: Scores, neighbors: Scores) -> Scores:
        """(rows,) log-likelihood ratio of both signals together."""
        return np.asarray(self.weights[0] * self.svm(svm) + self.weights[1] * self.neighbors(neighbors) + self.offset)

    def prediction_sets(self, scores: Scores, error: float) -> npt.NDArray[np.bool_]:
        """(rows, 2) whether real and whether fake cannot be ruled out at this rate of error.

        A class is ruled out where no more than `error` of its held-out rows, and the row itself, look as little like
        it. So the truth is ruled out for `error` of the rows of each class, which is no share of the answers: where
        the scores tell little, few answers are given, and many of these are wrong.
        """
        beyond_real = len(self.real) - np.searchsorted(self.real, scores, side="left")
        beyond_fake = np.searchsorted(self.fake, scores, side="right")
        p_real = (beyond_real + 1) / (len(self.real) + 1)
        p_fake = (beyond_fake + 1) / (len(self.fake) + 1)
        return np.column_stack([p_real, p_fake]) > error

    def fake_probability(self, score: Any, prior: float) -> Any:
        """P(fake) at a score, no surer than so many held-out rows can tell, whatever the score.

        That something is rarer than one in n + 1 cannot be learned from n rows. The score goes on beyond, by the
        straight line that was fitted: it still orders images, and is what `possible` reads.
        """
        surest = np.log(len(self.fake) + 1), np.log(len(self.real) + 1)
        return probability(np.clip(score, -surest[0], surest[1]), prior)

    @property
    def rows(self) -> int:
        """Rows of the class that fewer scores are kept of."""
        return min(len(self.real), len(self.fake))

    @property
    def least_error(self) -> float:
        """The rate of error below which one class is never ruled out: so few rows cannot promise more."""
        return 1 / (self.rows + 1)

    def percentile(self, nearest: Scores) -> Scores:
        """(rows,) share of held-out rows, in per cent, that were less similar to their nearest witness."""
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
        """Raises KeyError, TypeError, ValueError or OverflowError where it is none."""
        one, two = map(float, fields["weights"])
        arrays = {name: np.asarray(fields[name], np.float64) for name in ("real", "fake", "nearest")}
        for name, array in arrays.items():
            if array.ndim != 1 or not len(array) or not np.isfinite(array).all() or (array[1:] < array[:-1]).any():
                raise ValueError(f"{name} of the shape {array.shape} holds no numbers in order")
        lines = [Platt(float(fields[name]["slope"]), float(fields[name]["offset"])) for name in ("svm", "neighbors")]
        offset = float(fields["offset"])
        if not np.isfinite(
            [one, two, offset, *(number for line in lines for number in (line.slope, line.offset))]
        ).all():
            raise ValueError("its slopes, weights or offsets must be finite numbers")
        svm, neighbors = lines
        held_out, head = str(fields["held_out"]), str(fields["head"])
        return cls(svm, neighbors, (one, two), offset, held_out=held_out, head=head, **arrays)

    def save(self, folder: Path) -> None:
        """Save into the head's folder, beside an earlier head's calibration until `Head.save` replaces that head.

        Save it before the head: then whoever asks has at any moment a head and the calibration of that very head.
        """
        write_text(folder / NAME.format(self.head[:16]), json.dumps(self.to_dict()) + "\n")

    @classmethod
    def load(cls, folder: Path, head: str) -> Calibration:
        """Load the calibration of the head with this digest from its folder; raises HeadError."""
        path = folder / NAME.format(head[:16])
        try:
            found = cls.from_dict(read_json(path))
            if found.head != head:
                raise ValueError(f"it is that of the head {found.head[:16]}")
            return found
        except FileNotFoundError as e:
            raise HeadError(
                f"{folder} has no calibration of its head ({path.name}), as if training had been stopped; "
                f"train again with `clipfake train --from-store`"
            ) from e
        except PARSE_ERRORS as e:
            raise HeadError(f"{path} cannot be read ({e}); train again with `clipfake train --from-store`") from e


def probability(score: Any, prior: float = 0.5) -> Any:
    """P(fake) from a log-likelihood ratio and the share of fakes one expects."""
    logit = np.clip(score + np.log(prior) - np.log1p(-prior), -500, 500)
    return 1 / (1 + np.exp(-logit))
