"""Describe a store in figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...core.atomic_files import read_json
from ..named_vectors import open_named_vectors, vector_names
from ..records import LABELS, distinct
from ..snapshot import Snapshot
from ..space import Space
from ..store import Store


@dataclass(frozen=True)
class SourceInfo:
    """One source's rows by label."""

    name: str
    rows: int
    real: int
    fake: int
    unknown: int


@dataclass(frozen=True)
class ArtifactInfo:
    """An index or a head: made from the rows of a snapshot."""

    name: str
    snapshot: int | None  # None where it does not say
    stale: bool  # the store has other rows by now
    bytes: int


@dataclass(frozen=True)
class NamedVectorsInfo:
    """A second vector of the rows."""

    name: str
    encoder: str
    dim: int
    missing: int  # rows that have none yet


@dataclass(frozen=True)
class StoreInfo:
    """A store in figures."""

    path: str
    space: Space
    snapshot: int
    created: str  # of the snapshot
    snapshots: int
    rows: int
    labels: dict[str, int]  # "real", "fake", "unknown" -> rows
    sources: tuple[SourceInfo, ...]  # by name
    categories: int
    shards: int
    deleted_rows: int  # still in the shards; `compact` takes them out
    bytes: int  # of the shards
    indexes: tuple[ArtifactInfo, ...]
    heads: tuple[ArtifactInfo, ...]
    columns: tuple[NamedVectorsInfo, ...] = ()  # vectors beside the store's own

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class SnapshotInfo:
    """One snapshot as the history tells it."""

    number: int
    rows: int
    created: str
    note: str


@dataclass(frozen=True)
class History:
    """The snapshots there are, oldest first."""

    snapshots: tuple[SnapshotInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def info(store: Store) -> StoreInfo:
    """A store's figures; raises what opening it raises."""
    snapshot = store.snapshot()
    manifest = snapshot.manifest
    labels = snapshot.column("labels")
    names, source_of, _ = distinct(snapshot.column("sources"))
    by_label = {label: np.bincount(source_of[labels == label], minlength=len(names)) for label in LABELS}
    return StoreInfo(
        path=str(store.folder),
        space=snapshot.space,
        snapshot=snapshot.number,
        created=manifest.created,
        snapshots=len(store.snapshots()),
        rows=len(snapshot),
        labels={name: int((labels == label).sum()) for label, name in LABELS.items()},
        sources=tuple(
            SourceInfo(name, sum(counts), *counts)
            for name, *counts in zip(names.tolist(), *(by_label[label].tolist() for label in LABELS), strict=True)
        ),
        categories=int(np.count_nonzero(distinct(snapshot.column("categories"))[0] != "")),
        shards=len(manifest.parts),
        deleted_rows=sum(part.deleted_rows for part in manifest.parts),
        bytes=sum(part.size for part in manifest.parts),
        indexes=_made(store.folder / "indexes", snapshot.number),
        heads=_made(store.folder / "heads", snapshot.number),
        columns=tuple(_column(snapshot, name) for name in vector_names(store.folder)),
    )


def history(store: Store) -> History:
    """The snapshots that can be gone back to, oldest first."""
    return History(tuple(SnapshotInfo(m.number, m.rows, m.created, m.note) for m in store.snapshots()))


def _column(snapshot: Snapshot, name: str) -> NamedVectorsInfo:
    column = open_named_vectors(snapshot.folder, name)
    return NamedVectorsInfo(name, column.space.encoder, column.space.dim, int(column.missing(snapshot).sum()))


def _made(folder: Path, now: int) -> tuple[ArtifactInfo, ...]:
    made = []
    for one in sorted(path for path in folder.glob("*") if path.is_dir()):
        number = _snapshot_named_in(one)
        size = sum(path.stat().st_size for path in one.rglob("*") if path.is_file())
        made.append(ArtifactInfo(one.name, number, number != now, size))
    return tuple(made)


def _snapshot_named_in(folder: Path) -> int | None:
    for path in sorted(folder.glob("*.json")):
        try:
            return int(read_json(path)["snapshot"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            continue
    return None
