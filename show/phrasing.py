"""An answer in words and signs: the same in a terminal, on a contact sheet and on the page (service/static/page.js)."""

from __future__ import annotations

import math

from ..detector.verdict import StoredCopy, Verdict

SHAPES = {"real": "●", "fake": "▲", "unsure": "◆"}  # nothing is told by colour alone
CAVEAT = (
    "A lead, not a proof: a detector knows the generators it was shown. Look at the evidence before you rely on it."
)
STRONGEST = math.log(100)  # log-likelihood ratio at the ends of every scale


def percent(share: float) -> str:
    """Per cent that never claim to be certain.

    >>> percent(0.784), percent(0.996), percent(1.0)
    ('78%', '99.6%', '> 99.9%')
    """
    if share < 0.001:
        return "< 0.1%"
    if share > 0.999:
        return "> 99.9%"
    number = 100 * share
    return f"{number:.1f}%" if number < 1 or number > 99 else f"{math.floor(number + 0.5)}%"


def likelier(score: float) -> str:
    """A log-likelihood ratio as what it means.

    >>> likelier(1.25), likelier(-3.0), likelier(0.02), likelier(9.0)
    ('3.5× likelier if fake', '20× likelier if real', 'says next to nothing', '> 1,000× likelier if fake')
    """
    times = math.exp(abs(score))
    if times < 1.1:
        return "says next to nothing"
    text = "> 1,000" if times >= 1000 else str(math.floor(times + 0.5)) if times >= 10 else f"{times:.1f}"
    return f"{text}× likelier if {'fake' if score > 0 else 'real'}"


def chance(verdict: Verdict) -> str:
    """How likely it is fake, and what was assumed where that is not the usual half."""
    assumed = "" if verdict.prior == 0.5 else f" if {percent(verdict.prior)} of the images you ask about are fake"
    return f"{percent(verdict.probability)} likely fake{assumed}"


def maker(verdict: Verdict) -> str:
    """Where a fake may come from; "" for any other answer."""
    if verdict.verdict != "fake" or not verdict.generator:
        return ""
    return "by an unknown generator" if verdict.generator == "unknown" else f"probably made by {verdict.generator}"


def origin(row: StoredCopy) -> str:
    """What was said of a row when it was indexed.

    >>> origin(StoredCopy("a/1.png", "fake", "stylegan2-cats", "stylegan2"))
    'fake of stylegan2'
    >>> origin(StoredCopy("b/1.png", "real", "ffhq", ""))
    'real of ffhq'
    >>> origin(StoredCopy("c/1.png", "unknown", "inbox", ""))
    'of unknown origin in inbox'
    """
    if row.label == "unknown":
        return f"of unknown origin in {row.source}"
    return f"{row.label} of {row.generator or row.source}"


def kept(verdict: Verdict) -> str:
    """Where the very file is in the store, and as what; "" where it is not."""
    if not verdict.stored:
        return ""
    keys: dict[str, list[str]] = {}
    for row in verdict.stored:
        keys.setdefault(origin(row), []).append(row.key)
    more = {what: f" and {len(found) - 1} more" if len(found) > 1 else "" for what, found in keys.items()}
    phrase = " and as ".join(f"{what} ({found[0]}{more[what]})" for what, found in keys.items())
    return f"this very file is stored as {phrase}"


def familiar(percentile: float) -> str:
    """How near the image is to what is known, and what follows from it.

    >>> familiar(25.2)
    'less than most: nearer to its nearest than 25 of 100 known images'
    >>> familiar(100.0)
    'unusually close, perhaps a copy: nearer to its nearest than over 99 of 100 known images'
    """
    rank = "under 1" if percentile < 1 else "over 99" if percentile > 99 else f"{percentile:.0f}"
    levels = (
        (1, "nothing like it is known, do not rely on the score"),
        (10, "little like it is known, read with care"),
        (33, "less than most"),
        (67, "as usual"),
        (99, "more than most"),
    )
    phrase = next((phrase for below, phrase in levels if percentile < below), "unusually close, perhaps a copy")
    return f"{phrase}: nearer to its nearest than {rank} of 100 known images"
