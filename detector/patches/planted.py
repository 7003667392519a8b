"""The planted test: half of an image is swapped, and its map has to find that half.

One half is of a real image and the other half of a generated one. Which half is the generated one changes from image to
image, so a map that only knows left from right finds nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...store.records import FAKE, REAL, Ints
from ..metrics import auc, auc_interval

Patches = npt.NDArray[np.float32]  # (n, rows, columns, dim)
Halves = npt.NDArray[np.int8]  # (n, rows, columns) 1 in the fake half, 0 in the real half, CUT where the seam runs
Maps = npt.NDArray[np.float32]  # (n, rows, columns) log-odds, above 0 leans fake
Sides = npt.NDArray[np.int8]  # (n,) positions in SIDES
SIDES = ("left", "right", "top", "bottom")  # the half that is fake
CUT = -1  # a patch that the seam cuts
FEWEST = 50  # planted images below which nothing is measured


@dataclass(frozen=True)
class PlantedTest:
    """How well maps find the fake half of planted images."""

    images: int
    auc: float  # of the mean of the fake half against that of the real half, over the halves of all planted images
    interval: tuple[float, float]  # of `auc`, 95 %
    patch_auc: float  # of single patches
    within: float  # share of the planted images whose fake half has the higher mean

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> PlantedTest:
        low, high = map(float, fields["interval"])
        numbers = {name: float(fields[name]) for name in ("auc", "patch_auc", "within")}
        return cls(images=int(fields["images"]), interval=(low, high), **numbers)


def halves(grid: tuple[int, int], sides: Sides) -> Halves:
    """(n, rows, columns) int8: 1 in the half on this side, 0 in the other half, CUT where the seam runs.

    Parameters
    ----------
    grid : number of rows and of columns

    >>> halves((2, 3), np.array([0], np.int8)).tolist()
    [[[1, -1, 0], [1, -1, 0]]]
    """
    rows, columns = grid
    y, x = np.arange(rows)[:, None] * np.ones(columns), np.arange(columns) * np.ones((rows, 1))
    leaning = np.stack([columns - 1 - 2 * x, 2 * x - columns + 1, rows - 1 - 2 * y, 2 * y - rows + 1])
    by_side = np.where(leaning > 0, 1, np.where(leaning < 0, 0, CUT)).astype(np.int8)
    return by_side[sides]


def compose(real: Patches, fake: Patches, parts: Halves) -> Patches:
    """(n, rows, columns, dim) patches of planted images, from those of whole images; a cut patch is the mean of both.

    Patches of the whole images have not seen the other half, as an encoder's patches of a planted image have: this is
    the easier test.
    """
    share = np.where(parts == CUT, 0.5, parts).astype(np.float32)[..., None]
    return share * fake + (1 - share) * real


def draw_pairs(labels: Ints, rng: np.random.Generator, most: int) -> tuple[Ints, Ints, Sides]:
    """Positions of a real and of a fake row, and the fake side, of each planted image; no row is used twice."""
    real, fake = (rng.permutation(np.flatnonzero(labels == label)) for label in (REAL, FAKE))
    count = min(len(real), len(fake), most)
    return real[:count], fake[:count], (np.arange(count) % len(SIDES)).astype(np.int8)


def plant(
    score: Callable[[Patches], Maps], patches: Patches, labels: Ints, rng: np.random.Generator, most: int = 1000
) -> tuple[Maps, Halves]:
    """Plant halves in stored patches: the maps of the planted images, and the halves that they have to find."""
    real, fake, sides = draw_pairs(labels, rng, most)
    parts = halves((patches.shape[1], patches.shape[2]), sides)
    return score(compose(patches[real], patches[fake], parts)), parts


def measure_planted(maps: Maps, parts: Halves) -> PlantedTest | None:
    """Measure how well (n, rows, columns) maps find the fake half of planted images; None for fewer than `FEWEST`.

    Parameters
    ----------
    parts : (n, rows, columns) of `halves`
    """
    if len(maps) < FEWEST:
        return None
    fake, real = (np.where(parts == part, maps, np.nan) for part in (1, 0))
    means = [np.nanmean(half, axis=(1, 2)) for half in (fake, real)]
    labels, scores = np.repeat([FAKE, REAL], len(maps)), np.concatenate(means)
    whole = parts != CUT
    interval, of_patches = auc_interval(labels, scores), auc(parts[whole], maps[whole])
    assert interval is not None and of_patches is not None
    return PlantedTest(
        images=len(maps),
        auc=auc(labels, scores) or 0.0,
        interval=(float(interval[0]), float(interval[1])),
        patch_auc=of_patches,
        within=float((means[0] > means[1]).mean()),
    )
