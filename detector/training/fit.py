"""A detector made and kept: a head and its calibration, trained from a store's vectors and saved into the store."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...core.atomic_files import write_text
from ...errors import StoreError
from ...store.concatenated import concatenated_snapshot
from ...store.named_vectors import MAIN
from ...store.store import Store
from ..head import head_folder
from .calibrate import CalibrationReport, calibrate
from .train import TrainOptions, TrainReport, train


@dataclass(frozen=True)
class FitReport:
    """What `Detector.load` reads from now on, and what it was measured to be worth."""

    trained: TrainReport
    calibrated: CalibrationReport
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """The report that is kept beside the head."""
        return {**self.trained.to_dict(), "detector": self.calibrated.to_dict(), "saved": str(self.folder)}


def fit_detector(
    store: Store,
    name: str = "default",
    options: TrainOptions = TrainOptions(),
    *,
    columns: Sequence[str] = (MAIN,),
    progress: Callable[[str], None] | None = None,
) -> FitReport:
    """Train a head from the newest snapshot, calibrate its verdicts and save both under a name. No image is read.

    Parameters
    ----------
    columns : the vectors to learn from, joined: "main" is the store's own
    progress : told what is being done, in a few words

    Raises
    ------
    NotEnoughRows, HeadError
        As `train` and `calibrate` have them.
    StoreError
        The head cannot be written, or there is no such column. A head that was there stays.
    """
    folder = head_folder(store.folder, name)
    require_writable(folder)  # before minutes of training
    snapshot = concatenated_snapshot(store.snapshot(), columns)
    trained = train(snapshot, options, progress)
    calibrated = calibrate(snapshot, trained.head, options, progress=progress)
    head = replace(trained.head, options={**trained.head.options, "columns": list(columns)})
    made = FitReport(replace(trained, head=head), calibrated, folder)
    calibrated.calibration.save(folder)
    head.save(folder)
    write_text(folder / "report.json", json.dumps(made.to_dict()) + "\n")
    return made


def require_writable(folder: Path) -> None:
    """Raise StoreError where nothing can be written to a folder that may be yet to be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise StoreError(f"cannot write to {there}, where the head would be saved; give write access or copy the store")
