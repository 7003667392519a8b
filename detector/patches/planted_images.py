"""The planted test on images: halves of two pictures are put together, encoded and scored, as a query would be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ...errors import NotEnoughRows
from ...store.records import Ints, Vectors
from ...store.search.matches import Positions
from .patch_head import PatchHead
from .planted import FEWEST, draw_pairs, halves, measure_planted

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)
AT_ONCE = 16  # planted images that are encoded at a time


def measure_on_images(
    head: PatchHead,
    rows: Positions,
    labels: Ints,
    read: Callable[[int], Pixels | None],
    encode: Callable[[Sequence[Pixels]], Vectors],
    *,
    images: int = 300,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> PatchHead:
    """Make the planted test on images, and return the patch head with its result.

    Both pictures are first resized as the encoder sees them, so that neither the place of the seam nor the size of the
    files gives the swapped half away.

    Parameters
    ----------
    rows, labels : (n,) positions of rows that the head has not seen, and their labels
    read : position of a row -> its picture in the encoder's input size, None if its file cannot be read
    encode : pictures -> their (n, rows * columns * dim) patches
    images : planted images, at most
    on_progress : called with the number of planted images so far and in all

    Raises
    ------
    NotEnoughRows
        Too few pairs of files could be read.
    """
    real, fake, sides = draw_pairs(labels, np.random.default_rng([seed, 11]), images)
    planted: list[Pixels] = []
    maps, used = [], []
    for number, pair in enumerate(zip(rows[real].tolist(), rows[fake].tolist(), strict=True)):
        first, second = (read(row) for row in pair)
        if first is not None and second is not None:
            swapped = halves((first.shape[0], first.shape[1]), sides[number : number + 1])[0] == 1
            planted.append(np.where(swapped[..., None], second, first))
            used.append(number)
        if len(planted) == AT_ONCE:
            maps.append(head.decision_function(encode(planted)))
            planted = []
        if on_progress:
            on_progress(number + 1, len(real))
    if planted:
        maps.append(head.decision_function(encode(planted)))
    test = measure_planted(np.concatenate(maps), halves((head.rows, head.columns), sides[used])) if maps else None
    if test is None:
        raise NotEnoughRows(
            f"the files of {len(used)} pairs of a real and a generated image that the head has not seen can be read; "
            f"the planted test needs {FEWEST}"
        )
    return replace(head, pixels=test)
