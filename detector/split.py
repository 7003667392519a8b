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
from ..store.records import FAKE, REAL, Ints, Names, distinct
from ..store.shard import hash_keys

TRAIN, VALIDATION, TEST, NONE = 0, 1, 2, -1
PARTS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
PART_NAMES = {part: name for name, part in PARTS.items()} | {NONE: ""}
Parts = npt.NDArray[np.int8]  # (rows,) 0 train, 1 validation, 2 test, -1 none of them

# The share kept out of training, then the share of that which tests. The source paper's counts show both: its
# image-only pipeline rounded 2/3, its image + text pipeline did not.
RECIPES = {"paper": (0.3, 0.6667), "paper-text": (0.3, 2 / 3), "grouped": (0.3, 2 / 3)}


@dataclass(frozen=True)
class Split:
    """The part of every row, by key, so that it holds in any snapshot.

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
        recipe : "paper" or "paper-text" (stratified; they differ in one row), or "grouped"
        groups : (rows,) for "grouped": rows of equal group stay on one side

        Raises
        ------
        NotEnoughRows
            One class only, or too few rows of one to have some in each part.
        """
        labels = np.asarray(labels)
        require_both_classes(labels)
        held, tested = RECIPES[recipe]
        if recipe == "grouped":
            parts = grouped(labels, np.arange(len(labels)) if groups is None else groups, held, tested, seed)
        else:
            parts = stratified(labels, held, tested, seed)
        hashes = hash_keys(keys)
        order = np.argsort(hashes)
        return cls(hashes[order], parts[order], recipe, seed)

    def parts_of(self, keys: Sequence[str] | Names) -> Parts:
        """(n,) int8 the part of each key: 0 train, 1 validation, 2 test, -1 where the split does not know it."""
        wanted = hash_keys(keys)
        place = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.where(self.hashes[place] == wanted, self.parts[place], NONE).astype(np.int8)

    @property
    def counts(self) -> dict[str, int]:
        return {name: int((self.parts == part).sum()) for name, part in PARTS.items()}

    @cached_property
    def digest(self) -> str:
        """Hex BLAKE2b-128 over keys and parts: equal if and only if the split is."""
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
        found = "no labelled row" if len(labels) else "no row"
        raise NotEnoughRows(f"{found} to learn from; index folders of real and of fake images into this store first")
    have, lack = ("real", "fake") if real else ("fake", "real")
    raise NotEnoughRows(
        f"{real + fake} {have} rows and not one {lack}: a head tells two classes apart; "
        f"index {lack} images into this store, or choose sources that hold both"
    )


def stratified(labels: Ints, held: float, tested: float, seed: int) -> Parts:
    """(rows,) parts: `held` of the rows out of training, `tested` of those for the test, each class alike."""
    from sklearn.model_selection import train_test_split

    parts = np.full(len(labels), TRAIN, np.int8)
    everything = np.arange(len(labels))
    try:
        _, out = train_test_split(everything, test_size=held, stratify=labels, random_state=seed)
        chosen, test = train_test_split(out, test_size=tested, stratify=labels[out], random_state=seed)
    except ValueError as e:
        raise NotEnoughRows(
            f"{int((labels == REAL).sum())} real and {int((labels == FAKE).sum())} fake rows are too few for "
            f"training, validation and test; index at least ten images of each class"
        ) from e
    parts[chosen], parts[test] = VALIDATION, TEST
    return parts


def grouped(labels: Ints, groups: npt.NDArray[Any], held: float, tested: float, seed: int) -> Parts:
    """(rows,) parts as `stratified` has them, as nearly as whole groups allow; no group on two sides.

    Groups of several rows are dealt first, the largest first, each to the part that lacks most of its rows; single
    rows then fill what each part still lacks.
    """
    rng = np.random.default_rng(seed)
    _, group = np.unique(groups, return_inverse=True)
    size = np.bincount(group)
    totals = np.array([(labels == REAL).sum(), (labels == FAKE).sum()])
    shares = np.round([1 - held, held * (1 - tested), held * tested], 9)  # 0.2 as it is written, lest a tie fall anew
    quota = np.outer(shares, totals)  # (parts, classes)
    lacking = quota.copy()
    parts = np.full(len(labels), TRAIN, np.int8)

    several = np.flatnonzero(size > 1)
    several = several[np.lexsort((rng.random(len(several)), -size[several]))]
    order = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(size)])
    for one in several:
        members = order[starts[one] : starts[one + 1]]
        count = np.bincount(labels[members], minlength=2)
        # to the part that would still lack the largest share of such rows
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
                f"{len(size)} groups of duplicates are too few to give every part real and fake rows; "
                f"index more images, or split with recipe 'paper'"
            )
    return parts


def choose(
    labels: Ints, sources: Names, *, only: Sequence[str] = (), balanced: bool = False, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Positions of the rows to learn from, ascending: labelled, of `only` these sources (all for none).

    Parameters
    ----------
    balanced : as many real as fake rows, the larger class drawn by `seed`

    Raises
    ------
    NotEnoughRows
        A source that is not stored.
    """
    wanted = (labels == REAL) | (labels == FAKE)
    if only:
        stored = set(distinct(sources)[0].tolist())
        missing = [name for name in only if name not in stored]
        if missing:
            raise NotEnoughRows(
                f"no row of {', '.join(missing)} is stored; the sources here are {', '.join(sorted(stored)) or 'none'}"
            )
        wanted &= np.isin(sources, np.asarray(only, sources.dtype))
    if balanced:
        rng = np.random.default_rng(seed)
        classes = [np.flatnonzero(wanted & (labels == label)) for label in (REAL, FAKE)]
        fewest = min(len(rows) for rows in classes)
        return np.sort(np.concatenate([rng.permutation(rows)[:fewest] for rows in classes])).astype(np.int64)
    return np.flatnonzero(wanted).astype(np.int64)
