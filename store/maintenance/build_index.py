"""Build k-NN indexes: choose the kind, cluster the rows into cells, and measure how much to read for which recall.

New rows are added to an index as long as its cells fit them; after too much drift it is rebuilt.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...core.atomic_files import TEMPORARY, disk_errors, flush, make_folder, read_json, temporary_name
from ...core.locking import WriterLock, writer_lock
from ...core.npy_file import write_npy
from ...errors import Locked, StoreError
from ..concatenated import concatenated_snapshot, stored_vector_files
from ..manifest import Manifest
from ..records import Ids, Mask, Vectors
from ..rooms import INDEX_FILES, remove_folder
from ..search.ann_index import (
    AHEADS,
    FILE,
    NAME,
    Kind,
    LabelIndexInfo,
    all_folders,
    checksums,
    folder_name,
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
from ..space import MAIN, Space
from ..store import Store

EXACT_ROWS = 50_000  # up to here a label gets no index: exact search takes a few milliseconds
PLAIN_ROWS = 4_000_000  # up to here an index holds float16; beyond, quantized vectors take a sixth of the memory
ROOM = "indexes"  # the folder of a store that holds its indexes
QUERIES = 200  # at most; of the store's own vectors, to measure recall
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
    vectors: tuple[str, ...] = (MAIN,)  # names of the vectors that it searches
    seconds: dict[str, float] = field(default_factory=dict)  # by step

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "labels": [label.to_dict() for label in self.labels]}


@dataclass(frozen=True)
class Drift:
    """How far an index has drifted from a newer snapshot."""

    rows: int  # of the label in the snapshot
    indexed: int  # of these, rows in the index
    dead: int  # rows in the index that the snapshot no longer has
    trained_rows: int  # when the cells were made
    misfit: float  # 1 - fit
    added_misfit: float  # of all rows added since the cells were made, including those to be added now

    def verdict(self) -> tuple[Literal["fresh", "add", "rebuild"], str]:
        """Recommended action, and why."""
        if self.dead > 0.2 * (self.indexed + self.dead):
            return "rebuild", f"{self.dead} of {self.indexed + self.dead} indexed rows were deleted"
        if self.rows > 2 * self.trained_rows:
            return "rebuild", f"the cells were made for {self.trained_rows} rows, and there are {self.rows} now"
        if self.added_misfit > 1.2 * self.misfit:
            return (
                "rebuild",
                f"new rows are {self.added_misfit / self.misfit:.2f} × as far from their cells as the old ones",
            )
        if self.rows > self.indexed:
            return "add", f"{self.rows - self.indexed} new rows"
        return "fresh", "every row is indexed"


def build_index(
    store: Store, kind: Kind = "auto", *, vectors: Sequence[str] = (MAIN,), seed: int = 0, anew: bool = False
) -> BuildReport:
    """Bring the indexes of some vectors up to the newest snapshot: add new rows, or rebuild after drift.

    Readers can keep searching with the old index during and after the build.

    Parameters
    ----------
    kind : kind of the indexes (default: by the number of rows)
    vectors : names of the stored vectors, concatenated as a head reads them; each combination has an index of its own
    seed : of the clustering and of the choice of queries
    anew : rebuild every index

    Raises
    ------
    Locked
        Another process is building.
    StoreError, NotEnoughRows
        There are no vectors of these names, or a row has none.
    """
    snapshot, clock = concatenated_snapshot(store.snapshot(), vectors, unit=True), _Clock()
    built_from = BuiltFrom(snapshot.vector_names, snapshot.number, snapshot.space, snapshot.vector_files)
    with disk_errors(f"create {store.folder / 'indexes'}"):
        make_folder(store.folder / ROOM)
    with writer_lock(store.folder / ROOM) as lock:
        _remove_begun(store.folder)
        previous = None if anew else _open_previous(snapshot)
        labels = snapshot.column("labels")
        kinds = {int(label): kind_for(int((labels == label).sum()), kind) for label in np.unique(labels)}
        indexes, actions = [], []
        for label, label_kind in kinds.items():
            if label_kind == "exact":
                continue
            old = next((old for old in previous or [] if (old[0].label, old[0].kind) == (label, label_kind)), None)
            index, action = _extend(snapshot, label, old, clock) if old else (None, ("rebuild", "there was no index"))
            if index is None:
                index = _build(snapshot, label, label_kind, clock, np.random.default_rng([seed, label + 1]))
            indexes.append(index)
            actions.append(action)
        if previous is not None and len(previous) == len(indexes) and all(action == "fresh" for action, _ in actions):
            infos = tuple(label_info for label_info, _, _ in indexes)
            return BuildReport("fresh", "every row is indexed", snapshot.number, infos, vectors=built_from.names)
        infos, size = _write(lock, built_from, indexes, clock)
        rebuilt = any(action == "rebuild" for action, _ in actions) or not indexes
        reasons = sorted({why for action, why in actions if action != "fresh"})
        why = "; ".join(reasons) or "few rows, searched exactly"
        done: Literal["built", "added"] = "built" if rebuilt else "added"
        return BuildReport(done, why, snapshot.number, infos, size, built_from.names, clock.seconds)


@dataclass(frozen=True)
class BuiltFrom:
    """The vectors that an index is built from."""

    names: tuple[str, ...]
    snapshot: int
    space: Space
    files: Mapping[int, str]  # shard number -> checksums of its files of named vectors


VectorFiles = dict[tuple[str, ...], dict[int, str]]  # names of vectors -> shard number -> checksums of its files


def indexed_files(store: Path, manifest: Manifest) -> VectorFiles:
    """The files of a snapshot whose vectors have an index, for `renumber`."""
    return {names: _files(store, names, manifest) for _, names in all_folders(store)}


def _files(store: Path, names: Sequence[str], manifest: Manifest) -> dict[int, str]:
    try:
        return stored_vector_files(store, names, manifest)
    except StoreError:
        return {}


def renumber(store: Path, manifest: Manifest, old: Ids, new: Ids, files: VectorFiles) -> None:
    """Replace row ids in the indexes after `compact`: `old` (ascending) became `new` in the snapshot of `manifest`.

    An unreadable index is skipped. If an index is being built, nothing is changed; it will be built again.

    Parameters
    ----------
    files : what `indexed_files` returned before the rows were moved
    """
    if all_folders(store):
        with suppress(Locked), writer_lock(store / ROOM) as lock:
            _remove_begun(store)
            _renumber(lock, manifest, old, new, files)


def _remove_begun(store: Path) -> None:
    """Remove what is left of builds and of earlier indexes. A build that still runs, but lost its lock, fails then."""
    for leftover in (store / ROOM).glob(f"{NAME}*{TEMPORARY}"):
        remove_folder(store, ROOM, leftover.name, own=INDEX_FILES)


def _renumber(lock: WriterLock, manifest: Manifest, old: Ids, new: Ids, files: VectorFiles) -> None:
    store = lock.folder.parent
    for folder, names in all_folders(store):
        try:
            space = Space.from_dict(read_json(folder / "index.json")["space"])
            # not memory-mapped: FAISS would write a mapped index as a reference to its file
            labels = open_index(folder, space, files.get(names, {}), mapped=False, whole=True).labels
        except (OSError, ValueError, KeyError, TypeError, StoreError):
            continue
        renumbered = []
        for label_info, cells, ids in labels:
            position = np.minimum(np.searchsorted(old, ids), len(old) - 1)
            renumbered.append((label_info, cells, np.where(old[position] == ids, new[position], ids)))
        built_from = BuiltFrom(names, manifest.number, space, _files(store, names, manifest))
        _write(lock, built_from, renumbered, _Clock())


LabelIndex = tuple[LabelIndexInfo, IvfIndex, Ids]  # the ids of the indexed rows, by ordinal


def _open_previous(snapshot: Snapshot) -> list[LabelIndex] | None:
    """The newest readable index, in memory and fully checked."""
    for folder in reversed(folders(snapshot.folder, snapshot.vector_names)):
        try:
            return open_index(folder, snapshot.space, snapshot.vector_files, mapped=False, whole=True).labels
        except StoreError:
            continue
    return None


def _extend(
    snapshot: Snapshot, label: int, old: LabelIndex, clock: _Clock
) -> tuple[LabelIndex | None, tuple[str, str]]:
    """Add the new rows to a label's index; None if it should be rebuilt."""
    label_info, cells, ids = old
    positions = np.flatnonzero(snapshot.column("labels") == label)
    unindexed = positions[~np.isin(snapshot.ids[positions], ids)]
    with clock("read"):
        vectors = snapshot.vectors(unindexed, np.float16)
    with clock("assign"):
        cell_of, fit = nearest_cell(vectors, cells.centres)
    added_before = label_info.rows - label_info.trained_rows
    added = added_before + len(unindexed)
    added_fit = (label_info.added_fit * added_before + fit * len(unindexed)) / added if added else label_info.fit
    live = len(positions) - len(unindexed)
    drift = Drift(
        rows=len(positions),
        indexed=live,
        dead=label_info.rows - live,
        trained_rows=label_info.trained_rows,
        misfit=1 - label_info.fit,
        added_misfit=1 - added_fit,
    )
    action = drift.verdict()
    if action[0] == "rebuild":
        return None, action
    with clock("add"):
        extended = cells.add(vectors, cell_of)
    label_info = replace(label_info, rows=len(extended), added_fit=added_fit)
    return (label_info, extended, np.concatenate([ids, snapshot.ids[unindexed]])), action


def _build(snapshot: Snapshot, label: int, kind: Kind, clock: _Clock, rng: np.random.Generator) -> LabelIndex:
    positions = np.flatnonzero(snapshot.column("labels") == label)
    count = cells_for(len(positions))
    with clock("read"):
        vectors = snapshot.vectors(positions, np.float16)
    with clock("cluster"):
        shuffled = rng.permutation(len(positions))
        # the cells' fit is measured with the other rows, which stand for new ones
        drawn = min(count * SAMPLE_PER_CELL, (len(positions) + 1) // 2)
        sample = vectors[np.sort(shuffled[:drawn])].astype(np.float32)
        centres = centres_of(sample, count, rng)
    with clock("assign"):
        cell_of, _ = nearest_cell(vectors, centres)
        _, fit = nearest_cell(vectors[np.sort(shuffled[drawn:][:PIECE_ROWS])], centres)
    with clock("add"):
        cells = IvfIndex.empty(centres, sample, quantized=kind == "quantized").add(vectors, cell_of)
    with clock("measure"):
        efforts, aheads, recall = _measure(snapshot, positions, vectors, cells, rng)
    rows = len(positions)
    label_info = LabelIndexInfo(label, kind, rows, rows, count, fit, fit, efforts, aheads, recall, {})
    return label_info, cells, snapshot.ids[positions]


def _measure(
    snapshot: Snapshot, positions: Positions, vectors: Vectors, cells: IvfIndex, rng: np.random.Generator
) -> tuple[dict[int, ProbeBudget], tuple[float, ...], dict[str, float]]:
    """Measure efforts, recall of quantized rows, and recall by share of allowed rows. Queries are rows of any label."""
    import torch

    query_positions = np.sort(rng.permutation(len(snapshot))[: int(np.clip(2e8 / len(positions), 50, QUERIES))])
    queries = snapshot.vectors(query_positions)
    similarity = np.empty((len(queries), len(positions)), np.float32)
    query_tensor = torch.from_numpy(queries)
    for start in range(0, len(positions), 16_384):
        chunk = torch.from_numpy(vectors[start : start + 16_384]).float()
        similarity[:, start : start + 16_384] = (query_tensor @ chunk.T).numpy()
    own = np.searchsorted(positions, query_positions)
    is_own = positions[np.minimum(own, len(positions) - 1)] == query_positions
    similarity[is_own, own[is_own]] = -np.inf  # a row is not its own neighbour
    truth = GroundTruth(similarity)
    efforts = dict(zip(MEASURED_K, measure(cells, queries, truth, rng, MEASURED_K), strict=True))
    aheads = _aheads(cells, queries, truth) if cells.quantized else ()
    rows = len(positions)
    label_info = LabelIndexInfo(0, "plain", rows, rows, len(cells.centres), 0, 0, efforts, aheads, {}, {})
    recall = {}
    for share in (1.0, 0.5, 0.1, 0.01, 0.001):
        allowed = None if share == 1 else rng.random(len(cells)) < share
        count = len(cells) if allowed is None else int(allowed.sum())
        if count >= 10:
            effort = label_info.effort(10, 0.99, share)
            candidates = cells.search(queries, label_info.ahead(11, 0.99), effort, AllowedRows(cells, allowed))
            recall[f"{share:g}"] = _recall(truth, candidates, allowed)
    return efforts, aheads, recall


def _recall(truth: GroundTruth, candidates: Ordinals, allowed: Mask | None) -> float:
    """recall@10 after the candidates are compared exactly."""
    nearest = truth.nearest(10, allowed)
    tenth = truth.similarity_of(nearest[:, -1:])
    similarity = truth.similarity_of(candidates)
    hits = ((similarity >= tenth) & np.isfinite(similarity)).sum(axis=1)  # at least as near as the tenth
    relevant = np.isfinite(truth.similarity_of(nearest)).sum(axis=1)
    return round(float(np.minimum(hits, relevant).sum() / relevant.sum()), 4)


def _aheads(cells: IvfIndex, queries: Vectors, truth: GroundTruth) -> tuple[float, ...]:
    sample = slice(0, 64)  # each query reads all rows
    candidates = cells.search(queries[sample], min(AHEADS[-1], len(cells)), len(cells))
    return tuple(_recall(truth[sample], candidates[:, : n + 1], None) for n in AHEADS)


def _write(
    lock: WriterLock, built_from: BuiltFrom, indexes: list[LabelIndex], clock: _Clock
) -> tuple[tuple[LabelIndexInfo, ...], int]:
    """Replace the old index. Both stay complete, or get a name that searches ignore. Also returns the size in bytes."""
    store = lock.folder.parent
    final = lock.folder / folder_name(built_from.names, built_from.snapshot)
    temporary = _unused_name(final)
    try:
        with clock("write"), _temporary_folder(temporary):
            labels = tuple(_save(temporary, index) for index in indexes)
            content = {
                "snapshot": built_from.snapshot,
                "space": built_from.space.to_dict(),
                "labels": [label.to_dict() for label in labels],
                "files": {str(shard): digest for shard, digest in built_from.files.items()},
            }
            FILE.write(temporary / "index.json", content)
            size = sum(path.stat().st_size for path in temporary.iterdir())
            lock.require_held()
            if final.exists():  # rebuilt for the same snapshot
                final.rename(_unused_name(final))
            temporary.rename(final)
            flush(final.parent)
            for old in folders(store, built_from.names):
                if old != final:
                    old.rename(_unused_name(old))
            # Else an index could get its name back after a power failure, but not its files.
            flush(final.parent)
            _remove_begun(store)
    except (OSError, RuntimeError) as e:
        raise StoreError(
            f"could not write the index {final} ({e}); searches use the previous index or stay exact"
        ) from e
    return labels, size


def _unused_name(folder: Path) -> Path:
    """A name that searches ignore, for an index that is being written or removed."""
    return folder.with_name(temporary_name(folder.name))


def _save(folder: Path, index: LabelIndex) -> LabelIndexInfo:
    label_info, cells, ids = index
    stem = str(label_info.label)
    bytes_of_rows = cells.save(folder / f"{stem}.faiss")
    write_npy(folder / f"{stem}.ids.npy", ids.astype("<i8"))
    write_npy(folder / f"{stem}.cells.npy", cells.cell_of.astype("<u2" if label_info.cells <= 65_536 else "<u4"))
    files = {}
    for name, tail in ((f"{stem}.faiss", bytes_of_rows), (f"{stem}.ids.npy", 0), (f"{stem}.cells.npy", 0)):
        flush(folder / name)
        size = (folder / name).stat().st_size
        files[name] = (size, size - tail, *checksums(folder / name, size - tail))
    return replace(label_info, files=files)


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[None]:
    """Create an empty folder, and remove it at the end unless it was renamed."""
    folder.mkdir(parents=True)
    try:
        yield
    finally:
        remove_folder(folder.parent, folder.name, own=INDEX_FILES)


class _Clock:
    """Seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[step] = round(self.seconds.get(step, 0.0) + time.monotonic() - started, 3)
