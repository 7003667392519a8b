"""Which snapshots and files of a store are kept, and removal of all others.

Compaction gives up the snapshots before it, but they are kept for a while: a copy of the store that was begun before,
file by file, has then everything that the newest snapshot of its beginning names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from ..core.atomic_files import disk_errors, flush, make_folder
from ..core.locking import WriterLock, remove_unless_leased
from ..errors import StoreError, Unreadable
from .manifest import Manifest, numbers, path_of, read_manifest
from .rooms import OWN_NAMES, SHARDS, own_files, remove_files, remove_temporary_files
from .shard import Shard
from .snapshot import Snapshot

QUARANTINE = "quarantine"
GRACE = timedelta(hours=1)  # for which compaction keeps what earlier snapshots name


def tidy(lock: WriterLock) -> bool:
    """Remove snapshots that were given up, and files of a killed writer or that no snapshot names.

    Only temporary files are removed while a snapshot cannot be read or a file that one names is missing: a file that
    no snapshot names may then hold the only copy of its rows, and `repair` decides.

    Returns
    -------
    bool
        True if what no snapshot names may be removed.

    Raises
    ------
    Locked, StoreError
        The lock was lost; nothing more is removed.
    Unreadable
        A file or folder cannot be read now, so that nothing says what may be removed.
    """
    folder = lock.folder
    for room, own in OWN_NAMES.items():
        remove_temporary_files(folder, room, own=own, lock=lock)
    # listed before the snapshots are read, so that the files of a later snapshot are not among them
    files = {room: own_files(folder, room, own=OWN_NAMES[room]) for room in ("shards", "deleted")}
    manifests = complete_manifests(folder)
    if not manifests:
        return False
    give_up(folder, _expired(manifests))
    remaining = complete_manifests(folder)
    # Otherwise a snapshot that was removed could come back after a power failure, without its files.
    if not remaining or not _flushed(folder / "snapshots"):
        return False
    parts = [part for manifest in remaining for part in manifest.parts]
    named = {name for part in parts for name in (part.name, part.deleted)}
    _set_aside(lock, remaining[-1], [name for name in files["shards"] if name not in named])
    for room, names in files.items():
        unnamed = [name for name in names if name not in named]
        remove_files(folder, room, own=OWN_NAMES[room], names=unnamed, lock=lock)
    return True


def _set_aside(lock: WriterLock, newest: Manifest, unnamed: Iterable[str]) -> None:
    """Move whole shards that are newer than every snapshot, and hold keys that the newest lacks, to quarantine.

    A writer that was killed before its commit leaves such a shard, and so does a copy of the store whose snapshots were
    copied before its shards. Raises Unreadable if one cannot be read now, as it may hold the only copy of its rows.
    """
    folder = lock.folder
    for name in unnamed:
        if not SHARDS.fullmatch(name) or int(Path(name).stem) < newest.next_shard:
            continue
        path = folder / "shards" / name
        try:
            unknown = (Snapshot(folder, newest).find(Shard(path).column("keys")) < 0).any()
        except Unreadable:
            raise
        except StoreError:
            continue  # not whole
        if unknown:
            lock.require_held()  # else the shard may be another writer's
            move_to_quarantine(folder, path)


def move_to_quarantine(folder: Path, path: Path) -> None:
    """Move a file of a store to `quarantine/`, under its own path; an existing file is not replaced."""
    target = folder / QUARANTINE / path.relative_to(folder)
    with disk_errors(f"move {path} to {QUARANTINE}/"):
        make_folder(target.parent)
        while target.exists():
            target = target.with_name(f"{target.name}.again")
        path.rename(target)
        flush(target.parent)
        flush(path.parent)


def complete_manifests(folder: Path) -> list[Manifest]:
    """Manifests of all snapshots, oldest first; [] if one cannot be read, or a file that one names is missing."""
    try:
        manifests = [read_manifest(folder, number) for number in numbers(folder)]
    except StoreError:
        return []
    return manifests if is_complete(folder, manifests) else []


def is_complete(folder: Path, manifests: Iterable[Manifest]) -> bool:
    """True if every file that the snapshots name exists with its size."""
    expected: dict[Path, int] = {}
    for manifest in manifests:
        for part in manifest.parts:
            expected[folder / "shards" / part.name] = part.size
            if part.deleted:
                expected[folder / "deleted" / part.deleted] = 4 * part.deleted_rows
    return all(_size(path) == size for path, size in expected.items())


def superseded(manifests: Sequence[Manifest], grace: timedelta) -> list[int]:
    """Numbers of the snapshots that a later one has followed for at least `grace`."""
    now = datetime.now(UTC)
    return [
        earlier.number for earlier, later in pairwise(manifests) if not grace or _created(later, now) + grace <= now
    ]


def give_up(folder: Path, given_up: Iterable[int]) -> list[int]:
    """Remove these snapshots, and return those that stay since a reader has them open."""
    given_up = list(given_up)
    if given_up and not _flushed(folder / "snapshots"):  # the newest one must be on the disk first
        return given_up
    return [number for number in given_up if not remove_unless_leased(path_of(folder, number))]


def _expired(manifests: Sequence[Manifest]) -> list[int]:
    """Numbers of the snapshots that compaction gave up, and that no copy under way needs any more."""
    now = datetime.now(UTC)
    over = [m.number for m in manifests if m.compaction is not None and m.compaction.is_over(now)]
    return [m.number for m in manifests if over and m.number < over[-1]]


def _created(manifest: Manifest, default: datetime) -> datetime:
    """When a snapshot was made, or `default` if its text is no time."""
    try:
        created = datetime.fromisoformat(manifest.created)
    except ValueError:
        return default
    return created if created.tzinfo else default


def _size(path: Path) -> int:
    """Size of a file, -1 if it is missing."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _flushed(folder: Path) -> bool:
    try:
        flush(folder)
    except OSError:
        return False
    return True
