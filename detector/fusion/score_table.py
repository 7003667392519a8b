"""A CSV with the scores of several detectors, a row per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from ...core.atomic_files import write_text
from ...errors import SourceError
from ...store.records import FAKE, REAL
from ..calibration import probability
from .curves import Labels, Signals
from .fusion import FusedTable

LABELS = {"0": REAL, "real": REAL, "1": FAKE, "fake": FAKE, "": -1, "-1": -1, "unknown": -1}
WRITTEN = ("fused_score", "fused_probability", "fused_answer")


@dataclass(frozen=True)
class ScoreTable:
    """Signals and labels of a CSV. Make it with `read`."""

    frame: Any  # pandas.DataFrame, every column of the file
    texts: Any  # the same cells as they are written in the file
    names: tuple[str, ...]  # columns of the signals
    labels: Labels  # (rows,) 0 real, 1 fake, -1 unknown
    skipped: tuple[str, ...]  # numeric columns that are no scores, as each row has another whole number

    @classmethod
    def read(cls, path: Path, label: str, signals: Sequence[str] = ()) -> ScoreTable:
        """Read a CSV with a header.

        Parameters
        ----------
        label : column of the truth: 0 or real, 1 or fake; empty, -1 or unknown for a row that is to be judged
        signals : columns of the scores, higher leans fake (default: all numeric columns but row numbers)

        Raises
        ------
        SourceError
            The file cannot be read, lacks a column, or a cell is neither a number nor empty or no label.
        """
        import pandas
        from pandas.api.types import is_numeric_dtype

        try:
            texts = pandas.read_csv(path, dtype=str, keep_default_na=False)
            frame = pandas.read_csv(StringIO(texts.to_csv(index=False)), dtype={label: str})
        except (OSError, ValueError) as e:  # those of pandas are ValueErrors, and so are those of decoding
            raise SourceError(f"{path} cannot be read as a CSV with a header ({e})") from e
        if missing := [name for name in (label, *signals) if name not in frame]:
            columns = ", ".join(map(str, frame.columns))
            raise SourceError(f"{path} has no column {missing[0]}; its columns are {columns}")
        if written := [name for name in WRITTEN if name in frame]:
            raise SourceError(f"{path} has the column {written[0]} of an earlier fusion; fuse the original table")
        skipped: tuple[str, ...] = ()
        if not signals:
            numeric = [name for name in frame if name != label and is_numeric_dtype(frame[name])]
            skipped = tuple(name for name in numeric if _is_row_number(frame[name].to_numpy()))
            signals = [name for name in numeric if name not in skipped]
        if not signals:
            raise SourceError(f"{path} has no numeric column beside {label}; a fusion needs columns of scores")
        for name in signals:
            if not is_numeric_dtype(frame[name]):
                bad = pandas.to_numeric(frame[name], errors="coerce").isna() & frame[name].notna()
                raise SourceError(
                    f"{path}: {frame[name][bad].iloc[0]!r} in the column {name}, row {int(bad.idxmax()) + 1}, is not a "
                    f"number; leave the cell empty or the column out"
                )
        return cls(frame, texts, tuple(signals), _labels(frame[label], path), skipped)

    @property
    def signals(self) -> Signals:
        """(rows, signals) float64, NaN for an empty cell."""
        return np.asarray(self.frame[list(self.names)].to_numpy(np.float64))

    def write(self, path: Path, fused: FusedTable) -> None:
        """Write the table, its cells unchanged, with three columns: fused score, probability of fake, and answer."""
        numbers = fused.scores, probability(fused.scores)
        scores = [[f"{x:.6g}" if np.isfinite(x) else "" for x in column] for column in numbers]
        frame = self.texts.assign(**dict(zip(WRITTEN, (*scores, fused.answers), strict=True)))
        write_text(path, frame.to_csv(index=False))


def _labels(column: Any, path: Path) -> Labels:
    texts = column.fillna("").str.strip().str.lower().str.removesuffix(".0")
    if (bad := ~texts.isin(list(LABELS))).any():
        raise SourceError(
            f"{path}: {column[bad].iloc[0]!r} in the column {column.name}, row {int(bad.idxmax()) + 1}, is no label; "
            f"write 0 or real, 1 or fake, or leave it empty"
        )
    return np.asarray(texts.map(LABELS).to_numpy(np.int64))


def _is_row_number(column: Any) -> bool:
    """True for whole numbers of which no two are equal: rows sorted by class would make them a perfect score."""
    return np.issubdtype(column.dtype, np.integer) and len(np.unique(column)) == len(column) > 2
