"""Find the stored copies of a queried picture among its nearest rows, with the thumbnails of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import Damaged, Unreadable
from ...store.snapshot import Snapshot
from ..evidence import Candidates
from .alignment import same_picture
from .picture import Picture

MISSES = 3  # rows of a class that are compared and are not copies, after which no more are
MOST = 9  # copies of a class that are confirmed by comparison, at most


@dataclass(frozen=True)
class FoundCopy:
    """A stored row that is, or may be, a copy of the queried picture."""

    row: int  # its position in the snapshot
    confirmed: bool  # by the thumbnails; otherwise there was none to compare with
    mirrored: bool = False


def find_copies(
    snapshot: Snapshot, candidates: Sequence[Candidates], thumbnail: bytes, is_close: Callable[[float], bool]
) -> list[FoundCopy]:
    """Compare a picture with the nearest rows of each class.

    Parameters
    ----------
    candidates : nearest rows of one query, for each class
    thumbnail : of the queried picture as indexing makes it, b"" if unknown
    is_close : whether a row of a similarity may be a copy, for rows without a thumbnail
    """
    queried = Picture.of(thumbnail) if thumbnail else None
    copies = []
    for of_class in candidates:
        [rows], [similarity] = of_class.matches.rows, of_class.matches.similarity
        present = np.flatnonzero(of_class.present[0])
        copies += list(
            _copies_of_class(snapshot, rows[present].tolist(), similarity[present].tolist(), queried, is_close)
        )
    return copies


def _copies_of_class(
    snapshot: Snapshot,
    rows: list[int],
    similarities: list[float],
    queried: Picture | None,
    is_close: Callable[[float], bool],
) -> Iterator[FoundCopy]:
    """The copies among the rows of a class, nearest first."""
    misses = found = 0
    for row, similarity in zip(rows, similarities, strict=True):
        if misses == MISSES or found == MOST:
            return
        stored = _stored_picture(snapshot, row) if queried else None
        if queried and stored:
            same = same_picture(stored, queried)
            if same:
                yield FoundCopy(row, True, same.mirrored)
            found, misses = found + bool(same), misses + (not same)
        elif is_close(similarity):
            yield FoundCopy(row, False)
            found += 1
        else:
            misses += 1


def _stored_picture(snapshot: Snapshot, row: int) -> Picture | None:
    """The picture of a stored thumbnail; None without one, or if it is damaged: the vectors can still be judged."""
    try:
        return Picture.of(snapshot.thumbnail(row))
    except (Damaged, Unreadable):
        return None
