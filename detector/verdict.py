"""Verdict: real, fake or unsure, how sure, why, and which known images support it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .patches.patch_map import PatchMap

Answer = Literal["real", "fake", "unsure"]


@dataclass(frozen=True)
class Neighbor:
    """A stored row that is evidence for one class."""

    key: str
    similarity: float  # cosine, higher is nearer
    source: str
    generator: str
    category: str
    path: str  # where the file was when it was indexed
    split: str  # part of the head's split: "train", "validation", "test", or "" if in none
    row: int = field(compare=False)  # its position in the snapshot, for its thumbnail

    def to_dict(self) -> dict[str, Any]:
        fields = {**vars(self), "similarity": round(self.similarity, 6)}
        del fields["row"]
        return fields


@dataclass(frozen=True)
class StoredCopy:
    """A stored row of the queried picture, with the labels it was indexed with."""

    key: str
    label: str  # "real", "fake" or "unknown"
    source: str
    generator: str
    match: Literal["file", "picture", "vector"] = "file"  # same bytes; same thumbnail; only near, so unconfirmed
    mirrored: bool = False  # left and right are exchanged

    @property
    def confirmed(self) -> bool:
        return self.match != "vector"


@dataclass(frozen=True)
class VerdictChange:
    """A different answer that was found by judging the image again, with other evidence or after a degradation."""

    what: str  # "without the rows of stylegan2", "with 5 neighbours of each class"
    verdict: Answer
    score: float


@dataclass(frozen=True)
class Verdict:
    """The answer for one image, with its evidence: the same object for terminal, JSON, HTTP and page."""

    image: str
    verdict: Answer
    score: float  # natural log-likelihood ratio, above 0 leans fake
    probability: float  # of fake, given `prior`; limited by the number of rows that were calibrated on
    prior: float  # expected share of fakes among the queried images
    signals: dict[str, float]  # "svm" and "neighbors", the log-likelihood ratio of each signal alone
    conflict: bool  # the two signals clearly contradict each other
    possible: tuple[str, ...]  # conformal prediction set: real, fake, both or neither
    error_rate: float  # its nominal error rate
    reasons: tuple[str, ...]  # sentences that explain the answer
    percentile: float  # percentage of held-out images that are farther from their nearest neighbour than this one
    generator: str  # the probable generator, "unknown", or "" for a real or unsure image
    stored: tuple[StoredCopy, ...]  # copies, those with the same bytes first; confirmed ones are not evidence
    neighbors: dict[str, tuple[Neighbor, ...]]  # "real" and "fake", nearest first
    changes: tuple[VerdictChange, ...] = ()
    notice: str = ""  # what the error rate does not cover, see `Calibration.notice`
    views: tuple[VerdictChange, ...] = ()  # the answers for degraded copies of the image, if they were judged
    map: PatchMap | None = None  # where in the image, a hint; None if the store has no patches of its images

    @property
    def known(self) -> str:
        """Key of the first confirmed copy, "" if there is none."""
        return next((row.key for row in self.stored if row.confirmed), "")

    @property
    def copy(self) -> str:
        """The sentence on stored copies that comes first in every answer, "" if there is none."""
        return describe_copies(self.stored)

    @property
    def settled(self) -> bool:
        """True if confirmed copies of known labels decided the answer, not the signals."""
        return bool(known_labels(self.stored))

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types: the stable format of `query --json` and of the service."""
        first = {"image": self.image, "copy": self.copy}
        fields = {**first, **vars(self), "known": self.known, "stored": [dict(vars(row)) for row in self.stored]}
        fields["neighbors"] = {name: [n.to_dict() for n in of_class] for name, of_class in self.neighbors.items()}
        fields["signals"] = {name: round(value, 4) for name, value in self.signals.items()}
        fields["score"], fields["probability"] = round(self.score, 4), round(self.probability, 4)
        fields["percentile"] = round(self.percentile, 1)
        fields["possible"], fields["reasons"] = list(self.possible), list(self.reasons)
        for name in ("changes", "views"):
            fields[name] = [{**vars(change), "score": round(change.score, 4)} for change in getattr(self, name)]
        fields["map"] = self.map.to_dict() if self.map else None
        return fields


@dataclass(frozen=True)
class Refusal:
    """An image that could not be judged, and why. It is one line of the output and does not end the run."""

    image: str
    error: str

    def to_dict(self) -> dict[str, Any]:
        return {"image": self.image, "error": self.error}


CLEAR = 1.0  # absolute log-likelihood ratio (a factor of 2.7) from which a single signal counts in a conflict
UNLIKE_BELOW = 1.0  # percentile of the nearest similarity below which an image is unlike anything indexed


def decide(
    signals: dict[str, float],
    possible: tuple[bool, bool],
    percentile: float,
    error: float,
    least_error: float = 0.0,
) -> tuple[Answer, tuple[str, ...]]:
    """Decide the answer and its reasons from numbers alone.

    The answer is real or fake only if the other can be ruled out at the accepted error rate and the image resembles
    something that is indexed.

    Parameters
    ----------
    signals : log-likelihood ratios of "svm" and "neighbors"
    possible : whether real and whether fake are in the prediction set
    percentile : of the similarity to the nearest neighbour, among held-out rows
    error : nominal error rate of the prediction set
    least_error : error rate below which the calibration cannot rule out a class
    """
    real, fake = possible
    rate = format_percent(error)
    reasons = []
    if percentile < UNLIKE_BELOW:
        nearer = f"{100 - percentile:.1f}% of known images"
        reasons.append(f"it is unlike anything indexed: {nearer} have a nearer neighbour")
    if real and fake:
        reasons.append(f"neither real nor fake can be ruled out at an error rate of {rate}")
        if error < least_error:
            limit = format_percent(least_error)
            reasons.append(f"too few rows were held out to rule out either class at an error rate below {limit}")
    if not real and not fake:
        reasons.append(f"it resembles neither the known real nor the known fake images, at an error rate of {rate}")
    answer: Answer = "unsure"
    if not reasons:
        answer, other = ("fake", "real") if fake else ("real", "fake")
        reasons.append(f"{other} is ruled out at an error rate of {rate}")
    if in_conflict(signals):
        reasons.append("the classifier and the nearest neighbours disagree")
    return answer, tuple(reasons)


THUMBNAIL_LIMIT = "compared at 64 x 64 pixels, where an edit of a tenth of its width may not show"


def known_labels(stored: Sequence[StoredCopy]) -> dict[str, StoredCopy]:
    """The known labels of the confirmed copies, real and fake, each with its first copy."""
    labels: dict[str, StoredCopy] = {}
    for row in stored:
        if row.confirmed and row.label != "unknown":
            labels.setdefault(row.label, row)
    return labels


def settle(stored: Sequence[StoredCopy], answer: Answer, reasons: tuple[str, ...]) -> tuple[Answer, tuple[str, ...]]:
    """Let the confirmed copies decide: the answer is their label, or "unsure" if they have both.

    Parameters
    ----------
    answer, reasons : of the signals alone; they stay where no confirmed copy has a known label
    """
    labels = known_labels(stored)
    if not labels:
        return answer, reasons
    if len(labels) == 2:
        settled: Answer = "unsure"
        first = f"its copies are known as real ({labels['real'].key}) and as fake ({labels['fake'].key})"
    else:
        [(label, row)] = labels.items()
        settled = "fake" if label == "fake" else "real"
        first = f"it is a copy of the known {label} image {row.key}"
    how = "the same file" if all(row.match == "file" for row in labels.values()) else THUMBNAIL_LIMIT
    if settled != answer:
        reasons = (f"the signals alone would have answered {answer}: {'; '.join(reasons)}",)
    return settled, (f"{first}, {how}", *reasons)


def describe_copies(stored: Sequence[StoredCopy]) -> str:
    """Say what is stored of a picture; "" if nothing is.

    >>> describe_copies([StoredCopy("a/1.png", "real", "a", "")])
    'A copy of a known real image, a/1.png'
    >>> describe_copies([StoredCopy("a/1.png", "fake", "a", "", "vector")])
    'Perhaps a copy of a known fake, a/1.png (unconfirmed: no thumbnail to compare with)'
    """
    confirmed = [row for row in stored if row.confirmed]
    if not confirmed:
        if not stored:
            return ""
        return f"Perhaps a copy of {_kind(stored[0])} (unconfirmed: no thumbnail to compare with)"
    labels = list(known_labels(confirmed).values()) or confirmed[:1]
    copied = "A copy" if any(not row.mirrored for row in labels) else "A mirrored copy"
    more = len(confirmed) - len(labels)
    others = f" ({more} more {'copy is' if more == 1 else 'copies are'} stored)" if more else ""
    return f"{copied} of {' and of '.join(map(_kind, labels))}{others}"


def _kind(row: StoredCopy) -> str:
    names = {"real": "a known real image", "fake": "a known fake"}
    return f"{names.get(row.label, 'a stored image of unknown origin')}, {row.key}"


def format_percent(share: float) -> str:
    """Format a rate in per cent, without rounding it to a rate that was not asked for.

    >>> format_percent(0.05), format_percent(0.005), format_percent(0.0001)
    ('5%', '0.5%', '0.01%')
    """
    return f"{100 * share:.4g}%"


def require_stable(verdict: Verdict, views: tuple[VerdictChange, ...]) -> Verdict:
    """Add the answers for degraded copies to a verdict; it becomes "unsure" if one of them differs."""
    flipped = [view for view in views if view.verdict != verdict.verdict]
    if verdict.verdict == "unsure" or not flipped:
        return replace(verdict, views=views)
    changes = ", ".join(f"{view.what} it is {view.verdict}" for view in flipped)
    reasons = (f"the answer {verdict.verdict} is not stable: {changes}", *verdict.reasons)
    return replace(verdict, verdict="unsure", generator="", reasons=reasons, views=views)


def in_conflict(signals: dict[str, float]) -> bool:
    """True if the two signals clearly contradict each other."""
    svm, neighbors = signals["svm"], signals["neighbors"]
    return svm * neighbors < 0 and min(abs(svm), abs(neighbors)) >= CLEAR


def explain_uneven(neighbors: dict[str, tuple[Neighbor, ...]]) -> tuple[str, ...]:
    """Say why there are fewer neighbours of one class than of the other; empty if there are as many."""
    fewer, more = sorted(neighbors, key=lambda name: len(neighbors[name]))
    count = len(neighbors[fewer])
    if count == len(neighbors[more]):
        return ()
    if not count:
        return (f"no other {fewer} image is stored, so the neighbours are not compared",)
    images = "image is" if count == 1 else "images are"
    return (f"only {count} distinct {fewer} {images} stored, so the nearest {count} of each class are compared",)
