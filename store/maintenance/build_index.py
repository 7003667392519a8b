"""Making k-NN indexes: which kind for how many rows, cells around centres, and how much must be read for which recall.

An index is added to while its cells fit, and built anew where they have drifted.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ...core.atomic_files import TEMPORARY, disk_errors, flush, make_folder, read_json
from ...core.locking import writer_lock
from ...errors import Locked, StoreError
from ..records import Mask, Vectors
from ..search.ann_index import (
    AHEADS,
    FILE,
    NAME,
    Kind,
    LabelIndexInfo,
    checksums,
    folders,
    open_index,
)
from ..search.ivf import (
    PIECE_ROWS,
    SAMPLE_PER_CELL,
    AllowedRows,
    GroundTruth,
    IvfIndex,
    Ordinals,
    ProbeBudget,
    cells_for,
    centres_of,
    measure,
    nearest_cell,
)
from ..search.matches import Positions
from ..snapshot import Snapshot
from ..space import Space
from ..store import Store

EXACT_ROWS = 50_000  # up to here a label's rows are searched exactly: a few milliseconds
PLAIN_ROWS = 4_000_000  # up to here as float16, beyond quantised, which takes a sixth of the memory
GONE = f".gone{TEMPORARY}"  # what an index that is being removed ends in
QUERIES = 200  # of the store's own vectors, to measure recall with
MEASURED_K = (10, 100)


def kind_for(rows: int, kind: Kind = "auto") -> Kind:
    """Choose the kind of index for this many rows of one label."""
    if kind != "auto":
        return kind
    return "exact" if rows <= EXACT_ROWS else "plain" if rows <= PLAIN_ROWS else "quantized"


@dataclass(frozen=True)
class BuildReport:
    """Report of `build_index`."""

    action: Literal["fresh", "added", "built"]
    why: str
    snapshot: int
    labels: tuple[LabelIndexInfo, ...]
    bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # by part

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "labels": [label.to_dict() for label in self.labels]}


@dataclass(frozen=True)
class Drift:
    """Age of an index compared with a newer snapshot."""

    rows: int  # of the label now
    indexed: int  # of these
    dead: int  # in the index, no more in the snapshot
    trained_rows: int
    misfit: float  # 1 - fit
    added_misfit: float  # of all rows that were or would be added since the cells were made

    def verdict(self) -> tuple[Literal["fresh", "add", "rebuild"], str]:
        """Recommended action, and why."""
        if self.dead > 0.2 * (self.indexed + self.dead):
            return "rebuild", f"{self.dead} of {self.indexed + self.dead} indexed rows are gone"
        if self.rows > 2 * self.trained_rows:
            return "rebuild", f"the cells were made for {self.trained_rows} rows, there are {self.rows}"
        if self.added_misfit > 1.2 * self.misfit:
            return "rebuild", f"new rows lie {self.added_misfit / self.misfit:.2f} × as far from their cells as the old"
        if self.rows > self.indexed:
            return "add", f"{self.rows - self.indexed} new rows"
        return "fresh", "every row is in it"


def build_index(store: Store, kind: Kind = "auto", *, seed: int = 0, anew: bool = False) -> BuildReport:
    """Bring the index up to the newest snapshot: add what is new, or build anew where it has drifted (or if asked).

    Readers keep searching with the old one meanwhile, and may go on holding it.

    Raises
    ------
    Locked
        Another process is building.
    """
    snapshot, clock = store.snapshot(), _Clock()
    with disk_errors(f"make {store.folder / 'indexes'}"):
        make_folder(store.folder / "indexes")
    with writer_lock(store.folder / "indexes"):
        before = None if anew else _open_for_adding(snapshot)
        label_of = snapshot.column("labels")
        kinds = {int(label): kind_for(int((label_of == label).sum()), kind) for label in np.unique(label_of)}
        made, actions = [], []
        for label, wanted in kinds.items():
            if wanted == "exact":
                continue
            old = next((one for one in before or [] if (one[0].label, one[0].kind) == (label, wanted)), None)
            grown, action = _grow(snapshot, label, old, clock) if old else (None, ("rebuild", "there was none"))
            if grown is None:
                grown = _make(snapshot, label, wanted, clock, np.random.default_rng([seed, label + 1]))
            made.append(grown)
            actions.append(action)
        if before is not None and len(before) == len(made) and all(what == "fresh" for what, _ in actions):
            return BuildReport("fresh", "every row is in it", snapshot.number, tuple(one for one, _, _ in made))
        labels, size = _write(store.folder, snapshot.number, snapshot.space, made, clock)
        rebuilt = any(what == "rebuild" for what, _ in actions) or not made
        why = "; ".join(sorted({why for what, why in actions if what != "fresh"})) or "few rows: searched exactly"
        return BuildReport("built" if rebuilt else "added", why, snapshot.number, labels, size, clock.seconds)


def renumber(store: Path, number: int, old: npt.NDArray[np.int64], new: npt.NDArray[np.int64]) -> None:
    """After rows were moved: the ids `old`, ascending, are `new` in snapshot `number`. An unreadable index is left.

    So is one that is being built at the moment; it will be built again.
    """
    if folders(store):
        with suppress(Locked), writer_lock(store / "indexes"):
            _renumber(store, number, old, new)


def _renumber(store: Path, number: int, old: npt.NDArray[np.int64], new: npt.NDArray[np.int64]) -> None:
    for folder in folders(store):
        try:
            space = Space.from_dict(read_json(folder / "index.json")["space"])
            labels = open_index(
                folder, space, mapped=False, whole=True
            ).labels  # FAISS would write a mapped one as a reference
        except (OSError, ValueError, KeyError, TypeError, StoreError):
            continue
        moved = []
        for label_info, cells, ids in labels:
            place = np.minimum(np.searchsorted(old, ids), len(old) - 1)
            moved.append((label_info, cells, np.where(old[place] == ids, new[place], ids)))
        _write(store, number, space, moved, _Clock())


Made = tuple[LabelIndexInfo, IvfIndex, npt.NDArray[np.int64]]


def _open_for_adding(snapshot: Snapshot) -> list[Made] | None:
    for folder in reversed(folders(snapshot.folder)):
        try:
            return open_index(folder, snapshot.space, mapped=False, whole=True).labels
        except StoreError:
            continue
    return None


def _grow(snapshot: Snapshot, label: int, old: Made, clock: _Clock) -> tuple[Made | None, tuple[str, str]]:
    """The label's index with the new rows in it, or None where it is better built anew."""
    label_info, cells, ids = old
    here = np.flatnonzero(snapshot.column("labels") == label)
    fresh = here[~np.isin(snapshot.ids[here], ids)]
    with clock("read"):
        vectors = snapshot.vectors(fresh, np.float16)
    with clock("assign"):
        cell_of, fit = nearest_cell(vectors, cells.centres)
    added_before = label_info.rows - label_info.trained_rows
    together = added_before + len(fresh)
    added_fit = (label_info.added_fit * added_before + fit * len(fresh)) / together if together else label_info.fit
    alive = len(here) - len(fresh)
    drift = Drift(len(here), alive, label_info.rows - alive, label_info.trained_rows, 1 - label_info.fit, 1 - added_fit)
    action = drift.verdict()
    if action[0] == "rebuild":
        return None, action
    with clock("add"):
        grown = cells.add(vectors, cell_of)
    changed = replace(label_info, rows=len(grown), added_fit=added_fit)
    return (changed, grown, np.concatenate([ids, snapshot.ids[fresh]])), action


def _make(snapshot: Snapshot, label: int, kind: Kind, clock: _Clock, rng: np.random.Generator) -> Made:
    here = np.flatnonzero(snapshot.column("labels") == label)
    count = cells_for(len(here))
    with clock("read"):
        vectors = snapshot.vectors(here, np.float16)
    with clock("cluster"):
        shuffled = rng.permutation(len(here))
        drawn = min(count * SAMPLE_PER_CELL, (len(here) + 1) // 2)  # the others tell how well the cells fit new rows
        sample = vectors[np.sort(shuffled[:drawn])].astype(np.float32)
        centres = centres_of(sample, count, rng)
    with clock("assign"):
        cell_of, _ = nearest_cell(vectors, centres)
        _, fit = nearest_cell(vectors[np.sort(shuffled[drawn:][:PIECE_ROWS])], centres)
    with clock("add"):
        cells = IvfIndex.empty(centres, sample, quantized=kind == "quantized").add(vectors, cell_of)
    with clock("measure"):
        efforts, aheads, recall = _measured(snapshot, here, vectors, cells, rng)
    label_info = LabelIndexInfo(label, kind, len(here), len(here), count, fit, fit, efforts, aheads, recall, {})
    return label_info, cells, snapshot.ids[here]


def _measured(
    snapshot: Snapshot, here: Positions, vectors: Vectors, cells: IvfIndex, rng: np.random.Generator
) -> tuple[dict[int, ProbeBudget], tuple[float, ...], dict[str, float]]:
    """Efforts, recall of quantised rows, and recall as it came out, with rows of any label asking."""
    import torch

    asking = np.sort(rng.permutation(len(snapshot))[: int(np.clip(2e8 / len(here), 50, QUERIES))])
    queries = snapshot.vectors(asking)
    similarity = np.empty((len(queries), len(here)), np.float32)
    wanted = torch.from_numpy(queries)
    for start in range(0, len(here), 16_384):
        piece = torch.from_numpy(vectors[start : start + 16_384]).float()
        similarity[:, start : start + 16_384] = (wanted @ piece.T).numpy()
    own = np.searchsorted(here, asking)
    is_own = here[np.minimum(own, len(here) - 1)] == asking
    similarity[is_own, own[is_own]] = -np.inf  # a row is no neighbour of its own
    truth = GroundTruth(similarity)
    efforts = dict(zip(MEASURED_K, measure(cells, queries, truth, rng, MEASURED_K), strict=True))
    aheads = _aheads(cells, queries, truth) if cells.quantized else ()
    label_info = LabelIndexInfo(0, "plain", len(here), len(here), len(cells.centres), 0, 0, efforts, aheads, {}, {})
    recall = {}
    for share in (1.0, 0.5, 0.1, 0.01, 0.001):
        allowed = None if share == 1 else rng.random(len(cells)) < share
        count = len(cells) if allowed is None else int(allowed.sum())
        if count >= 10:
            effort = label_info.effort(10, 0.99, share)
            found = cells.search(queries, label_info.ahead(11, 0.99), effort, AllowedRows(cells, allowed))
            recall[f"{share:g}"] = _recall(truth, found, allowed)
    return efforts, aheads, recall


def _recall(truth: GroundTruth, found: Ordinals, allowed: Mask | None) -> float:
    """recall@10 of candidates that are compared exactly."""
    true = truth.nearest(10, allowed)
    tenth = truth.similarity_of(true[:, -1:])
    scores = truth.similarity_of(found)
    right = ((scores >= tenth) & np.isfinite(scores)).sum(axis=1)  # as near as the tenth
    there = np.isfinite(truth.similarity_of(true)).sum(axis=1)
    return round(float(np.minimum(right, there).sum() / there.sum()), 4)


def _aheads(cells: IvfIndex, queries: Vectors, truth: GroundTruth) -> tuple[float, ...]:
    some = slice(0, 64)  # every row of every cell is read for each
    found = cells.search(queries[some], min(AHEADS[-1], len(cells)), len(cells))
    return tuple(_recall(truth[some], found[:, : n + 1], None) for n in AHEADS)


def _write(
    store: Path, number: int, space: Space, made: list[Made], clock: _Clock
) -> tuple[tuple[LabelIndexInfo, ...], int]:
    """Put the new index in place of the old: each is there whole, or under a name that no search looks at."""
    final = store / "indexes" / f"{NAME}-{number:06d}"
    aside = final.with_suffix(TEMPORARY)
    try:
        with clock("write"), _emptied(aside):
            labels = tuple(_saved(aside, one) for one in made)
            content = {
                "snapshot": number,
                "space": space.to_dict(),
                "labels": [label.to_dict() for label in labels],
            }
            FILE.write(aside / "index.json", content)
            if final.exists():  # built anew for the same snapshot
                final.rename(_gone(final))
            aside.rename(final)
            flush(final.parent)
            for old in folders(store):
                if old != final:
                    old.rename(_gone(old))
            for left in final.parent.glob(f"*{TEMPORARY}"):  # of this one, and of builds that were killed
                shutil.rmtree(left, ignore_errors=True)
    except (OSError, RuntimeError) as e:
        raise StoreError(f"could not write the index {final} ({e}); searches stay exact or use the one before") from e
    return labels, sum(path.stat().st_size for path in final.iterdir())


def _gone(folder: Path) -> Path:
    """Path to which an index is moved before removal; leftovers of a killed process are removed first."""
    gone = folder.with_suffix(GONE)
    shutil.rmtree(gone, ignore_errors=True)
    return gone


def _saved(folder: Path, made: Made) -> LabelIndexInfo:
    label_info, cells, ids = made
    stem = str(label_info.label)
    tail = cells.save(folder / f"{stem}.faiss")
    np.save(folder / f"{stem}.ids.npy", ids.astype("<i8"))
    np.save(folder / f"{stem}.cells.npy", cells.cell_of.astype("<u2" if label_info.cells <= 65_536 else "<u4"))
    files = {}
    for name, rows in ((f"{stem}.faiss", tail), (f"{stem}.ids.npy", 0), (f"{stem}.cells.npy", 0)):
        flush(folder / name)
        size = (folder / name).stat().st_size
        files[name] = (size, size - rows, *checksums(folder / name, size - rows))
    return replace(label_info, files=files)


@contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    """A new folder, removed again unless it was renamed away."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Clock:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = round(self.seconds.get(part, 0.0) + time.monotonic() - began, 3)
