"""Take out of a store what is damaged, and never more: what is taken out lies in `quarantine/`, the rest works on."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.atomic_files import disk_errors, flush, make_folder
from ...core.locking import writer_lock
from ...core.sealed_json import checksum
from ...errors import ClipfakeError, Damaged
from ..manifest import Manifest, ShardRef, path_of, read_manifest, write_manifest
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
    lost: int = 0  # live rows that are gone; run the same `clipfake index` again to get them back


@dataclass(frozen=True)
class RepairReport:
    """Report of `repair`; it has no actions if nothing was damaged."""

    path: str
    snapshot: int
    rows: int  # left
    actions: tuple[RepairAction, ...]

    @property
    def lost(self) -> int:
        return sum(action.lost for action in self.actions)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "lost": self.lost}


def repair(folder: Path | str) -> RepairReport:
    """Make a store whole again without what is damaged.

    Raises
    ------
    NoStore, Locked
    StoreError
        The disk is full or read-only: the same call goes on from there.
    Damaged
        No snapshot and no shard can be read any more.
    """
    folder = Path(folder)
    require_store(folder)  # or a folder that is none would get a lock file
    with writer_lock(folder), disk_errors(f"repair {folder}"):
        health = verify(folder)
        actions: list[RepairAction] = []
        manifest = _start(folder, health, actions)
        mended = _mended(folder, manifest, health, actions)
        if mended != manifest or manifest.number != health.snapshot or manifest.number < max(_told_numbers(folder)):
            number = max(manifest.number, *_told_numbers(folder))
            mended = replace(mended, number=number).follow("repaired")
            write_manifest(folder, mended)
        _clear(folder, health, mended, actions)
    return RepairReport(str(folder), mended.number, mended.rows, tuple(actions))


def _told_numbers(folder: Path) -> list[int]:
    """Numbers of all manifests, readable or not."""
    return [int(path.stem) for path in (folder / "snapshots").glob("*.json") if path.stem.isdigit()]


def _start(folder: Path, health: VerifyReport, actions: list[RepairAction]) -> Manifest:
    """The newest snapshot; if its manifest cannot be read, the one before and every whole shard that came after."""
    numbers = sorted(_told_numbers(folder))
    if health.snapshot is not None and numbers[-1] == health.snapshot:
        return read_manifest(folder, health.snapshot)
    base = read_manifest(folder, health.snapshot) if health.snapshot is not None else None
    parts, space = list(base.parts) if base else [], base.space if base else None
    for path in sorted((folder / "shards").glob("*.h5")):
        with suppress(ClipfakeError, ValueError):  # cannot be read: set aside below
            if base and int(path.stem) < base.next_shard:
                continue
            shard = Shard(path)
            part = ShardRef(path.name, len(shard), shard.header.digest, shard.size)
            space = space or shard.header.space
            if not check_shard(folder, Manifest(0, space), part):
                parts.append(part)
                actions.append(
                    RepairAction(f"shards/{path.name}", f"{len(shard)} rows taken over, whose manifest was lost")
                )
    if space is None:
        raise Damaged(f"{folder}: no snapshot and no shard can be read; start a new store and index again")
    following = max([part.number for part in parts], default=0) + 1
    start = base or Manifest(0, space)
    parts = [_with_list(part, _latest_list(folder, part)) for part in parts]
    start = replace(start, parts=tuple(parts), next_shard=max(start.next_shard, following))
    return replace(start, parts=_once_each(folder, start))


def _mended(folder: Path, manifest: Manifest, health: VerifyReport, actions: list[RepairAction]) -> Manifest:
    """The manifest without what is damaged: files are written, nothing is committed."""
    damaged, parts, following, again = {p.path for p in health.problems}, [], manifest.next_shard, False
    for part in manifest.parts:
        if f"deleted/{part.deleted}" in damaged:
            known = _known_list(folder, part)
            back = part.deleted_rows - (known.deleted_rows if known else 0)
            part = known or _with_list(part, None)
            actions.append(
                RepairAction(f"deleted/{part.deleted}", f"up to {back} deleted rows of {part.name} came back")
            )
            again = True
        hit = again or f"shards/{part.name}" in damaged
        problems = check_shard(folder, manifest, part) if hit else []
        kept: ShardRef | None = part
        for problem in sorted(problems, key=lambda problem: not problem.rows):  # damaged rows are in no new shard
            if problem.rows:
                rows = np.concatenate([np.arange(first, last) for first, last in problem.rows])
                kept = part = write_tombstones(folder, part, rows, max(_told_numbers(folder)) + 1)
                actions.append(RepairAction(problem.path, f"dropped what is damaged: {problem.what}", problem.lost))
            elif problem.lost == 0 and part.rows > part.deleted_rows:
                kept = _without_spare(folder, part, following)
                following += 1
                actions.append(RepairAction(problem.path, f"written anew without what is damaged: {problem.what}"))
            else:
                kept = None
                actions.append(RepairAction(problem.path, f"dropped: {problem.what}", problem.lost))
        parts += [kept] if kept else []
    mended = replace(manifest, parts=tuple(sorted(parts, key=lambda part: part.number)), next_shard=following)
    return replace(mended, parts=_once_each(folder, mended)) if again else mended


def _clear(folder: Path, health: VerifyReport, now: Manifest, actions: list[RepairAction]) -> None:
    """Set aside the damaged files, and the earlier snapshots that need them."""
    damaged = {problem.path for problem in health.problems}
    used = {f"shards/{part.name}" for part in now.parts} | {f"deleted/{part.deleted}" for part in now.parts}
    for number in _told_numbers(folder):
        if number == now.number:
            continue
        path = path_of(folder, number)
        with suppress(ClipfakeError):
            parts = read_manifest(folder, number).parts
            if damaged.isdisjoint({f"shards/{p.name}" for p in parts} | {f"deleted/{p.deleted}" for p in parts}):
                continue
        damaged.add(f"snapshots/{path.name}")
    for name in sorted(damaged - used):
        path = folder / name
        if name.startswith("indexes/"):
            shutil.rmtree(path, ignore_errors=True)
            actions.append(RepairAction(name, "removed; build it again when it is needed"))
        elif path.exists():
            if name.startswith("columns/"):
                forget_file(folder, path)
            _set_aside(folder, path)
            actions.append(RepairAction(name, f"set aside in {QUARANTINE}/"))


def _set_aside(folder: Path, path: Path) -> None:
    target = folder / QUARANTINE / path.relative_to(folder)
    make_folder(target.parent)
    while target.exists():
        target = target.with_name(f"{target.name}.again")
    path.rename(target)
    flush(target.parent)
    flush(path.parent)


def _without_spare(folder: Path, part: ShardRef, number: int) -> ShardRef:
    """The live rows in a new shard, without the pictures or texts that cannot be read."""
    shard = Shard(folder / "shards" / part.name)
    thumbnails: tuple[bytes, ...] = ()
    texts: dict[str, Any] = {}
    with suppress(Damaged):
        thumbnails = shard.thumbnails()
    with suppress(Damaged):
        texts = shard.texts
    block = Block(shard.header.space, shard.rows(), np.asarray(shard.vectors), thumbnails, texts)
    alive = np.delete(np.arange(part.rows), read_tombstones(folder, part))
    path = folder / "shards" / f"{number:06d}.h5"
    header = write_shard(path, block.take(alive))
    return ShardRef(path.name, header.rows, header.digest, path.stat().st_size)


def _with_list(part: ShardRef, path: Path | None) -> ShardRef:
    """The part with the deleted rows of this file, which is trusted as it is."""
    if path is None:
        return replace(part, deleted="", deleted_rows=0, deleted_digest="")
    content = path.read_bytes()
    return replace(part, deleted=path.name, deleted_rows=len(content) // 4, deleted_digest=checksum(content))


def _latest_list(folder: Path, part: ShardRef) -> Path | None:
    """The newest list of a shard's deleted rows that can be one, whether or not a manifest vouches for it."""
    for path in sorted((folder / "deleted").glob(f"{part.number:06d}-*.u4"), reverse=True):
        content = path.read_bytes()
        rows = np.frombuffer(content[: len(content) // 4 * 4], "<u4").astype(np.int64)
        if len(content) % 4 == 0 and len(rows) and (np.diff(rows) > 0).all() and rows[-1] < part.rows:
            return path
    return None


def _known_list(folder: Path, part: ShardRef) -> ShardRef | None:
    """The part with the longest list of its deleted rows that a snapshot vouches for."""
    found = []
    for number in _told_numbers(folder):
        with suppress(ClipfakeError):
            parts = read_manifest(folder, number).parts
            same = [p for p in parts if (p.name, p.header) == (part.name, part.header)]
            found += [p for p in same if len(read_tombstones(folder, p))]
    return max(found, key=lambda other: other.deleted_rows, default=None)


def _once_each(folder: Path, manifest: Manifest) -> tuple[ShardRef, ...]:
    """The parts with every key in one place: of rows with the same key only the youngest lives."""
    sound = [part for part in manifest.parts if not check_shard(folder, manifest, part)]
    snapshot = Snapshot(folder, replace(manifest, parts=tuple(sound)))
    _, youngest = np.unique(snapshot.column("keys")[::-1], return_index=True)
    older = np.delete(snapshot.ids, len(snapshot) - 1 - youngest)
    return tuple(_forgetting(folder, manifest.parts, older))


def _forgetting(folder: Path, parts: Iterable[ShardRef], ids: npt.NDArray[np.int64]) -> Iterable[ShardRef]:
    number = max(_told_numbers(folder), default=0) + 1
    for part in parts:
        rows = ids[ids >> 32 == part.number] & 0xFFFFFFFF
        yield write_tombstones(folder, part, rows, number) if len(rows) else part
