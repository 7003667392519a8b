"""Fit a detector: train a head on stored vectors and calibrate it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...core.atomic_files import disk_errors, make_folder, write_text
from ...core.locking import folder_lock
from ...errors import HeadError, StoreError
from ...store.concatenated import concatenated_snapshot
from ...store.named_vectors import MAIN
from ...store.rooms import require_unlinked
from ...store.snapshot import Snapshot
from ...store.store import Store
from ..calibration import Calibration
from ..head import DEFAULT, Head, head_folder
from ..patches.patch_head import PatchHead, remove_patch_head
from ..patches.patch_training import train_patch_head
from ..split import PARTS
from .attribution import AttributionReport, measure_attribution
from .calibrate import CalibrationReport, calibrate
from .train import TrainOptions, TrainReport, train


@dataclass(frozen=True)
class FitReport:
    """Report of a fit: how the detector was trained and calibrated, and where it is saved."""

    trained: TrainReport
    calibrated: CalibrationReport
    store: Path
    name: str = DEFAULT
    attribution: AttributionReport | None = None
    patches: PatchHead | None = None  # scores the patches of images, if the store has any

    @property
    def folder(self) -> Path:
        """The folder that `save` writes."""
        return head_folder(self.store, self.name)

    @property
    def sentences(self) -> list[str]:
        """Results of training and calibration, in sentences."""
        attribution = [self.attribution.sentence] if self.attribution else []
        patches = [self.patches.summary] if self.patches else []
        return [*self.trained.sentences, *attribution, *patches, *self.calibrated.sentences]

    def save(self) -> None:
        """Write head, calibration and report into `folder`, whole or not at all; an earlier head is replaced.

        Raises
        ------
        StoreError
            The disk is full, read-only or failing, or another process saves a head of this name.
        """
        require_unlinked(self.store)
        require_writable(self.folder)
        with disk_errors(f"create {self.folder}"):
            make_folder(self.folder)
        with folder_lock(self.folder):  # two heads saved at the same time would remove each other's files
            # in this order, so that at any moment the folder holds a head and its own calibration
            self.calibrated.calibration.save(self.folder)
            self.trained.head.save(self.folder)
            if self.patches:
                self.patches.save(self.folder)
            else:
                remove_patch_head(self.folder)  # an earlier head may have had one
            write_text(self.folder / "report.json", json.dumps(self.to_dict()) + "\n")
            try:
                Calibration.load(self.folder, Head.load(self.folder).digest)
            except HeadError as e:  # on a file system without locks
                raise StoreError(
                    f"another process has saved a head in {self.folder} at the same time; train again when it has ended"
                ) from e

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types: the report that is saved with the head."""
        trained = self.trained.to_dict()
        if self.attribution:
            trained["sentences"] = [*trained["sentences"], self.attribution.sentence]
            trained["attribution"] = self.attribution.to_dict()
        if self.patches:
            trained["sentences"] = [*trained["sentences"], self.patches.summary]
            trained["patches"] = self.patches.to_dict()
        return {**trained, "detector": self.calibrated.to_dict(), "saved": str(self.folder)}


def fit_detector(
    store: Store | Snapshot,
    name: str = DEFAULT,
    options: TrainOptions = TrainOptions(),
    *,
    vectors: Sequence[str] = (MAIN,),
    on_progress: Callable[[str], None] | None = None,
) -> FitReport:
    """Train a head on the newest snapshot and calibrate its verdicts; `FitReport.save` saves it. No image is read.

    Parameters
    ----------
    vectors : names of the stored vectors to train on, concatenated; "main" are those of the store's encoder
    on_progress : called with the name of each step

    Raises
    ------
    NotEnoughRows, HeadError
        Raised by `train` or `calibrate`.
    StoreError
        The head cannot be saved under this name, or the store has no vectors of these names.
    """
    require_writable(head_folder(store.folder, name))  # checked before training, which takes minutes
    snapshot = concatenated_snapshot(store if isinstance(store, Snapshot) else store.snapshot(), vectors)
    trained = train(snapshot, options, on_progress)
    calibrated = calibrate(snapshot, trained.head, options, on_progress=on_progress)
    attribution = measure_attribution(snapshot, trained.head, calibrated.calibration, options.seed)
    head = replace(trained.head, options={**trained.head.options, "columns": list(vectors)})
    parts_of_rows = head.split.parts_of(snapshot.column("keys"))
    parts = {part: np.flatnonzero(parts_of_rows == number) for part, number in PARTS.items()}
    patches = train_patch_head(snapshot, parts, options.seed, on_progress)
    return FitReport(replace(trained, head=head), calibrated, store.folder, name, attribution, patches)


def require_writable(folder: Path) -> None:
    """Raise StoreError if a folder, which need not exist yet, cannot be written to."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise StoreError(
            f"cannot write to {existing}, where the head would be saved; get write access or copy the store"
        )
