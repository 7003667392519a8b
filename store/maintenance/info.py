"""Describe a store: rows, labels, sources, snapshots, indexes and heads."""

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
    """Number of rows of one source, by label."""

    name: str
    rows: int
    real: int
    fake: int
    unknown: int


@dataclass(frozen=True)
class ArtifactInfo:
    """An index or a head, made from the rows of a snapshot."""

    name: str
    snapshot: int | None  # None if its files do not record one
    stale: bool  # made from another snapshot than the newest
    bytes: int


@dataclass(frozen=True)
class NamedVectorsInfo:
    """Additional vectors of the rows."""

    name: str
    encoder: str
    dim: int
    missing: int  # rows without one
    view: bool  # computed by the store's own encoder


@dataclass(frozen=True)
class StoreInfo:
    """Summary of a store."""

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
    deleted_rows: int  # still in the shards until `compact`
    bytes: int  # of the shards
    indexes: tuple[ArtifactInfo, ...]
    heads: tuple[ArtifactInfo, ...]
    columns: tuple[NamedVectorsInfo, ...] = ()  # named vectors, besides the main ones

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class SnapshotInfo:
    """One snapshot of the history."""

    number: int
    rows: int
    created: str
    note: str


@dataclass(frozen=True)
class History:
    """The snapshots of a store, oldest first."""

    snapshots: tuple[SnapshotInfo, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def info(store: Store) -> StoreInfo:
    """Summarise a store; raises the errors of opening it."""
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
        indexes=_artifacts(store.folder / "indexes", snapshot.number),
        heads=_artifacts(store.folder / "heads", snapshot.number),
        columns=tuple(_named_vectors_info(snapshot, name) for name in vector_names(store.folder)),
    )


def history(store: Store) -> History:
    """The snapshots to which `undo` can return, oldest first."""
    return History(tuple(SnapshotInfo(m.number, m.rows, m.created, m.note) for m in store.snapshots()))


def _named_vectors_info(snapshot: Snapshot, name: str) -> NamedVectorsInfo:
    vectors = open_named_vectors(snapshot.folder, name)
    missing = int(vectors.missing(snapshot).sum())
    return NamedVectorsInfo(name, vectors.space.encoder, vectors.space.dim, missing, vectors.view is not None)


def _artifacts(folder: Path, newest: int) -> tuple[ArtifactInfo, ...]:
    artifacts = []
    for artifact in sorted(path for path in folder.glob("*") if path.is_dir()):
        number = _snapshot_of(artifact)
        size = sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file())
        artifacts.append(ArtifactInfo(artifact.name, number, number != newest, size))
    return tuple(artifacts)


def _snapshot_of(folder: Path) -> int | None:
    for path in sorted(folder.glob("*.json")):
        try:
            return int(read_json(path)["snapshot"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            continue
    return None
