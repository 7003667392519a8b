"""Verify every byte of a store, and name what is damaged, to the file and the rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...core.atomic_files import TEMPORARY
from ...core.locking import lease
from ...errors import ClipfakeError, Damaged, NoStore
from ..manifest import Manifest, ShardRef, numbers, path_of, read_manifest
from ..named_vectors import find_damage
from ..records import distinct
from ..search.ann_index import folders, open_index
from ..shard import Shard
from ..snapshot import Snapshot
from ..tombstones import read_tombstones

# A shard without these is still good for everything but showing pictures and naming categories.
SPARE = ("thumbnails", "texts")


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written."""

    path: str  # inside the store
    what: str
    rows: tuple[tuple[int, int], ...] = ()  # of the shard, [first, past the last); () where it is not about single rows
    lost: int = 0  # live rows that cannot be trusted


@dataclass(frozen=True)
class VerifyReport:
    """Report of `verify`."""

    path: str
    snapshot: int | None  # the newest that can be read
    rows: int
    files: int  # looked at
    bytes: int
    problems: tuple[Damage, ...]  # damage: `repair` mends what can be mended
    notes: tuple[Damage, ...]  # no damage: leftovers, stale indexes

    @property
    def sound(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sound": self.sound}


def verify(folder: Path | str) -> VerifyReport:
    """Look at every byte of a store.

    Raises
    ------
    NoStore
        There is nothing of ours in the folder.
    """
    folder = Path(folder)
    require_store(folder)
    manifests, problems = read_manifests(folder)
    notes: list[Damage] = []
    checked: dict[tuple[str, str], list[Damage]] = {}
    for manifest in reversed(manifests):  # the store as it is now first, then what only its history has
        for part in manifest.parts:
            if (part.name, part.header) not in checked:
                checked[part.name, part.header] = check_shard(folder, manifest, part)
                problems += checked[part.name, part.header]
            problems += [p for p in check_deleted(folder, part) if p not in problems]
    rows, now = 0, None
    if manifests:
        now = manifests[-1]
        rows = now.rows
        problems += _doubled(folder, now) if not problems else []
        notes += _leftovers(folder, manifests)
        problems += [Damage(path, what) for path, what in find_damage(folder, manifests).items()]
        for index in folders(folder):
            found, note = _check_index(folder, index, now)
            problems += found
            notes += note
    sizes = list(_sizes(folder))
    return VerifyReport(
        path=str(folder),
        snapshot=now.number if now else None,
        rows=rows,
        files=len(sizes),
        bytes=sum(sizes),
        problems=tuple(problems),
        notes=tuple(notes),
    )


def require_store(folder: Path) -> None:
    """Raise NoStore where there is nothing of ours."""
    if not numbers(folder) and not (folder / "shards").is_dir():
        read_manifest(folder)  # says so


def read_manifests(folder: Path) -> tuple[list[Manifest], list[Damage]]:
    """Read the readable manifests, oldest first, and describe what is wrong with the others."""
    manifests, problems = [], []
    for path in sorted((folder / "snapshots").glob("*.json")):
        try:
            manifest = read_manifest(folder, int(path.stem))
            if manifest.number != int(path.stem):
                raise Damaged(f"{path} is the manifest of snapshot {manifest.number}, under another name")
            lease(path, manifest)  # its files stay while it is looked at
            manifests.append(manifest)
        except NoStore:
            pass
        except (ClipfakeError, ValueError) as e:
            problems.append(Damage(_inside(folder, path), str(e)))
        if not path.exists():  # a writer went on meanwhile
            return read_manifests(folder)
    return manifests, problems


def check_shard(folder: Path, manifest: Manifest, part: ShardRef) -> list[Damage]:
    """Describe the damage of one shard; [] if every byte is as it was written.

    One problem that costs all rows, or one that costs none (pictures, texts), one of some rows' vectors, or both.
    """
    path = folder / "shards" / part.name
    name, alive = _inside(folder, path), part.rows - part.deleted_rows
    shard = Shard(path)
    try:
        header = shard.header
        if (shard.size, header.rows, header.digest) != (part.size, part.rows, part.header):
            return [Damage(name, f"is not the shard that snapshot {manifest.number} names", lost=alive)]
        if not header.space.same(manifest.space):
            return [Damage(name, f"holds vectors of {header.space}, the store's are of {manifest.space}", lost=alive)]
        bad = [dataset for dataset in header.checksums if dataset != "vectors" and not _reads(shard, dataset)]
        what = f"{', '.join(sorted(bad))}: checksum differs"
        if any(dataset.split("/")[0] not in SPARE for dataset in bad):
            return [Damage(name, what, lost=alive)]
        spare = [Damage(name, what)] if bad else []
        damaged = shard.damaged_rows()
    except ClipfakeError as e:
        return [Damage(name, str(e), lost=alive)]
    with suppress(ClipfakeError):  # told of by check_deleted
        damaged = np.setdiff1d(damaged, read_tombstones(folder, part))  # what nobody sees harms nobody
    if not len(damaged):
        return spare
    cuts = np.flatnonzero(np.diff(damaged) > 1) + 1
    ranges = tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(damaged, cuts))
    text = ", ".join(f"{first}..{last - 1}" for first, last in ranges)
    return [*spare, Damage(name, f"vectors of rows {text}: checksum differs", ranges, len(damaged))]


def check_deleted(folder: Path, part: ShardRef) -> list[Damage]:
    """Describe the damage of a shard's list of deleted rows."""
    try:
        deleted = read_tombstones(folder, part)
    except ClipfakeError as e:
        return [Damage(f"deleted/{part.deleted}", str(e), lost=part.rows - part.deleted_rows)]
    if len(deleted) == part.deleted_rows and (not len(deleted) or deleted.max() < part.rows):
        return []
    return [Damage(f"deleted/{part.deleted}", f"lists {len(deleted)} rows instead of {part.deleted_rows}")]


def _reads(shard: Shard, dataset: str) -> bool:
    try:
        shard.check(dataset)
    except ClipfakeError:
        return False
    return True


def _doubled(folder: Path, manifest: Manifest) -> list[Damage]:
    """Keys that stand twice among the live rows."""
    snapshot = Snapshot(folder, manifest)
    hashes = snapshot.column("key_hashes") if len(snapshot) else np.zeros(0, np.uint64)
    if len(np.unique(hashes)) == len(hashes):
        return []
    keys, _, counts = distinct(snapshot.column("keys"))
    twice = keys[counts > 1].tolist()
    if not twice:
        return []
    where = f"snapshots/{path_of(folder, manifest.number).name}"
    return [Damage(where, f"{len(twice)} keys stand more than once, the first is {twice[0]}", lost=len(twice))]


def _leftovers(folder: Path, manifests: list[Manifest]) -> list[Damage]:
    parts = [part for manifest in manifests for part in manifest.parts]
    named = {"shards": {part.name for part in parts}, "deleted": {part.deleted for part in parts}}
    found = [path for path in folder.rglob(f"*{TEMPORARY}") if path.parent.name != "quarantine"]
    for room, names in named.items():
        found += [p for p in (folder / room).glob("*") if p.name not in names and p.suffix != TEMPORARY]
    what = "is left over from a writer that was stopped; the next one removes it"
    return [Damage(_inside(folder, path), what) for path in sorted(found)]


def _check_index(folder: Path, index: Path, now: Manifest) -> tuple[list[Damage], list[Damage]]:
    name = _inside(folder, index)
    try:
        number = open_index(index, now.space, whole=True).number
    except ClipfakeError as e:
        return [Damage(name, str(e))] if index.exists() else [], []  # a newer one may have taken its place meanwhile
    if number == now.number:
        return [], []
    what = f"is of snapshot {number}, the store is at {now.number}: newer rows are searched exactly beside it"
    return [], [Damage(name, what)]


def _sizes(folder: Path) -> Iterator[int]:
    """Sizes of all files; a writer may remove one meanwhile."""
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file():
                yield path.stat().st_size


def _inside(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
