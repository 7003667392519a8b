"""Import a head that others have trained: check its vectors, calibrate it on stored rows, save it like any head."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ...core.reading import read_bounded
from ...errors import HeadError, SpaceMismatch
from ...store.concatenated import concatenated_snapshot
from ...store.named_vectors import MAIN, open_named_vectors, vector_names
from ...store.snapshot import Snapshot
from ...store.store import Store
from ..head import DEFAULT, IMPORTED, Head, head_folder
from ..linear import LinearClassifier
from ..metrics import measure
from ..projection import Projection
from ..training.attribution import measure_attribution
from ..training.calibrate import calibrate
from ..training.fit import FitReport, require_writable
from ..training.train import TrainOptions, TrainReport, decision_values, make_split
from .arrays import LIMIT
from .head_format import HeadFormat, format_named, read_linear_head


def import_head(
    store: Store | Snapshot,
    path: Path,
    format_name: str,
    name: str = DEFAULT,
    *,
    vectors: str = "",
    fake_class: int = 1,
    any_encoder: bool = False,
    seed: int = 0,
    on_progress: Callable[[str], None] | None = None,
) -> FitReport:
    """Read a head, and calibrate it on a store's labelled rows; `FitReport.save` saves it. No image is read.

    Its decision value is the author's logit of the stored vector (which is float16), computed in float64. The split of
    the rows only decides which of them are the bank, calibrate and measure: the head is trained on none of them.

    Parameters
    ----------
    path : file with the weights, see `arrays.read_arrays`
    format_name : one of `head_format.FORMATS`
    name : name of the head in the store
    vectors : name of the stored vectors that it reads (default: those of the format that the store has)
    fake_class : number of the class that means fake, see `read_linear_head`
    any_encoder : accept vectors of an encoder that is not known, by its name, as the format's
    seed : of the split
    on_progress : called with the name of each step

    Raises
    ------
    HeadError
        The file is no head of this format, or the head cannot have this name.
    SpaceMismatch
        The vectors are not those that it reads: their dimension, length or encoder differs.
    StoreError, NotEnoughRows
        The store has no such vectors, or too few labelled rows to calibrate on, or cannot be written to.
    """
    on_progress = on_progress or (lambda step: None)
    require_writable(head_folder(store.folder, name))
    head_format = format_named(format_name)
    classifier = read_linear_head(path, head_format, fake_class=fake_class)
    snapshot = store if isinstance(store, Snapshot) else store.snapshot()
    vectors = vectors or _stored_view(snapshot, head_format)
    _require_fitting(classifier, head_format, snapshot, vectors, any_encoder=any_encoder)
    view = concatenated_snapshot(snapshot, (vectors,))
    options = TrainOptions(baselines=(), seed=seed)
    split, parts = make_split(view, options)
    described = {
        "classifier": IMPORTED,
        "title": head_format.title,
        "format": head_format.name,
        "file": path.name,
        "sha256": hashlib.sha256(read_bounded(path, LIMIT)).hexdigest(),
        "fake_class": fake_class,
        "columns": [vectors],
        "seed": seed,
    }
    head = Head(view.space, view.number, split, Projection("identity", {}), classifier, options=described)
    on_progress("scores")
    labels = view.column("labels")
    scores = {part: decision_values(head, view, positions) for part, positions in parts.items()}
    metrics = {part: measure(labels[parts[part]], scores[part], chosen=head.threshold) for part in parts}
    head = replace(head, metrics={part: measured.to_dict() for part, measured in metrics.items()})
    calibrated = calibrate(view, head, options, on_progress=on_progress)
    attribution = measure_attribution(view, head, calibrated.calibration, seed)
    return FitReport(TrainReport(head, metrics, {}, [], None), calibrated, store.folder, name, attribution)


def _require_fitting(
    classifier: LinearClassifier, head_format: HeadFormat, snapshot: Snapshot, vectors: str, *, any_encoder: bool
) -> None:
    """Raise SpaceMismatch unless the stored vectors are, as far as that can be seen, those that a head reads."""
    column = None if vectors == MAIN else open_named_vectors(snapshot.folder, vectors)
    space = snapshot.space if column is None else column.space
    head_format.require_space(space, f"the vectors {vectors}", any_encoder=any_encoder)
    if head_format.dim and column is not None and column.view and column.view.kind not in head_format.views:
        raise SpaceMismatch(
            f"the vectors {vectors} are the view {column.view.kind}, but a head of the format {head_format.name} reads "
            f"{' or '.join(head_format.views)}: {head_format.vectors}"
        )
    if space.dim != (dim := len(classifier.weights)):
        raise SpaceMismatch(
            f"the vectors {vectors} have {space.dim} dimensions ({space}), but the head reads {dim}; name those that "
            f"it was trained on with --vectors"
        )


def _stored_view(snapshot: Snapshot, head_format: HeadFormat) -> str:
    """The first of the format's vectors that a store has."""
    stored = [MAIN, *vector_names(snapshot.folder)]
    for name in head_format.views:
        if name in stored:
            return name
    raise HeadError(
        f"the store {snapshot.folder} has no vectors {' or '.join(head_format.views)} for a head of the format "
        f"{head_format.name}, only {', '.join(stored)}; it reads {head_format.vectors}. Name others with --vectors"
    )
