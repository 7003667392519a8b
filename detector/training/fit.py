"""Fit a detector: train a head on stored vectors and calibrate it."""

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
from ...store.snapshot import Snapshot
from ...store.store import Store
from ..head import DEFAULT, head_folder
from .calibrate import CalibrationReport, calibrate
from .train import TrainOptions, TrainReport, train


@dataclass(frozen=True)
class FitReport:
    """Report of a fit: how the detector was trained and calibrated, and where it is saved."""

    trained: TrainReport
    calibrated: CalibrationReport
    store: Path
    name: str = DEFAULT

    @property
    def folder(self) -> Path:
        """The folder that `save` writes."""
        return head_folder(self.store, self.name)

    @property
    def sentences(self) -> list[str]:
        """Results of training and calibration, in sentences."""
        return [*self.trained.sentences, *self.calibrated.sentences]

    def save(self) -> None:
        """Write head, calibration and report into `folder`, whole or not at all; an earlier head is replaced.

        Raises StoreError.
        """
        require_writable(self.folder)
        # in this order: at any moment there is a head and the calibration of that very head
        self.calibrated.calibration.save(self.folder)
        self.trained.head.save(self.folder)
        write_text(self.folder / "report.json", json.dumps(self.to_dict()) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """The report that is kept beside the head."""
        return {**self.trained.to_dict(), "detector": self.calibrated.to_dict(), "saved": str(self.folder)}


def fit_detector(
    store: Store | Snapshot,
    name: str = DEFAULT,
    options: TrainOptions = TrainOptions(),
    *,
    vectors: Sequence[str] = (MAIN,),
    on_progress: Callable[[str], None] | None = None,
) -> FitReport:
    """Train a head on the newest snapshot and calibrate its verdicts. No image is read; `FitReport.save` keeps it.

    Parameters
    ----------
    vectors : names of the stored vectors to learn from, concatenated; "main" is the store's own
    on_progress : called with the name of each step

    Raises
    ------
    NotEnoughRows, HeadError
        As `train` and `calibrate` raise them.
    StoreError
        The head could not be saved under this name, or there are no such vectors.
    """
    require_writable(head_folder(store.folder, name))  # before minutes of training
    snapshot = concatenated_snapshot(store if isinstance(store, Snapshot) else store.snapshot(), vectors)
    trained = train(snapshot, options, on_progress)
    calibrated = calibrate(snapshot, trained.head, options, progress=on_progress)
    head = replace(trained.head, options={**trained.head.options, "columns": list(vectors)})
    return FitReport(replace(trained, head=head), calibrated, store.folder, name)


def require_writable(folder: Path) -> None:
    """Raise StoreError where nothing can be written to a folder that may be yet to be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise StoreError(f"cannot write to {there}, where the head would be saved; give write access or copy the store")
