"""Labels from folder names and table rows: real or fake, which generator, which category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...store.records import FAKE, REAL, UNKNOWN

TARGETS = range(7)  # ArtiFact's codes: 0 is real, 1 to 6 are fake
MAX_DIGITS = 20  # 0 may be written as 000, but Python refuses to parse thousands of digits
CODES: dict[Any, tuple[int, int]] = {str(t): (REAL if t == 0 else FAKE, t) for t in TARGETS}
REAL_NAMES = frozenset(("real", "reals", "0_real", "nature", "original", "authentic"))
FAKE_NAMES = frozenset(("fake", "fakes", "1_fake", "ai", "generated", "synthetic"))
WORDS = {**dict.fromkeys(REAL_NAMES, REAL), **dict.fromkeys(FAKE_NAMES, FAKE), "unknown": UNKNOWN}


def labels_from_folders(parts: Sequence[str]) -> tuple[int, str, str]:
    """Label, source and generator of an image in the nested folders `parts`, outermost first.

    >>> labels_from_folders(["test", "progan", "1_fake"])
    (1, 'test/progan/1_fake', 'progan')
    >>> labels_from_folders(["mine", "fake", "sd14"])
    (1, 'mine/fake', 'sd14')
    >>> labels_from_folders(["holiday", "beach"])
    (-1, 'holiday', '')
    """
    labelling = [i for i, part in enumerate(parts) if part.lower() in REAL_NAMES | FAKE_NAMES]
    if not labelling:
        return UNKNOWN, parts[0], ""
    depth = labelling[-1]  # the labelling folder nearest to the file decides
    source = "/".join(parts[: depth + 1])
    if parts[depth].lower() in REAL_NAMES:
        return REAL, source, ""
    # the generator is the folder above in progan/1_fake/x.png and the one below in fake/progan/x.png
    candidates = [*parts[depth + 1 : depth + 2], *parts[1:depth][-1:], *parts[:1]]
    return FAKE, source, next((part for part in candidates if part.lower() not in FAKE_NAMES), "fake")


def label_from_row(row: Mapping[str, Any]) -> tuple[int, int] | str | None:
    """Label and target from a row of a table; the reason if they are invalid; None if the row has neither.

    `target` is a code of 0 (real) to 6 (1 to 6 are fake); `label` is a word (real, fake, nature, ai, ...), 0 or 1.

    >>> label_from_row({"target": "6"}), label_from_row({"label": "Fake"}), label_from_row({"caption": "a cat"})
    ((1, 6), (1, -1), None)
    >>> label_from_row({"target": "9"})
    "target '9' is not one of 0 to 6"
    """
    if "target" in row:
        target = row["target"]
        if isinstance(target, str) and (known := CODES.get(target)) is not None:
            return known
        word = str(target if target is not None else "").strip()
        if len(word) > MAX_DIGITS or not word.isdecimal() or int(word) not in TARGETS:
            return f"target {word[:80]!r} is not one of 0 to 6"
        return (REAL if int(word) == 0 else FAKE), int(word)
    if "label" in row:
        word = str(row["label"] if row["label"] is not None else "").strip().lower()
        label = {"0": REAL, "1": FAKE, "-1": UNKNOWN, "": UNKNOWN}.get(word, WORDS.get(word))
        return f"label {word[:80]!r} is neither real nor fake" if label is None else (label, -1)
    return None
