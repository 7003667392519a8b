"""Labels from folder names and table rows: real or fake, which generator, which category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...store.records import FAKE, REAL, UNKNOWN

TARGETS = range(7)  # ArtiFact's codes: 0 is real, 1 to 6 are fake
MAX_DIGITS = 20  # 0 may be written as 000, but Python refuses to parse thousands of digits
CODES: dict[Any, tuple[int, int]] = {str(t): (REAL if t == 0 else FAKE, t) for t in TARGETS}
# Words that name a class, and words that may also name what an image shows or how it was treated (fake/nature/).
CLASS_WORDS = {
    **dict.fromkeys(("real", "reals", "0_real"), REAL),
    **dict.fromkeys(("fake", "fakes", "1_fake"), FAKE),
}
OTHER_WORDS = {
    **dict.fromkeys(("nature", "original", "authentic"), REAL),
    **dict.fromkeys(("ai", "generated", "synthetic", "ai_generated", "ai-generated", "deepfake"), FAKE),
}
WORDS = {**CLASS_WORDS, **OTHER_WORDS, "unknown": UNKNOWN}
EMPTY_WORDS = frozenset(("nan", "na", "n/a", "none", "null"))  # of a table without a value
# Folders of a split or of a layout; they name neither where images come from nor a generator.
# fmt: off
LAYOUT_FOLDERS = frozenset((
    "train", "training", "test", "testing", "val", "valid", "validation", "dev", "images", "image", "imgs", "img",
    "data", "dataset", "files", "pictures", "photos", "png", "jpg", "jpeg", "",
))
# fmt: on


INVALID = "invalid"  # field of a row with the reason why the row cannot be read
WEAK = "weak"  # field of a row whose label may be no label, such as a caption of one word


class FolderLabel(NamedTuple):
    """Label of the images in a folder, by the names on its path."""

    label: int
    source: str
    generator: str
    contradiction: str = ""  # why the names give no label, "" if they do
    word: str = ""  # the folder that labels, if it is called real, fake, 0_real or 1_fake


def labels_from_folders(parts: Sequence[str]) -> FolderLabel:
    """Label, source and generator of an image in the nested folders `parts`, outermost first.

    real, fake, 0_real and 1_fake decide wherever they are on the path. Words that may also say what an image shows,
    such as nature or original, decide only without these.

    >>> labels_from_folders(["test", "progan", "1_fake"])[:3]
    (1, 'test/progan/1_fake', 'progan')
    >>> labels_from_folders(["mine", "fake", "sd14", "original"])[:3]
    (1, 'mine/fake/sd14', 'sd14')
    >>> labels_from_folders(["holiday", "beach"])[:3]
    (-1, 'holiday', '')
    """
    for words in (CLASS_WORDS, OTHER_WORDS):
        labelling = [i for i, part in enumerate(parts) if part.lower() in words]
        if labelling:
            break
    else:
        return FolderLabel(UNKNOWN, parts[0], "")
    labels = {words[parts[i].lower()]: parts[i] for i in labelling}
    if len(labels) > 1:
        return FolderLabel(
            UNKNOWN,
            parts[0],
            "",
            f"it is below both {labels[REAL]}/ and {labels[FAKE]}/, which contradict each other; rename one of these "
            f"folders, or add a metadata.csv with a column label",
        )
    depth = labelling[-1]
    below = next((i for i in range(depth + 1, len(parts)) if not _is_layout(parts[i])), depth)
    source = "/".join(parts[: below + 1])
    word = parts[depth] if words is CLASS_WORDS else ""
    if REAL in labels:
        return FolderLabel(REAL, source, "", "", word)
    # the generator is the folder above in progan/1_fake/x.png and the one below in fake/progan/x.png
    above = [part for part in reversed(parts[:depth]) if not _is_layout(part)]
    candidates = [*parts[below : below + 1], *above]
    generator = next((part for part in candidates if part.lower() not in WORDS), "fake")
    return FolderLabel(FAKE, source, generator, "", word)


def contradiction_with_folder(row: Mapping[str, Any], label: int, folder: FolderLabel) -> str:
    """Why the label of a row is refused beside that of its folder, "" if it is not.

    A word corrects the folder, and so does a code of ArtiFact in the column target. A number in the column label does
    not: its meaning is a convention, and in some data sets 1 is real.
    """
    name = "target" if "target" in row else "label"
    value = row.get(name)
    if not folder.word or UNKNOWN in (label, folder.label) or label == folder.label:
        return ""
    if WEAK not in row and (name == "target" or _word(value) in WORDS):
        return ""
    meaning = "fake" if label == FAKE else "real"
    return (
        f"{name} {_word(value)[:80]!r} means {meaning}, but the image is below {folder.word}/; write the words real "
        f"and fake into the table"
    )


def is_class_word(name: str) -> bool:
    """True if a folder of this name labels the images in it whatever the folders inside are called."""
    return name.lower() in CLASS_WORDS


def _is_layout(name: str) -> bool:
    """True for a split, a number, a date or a size."""
    return name.lower() in LAYOUT_FOLDERS or not name.strip("0123456789_-.x")


def label_from_row(row: Mapping[str, Any]) -> tuple[int, int] | str | None:
    """Label and target from a row of a table; the reason if they are invalid; None if the row has neither.

    `target` is a code of 0 (real) to 6 (1 to 6 are fake) or a word; `label` is a word (real, fake, nature, ai, ...),
    0 or 1. Numbers may be written as 1.0.

    >>> label_from_row({"target": "6"}), label_from_row({"label": "Fake"}), label_from_row({"caption": "a cat"})
    ((1, 6), (1, -1), None)
    >>> label_from_row({"target": "9"})
    "target '9' is not one of 0 to 6"
    >>> label_from_row({"target": "0", "label": "fake"})
    "target '0' and label 'fake' contradict each other"
    """
    if INVALID in row:
        return str(row[INVALID])
    if "target" in row:
        outcome = _label_from_target(row["target"])
        if "label" in row and not isinstance(outcome, str):
            word = _word(row["label"])
            if WORDS.get(word, UNKNOWN) not in (UNKNOWN, outcome[0]):  # a number may be the class of what it shows
                return f"target {_word(row['target'])!r} and label {word[:80]!r} contradict each other"
        return outcome
    if "label" in row:
        word = _word(row["label"])
        label = {"0": REAL, "1": FAKE, "-1": UNKNOWN, "": UNKNOWN}.get(word, WORDS.get(word))
        return f"label {word[:80]!r} is neither real nor fake" if label is None else (label, -1)
    return None


def _label_from_target(target: Any) -> tuple[int, int] | str:
    if isinstance(target, str) and (known := CODES.get(target)) is not None:
        return known
    word = _word(target)
    if word in WORDS and word != "unknown":
        return WORDS[word], -1
    if len(word) > MAX_DIGITS or not word.isdecimal() or int(word) not in TARGETS:
        return f"target {word[:80]!r} is not one of 0 to 6"
    return (REAL if int(word) == 0 else FAKE), int(word)


def _word(value: Any) -> str:
    """Text of a value in lower case; a whole number without decimals, "" for a missing one."""
    if value is None or value != value:
        return ""
    word = str(value).strip().lower()
    if word in EMPTY_WORDS:
        return ""
    whole, _, zeros = word.partition(".")
    return whole if zeros and not zeros.strip("0") and whole.removeprefix("-").isdecimal() else word
