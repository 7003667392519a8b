"""The past on the future: a ridge head learns from what had been released by a day, and scores what came next."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import NotEnoughRows, SourceError
from ...store.records import FAKE, REAL
from ...store.snapshot import Snapshot
from ..metrics import auc, best_threshold
from ..training.examples import subsample
from .ridge import by_source, decision_values, group_sums, ridge, total_of

HELD = 20_000  # rows of all sources, at most and a tenth: in no sum, they choose thresholds and stand for the past


@dataclass(frozen=True)
class HoldoutWindow:
    """One day: what was released then, judged by what there was before."""

    date: str
    sources: tuple[str, ...]  # released on that day
    generators: int  # released before, that the head learned from
    n: int  # rows scored; of a class with nothing new, held-out rows of the past
    auc: float
    accuracy: float  # at the past's threshold; the mean of both classes' shares of right answers
    past_auc: float  # on held-out rows of what was known

    def to_dict(self) -> dict[str, Any]:
        report = asdict(self) | {"sources": list(self.sources)}
        return report | {name: round(getattr(self, name), 4) for name in ("auc", "accuracy", "past_auc")}


@dataclass(frozen=True)
class TemporalHoldout:
    """Results of all windows, oldest first."""

    windows: tuple[HoldoutWindow, ...]
    undated: tuple[str, ...]  # generators left out, as no date was given
    always: tuple[str, ...]  # real sources without a date, which are part of every past
    unknown: tuple[str, ...]  # dated, but not stored
    snapshot: int

    @property
    def sentences(self) -> list[str]:
        """Summary sentences, and what was left out."""
        after, before = (float(np.mean([getattr(w, name) for w in self.windows])) for name in ("auc", "past_auc"))
        worst = min(self.windows, key=lambda window: window.auc)
        lines = [
            f"Trained on the past, a ridge head has an AUC of {after:.3f} on what came next, over {len(self.windows)} "
            f"releases, and of {before:.3f} on what it knew. Worst is {worst.date} ({', '.join(worst.sources)}): "
            f"{worst.auc:.3f}."
        ]
        if self.undated:
            lines.append(f"Left out, as no date was given: {', '.join(self.undated)}.")
        if self.always:
            lines.append(f"Real sources without a date, always there: {', '.join(self.always)}.")
        if self.unknown:
            lines.append(f"Dated, but not stored: {', '.join(self.unknown)}.")
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
    """When each source was released, from a CSV with the columns source and date.

    Raises
    ------
    SourceError
        The file cannot be read as such a table, or names a source twice.
    """
    found: dict[str, date] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if not {"source", "date"} <= set(rows.fieldnames or ()):
                columns = ", ".join(rows.fieldnames or ()) or "none"
                raise SourceError(f"{path} has the columns {columns}; its first line must name source and date")
            for row in rows:
                name = (row["source"] or "").strip()
                if name in found:
                    raise SourceError(f"{path}, line {rows.line_num}: {name} stands twice; keep one date of it")
                found[name] = day_of(row["date"] or "", f"{path}, line {rows.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise SourceError(f"{path} cannot be read as a table ({e}); give a CSV with the columns source and date") from e
    return found


def day_of(text: str, where: str = "") -> date:
    """A day as people write it; of a month or a year its first.

    >>> day_of("2023-05").isoformat(), day_of("2022").isoformat()
    ('2023-05-01', '2022-01-01')
    """
    parts = text.strip().split("-")
    try:
        if len(parts) > 3 or len(parts[0]) != 4:
            raise ValueError
        year, month, day = (*map(int, parts), 1, 1)[:3]
        return date(year, month, day)
    except ValueError as e:
        raise SourceError(
            f"{where + ': ' if where else ''}{text!r} is no date; write 2023-05-17, 2023-05 or 2023"
        ) from e


def temporal_holdout(snapshot: Snapshot, dates: Mapping[str, date], *, seed: int = 0) -> TemporalHoldout:
    """For every release date, train on everything released before and score what was released then.

    Raises
    ------
    NotEnoughRows
        No day has real and fake rows before it.
    """
    groups, names = by_source(snapshot)
    labels = snapshot.column("labels")
    undated = tuple(name for label, name in names if label == FAKE and name not in dates)
    always = tuple(name for label, name in names if label == REAL and name not in dates)
    unknown = tuple(sorted(dates.keys() - {name for _, name in names}))
    known = np.flatnonzero(groups >= 0)
    held = subsample(known, groups[known], min(HELD, len(known) // 10), seed)
    learned = groups.copy()
    learned[held] = -1
    sums = group_sums(snapshot, learned, len(names))
    days = sorted({day for name, day in dates.items() if name not in unknown})
    windows = []
    for day in days:
        past = [g for g, (label, name) in enumerate(names) if dates.get(name, date.max if label else date.min) < day]
        now = [g for g, (_, name) in enumerate(names) if dates.get(name) == day]
        by_class = {label: [g for g in past if names[g][0] == label and sums[g].n] for label in (REAL, FAKE)}
        if not (by_class[REAL] and by_class[FAKE]):
            continue
        weights = ridge(*(total_of([sums[g] for g in by_class[label]]) for label in (REAL, FAKE)))
        before = held[np.isin(groups[held], past)]
        seen = decision_values(snapshot, before, weights)
        threshold = best_threshold(labels[before], seen, balanced=True)[0]
        parts = []
        for label in (REAL, FAKE):
            new = np.flatnonzero(np.isin(groups, [g for g in now if names[g][0] == label]))
            parts.append(new if len(new) else before[labels[before] == label])
        real, fake = (decision_values(snapshot, positions, weights) for positions in parts)
        truth = np.repeat([REAL, FAKE], [len(real), len(fake)])
        windows.append(
            HoldoutWindow(
                date=day.isoformat(),
                sources=tuple(sorted({names[g][1] for g in now})),
                generators=len(by_class[FAKE]),
                n=len(truth),
                auc=auc(truth, np.concatenate([real, fake])) or 0.0,
                accuracy=float(((real <= threshold).mean() + (fake > threshold).mean()) / 2),
                past_auc=auc(labels[before], seen) or 0.0,
            )
        )
    if not windows:
        raise NotEnoughRows(
            f"no day of {len(days)} has both real and fake rows before it; give two generators their dates, and leave "
            f"out that of a real source which was always there"
        )
    return TemporalHoldout(tuple(windows), undated, always, unknown, snapshot.number)
