"""Metrics of a binary classifier, fake being the positive class. An undefined metric is None, never NaN.

AUC, ROC curve, average precision, confusion matrix and Brier score are scikit-learn's. Accuracy, precision, recall and
F1 follow from the four counts of the confusion matrix, and are None where scikit-learn returns 0 with a warning.
scikit-learn has no intervals, equal error rate or calibration error.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.records import FAKE, REAL, Ints

Scores = npt.NDArray[np.floating[Any]]  # (rows,) decision values, above 0 leans fake
Interval = tuple[float, float]

Z95 = 1.959963984540054  # quantile of the normal distribution for a two-sided 95 % interval
ECE_BINS = 15


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix at one threshold; fake is the positive class.

    >>> Confusion(tn=3686, fp=315, fn=337, tp=3663).accuracy
    0.9185101862267216
    """

    tn: int
    fp: int
    fn: int
    tp: int

    @classmethod
    def from_predictions(cls, labels: Ints, predicted_fake: npt.NDArray[np.bool_]) -> Confusion:
        """Count the (rows,) labels by predicted class."""
        from sklearn.metrics import confusion_matrix

        if not len(labels):  # scikit-learn does not accept empty arrays
            return cls(0, 0, 0, 0)
        counts = confusion_matrix(_is_fake(labels), np.asarray(predicted_fake, np.int8), labels=[0, 1])
        tn, fp, fn, tp = counts.ravel().tolist()
        return cls(tn, fp, fn, tp)

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
    """Metrics of the decision values of one part of a split.

    A metric that is undefined (a class is absent, no probabilities were given) is None.
    """

    n: int
    real: int
    fake: int
    threshold: float  # a row is predicted fake if its score is above
    confusion: Confusion
    accuracy: float | None
    balanced_accuracy: float | None
    precision: dict[str, float | None]  # real, fake, macro
    recall: dict[str, float | None]
    f1: dict[str, float | None]
    auc: float | None
    ap: float | None
    eer: float | None
    tpr_at_fpr_1: float | None  # true-positive rate at a false-positive rate of at most 1 %
    tpr_at_fpr_5: float | None
    brier: float | None
    ece: float | None
    accuracy_at_validation: float | None  # at the threshold chosen on validation
    accuracy_oracle: float | None  # at the best threshold for these rows: an upper bound, not a result
    intervals: dict[str, Interval | None]  # 95 % confidence

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
    """Compute every metric.

    Parameters
    ----------
    labels : (rows,) 0 or 1
    scores : (rows,) above 0 leans fake
    threshold : a row is predicted fake if its score is above
    chosen : threshold chosen on the validation rows, if any
    probabilities : (rows,) of being fake, for Brier score and calibration error

    Raises
    ------
    ValueError
        A score is NaN or infinite, with which every metric would still look like a result.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if wrong := int((~np.isfinite(scores)).sum()):
        raise ValueError(f"{wrong} of {len(scores)} scores are NaN or infinite; check the vectors they come from")
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
        brier=None if probabilities is None else brier_score(labels, probabilities),
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
    """Receiver operating characteristic, strictest threshold first; empty if a class is absent."""

    fpr: Scores  # (points,) share of real rows predicted fake, ascending from 0 to 1
    tpr: Scores  # (points,) share of fake rows predicted fake

    @classmethod
    def from_predictions(cls, labels: Ints, scores: Scores) -> RocCurve:
        """Compute the curve of (rows,) scores."""
        from sklearn.metrics import roc_curve

        if not _has_both_classes(labels):
            return cls(np.zeros(0), np.zeros(0))
        fpr, tpr, _ = roc_curve(_is_fake(labels), scores, drop_intermediate=False)
        return cls(fpr, tpr)

    @property
    def equal_error_rate(self) -> float | None:
        """Rate at which the false-positive and the false-negative rate are equal, interpolated on the curve."""
        if not len(self.fpr):
            return None
        gap = self.fpr - (1 - self.tpr)  # rises from -1 to 1
        after = int(np.argmax(gap >= 0))
        share = -gap[after - 1] / (gap[after] - gap[after - 1])
        return float(self.fpr[after - 1] + share * (self.fpr[after] - self.fpr[after - 1]))

    def tpr_at(self, fpr: float) -> float | None:
        """Largest true-positive rate at a false-positive rate of at most `fpr`."""
        return float(self.tpr[self.fpr <= fpr].max()) if len(self.fpr) else None


def auc(labels: Ints, scores: Scores) -> float | None:
    """Area under the ROC curve: the chance that a fake row scores above a real one, ties counting half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(_is_fake(labels), scores)) if _has_both_classes(labels) else None


def auc_interval(labels: Ints, scores: Scores) -> Interval | None:
    """95 % confidence interval of the AUC; None with fewer than two rows of a class.

    It covers two intervals. That of DeLong et al. (1988), computed from ranks (Sun and Xu 2014), is accurate for many
    rows and any distribution of scores, but far too narrow for few, and has no width at an AUC of 1. That of Newcombe
    (2006) is accurate for few rows.
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
    """95 % confidence interval of an AUC measured on `m` and `n` rows: Newcombe 2006, part 2, method 5.

    It holds the true areas from which the measured one differs by at most 1.96 standard deviations, where the variance
    is that of exponentially distributed scores.
    """
    from scipy.optimize import brentq

    def beyond(true: float) -> float:
        others = (m + n) / 2 - 1
        spread = true * (1 - true) / (m * n) * (1 + others * ((1 - true) / (2 - true) + true / (1 + true)))
        return (true - area) ** 2 - Z95**2 * spread

    # at 0 and 1 the variance is 0: they solve the equation, but are not ends of the interval
    inside = min(max(area, 1e-9), 1 - 1e-9)
    return float(brentq(beyond, 0, inside)), float(brentq(beyond, inside, 1))


def average_precision(labels: Ints, scores: Scores) -> float | None:
    """Mean precision over the recall steps of the fake class; None with one class."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(_is_fake(labels), scores)) if _has_both_classes(labels) else None


def brier_score(labels: Ints, probabilities: Scores) -> float | None:
    """Mean squared difference between the probability of fake and the label; None without rows."""
    from sklearn.metrics import brier_score_loss

    return float(brier_score_loss(_is_fake(labels), probabilities, pos_label=1)) if len(labels) else None


def expected_calibration_error(labels: Ints, probabilities: Scores, bins: int = ECE_BINS) -> float | None:
    """Mean gap between predicted probability and share of fakes, over equal-width bins weighted by their rows."""
    if not len(labels):
        return None
    bin_of = np.minimum((probabilities * bins).astype(int), bins - 1)
    predicted, observed = np.bincount(bin_of, probabilities, bins), np.bincount(bin_of, labels, bins)
    return float(np.abs(predicted - observed).sum() / len(labels))


def best_threshold(labels: Ints, scores: Scores, *, balanced: bool = False) -> tuple[float, float]:
    """The threshold, midway between two scores, that classifies most rows correctly, and their share.

    Parameters
    ----------
    balanced : maximize the balanced accuracy instead, so that the larger class does not decide alone

    >>> best_threshold(np.array([0, 0, 1]), np.array([0.0, 1.0, 3.0]))
    (2.0, 1.0)
    """
    order = np.argsort(scores, kind="stable")
    ordered, fake = scores[order], labels[order] == FAKE
    fakes = int(fake.sum())
    reals = len(fake) - fakes
    # weights of a real and a fake row, in integers
    each = (max(fakes, 1), max(reals, 1)) if balanced else (1, 1)
    # cut i predicts real for the i lowest scores; equal scores cannot be separated
    reals_below, fakes_below = (np.concatenate([[0], np.cumsum(mask)]) for mask in (~fake, fake))
    correct = each[0] * reals_below + each[1] * (fakes - fakes_below)
    cuts = np.concatenate([[True], np.diff(ordered) != 0, [True]])
    best = int(np.argmax(np.where(cuts, correct, -1)))
    share = float(correct[best] / (each[0] * reals + each[1] * fakes))
    if best == 0:
        return float(np.nextafter(ordered[0], -np.inf)), share
    if best == len(ordered):
        return float(ordered[-1]), share
    # halved first, as the sum of two large scores may overflow; it must not be rounded up to the upper score
    middle = float(ordered[best - 1] / 2 + ordered[best] / 2)
    return (middle if middle < ordered[best] else float(ordered[best - 1])), share


def wilson(hits: int, n: int) -> Interval | None:
    """95 % confidence interval of a share (Wilson 1927); None without rows."""
    if n == 0:
        return None
    p = hits / n
    scale = 1 / (1 + Z95**2 / n)
    middle = (p + Z95**2 / (2 * n)) * scale
    half = Z95 * scale * float(np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2)))
    return max(0.0, middle - half), min(1.0, middle + half)


def _has_both_classes(labels: Ints) -> bool:
    return bool((labels == REAL).any() and (labels == FAKE).any())


def _is_fake(labels: Ints) -> npt.NDArray[np.int8]:
    """(rows,) 1 for a fake row, as int8, which scikit-learn handles in half the time of other types."""
    return np.asarray(labels == FAKE, np.int8)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _with_macro(real: float | None, fake: float | None) -> dict[str, float | None]:
    macro = None if real is None or fake is None else (real + fake) / 2
    return {"real": real, "fake": fake, "macro": macro}
