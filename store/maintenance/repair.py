"""Remove what is damaged from a store, and nothing else. Damaged files are moved to `quarantine/`."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.atomic_files import disk_errors, flush, make_folder
from ...core.locking import writer_lock
from ...core.sealed_json import checksum
from ...errors import ClipfakeError, Damaged, Unreadable
from ..manifest import Manifest, ShardRef, path_of, read_manifest, unused_shard, write_manifest
from ..named_vectors import forget_file
from ..records import Block
from ..shard import Shard, write_shard
from ..snapshot import Snapshot
from ..tombstones import read_tombstones, write_tombstones
from .verify import VerifyReport, check_shard, require_store, verify

QUARANTINE = "quarantine"


@dataclass(frozen=True)
class RepairAction:
    """One thing that `repair` did."""

    path: str
    what: str
    lost: int = 0  # live rows that were removed; running the same `clipfake index` again restores them


@dataclass(frozen=True)
class RepairReport:
    """Report of `repair`; without actions if nothing was damaged."""

    path: str
    snapshot: int
    rows: int  # after the repair
    actions: tuple[RepairAction, ...]

    @property
    def lost(self) -> int:
        return sum(action.lost for action in self.actions)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "lost": self.lost}


def repair(folder: Path | str) -> RepairReport:
    """Remove what is damaged, so that the store is sound again.

    Raises
    ------
    NoStore, Locked
    StoreError
        The disk is full or read-only. Calling it again continues the repair.
    Damaged
        No snapshot and no shard can be read.
    Unreadable
        A file cannot be read now; nothing is changed.
    """
    folder = Path(folder)
    require_store(folder)  # first, so that no other folder gets a lock file
    with writer_lock(folder) as lock, disk_errors(f"repair {folder}"):
        health = verify(folder)
        actions: list[RepairAction] = []
        manifest = _recover_manifest(folder, health, actions)
        repaired = _repair_shards(folder, manifest, health, actions)
        newest = max([manifest.number, *_manifest_numbers(folder)])
        if repaired != manifest or manifest.number != health.snapshot or manifest.number < newest:
            repaired = replace(repaired, number=newest).follow("repaired")
            lock.require_held()
            write_manifest(folder, repaired)
        _quarantine(folder, health, repaired, actions)
    return RepairReport(str(folder), repaired.number, repaired.rows, tuple(actions))


@contextmanager
def _damage_ignored() -> Iterator[None]:
    """Go on after damage, but not if a file cannot be read now: its rows would be lost."""
    try:
        yield
    except Unreadable:
        raise
    except (ClipfakeError, ValueError):
        pass


def _manifest_numbers(folder: Path) -> list[int]:
    """Numbers of all manifests, readable or not."""
    return [int(path.stem) for path in (folder / "snapshots").glob("*.json") if path.stem.isdigit()]


def _recover_manifest(folder: Path, health: VerifyReport, actions: list[RepairAction]) -> Manifest:
    """The newest manifest; if it cannot be read, the newest readable one plus every sound shard written after it."""
    numbers = sorted(_manifest_numbers(folder))
    if health.snapshot is not None and numbers[-1] == health.snapshot:
        return read_manifest(folder, health.snapshot)
    base = read_manifest(folder, health.snapshot) if health.snapshot is not None else None
    parts, space = list(base.parts) if base else [], base.space if base else None
    for path in sorted((folder / "shards").glob("*.h5")):
        with _damage_ignored():  # a damaged shard is moved to quarantine below
            if base and int(path.stem) < base.next_shard:
                continue
            shard = Shard(path)
            part = ShardRef(path.name, len(shard), shard.header.digest, shard.size)
            space = space or shard.header.space
            if not check_shard(folder, Manifest(0, space), part):
                parts.append(part)
                actions.append(
                    RepairAction(f"shards/{path.name}", f"recovered {len(shard)} rows, whose manifest was lost")
                )
    if space is None:
        raise Damaged(f"{folder}: no snapshot and no shard can be read; create a new store and index again")
    next_shard = max([part.number for part in parts], default=0) + 1
    manifest = base or Manifest(0, space)
    parts = [_with_tombstones(part, _latest_tombstones(folder, part)) for part in parts]
    manifest = replace(manifest, parts=tuple(parts), next_shard=max(manifest.next_shard, next_shard))
    return replace(manifest, parts=_with_unique_keys(folder, manifest))


def _repair_shards(folder: Path, manifest: Manifest, health: VerifyReport, actions: list[RepairAction]) -> Manifest:
    """Return the manifest without damaged rows and shards. Writes files, but commits nothing."""
    damaged, parts, next_shard, restored = {p.path for p in health.problems}, [], manifest.next_shard, False
    for part in manifest.parts:
        if f"deleted/{part.deleted}" in damaged:
            readable = _readable_tombstones(folder, part)
            count = part.deleted_rows - (readable.deleted_rows if readable else 0)
            part = readable or _with_tombstones(part, None)
            actions.append(
                RepairAction(f"deleted/{part.deleted}", f"up to {count} deleted rows of {part.name} came back")
            )
            restored = True
        suspect = restored or f"shards/{part.name}" in damaged
        problems = check_shard(folder, manifest, part) if suspect else []
        kept: ShardRef | None = part
        for problem in sorted(problems, key=lambda problem: not problem.rows):  # rows first: no new shard gets them
            if problem.rows:
                rows = np.concatenate([np.arange(first, last) for first, last in problem.rows])
                kept = part = write_tombstones(folder, part, rows, max(_manifest_numbers(folder)) + 1)
                actions.append(RepairAction(problem.path, f"dropped the damaged rows: {problem.what}", problem.lost))
            elif problem.lost == 0 and part.rows > part.deleted_rows:
                number = unused_shard(folder, next_shard)
                kept, next_shard = _without_optional(folder, part, number), number + 1
                actions.append(RepairAction(problem.path, f"rewritten without the damaged data: {problem.what}"))
            else:
                kept = None
                actions.append(RepairAction(problem.path, f"dropped: {problem.what}", problem.lost))
        parts += [kept] if kept else []
    repaired = replace(manifest, parts=tuple(sorted(parts, key=lambda part: part.number)), next_shard=next_shard)
    return replace(repaired, parts=_with_unique_keys(folder, repaired)) if restored else repaired


def _quarantine(folder: Path, health: VerifyReport, current: Manifest, actions: list[RepairAction]) -> None:
    """Move the damaged files, and the earlier snapshots that need them, to quarantine."""
    damaged = {problem.path for problem in health.problems}
    used = {f"shards/{part.name}" for part in current.parts} | {f"deleted/{part.deleted}" for part in current.parts}
    for number in _manifest_numbers(folder):
        if number == current.number:
            continue
        path = path_of(folder, number)
        with _damage_ignored():
            parts = read_manifest(folder, number).parts
            if damaged.isdisjoint({f"shards/{p.name}" for p in parts} | {f"deleted/{p.deleted}" for p in parts}):
                continue
        damaged.add(f"snapshots/{path.name}")
    for name in sorted(damaged - used):
        path = folder / name
        if name.startswith("indexes/"):
            shutil.rmtree(path, ignore_errors=True)
            actions.append(RepairAction(name, "removed; run `clipfake store index` to build it again"))
        elif path.exists():
            if name.startswith("columns/"):
                forget_file(folder, path)
            _move_to_quarantine(folder, path)
            actions.append(RepairAction(name, f"moved to {QUARANTINE}/"))


def _move_to_quarantine(folder: Path, path: Path) -> None:
    target = folder / QUARANTINE / path.relative_to(folder)
    make_folder(target.parent)
    while target.exists():
        target = target.with_name(f"{target.name}.again")
    path.rename(target)
    flush(target.parent)
    flush(path.parent)


def _without_optional(folder: Path, part: ShardRef, number: int) -> ShardRef:
    """Write the live rows to a new shard, without thumbnails or texts that cannot be read."""
    shard = Shard(folder / "shards" / part.name)
    thumbnails: tuple[bytes, ...] = ()
    texts: dict[str, Any] = {}
    with suppress(Damaged):
        thumbnails = shard.thumbnails()
    with suppress(Damaged):
        texts = shard.texts
    block = Block(shard.header.space, shard.rows(), np.asarray(shard.vectors), thumbnails, texts)
    live_rows = np.delete(np.arange(part.rows), read_tombstones(folder, part))
    path = folder / "shards" / f"{number:06d}.h5"
    header = write_shard(path, block.take(live_rows), exclusive=True)
    return ShardRef(path.name, header.rows, header.digest, path.stat().st_size)


def _with_tombstones(part: ShardRef, path: Path | None) -> ShardRef:
    """The shard with the deleted rows listed in a file, which is not checked; without deleted rows for None."""
    if path is None:
        return replace(part, deleted="", deleted_rows=0, deleted_digest="")
    content = path.read_bytes()
    return replace(part, deleted=path.name, deleted_rows=len(content) // 4, deleted_digest=checksum(content))


def _latest_tombstones(folder: Path, part: ShardRef) -> Path | None:
    """The newest plausible list of a shard's deleted rows, whether or not a manifest records its checksum."""
    for path in sorted((folder / "deleted").glob(f"{part.number:06d}-*.u4"), reverse=True):
        content = path.read_bytes()
        rows = np.frombuffer(content[: len(content) // 4 * 4], "<u4").astype(np.int64)
        if len(content) % 4 == 0 and len(rows) and (np.diff(rows) > 0).all() and rows[-1] < part.rows:
            return path
    return None


def _readable_tombstones(folder: Path, part: ShardRef) -> ShardRef | None:
    """The shard with its longest list of deleted rows that matches the checksum in a manifest."""
    candidates: list[ShardRef] = []
    for number in _manifest_numbers(folder):
        with suppress(ClipfakeError):
            parts = read_manifest(folder, number).parts
            same = [p for p in parts if (p.name, p.header) == (part.name, part.header)]
            candidates += [p for p in same if len(read_tombstones(folder, p))]
    return max(candidates, key=lambda candidate: candidate.deleted_rows, default=None)


def _with_unique_keys(folder: Path, manifest: Manifest) -> tuple[ShardRef, ...]:
    """The shards with every key in one live row: of several rows with the same key, the newest one stays."""
    sound = [part for part in manifest.parts if not check_shard(folder, manifest, part)]
    snapshot = Snapshot(folder, replace(manifest, parts=tuple(sound)))
    newest = {key: position for position, key in enumerate(snapshot.column("keys").tolist())}
    older = np.delete(snapshot.ids, list(newest.values()))
    return tuple(_without_rows(folder, manifest.parts, older))


def _without_rows(folder: Path, parts: Iterable[ShardRef], ids: npt.NDArray[np.int64]) -> Iterable[ShardRef]:
    """The shards with the rows of these ids deleted; writes their lists of deleted rows."""
    number = max(_manifest_numbers(folder), default=0) + 1
    for part in parts:
        rows = ids[ids >> 32 == part.number] & 0xFFFFFFFF
        yield write_tombstones(folder, part, rows, number) if len(rows) else part
