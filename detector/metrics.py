"""Metrics of binary classifiers, in the field's definitions; what is undefined is None, never NaN."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.records import FAKE, REAL, Ints

Scores = npt.NDArray[np.floating[Any]]  # (rows,) above 0 leans fake
Interval = tuple[float, float]

Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution
ECE_BINS = 15


@dataclass(frozen=True)
class Confusion:
    """Counts at one threshold; fake is the positive class.

    >>> Confusion(tn=3686, fp=315, fn=337, tp=3663).accuracy
    0.9185101862267216
    """

    tn: int
    fp: int
    fn: int
    tp: int

    @classmethod
    def from_predictions(cls, labels: Ints, said_fake: npt.NDArray[np.bool_]) -> Confusion:
        fake = labels == FAKE
        return cls(
            tn=int((~fake & ~said_fake).sum()),
            fp=int((~fake & said_fake).sum()),
            fn=int((fake & ~said_fake).sum()),
            tp=int((fake & said_fake).sum()),
        )

    @property
    def n(self) -> int:
        return self.tn + self.fp + self.fn + self.tp

    @property
    def accuracy(self) -> float | None:
        return _share(self.tn + self.tp, self.n)

    @property
    def precision(self) -> dict[str, float | None]:
        return _with_macro(_share(self.tn, self.tn + self.fn), _share(self.tp, self.tp + self.fp))

    @property
    def recall(self) -> dict[str, float | None]:
        return _with_macro(_share(self.tn, self.tn + self.fp), _share(self.tp, self.tp + self.fn))

    @property
    def f1(self) -> dict[str, float | None]:
        return _with_macro(
            _share(2 * self.tn, 2 * self.tn + self.fp + self.fn), _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)
        )

    @property
    def balanced_accuracy(self) -> float | None:
        return self.recall["macro"]


@dataclass(frozen=True)
class Metrics:
    """Scores of one split against its labels.

    A measure that is undefined (a class is absent, no probability was given) is None.
    """

    n: int
    real: int
    fake: int
    threshold: float  # said fake where the score is above it
    confusion: Confusion
    accuracy: float | None
    balanced_accuracy: float | None
    precision: dict[str, float | None]  # real, fake, macro
    recall: dict[str, float | None]
    f1: dict[str, float | None]
    auc: float | None
    ap: float | None
    eer: float | None
    tpr_at_fpr_1: float | None  # true-positive rate where at most 1 % of the real rows are called fake
    tpr_at_fpr_5: float | None
    brier: float | None
    ece: float | None
    accuracy_at_validation: float | None  # at the threshold chosen on validation
    accuracy_oracle: float | None  # at the best threshold for these very rows: a bound, not a result
    intervals: dict[str, Interval | None]  # 95 %

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    labels: Ints,
    scores: Scores,
    *,
    threshold: float = 0.0,
    chosen: float | None = None,
    probabilities: Scores | None = None,
) -> Metrics:
    """Every measure of a split.

    Parameters
    ----------
    labels : (rows,) 0 or 1
    scores : (rows,) above 0 leans fake
    chosen : the threshold that validation chose, if it has
    probabilities : (rows,) of being fake, for Brier score and calibration error

    Raises
    ------
    ValueError
        A score is NaN: whatever was measured of it would look like a result.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if unknown := int(np.isnan(scores).sum()):
        raise ValueError(f"{unknown} of {len(scores)} scores are not numbers; look at the vectors they were made from")
    confusion = Confusion.from_predictions(labels, scores > threshold)
    curve = RocCurve.from_predictions(labels, scores)
    recall = confusion.recall
    return Metrics(
        n=confusion.n,
        real=confusion.tn + confusion.fp,
        fake=confusion.tp + confusion.fn,
        threshold=float(threshold),
        confusion=confusion,
        accuracy=confusion.accuracy,
        balanced_accuracy=confusion.balanced_accuracy,
        precision=confusion.precision,
        recall=recall,
        f1=confusion.f1,
        auc=auc(labels, scores),
        ap=average_precision(labels, scores),
        eer=curve.equal_error_rate,
        tpr_at_fpr_1=curve.tpr_at(0.01),
        tpr_at_fpr_5=curve.tpr_at(0.05),
        brier=None if probabilities is None or not len(labels) else float(np.mean((probabilities - labels) ** 2)),
        ece=None if probabilities is None else expected_calibration_error(labels, probabilities),
        accuracy_at_validation=None if chosen is None else Confusion.from_predictions(labels, scores > chosen).accuracy,
        accuracy_oracle=best_threshold(labels, scores)[1] if len(labels) else None,
        intervals={
            "accuracy": wilson(confusion.tn + confusion.tp, confusion.n),
            "recall_real": wilson(confusion.tn, confusion.tn + confusion.fp),
            "recall_fake": wilson(confusion.tp, confusion.tp + confusion.fn),
            "auc": auc_interval(labels, scores),
        },
    )


@dataclass(frozen=True)
class RocCurve:
    """The receiver operating characteristic: what each threshold costs and finds, strictest first."""

    fpr: Scores  # (points,) share of real rows called fake, from none to all; empty where a class is absent
    tpr: Scores  # (points,) share of fake rows called fake

    @classmethod
    def from_predictions(cls, labels: Ints, scores: Scores) -> RocCurve:
        real, fake = int((labels == REAL).sum()), int((labels == FAKE).sum())
        if not real or not fake:
            return cls(np.zeros(0), np.zeros(0))
        order = np.argsort(-scores, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # equal scores are one point
        hits = np.cumsum(labels[order] == FAKE)[ends]
        return cls(np.concatenate([[0.0], (ends + 1 - hits) / real]), np.concatenate([[0.0], hits / fake]))

    @property
    def equal_error_rate(self) -> float | None:
        """Equal error rate: the share at which as many real rows are called fake as fake rows are missed."""
        if not len(self.fpr):
            return None
        gap = self.fpr - (1 - self.tpr)  # rises from -1 to 1
        after = int(np.argmax(gap >= 0))
        share = -gap[after - 1] / (gap[after] - gap[after - 1])
        return float(self.fpr[after - 1] + share * (self.fpr[after] - self.fpr[after - 1]))

    def tpr_at(self, fpr: float) -> float | None:
        """The largest true-positive rate with a false-positive rate of at most this."""
        return float(self.tpr[self.fpr <= fpr].max()) if len(self.fpr) else None


def auc(labels: Ints, scores: Scores) -> float | None:
    """The chance that a fake row scores above a real one, ties counting half; None with one class."""
    from scipy.stats import rankdata

    fake = labels == FAKE
    m, n = int(fake.sum()), int((~fake).sum())
    if not m or not n:
        return None
    return float((rankdata(scores)[fake].sum() - m * (m + 1) / 2) / (m * n))


def auc_interval(labels: Ints, scores: Scores) -> Interval | None:
    """95 % interval of the AUC; None under two rows of a class.

    As wide as either of two: DeLong et al. (1988), by ranks (Sun and Xu 2014), is right for many rows whatever their
    scores are like, but far too sure of few, and wholly sure of an AUC of 1; Newcombe (2006) is right for few.
    """
    from scipy.stats import rankdata

    fake = labels == FAKE
    m, n = int(fake.sum()), int((~fake).sum())
    if m < 2 or n < 2:
        return None
    ranks = rankdata(scores)
    above = (ranks[fake] - rankdata(scores[fake])) / n  # (m,) share of real rows below each fake one
    below = 1 - (ranks[~fake] - rankdata(scores[~fake])) / m  # (n,)
    middle = float(above.mean())
    half = Z95 * float(np.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n))
    low, high = newcombe(middle, m, n)
    return max(0.0, min(low, middle - half)), min(1.0, max(high, middle + half))


def newcombe(area: float, m: int, n: int) -> Interval:
    """95 % interval of an AUC from `m` and `n` rows: Newcombe 2006, part 2, method 5.

    The areas that are no farther from the one found than their own variance allows, scores being exponential.
    """
    from scipy.optimize import brentq

    def beyond(true: float) -> float:
        others = (m + n) / 2 - 1
        spread = true * (1 - true) / (m * n) * (1 + others * ((1 - true) / (2 - true) + true / (1 + true)))
        return (true - area) ** 2 - Z95**2 * spread

    inside = min(max(area, 1e-9), 1 - 1e-9)  # at 0 and 1 nothing varies: no end of the interval, though it solves it
    return float(brentq(beyond, 0, inside)), float(brentq(beyond, inside, 1))


def average_precision(labels: Ints, scores: Scores) -> float | None:
    """Precision averaged over the recall steps of the fake class; None with one class."""
    curve = RocCurve.from_predictions(labels, scores)
    if not len(curve.tpr):
        return None
    real, fake = int((labels == REAL).sum()), int((labels == FAKE).sum())
    found, wrong = curve.tpr[1:] * fake, curve.fpr[1:] * real
    return float(np.sum(np.diff(curve.tpr) * found / (found + wrong)))


def expected_calibration_error(labels: Ints, probabilities: Scores, bins: int = ECE_BINS) -> float | None:
    """Mean gap between the probability said and the share found, over equal-width bins weighted by their rows."""
    if not len(labels):
        return None
    which = np.minimum((probabilities * bins).astype(int), bins - 1)
    predicted, found = np.bincount(which, probabilities, bins), np.bincount(which, labels, bins)
    return float(np.abs(predicted - found).sum() / len(labels))


def best_threshold(labels: Ints, scores: Scores, *, balanced: bool = False) -> tuple[float, float]:
    """The threshold with the most rows right (said fake above it) and that share; midway between two scores.

    Parameters
    ----------
    balanced : take the mean of both classes' shares instead, so that the larger class does not decide alone

    >>> best_threshold(np.array([0, 0, 1]), np.array([0.0, 1.0, 3.0]))
    (2.0, 1.0)
    """
    order = np.argsort(scores, kind="stable")
    ordered, fake = scores[order], labels[order] == FAKE
    fakes = int(fake.sum())
    reals = len(fake) - fakes
    each = (max(fakes, 1), max(reals, 1)) if balanced else (1, 1)  # what a real and a fake row count, in whole numbers
    # cut i says real of the i lowest; a cut between equal scores is no cut
    found_real, found_fake = (np.concatenate([[0], np.cumsum(which)]) for which in (~fake, fake))
    right = each[0] * found_real + each[1] * (fakes - found_fake)
    cuts = np.concatenate([[True], np.diff(ordered) != 0, [True]])
    best = int(np.argmax(np.where(cuts, right, -1)))
    share = float(right[best] / (each[0] * reals + each[1] * fakes))
    if best == 0:
        return float(np.nextafter(ordered[0], -np.inf)), share
    if best == len(ordered):
        return float(ordered[-1]), share
    # half of each, for the sum of two large scores may overflow; never rounded up to the upper one
    middle = float(ordered[best - 1] / 2 + ordered[best] / 2)
    return (middle if middle < ordered[best] else float(ordered[best - 1])), share


def wilson(hits: int, n: int) -> Interval | None:
    """Wilson's 95 % interval of a share; None of no rows."""
    if n == 0:
        return None
    p = hits / n
    scale = 1 / (1 + Z95**2 / n)
    middle = (p + Z95**2 / (2 * n)) * scale
    half = Z95 * scale * float(np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2)))
    return max(0.0, middle - half), min(1.0, middle + half)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _with_macro(real: float | None, fake: float | None) -> dict[str, float | None]:
    macro = None if real is None or fake is None else (real + fake) / 2
    return {"real": real, "fake": fake, "macro": macro}
