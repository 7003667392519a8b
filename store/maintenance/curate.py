"""Choose a smaller bank: rows that represent every source, equally many of each class and of each of its sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import InvalidOption, NotEnoughRows
from ..concatenated import concatenate, concatenated_snapshot
from ..exchange.copy_rows import copy_rows, require_target
from ..records import FAKE, LABELS, REAL, distinct
from ..search.matches import Positions
from ..snapshot import Snapshot
from ..space import MAIN
from ..store import Store
from .facility_location import choose_representatives

ROWS_AT_ONCE = 4096  # rows whose distance to the chosen ones is computed at a time
CHOSEN_AT_ONCE = 4096


@dataclass(frozen=True)
class CuratedSource:
    """What is kept of one source and class."""

    source: str
    label: str
    rows: int
    kept: int
    radius: float  # largest distance (1 - cosine similarity) of a row to the nearest kept one of its source
    mean_distance: float  # the mean of these distances


@dataclass(frozen=True)
class CurateReport:
    """Report of `curate`."""

    store: str
    to: str
    snapshot: int  # of the store that was curated
    rows: int  # of that store
    kept: int
    unlabelled: int  # rows without a label, of which none is kept
    sources: tuple[CuratedSource, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def curate(
    store: Store,
    to: Path,
    rows: int,
    *,
    vectors: Sequence[str] = (MAIN,),
    seed: int = 0,
    on_progress: Callable[[str], None] | None = None,
) -> CurateReport:
    """Copy rows that represent the labelled ones into a new store. The store itself is not changed.

    Half of the rows are real and half fake, as far as there are so many, and each source of a class has equally many.
    Within a source, facility location chooses the rows. Heads and indexes are not copied: train again.

    Parameters
    ----------
    to : folder of the new store; one in which the same rows were copied before is completed
    rows : number of rows to keep
    vectors : names of the stored vectors that are compared
    seed : divides the rows of large sources into parts, within which they are compared
    on_progress : called with the name of each step

    Raises
    ------
    InvalidOption, NotEnoughRows
        Fewer rows are wanted than there are sources, or no row has a label.
    StoreError
        The folder holds a store with other rows, or anything else, or cannot be written to.
    """
    on_progress = on_progress or (lambda step: None)
    snapshot = store.snapshot()
    require_target(snapshot, to)  # before choosing, which takes minutes
    compared = concatenated_snapshot(snapshot, vectors)
    groups = source_groups(snapshot)
    chosen = choose_rows(compared, groups, rows, seed=seed, on_progress=on_progress)
    on_progress("copying")
    copy_rows(snapshot, np.sort(np.concatenate(chosen)), to, f"curated from {store.folder.name}")
    kept = []
    for group, own in zip(groups, chosen, strict=True):
        on_progress(f"coverage of {group.source}")
        distances = coverage(compared, group.positions, own)
        kept.append(
            CuratedSource(
                group.source,
                LABELS[group.label],
                len(group.positions),
                len(own),
                round(float(distances.max()), 4),
                round(float(distances.mean()), 4),
            )
        )
    labelled = sum(len(group.positions) for group in groups)
    return CurateReport(
        str(store.folder),
        str(to),
        snapshot.number,
        len(snapshot),
        sum(map(len, chosen)),
        len(snapshot) - labelled,
        tuple(kept),
    )


@dataclass(frozen=True)
class SourceGroup:
    """The rows of one source and class."""

    label: int
    source: str
    positions: Positions  # ascending


def source_groups(snapshot: Snapshot) -> list[SourceGroup]:
    """The labelled rows by class and source; raises NotEnoughRows if there are none."""
    names, codes, _ = distinct(snapshot.column("sources"))
    labels = snapshot.column("labels")
    groups: list[SourceGroup] = []
    for label in (REAL, FAKE):
        of_class = np.flatnonzero(labels == label)
        order = of_class[np.argsort(codes[of_class], kind="stable")]
        by_source = np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
        groups += [SourceGroup(label, str(names[codes[own[0]]]), own) for own in by_source if len(own)]
    if not groups:
        raise NotEnoughRows(f"the store {snapshot.folder} has no labelled rows to choose from; index labelled images")
    return groups


def choose_rows(
    snapshot: Snapshot,
    groups: Sequence[SourceGroup],
    rows: int,
    *,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda step: None,
) -> list[Positions]:
    """Ascending positions of the rows that represent each group, about `rows` in all; see `curate`."""
    if rows < len(groups):
        raise InvalidOption(f"{len(groups)} sources need at least as many rows, found {rows}; keep more rows")
    rng = np.random.default_rng(seed)
    chosen = []
    for group, quota in zip(groups, quotas(groups, rows), strict=True):
        on_progress(f"choosing {quota:,} of {len(group.positions):,} rows of {group.source}")
        positions = group.positions
        own = choose_representatives(len(positions), quota, partial(_unit_vectors, snapshot, positions), rng)
        chosen.append(positions[own])
    return chosen


def quotas(groups: Sequence[SourceGroup], rows: int) -> list[int]:
    """Number of rows of each group: equally many of each class, and of each source of it, as far as it has them."""
    labels = [group.label for group in groups]
    sizes = np.array([len(group.positions) for group in groups])
    members = {label: np.flatnonzero(np.array(labels) == label) for label in dict.fromkeys(labels)}
    by_class = equal_shares([int(sizes[own].sum()) for own in members.values()], rows)
    result = np.zeros(len(groups), np.int64)
    for own, share in zip(members.values(), by_class, strict=True):
        result[own] = equal_shares(sizes[own].tolist(), share)
    return [int(quota) for quota in result]


def equal_shares(sizes: Sequence[int], total: int) -> list[int]:
    """Divide a number equally among groups, none of which gets more than its size.

    >>> equal_shares([10, 2, 10], 9), equal_shares([1, 1], 9)
    ([4, 2, 3], [1, 1])
    """
    shares = [0] * len(sizes)
    remaining = total
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i], -i))
    for filled, i in enumerate(order):
        shares[i] = min(sizes[i], remaining // (len(sizes) - filled))
        remaining -= shares[i]
    return shares


def coverage(snapshot: Snapshot, positions: Positions, kept: Positions) -> npt.NDArray[np.float32]:
    """(n,) distance (1 - cosine similarity) of each row to the nearest kept one."""
    nearest = np.full(len(positions), -1.0, np.float32)
    for first in range(0, len(kept), CHOSEN_AT_ONCE):
        chosen = _unit_vectors(snapshot, kept, slice(first, first + CHOSEN_AT_ONCE))
        for start in range(0, len(positions), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            similarity = (_unit_vectors(snapshot, positions, rows) @ chosen.T).max(1)
            nearest[rows] = np.maximum(nearest[rows], similarity)
    return 1 - np.minimum(nearest, 1)


def _unit_vectors(snapshot: Snapshot, positions: Positions, rows: Any) -> npt.NDArray[np.float32]:
    """(n, dim) float32 vectors of some of the positions, scaled to unit length."""
    return concatenate([snapshot.vectors(positions[rows])])
