"""Choose rows that represent the others: facility location, greedily.

The chosen rows maximise the sum, over all rows, of the similarity to the nearest chosen one. The greedy choice reaches
at least 1 - 1/e of the best sum (Nemhauser, Wolsey & Fisher 1978); gains only shrink, so few are computed in each step
(Minoux 1978). The rows of a large group are divided at random, as in Mirzasoleiman et al. (2013).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ...core.matrix_product import product

PART_ROWS = 4096  # rows compared with each other: 64 MiB of similarities, and a second or less
PICKS = 16  # rows chosen from a part, at least: fewer would represent it poorly, so that fewer parts are compared

Floats = npt.NDArray[np.float32]
Indexes = npt.NDArray[np.int64]


def choose_representatives(
    count: int, most: int, vectors_of: Callable[[Indexes], Floats], rng: np.random.Generator
) -> Indexes:
    """Choose `most` of `count` rows that represent them, ascending; all of them if there are no more.

    The time grows linearly with the rows, and at most `PART_ROWS` are in memory.

    Parameters
    ----------
    vectors_of : (n, dim) unit vectors of the rows at some ascending indexes
    rng : divides the rows into parts
    """
    if most >= count:
        return np.arange(count)
    parts = min(-(-count // PART_ROWS), max(most // PICKS, 1))
    order = rng.permutation(count)[: parts * PART_ROWS]
    chosen = []
    for number, part in enumerate(np.array_split(order, parts)):
        rows = np.sort(part)
        quota = most // parts + (number < most % parts)
        chosen.append(rows[facility_location(vectors_of(rows), quota)])
    return np.sort(np.concatenate(chosen))


def facility_location(vectors: Floats, most: int) -> Indexes:
    """(most,) indexes of the chosen of (n, dim) unit vectors, in the order in which they were chosen."""
    import torch

    rows = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
    similarity = product(rows, rows).numpy()
    nearest = np.full(len(vectors), -1.0, np.float32)  # similarity of each row to the nearest chosen one
    gains = [(-float(gain), row) for row, gain in enumerate(similarity.sum(1) + len(vectors))]
    heapq.heapify(gains)
    chosen: list[int] = []
    while gains and len(chosen) < most:
        _, row = heapq.heappop(gains)
        gain = float(np.maximum(similarity[row] - nearest, 0).sum())
        if gains and -gain > gains[0][0]:  # another row may gain more
            heapq.heappush(gains, (-gain, row))
            continue
        chosen.append(row)
        np.maximum(nearest, similarity[row], out=nearest)
    return np.array(chosen, np.int64)
