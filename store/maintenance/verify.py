"""Verify every byte of a store and report damage by file and rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...core.atomic_files import TEMPORARY, require_local
from ...core.locking import HELD, lease
from ...core.locking import NAME as LOCK
from ...errors import ClipfakeError, Damaged, NoStore, Unreadable
from ..concatenated import space_of, stored_vector_files
from ..manifest import Manifest, ShardRef, numbers, path_of, read_manifest
from ..named_vectors import FOLDER as COLUMNS_FOLDER
from ..named_vectors import find_damage, vector_names
from ..records import distinct
from ..retention import is_complete
from ..rooms import INDEX_FILES, NAMED_VECTORS, OWN_NAMES, foreign_entries, is_temporary, links, own_files
from ..search.ann_index import all_folders, open_index
from ..shard import Shard
from ..snapshot import Snapshot
from ..tombstones import read_tombstones

# a shard without these lacks only images to show and names of categories
OPTIONAL = ("thumbnails", "texts")
# The folders whose files are verified. Heads are verified when they are loaded.
EXAMINED = ("snapshots", "shards", "deleted", "indexes", COLUMNS_FOLDER)


@dataclass(frozen=True)
class Damage:
    """One problem of a file, or a note about it."""

    path: str  # relative to the store
    what: str
    rows: tuple[tuple[int, int], ...] = ()  # of the shard, [first, last + 1); () if it does not concern single rows
    lost: int = 0  # live rows that cannot be trusted


@dataclass(frozen=True)
class VerifyReport:
    """Report of `verify`."""

    path: str
    snapshot: int | None  # newest readable one
    rows: int
    files: int  # examined
    bytes: int
    problems: tuple[Damage, ...]  # damage, which `repair` removes
    notes: tuple[Damage, ...]  # not damage: leftovers, stale indexes

    @property
    def sound(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sound": self.sound}


def verify(folder: Path | str) -> VerifyReport:
    """Verify every byte of a store's rows, named vectors and indexes. Heads are verified when they are loaded.

    Raises
    ------
    NoStore
        The folder is not a store.
    Unreadable
        A file cannot be read now, so that nothing can be said about it.
    """
    folder = Path(folder)
    if linked := links(folder):
        return _linked_report(folder, linked)
    require_store(folder)
    manifests, problems = read_manifests(folder)
    notes: list[Damage] = []
    checked: dict[tuple[str, str], list[Damage]] = {}
    for manifest in reversed(manifests):  # newest first, then shards that only earlier snapshots use
        for part in manifest.parts:
            if (part.name, part.header) not in checked:
                checked[part.name, part.header] = check_shard(folder, manifest, part)
                problems += checked[part.name, part.header]
            problems += [p for p in check_deleted(folder, part) if p not in problems]
    rows, newest = 0, None
    if manifests:
        newest = manifests[-1]
        rows = newest.rows
        problems += _duplicate_keys(folder, newest) if not problems else []
        notes += [*_leftovers(folder, manifests), *_foreign(folder)]
        problems += [Damage(path, message) for path, message in find_damage(folder, manifests).items()]
        for index, names in all_folders(folder):
            index_problems, index_notes = _check_index(folder, index, names, newest)
            problems += index_problems
            notes += index_notes
    sizes = list(_sizes(folder))
    return VerifyReport(
        path=str(folder),
        snapshot=newest.number if newest else None,
        rows=rows,
        files=len(sizes),
        bytes=sum(sizes),
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _linked_report(folder: Path, linked: list[Path]) -> VerifyReport:
    """Report of a store with links, through which nothing is read."""
    message = (
        "is a symbolic link, which would lead reads, writes and removals outside the store; if the store is yours, "
        "replace it by what it leads to"
    )
    problems = tuple(Damage(_relative(folder, path), message) for path in linked)
    return VerifyReport(str(folder), None, 0, 0, 0, problems, ())


def require_store(folder: Path) -> None:
    """Raise NoStore if the folder is not a store."""
    require_local(folder, "a store")
    if not numbers(folder) and not (folder / "shards").is_dir():
        read_manifest(folder)  # raises NoStore


def read_manifests(folder: Path) -> tuple[list[Manifest], list[Damage]]:
    """Return the readable manifests, oldest first, and the damage of the others."""
    manifests, problems = [], []
    for number in numbers(folder):
        path = path_of(folder, number)
        try:
            manifest = read_manifest(folder, number)
            lease(path, manifest)  # keeps its files until they are verified
            manifests.append(manifest)
        except NoStore:
            pass
        except Unreadable:
            raise
        except ClipfakeError as e:
            problems.append(Damage(_relative(folder, path), str(e)))
        if not path.exists():  # removed by a writer meanwhile: start again
            return read_manifests(folder)
    return manifests, problems


def check_shard(folder: Path, manifest: Manifest, part: ShardRef) -> list[Damage]:
    """Return the damage of one shard; [] if every byte is as written.

    Either one problem that affects all rows, or up to two: one that affects none (thumbnails, texts) and one with the
    vectors of some rows.
    """
    path = folder / "shards" / part.name
    name, live_rows = _relative(folder, path), part.rows - part.deleted_rows
    shard = Shard(path)
    try:
        header = shard.header
        if (shard.size, header.rows, header.digest) != (part.size, part.rows, part.header):
            return [Damage(name, f"is not the shard listed in snapshot {manifest.number}", lost=live_rows)]
        if not header.space.same(manifest.space):
            return [
                Damage(name, f"holds vectors of {header.space}, but the store has {manifest.space}", lost=live_rows)
            ]
        corrupt = [dataset for dataset in header.checksums if dataset != "vectors" and not _is_intact(shard, dataset)]
        message = f"{', '.join(sorted(corrupt))}: checksum differs"
        if any(dataset.split("/")[0] not in OPTIONAL for dataset in corrupt):
            return [Damage(name, message, lost=live_rows)]
        problems = [Damage(name, message)] if corrupt else []
        damaged = shard.damaged_rows()
    except Unreadable:
        raise
    except ClipfakeError as e:
        return [Damage(name, str(e), lost=live_rows)]
    with suppress(Damaged):  # reported by check_deleted
        damaged = np.setdiff1d(damaged, read_tombstones(folder, part))  # deleted rows are not read
    if not len(damaged):
        return problems
    cuts = np.flatnonzero(np.diff(damaged) > 1) + 1
    ranges = tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(damaged, cuts))
    text = ", ".join(f"{first}..{last - 1}" for first, last in ranges)
    return [*problems, Damage(name, f"vectors of rows {text}: checksum differs", ranges, len(damaged))]


def check_deleted(folder: Path, part: ShardRef) -> list[Damage]:
    """Return the damage of a shard's list of deleted rows."""
    try:
        deleted = read_tombstones(folder, part)
    except Damaged as e:
        return [Damage(f"deleted/{part.deleted}", str(e), lost=part.rows - part.deleted_rows)]
    if len(deleted) == part.deleted_rows and (not len(deleted) or deleted.max() < part.rows):
        return []
    return [Damage(f"deleted/{part.deleted}", f"lists {len(deleted)} rows instead of {part.deleted_rows}")]


def _is_intact(shard: Shard, dataset: str) -> bool:
    try:
        shard.check(dataset)
    except Unreadable:
        raise
    except ClipfakeError:
        return False
    return True


def _duplicate_keys(folder: Path, manifest: Manifest) -> list[Damage]:
    """Damage for keys that several live rows have."""
    snapshot = Snapshot(folder, manifest)
    hashes = snapshot.column("key_hashes") if len(snapshot) else np.zeros(0, np.uint64)
    if len(np.unique(hashes)) == len(hashes):
        return []
    keys, _, counts = distinct(snapshot.column("keys"))
    duplicates = keys[counts > 1].tolist()
    if not duplicates:
        return []
    path = f"snapshots/{path_of(folder, manifest.number).name}"
    return [Damage(path, f"{len(duplicates)} duplicate keys, the first is {duplicates[0]}", lost=len(duplicates))]


def _leftovers(folder: Path, manifests: list[Manifest]) -> list[Damage]:
    """Notes about clipfake's own files that nothing refers to."""
    parts = [part for manifest in manifests for part in manifest.parts]
    used = {
        "shards": {part.name for part in parts},
        "deleted": {part.deleted for part in parts},
        "snapshots": {path_of(folder, number).name for number in numbers(folder)},
    }
    message = "is left over from an interrupted writer; the next writer removes it, or moves it to quarantine/"
    if not is_complete(folder, manifests):
        message = "is in no snapshot, and kept until `clipfake store repair` takes its rows over or sets it aside"
    leftovers = [
        f"{room}/{name}"
        for room, names in used.items()
        for name in own_files(folder, room, own=OWN_NAMES[room])
        if name not in names
    ]
    leftovers += [_relative(folder, path) for path in (folder / "incoming").glob(f"*{TEMPORARY}")]
    leftovers += [_relative(folder, path) for path in (folder / "indexes").glob(f"*{TEMPORARY}")]
    for name in vector_names(folder):
        room = (COLUMNS_FOLDER, name)
        leftovers += [
            "/".join((*room, file))
            for file in own_files(folder, *room, own=NAMED_VECTORS)
            if is_temporary(file, NAMED_VECTORS)
        ]
    return [Damage(path, message) for path in sorted(leftovers)]


def _foreign(folder: Path) -> list[Damage]:
    """Notes about files and folders in the store's rooms that clipfake has not written."""
    rooms: list[tuple[tuple[str, ...], re.Pattern[str]]] = [((room,), own) for room, own in OWN_NAMES.items()]
    rooms += [((COLUMNS_FOLDER, name), NAMED_VECTORS) for name in vector_names(folder)]
    rooms += [(("indexes", path.name), INDEX_FILES) for path in (folder / "indexes").glob("knn*") if path.is_dir()]
    message = "is not a file of clipfake's, and is never read or removed"
    return [
        Damage("/".join((*room, name)), message)
        for room, own in rooms
        for name in foreign_entries(folder, *room, own=own)
    ]


def _check_index(
    folder: Path, index: Path, names: tuple[str, ...], newest: Manifest
) -> tuple[list[Damage], list[Damage]]:
    """Problems and notes of an index of these vectors."""
    name, notes = _relative(folder, index), []
    try:
        files = stored_vector_files(folder, names, newest)
        found = open_index(index, space_of(folder, newest.space, names, unit=True), files, whole=True)
    except Unreadable:
        raise
    except ClipfakeError as e:
        return [Damage(name, str(e))] if index.exists() else [], []  # a newer index may have replaced it meanwhile
    if found.number != newest.number:
        notes.append(f"is of snapshot {found.number}, the store is at {newest.number}: newer rows are searched exactly")
    if replaced := set(found.replaced) & {part.number for part in newest.parts}:
        notes.append(f"is of other vectors of {len(replaced)} shards, whose rows are searched exactly")
    return [], [Damage(name, note) for note in notes]


def _sizes(folder: Path) -> Iterator[int]:
    """Sizes of the examined files, except those that a writer removes meanwhile."""
    for examined in EXAMINED:
        for path in (folder / examined).rglob("*"):
            with suppress(OSError):
                if path.is_file() and path.name not in (LOCK, HELD):
                    yield path.stat().st_size


def _relative(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
