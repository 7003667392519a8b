"""Split of rows into train, validation and test: made once, before any fitting, and saved with the head."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NotEnoughRows
from ..store.records import FAKE, REAL, Ints, Names, TextIndex, distinct
from ..store.shard import hash_keys

TRAIN, VALIDATION, TEST, NONE = 0, 1, 2, -1
PARTS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
PART_NAMES = {part: name for name, part in PARTS.items()} | {NONE: ""}
Parts = npt.NDArray[np.int8]  # (rows,) 0 train, 1 validation, 2 test, -1 none of them

# The share held out of training, then the share of it that is the test part. Both follow from the source paper's
# counts: its image-only pipeline rounded 2/3, its image + text pipeline did not.
RECIPES = {"paper": (0.3, 0.6667), "paper-text": (0.3, 2 / 3), "grouped": (0.3, 2 / 3)}


@dataclass(frozen=True)
class Split:
    """The part of every row, by key, so that it applies to any snapshot.

    >>> split = Split.make([f"{i}" for i in range(40)], np.arange(40) % 2)
    >>> split.counts
    {'train': 28, 'validation': 3, 'test': 9}
    """

    hashes: npt.NDArray[np.uint64]  # (rows,) of the keys, ascending
    parts: Parts  # (rows,)
    recipe: str
    seed: int

    @classmethod
    def make(
        cls,
        keys: Sequence[str] | Names,
        labels: Ints,
        *,
        recipe: str = "paper",
        seed: int = 0,
        groups: npt.NDArray[Any] | None = None,
    ) -> Split:
        """Split labelled rows 70/10/20, stratified by label.

        Parameters
        ----------
        keys, labels : (rows,), labels 0 or 1
        recipe : "paper" or "paper-text" (stratified; they differ by one row), or "grouped"
        groups : (rows,) for "grouped": rows of equal group stay in one part

        Raises
        ------
        NotEnoughRows
            There is one class only, or a class has too few rows for all parts.
        """
        labels = np.asarray(labels)
        require_both_classes(labels)
        held_out, tested = RECIPES[recipe]
        if recipe == "grouped":
            parts = grouped(labels, np.arange(len(labels)) if groups is None else groups, held_out, tested, seed)
        else:
            parts = stratified(labels, held_out, tested, seed)
        hashes = hash_keys(keys)
        order = np.argsort(hashes)
        return cls(hashes[order], parts[order], recipe, seed)

    def parts_of(self, keys: Sequence[str] | Names) -> Parts:
        """(n,) int8 part of each key: 0 train, 1 validation, 2 test, -1 for a key that is not in the split."""
        hashes = hash_keys(keys)
        position = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[position] == hashes, self.parts[position], NONE).astype(np.int8)

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows of each part."""
        return {name: int((self.parts == part).sum()) for name, part in PARTS.items()}

    @cached_property
    def digest(self) -> str:
        """Hex BLAKE2b-128 over keys and parts: two splits with the same digest are equal."""
        digest = hashlib.blake2b(self.hashes.astype("<u8").tobytes(), digest_size=16)
        digest.update(self.parts.astype(np.int8).tobytes())
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return {"recipe": self.recipe, "seed": self.seed, "digest": self.digest, **self.counts}


def require_both_classes(labels: Ints) -> None:
    """Raise NotEnoughRows unless there are real and fake rows."""
    real, fake = int((labels == REAL).sum()), int((labels == FAKE).sum())
    if real and fake:
        return
    if not real and not fake:
        rows = "no labelled rows" if len(labels) else "no rows"
        raise NotEnoughRows(f"there are {rows} to train on; index folders of real and of fake images into this store")
    present, missing = ("real", "fake") if real else ("fake", "real")
    raise NotEnoughRows(
        f"training needs real and fake rows, found {real + fake} {present} and no {missing} ones; "
        f"index {missing} images into this store, or select sources that hold both"
    )


def stratified(labels: Ints, held_out: float, tested: float, seed: int) -> Parts:
    """(rows,) parts: a share `held_out` of training, `tested` of that for the test, the same in each class."""
    from sklearn.model_selection import train_test_split

    parts = np.full(len(labels), TRAIN, np.int8)
    everything = np.arange(len(labels))
    try:
        _, rest = train_test_split(everything, test_size=held_out, stratify=labels, random_state=seed)
        validation, test = train_test_split(rest, test_size=tested, stratify=labels[rest], random_state=seed)
    except ValueError as e:
        raise NotEnoughRows(
            f"{int((labels == REAL).sum())} real and {int((labels == FAKE).sum())} fake rows are too few for "
            f"training, validation and test; index at least ten images of each class"
        ) from e
    parts[validation], parts[test] = VALIDATION, TEST
    return parts


def grouped(labels: Ints, groups: npt.NDArray[Any], held_out: float, tested: float, seed: int) -> Parts:
    """(rows,) parts as in `stratified`, as nearly as whole groups allow; no group is in two parts.

    Groups of several rows are assigned first, the largest first, each to the part that lacks the most rows of its
    classes; single rows then fill up the parts.
    """
    rng = np.random.default_rng(seed)
    _, group = np.unique(groups, return_inverse=True)
    size = np.bincount(group)
    totals = np.array([(labels == REAL).sum(), (labels == FAKE).sum()])
    # rounded, so that 0.2 is exactly 0.2 and ties are always broken the same way
    shares = np.round([1 - held_out, held_out * (1 - tested), held_out * tested], 9)
    quota = np.outer(shares, totals)  # (parts, classes)
    lacking = quota.copy()
    parts = np.full(len(labels), TRAIN, np.int8)

    several = np.flatnonzero(size > 1)
    several = several[np.lexsort((rng.random(len(several)), -size[several]))]
    order = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(size)])
    for number in several:
        members = order[starts[number] : starts[number + 1]]
        count = np.bincount(labels[members], minlength=2)
        # the part that would still lack the largest share of such rows
        part = int(np.argmax(((lacking - count) / quota) @ (count > 0)))
        parts[members] = part
        lacking[part] -= count

    single = size[group] == 1
    for label in (REAL, FAKE):
        rows = rng.permutation(np.flatnonzero(single & (labels == label)))
        share = np.maximum(lacking[:, label], 0)
        ends = np.round(np.cumsum(share) / max(share.sum(), 1e-9) * len(rows)).astype(int)
        for part, piece in enumerate(np.split(rows, ends[:-1])):
            parts[piece] = part
    for part in PARTS.values():
        if len(np.unique(labels[parts == part])) < 2:
            raise NotEnoughRows(
                f"{len(size)} groups of copies are too few to give every part real and fake rows; "
                f"index more images, or use the recipe paper (`--split paper`)"
            )
    return parts


def choose(
    labels: Ints, sources: Names, *, only: Sequence[str] = (), balanced: bool = False, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Positions of the labelled rows to train on, ascending.

    Parameters
    ----------
    only : sources whose rows are used, empty for all
    balanced : use equally many real and fake rows, drawn by `seed` from the larger class

    Raises
    ------
    NotEnoughRows
        A source is not stored.
    """
    wanted = (labels == REAL) | (labels == FAKE)
    if only:
        stored = set(distinct(sources)[0].tolist())
        missing = [name for name in only if name not in stored]
        if missing:
            raise NotEnoughRows(
                f"no row of {', '.join(missing)} is stored; "
                f"the stored sources are {', '.join(sorted(stored)) or 'none'}"
            )
        wanted &= TextIndex(only).find(sources) >= 0
    if balanced:
        rng = np.random.default_rng(seed)
        classes = [np.flatnonzero(wanted & (labels == label)) for label in (REAL, FAKE)]
        fewest = min(len(rows) for rows in classes)
        return np.sort(np.concatenate([rng.permutation(rows)[:fewest] for rows in classes])).astype(np.int64)
    return np.flatnonzero(wanted).astype(np.int64)
