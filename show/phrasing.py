"""Describe verdicts in words, for the terminal and for contact sheets.

The service's page has the same texts in JavaScript (service/static/page.js); a test compares the two.
"""

from __future__ import annotations

import math

from ..detector.patches.patch_map import PatchMap
from ..detector.verdict import Verdict

CAVEAT = "A lead, not a proof: a detector knows the sources it was shown. Look at the evidence before you rely on it."
STRONGEST = math.log(100)  # log-likelihood ratio at the ends of every scale
PARTS_OF_IMAGE = ("upper left", "top", "upper right", "left", "middle", "right", "lower left", "bottom", "lower right")
PARTS_ALIKE = 0.5  # log-odds by which the means of parts of an image must differ for one to be named


def percent(share: float) -> str:
    """A share as a percentage that never claims certainty.

    >>> percent(0.784), percent(0.996), percent(1.0)
    ('78%', '99.6%', '> 99.9%')
    """
    if share < 0.001:
        return "< 0.1%"
    if share > 0.999:
        return "> 99.9%"
    value = 100 * share
    return f"{value:.1f}%" if value < 1 or value > 99 else f"{math.floor(value + 0.5)}%"


def describe_ratio(score: float) -> str:
    """A log-likelihood ratio in words.

    >>> describe_ratio(1.25), describe_ratio(-3.0), describe_ratio(0.02), describe_ratio(9.0)
    ('3.5× likelier if fake', '20× likelier if real', 'says next to nothing', '> 1,000× likelier if fake')
    """
    ratio = math.exp(abs(score))
    if ratio < 1.1:
        return "says next to nothing"
    factor = "> 1,000" if ratio >= 1000 else str(math.floor(ratio + 0.5)) if ratio >= 10 else f"{ratio:.1f}"
    return f"{factor}× likelier if {'fake' if score > 0 else 'real'}"


def named_signals(verdict: Verdict) -> dict[str, float]:
    """The log-likelihood ratios of a verdict by the names that people read, the score last."""
    names = {"svm": "classifier", "neighbors": "neighbours", "added": "added examples"}
    return {names[name]: value for name, value in verdict.signals.items()} | {"score": verdict.score}


def describe_likelihood(verdict: Verdict) -> str:
    """The probability of a fake, with the assumed share of fakes where that is not one half."""
    prior = "" if verdict.prior == 0.5 else f" if {percent(verdict.prior)} of the queried images are fake"
    alone = " by its signals alone" if verdict.settled else ""
    return f"{percent(verdict.probability)} likely fake{alone}{prior}"


def describe_source(verdict: Verdict) -> str:
    """The generator that probably made a fake; "" for any other verdict."""
    if verdict.verdict != "fake" or not verdict.generator:
        return ""
    if verdict.settled and verdict.generator != "unknown":
        return f"stored as made by {verdict.generator}"
    return "by an unknown generator" if verdict.generator == "unknown" else f"probably made by {verdict.generator}"


def describe_familiarity(percentile: float) -> str:
    """How close the image is to the known images, and what follows for its verdict.

    Parameters
    ----------
    percentile : per cent of known images whose nearest neighbour is further away

    Examples
    --------
    >>> describe_familiarity(25.2)
    'below average: closer to its nearest neighbour than 25 of 100 known images'
    >>> describe_familiarity(100.0)
    'unusually close, perhaps a variant: closer to its nearest neighbour than over 99 of 100 known images'
    """
    rank = "under 1" if percentile < 1 else "over 99" if percentile > 99 else f"{percentile:.0f}"
    levels = (
        (1, "no similar image is known, do not rely on the score"),
        (10, "few similar images are known, read the score with care"),
        (33, "below average"),
        (67, "average"),
        (99, "above average"),
    )
    level = next((text for below, text in levels if percentile < below), "unusually close, perhaps a variant")
    return f"{level}: closer to its nearest neighbour than {rank} of 100 known images"


def describe_map(patch_map: PatchMap) -> str:
    """The map of an image in words: how many patches lean fake, and which part most and least.

    >>> describe_map(PatchMap(1, 3, ((-1.0, 0.5, 2.0),), 0.95, ""))
    '2 of 3 patches lean fake, the right most of all and the left least'
    """
    sums: dict[str, list[float]] = {}
    for y, row in enumerate(patch_map.values):
        for x, value in enumerate(row):
            third = 3 * _third(y, patch_map.rows) + _third(x, patch_map.columns)
            sums.setdefault(PARTS_OF_IMAGE[third], []).append(value)
    values = [value for part in sums.values() for value in part]
    leaning = f"{sum(value > 0 for value in values)} of {len(values)} patches lean fake"
    means = {name: sum(part) / len(part) for name, part in sums.items()}
    most, least = max(means, key=lambda name: means[name]), min(means, key=lambda name: means[name])
    if means[most] - means[least] < PARTS_ALIKE:
        return f"{leaning}, all parts about alike"
    return f"{leaning}, the {most} most of all and the {least} least"


def _third(position: int, length: int) -> int:
    """The third, 0 to 2, in which the middle of a patch lies.

    >>> [_third(position, 7) for position in range(7)]
    [0, 0, 1, 1, 1, 2, 2]
    """
    return 3 * (2 * position + 1) // (2 * length)
