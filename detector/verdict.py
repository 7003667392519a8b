"""Verdict: real, fake or unsure, how sure, why, and which known images support it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

Answer = Literal["real", "fake", "unsure"]


@dataclass(frozen=True)
class Neighbor:
    """A witness: one stored row."""

    key: str
    similarity: float  # cosine, higher is nearer
    source: str
    generator: str
    category: str
    path: str  # where the file was when it was indexed
    split: str  # "train", "validation" or "test" of the head's training, "" if it was in none
    row: int = field(compare=False)  # its position in the snapshot, for its thumbnail

    def to_dict(self) -> dict[str, Any]:
        fields = {**vars(self), "similarity": round(self.similarity, 6)}
        del fields["row"]
        return fields


@dataclass(frozen=True)
class StoredCopy:
    """A stored row with the very bytes that are asked about: what was said of them when they were indexed."""

    key: str
    label: str  # "real", "fake" or "unknown"
    source: str
    generator: str


@dataclass(frozen=True)
class VerdictChange:
    """A different question with a different answer, found by really asking it."""

    what: str  # "without the source stylegan2", "with 5 neighbours of each class"
    verdict: Answer
    score: float


@dataclass(frozen=True)
class Verdict:
    """The answer for one image, with its evidence. One object for terminal, JSON, HTTP and page."""

    image: str
    verdict: Answer
    score: float  # natural log-likelihood ratio, above 0 leans fake
    probability: float  # of fake, for `prior`; no surer than the rows calibrated on allow, whatever the score
    prior: float
    signals: dict[str, float]  # "svm" and "neighbors", each a log-likelihood ratio by itself
    conflict: bool  # the two signals speak clearly against each other
    possible: tuple[str, ...]  # what conformal prediction cannot rule out: real, fake, both or neither
    error_rate: float  # at this rate
    reasons: tuple[str, ...]  # why, in words
    percentile: float  # per cent of known images that are less near to their nearest than this one
    generator: str  # what probably made it: a generator's name, "unknown" or "" for a real or unsure one
    stored: tuple[StoredCopy, ...]  # the rows with the very same bytes, of many the first few; they do not testify
    neighbors: dict[str, tuple[Neighbor, ...]]  # "real" and "fake", nearest first
    changes: tuple[VerdictChange, ...] = ()
    views: tuple[VerdictChange, ...] = ()  # what degraded copies of the image would have been told, if one asked

    @property
    def known(self) -> str:
        """Key of the first stored row with the very same bytes, "" if there is none."""
        return self.stored[0].key if self.stored else ""

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary; the stable format of `query --json` and of the service."""
        fields = {**vars(self), "known": self.known, "stored": [dict(vars(row)) for row in self.stored]}
        fields["neighbors"] = {name: [n.to_dict() for n in found] for name, found in self.neighbors.items()}
        fields["signals"] = {name: round(value, 4) for name, value in self.signals.items()}
        fields["score"], fields["probability"] = round(self.score, 4), round(self.probability, 4)
        fields["percentile"] = round(self.percentile, 1)
        fields["possible"], fields["reasons"] = list(self.possible), list(self.reasons)
        for name in ("changes", "views"):
            fields[name] = [{**vars(change), "score": round(change.score, 4)} for change in getattr(self, name)]
        return fields


@dataclass(frozen=True)
class Refusal:
    """An image that could not be judged, and why: one line of the output, never the end of the run."""

    image: str
    error: str

    def to_dict(self) -> dict[str, Any]:
        return {"image": self.image, "error": self.error}


CLEAR = 1.0  # log-likelihood ratio (a factor of 2.7) from which a signal by itself says something
UNLIKE = 1.0  # percentile below which an image is unlike anything indexed


def decide(
    signals: dict[str, float],
    possible: tuple[bool, bool],
    percentile: float,
    error: float,
    least_error: float = 0.0,
) -> tuple[Answer, tuple[str, ...]]:
    """The answer and the reasons for it, from numbers alone.

    Real or fake is said only if the other can be ruled out at the chosen rate of error and the image is like something
    that is indexed.

    Parameters
    ----------
    least_error : of the calibration, which rules out nothing below it
    """
    real, fake = possible
    rate = format_percent(error)
    reasons = []
    if percentile < UNLIKE:
        reasons.append(f"it is unlike anything indexed: {100 - percentile:.1f}% of known images have nearer neighbours")
    if real and fake:
        reasons.append(f"neither real nor fake can be ruled out at an error rate of {rate}")
        if error < least_error:
            reasons.append(f"so few rows were held out that one of them never is below {format_percent(least_error)}")
    if not real and not fake:
        reasons.append(f"it looks like neither the real nor the fake images known, at an error rate of {rate}")
    if reasons:
        if in_conflict(signals):
            reasons.append("the classifier and the nearest neighbours disagree")
        return "unsure", tuple(reasons)
    answer: Answer = "fake" if fake else "real"
    other = "real" if fake else "fake"
    reasons.append(f"{other} is ruled out at an error rate of {rate}")
    if in_conflict(signals):
        reasons.append("the classifier and the nearest neighbours disagree")
    return answer, tuple(reasons)


def format_percent(share: float) -> str:
    """A rate as a person reads it; never rounded to a promise that was not made.

    >>> format_percent(0.05), format_percent(0.005), format_percent(0.0001)
    ('5%', '0.5%', '0.01%')
    """
    return f"{100 * share:.4g}%"


def require_stable(verdict: Verdict, views: tuple[VerdictChange, ...]) -> Verdict:
    """The verdict with those on degraded copies beside it; unsure, and why, if it does not survive them."""
    flipped = [view for view in views if view.verdict != verdict.verdict]
    if verdict.verdict == "unsure" or not flipped:
        return replace(verdict, views=views)
    why = ", ".join(f"{view.what} it is {view.verdict}" for view in flipped)
    reasons = (f"the answer {verdict.verdict} does not last: {why}", *verdict.reasons)
    return replace(verdict, verdict="unsure", generator="", reasons=reasons, views=views)


def in_conflict(signals: dict[str, float]) -> bool:
    """True if the two signals clearly contradict each other."""
    one, two = signals["svm"], signals["neighbors"]
    return one * two < 0 and min(abs(one), abs(two)) >= CLEAR
