"""Temporal hold-out: a ridge head is trained on the sources released before a date and scores those released on it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.reading import read_bounded, shown_names
from ...errors import NotEnoughRows, SourceError
from ...store.records import FAKE, REAL
from ...store.search.matches import Positions
from ...store.snapshot import Snapshot
from ..metrics import auc, best_threshold
from ..training.examples import subsample
from .ridge import RidgeSums, by_source, decision_values, group_sums, ridge, total_of

HELD_OUT = 20_000  # rows that choose thresholds and measure the past, at most; never more than a tenth of all rows


@dataclass(frozen=True)
class HoldoutWindow:
    """The sources released on one date, scored by a head trained on the sources released before."""

    date: str
    sources: tuple[str, ...]  # released on that date
    generators: int  # number of generators released before, on which the head was trained
    n: int  # scored rows; for a class without new sources, held-out rows of the earlier ones
    auc: float
    accuracy: float  # balanced accuracy at the threshold chosen on the earlier sources
    past_auc: float  # on held-out rows of the earlier sources

    def to_dict(self) -> dict[str, Any]:
        report = asdict(self) | {"sources": list(self.sources)}
        return report | {name: round(getattr(self, name), 4) for name in ("auc", "accuracy", "past_auc")}


@dataclass(frozen=True)
class TemporalHoldout:
    """Results of all windows, oldest first."""

    windows: tuple[HoldoutWindow, ...]
    undated: tuple[str, ...]  # generators without a date, which are left out
    always: tuple[str, ...]  # real sources without a date, which are in every training set
    unknown: tuple[str, ...]  # sources with a date that are not stored
    snapshot: int

    @property
    def sentences(self) -> list[str]:
        """Summary of the windows, then one sentence for each kind of source without a result."""
        after, before = (float(np.mean([getattr(w, name) for w in self.windows])) for name in ("auc", "past_auc"))
        worst = min(self.windows, key=lambda window: window.auc)
        lines = [
            f"Trained on earlier sources, a ridge head has a mean AUC of {after:.3f} on newly released ones, over "
            f"{len(self.windows)} release dates, and of {before:.3f} on held-out rows of the earlier ones. The worst "
            f"date is {worst.date} ({', '.join(worst.sources)}): {worst.auc:.3f}."
        ]
        if self.undated:
            lines.append(f"Generators left out because they have no date: {', '.join(self.undated)}.")
        if self.always:
            lines.append(f"Real sources without a date, in every training set: {', '.join(self.always)}.")
        if self.unknown:
            lines.append(f"Sources with a date that are not stored: {', '.join(self.unknown)}.")
        return lines

    def to_dict(self) -> dict[str, Any]:
        return {
            "snapshot": self.snapshot,
            "windows": [window.to_dict() for window in self.windows],
            "undated": list(self.undated),
            "always": list(self.always),
            "unknown": list(self.unknown),
            "sentences": self.sentences,
        }


def read_dates(path: Path) -> dict[str, date]:
    """Read the release date of each source from a CSV file with the columns source and date.

    Raises
    ------
    SourceError
        The file is not such a table, a date is invalid, or a source occurs twice.
    """
    dates: dict[str, date] = {}
    try:
        rows = csv.DictReader(io.StringIO(read_bounded(path).decode("utf-8-sig"), newline=""))
        if not {"source", "date"} <= set(rows.fieldnames or ()):
            columns = shown_names(rows.fieldnames or (), ("source", "date"))
            raise SourceError(f"{path} has the columns {columns}; its first line must name the columns source and date")
        for row in rows:
            name = (row["source"] or "").strip()
            if name in dates:
                raise SourceError(f"{path}, line {rows.line_num}: the source {name} occurs twice; keep one line of it")
            dates[name] = parse_date(row["date"] or "", f"{path}, line {rows.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        reason = getattr(e, "strerror", None) or e
        raise SourceError(
            f"cannot read {path} as CSV ({reason}); give a CSV file with the columns source and date"
        ) from e
    return dates


def parse_date(text: str, where: str = "") -> date:
    """Parse an ISO date; a month or a year alone stands for its first day.

    >>> parse_date("2023-05").isoformat(), parse_date("2022").isoformat()
    ('2023-05-01', '2022-01-01')

    Raises
    ------
    SourceError
        The text is not a date; the message starts with `where`.
    """
    parts = text.strip().split("-")
    try:
        if len(parts) > 3 or len(parts[0]) != 4:
            raise ValueError
        year, month, day = (*map(int, parts), 1, 1)[:3]
        return date(year, month, day)
    except ValueError as e:
        raise SourceError(
            f"{where + ': ' if where else ''}invalid date {text!r}; write it as 2023-05-17, 2023-05 or 2023"
        ) from e


def temporal_holdout(snapshot: Snapshot, dates: Mapping[str, date], *, seed: int = 0) -> TemporalHoldout:
    """For each release date, train on the sources released before it and score those released on it.

    Parameters
    ----------
    dates : release date of each source; a real source without one counts as always available

    Raises
    ------
    NotEnoughRows
        No date has real and fake rows before it.
    """
    groups, names = by_source(snapshot)
    undated = tuple(name for label, name in names if label == FAKE and name not in dates)
    always = tuple(name for label, name in names if label == REAL and name not in dates)
    unknown = tuple(sorted(dates.keys() - {name for _, name in names}))
    labelled = np.flatnonzero(groups >= 0)
    held = subsample(labelled, groups[labelled], min(HELD_OUT, len(labelled) // 10), seed)
    trained = groups.copy()
    trained[held] = -1
    sums = group_sums(snapshot, trained, len(names))
    sources = _Sources(snapshot, groups, names, sums, held)
    days = sorted({day for name, day in dates.items() if name not in unknown})
    windows = [window for day in days if (window := _window(sources, dates, day)) is not None]
    if not windows:
        raise NotEnoughRows(
            f"none of the {len(days)} dates has both real and fake rows before it; give dates to at least two "
            f"generators, and none to a real source that was always available"
        )
    return TemporalHoldout(tuple(windows), undated, always, unknown, snapshot.number)


@dataclass(frozen=True)
class _Sources:
    """The rows of a snapshot, grouped by class and source."""

    snapshot: Snapshot
    groups: npt.NDArray[np.int64]  # (rows,) number of each row's group, -1 for rows without a label
    names: list[tuple[int, str]]  # (label, source) of each group
    sums: list[RidgeSums]  # of each group, without the held-out rows
    held: Positions  # held-out rows


def _window(sources: _Sources, dates: Mapping[str, date], day: date) -> HoldoutWindow | None:
    """Train on the sources released before a date and score those released on it; None if a class has none before."""
    snapshot, groups, names = sources.snapshot, sources.groups, sources.names
    sums, held = sources.sums, sources.held
    labels = snapshot.column("labels")
    past = [g for g, (label, name) in enumerate(names) if dates.get(name, date.max if label else date.min) < day]
    released = [g for g, (_, name) in enumerate(names) if dates.get(name) == day]
    by_class = {label: [g for g in past if names[g][0] == label and sums[g].n] for label in (REAL, FAKE)}
    if not (by_class[REAL] and by_class[FAKE]):
        return None
    weights = ridge(*(total_of([sums[g] for g in by_class[label]]) for label in (REAL, FAKE)))
    past_rows = held[np.isin(groups[held], past)]
    past_scores = decision_values(snapshot, past_rows, weights)
    threshold = best_threshold(labels[past_rows], past_scores, balanced=True)[0]
    tested = []
    for label in (REAL, FAKE):
        new = np.flatnonzero(np.isin(groups, [g for g in released if names[g][0] == label]))
        tested.append(new if len(new) else past_rows[labels[past_rows] == label])
    real, fake = (decision_values(snapshot, positions, weights) for positions in tested)
    truth = np.repeat([REAL, FAKE], [len(real), len(fake)])
    return HoldoutWindow(
        date=day.isoformat(),
        sources=tuple(sorted({names[g][1] for g in released})),
        generators=len(by_class[FAKE]),
        n=len(truth),
        auc=auc(truth, np.concatenate([real, fake])) or 0.0,
        accuracy=float(((real <= threshold).mean() + (fake > threshold).mean()) / 2),
        past_auc=auc(labels[past_rows], past_scores) or 0.0,
    )
