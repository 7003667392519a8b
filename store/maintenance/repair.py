"""Remove what is damaged from a store, and nothing else. Damaged files are moved to `quarantine/`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.atomic_files import disk_errors
from ...errors import ClipfakeError, Damaged, Unreadable
from ..manifest import Manifest, ShardRef, numbers, path_of, read_manifest, unused_shard, write_manifest
from ..named_vectors import PARAMETERS, forget_file
from ..records import Block
from ..retention import QUARANTINE, move_to_quarantine
from ..rooms import INDEX_FILES, SHARDS, is_temporary, own_files, remove_folder, require_unlinked, store_lock
from ..search.ann_index import names_of
from ..shard import Shard, write_shard
from ..snapshot import Snapshot
from ..space import MAIN
from ..tombstones import read_tombstones, write_tombstones
from .salvage import latest_tombstones, salvage, with_tombstones
from .verify import VerifyReport, check_shard, require_store, verify

REPAIRED_IN_PART = "some of it may be repaired, and no readable row was removed"


@dataclass(frozen=True)
class RepairAction:
    """One thing that `repair` did."""

    path: str
    what: str
    lost: int = 0  # live rows that were removed; running the same `clipfake index` again restores them
    recovered: int = 0  # of the lost rows, those that were found in another shard


@dataclass(frozen=True)
class RepairReport:
    """Report of `repair`; without actions if nothing was damaged."""

    path: str
    snapshot: int
    rows: int  # after the repair
    actions: tuple[RepairAction, ...]

    @property
    def lost(self) -> int:
        """Number of live rows that were removed and not found elsewhere."""
        return sum(action.lost - action.recovered for action in self.actions)

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
    require_unlinked(folder)
    require_store(folder)  # first, so that no other folder gets a lock file
    with store_lock(folder) as lock, disk_errors(f"repair {folder}", REPAIRED_IN_PART):
        health = verify(folder)
        actions: list[RepairAction] = []
        manifest = _recover_manifest(folder, health, actions)
        repaired = _repair_shards(folder, manifest, health, actions)
        aside: dict[str, int] = {}
        if health.problems:
            repaired, aside = _salvage(folder, repaired, actions)
        newest = max([manifest.number, *numbers(folder)])
        if repaired != manifest or manifest.number != health.snapshot or manifest.number < newest:
            repaired = replace(repaired, number=newest).follow("repaired")
            write_manifest(folder, repaired, lock)
        # Only now: killed in between, the store has lost nothing, and repairing it again goes on.
        _set_aside(folder, aside, actions)
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


def _recover_manifest(folder: Path, health: VerifyReport, actions: list[RepairAction]) -> Manifest:
    """The newest manifest; if it cannot be read, the newest readable one plus every sound shard written after it."""
    if health.snapshot is not None and numbers(folder)[-1] == health.snapshot:
        return read_manifest(folder, health.snapshot)
    base = read_manifest(folder, health.snapshot) if health.snapshot is not None else None
    parts, space = list(base.parts) if base else [], base.space if base else None
    for path in sorted(folder / "shards" / name for name in own_files(folder, "shards", own=SHARDS)):
        with _damage_ignored():  # a damaged shard is moved to quarantine below
            if is_temporary(path.name, SHARDS) or (base and int(path.stem) < base.next_shard):
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
    parts = [with_tombstones(part, latest_tombstones(folder, part)) for part in parts]
    manifest = replace(manifest, parts=tuple(parts), next_shard=max(manifest.next_shard, next_shard))
    return replace(manifest, parts=_with_unique_keys(folder, manifest))


def _repair_shards(folder: Path, manifest: Manifest, health: VerifyReport, actions: list[RepairAction]) -> Manifest:
    """Return the manifest without damaged rows and shards. Writes files, but commits nothing."""
    damaged, parts, next_shard, restored = {p.path for p in health.problems}, [], manifest.next_shard, False
    for part in manifest.parts:
        listed = part
        if damaged_list := f"deleted/{part.deleted}" in damaged:
            part = _readable_tombstones(folder, part) or with_tombstones(part, None)
        suspect = restored or damaged_list or f"shards/{part.name}" in damaged
        problems = check_shard(folder, manifest, part) if suspect else []
        kept: ShardRef | None = part
        for problem in sorted(problems, key=lambda problem: not problem.rows):  # rows first: no new shard gets them
            if problem.rows:
                rows = np.concatenate([np.arange(first, last) for first, last in problem.rows])
                kept = part = write_tombstones(folder, part, rows, max(numbers(folder)) + 1)
                actions.append(RepairAction(problem.path, f"dropped the damaged rows: {problem.what}", problem.lost))
            elif problem.lost == 0 and part.rows > part.deleted_rows:
                number = unused_shard(folder, next_shard)
                kept, next_shard = _without_optional(folder, part, number), number + 1
                actions.append(RepairAction(problem.path, f"rewritten without the damaged data: {problem.what}"))
            else:
                kept = None
                lost = listed.rows - listed.deleted_rows
                actions.append(RepairAction(problem.path, f"dropped: {problem.what}", lost))
        if damaged_list and kept:
            count = listed.deleted_rows - part.deleted_rows
            message = f"up to {count} deleted rows of {part.name} came back"
            actions.append(RepairAction(f"deleted/{listed.deleted}", message))
            restored = True
        parts += [kept] if kept else []
    repaired = replace(manifest, parts=tuple(sorted(parts, key=lambda part: part.number)), next_shard=next_shard)
    return replace(repaired, parts=_with_unique_keys(folder, repaired)) if restored else repaired


def _salvage(folder: Path, manifest: Manifest, actions: list[RepairAction]) -> tuple[Manifest, dict[str, int]]:
    """The manifest with whole shards that hold lost rows; and whole shards to set aside, with their numbers of rows."""
    lost: dict[str, int] = {}
    for action in actions:
        if action.lost:
            name = Path(action.path).name
            lost[name] = lost.get(name, 0) + action.lost
    manifest, salvaged, aside = salvage(folder, manifest, lost)
    missing = sum(lost.values())
    for shard in salvaged:
        found = min(shard.rows - shard.excess, missing)
        missing -= found
        message = f"took over {shard.rows} rows, of which {found} were lost with {', '.join(lost)}"
        if shard.excess:
            message += f"; up to {shard.excess} of them had been deleted since, and came back"
        actions.append(RepairAction(f"shards/{shard.part.name}", message, recovered=found))
    return manifest, aside


def _set_aside(folder: Path, aside: Mapping[str, int], actions: list[RepairAction]) -> None:
    """Move whole shards with rows that no snapshot has to quarantine, before a writer removes them."""
    for name, rows in aside.items():
        move_to_quarantine(folder, folder / "shards" / name)
        message = (
            f"moved to {QUARANTINE}/: no snapshot names it, and the keys of {rows} of its rows are not in the store; "
            f"if these were not deleted on purpose, move it to incoming/, and `clipfake index` adds them"
        )
        actions.append(RepairAction(f"shards/{name}", message))


def _quarantine(folder: Path, health: VerifyReport, current: Manifest, actions: list[RepairAction]) -> None:
    """Move the earlier snapshots that need damaged files to quarantine, and then these files."""
    damaged = {problem.path for problem in health.problems}
    used = {f"shards/{part.name}" for part in current.parts} | {f"deleted/{part.deleted}" for part in current.parts}
    for number in numbers(folder):
        if number == current.number:
            continue
        path = path_of(folder, number)
        with _damage_ignored():
            parts = read_manifest(folder, number).parts
            if damaged.isdisjoint({f"shards/{p.name}" for p in parts} | {f"deleted/{p.deleted}" for p in parts}):
                continue
        damaged.add(f"snapshots/{path.name}")
    # Snapshots first: one that remained without its files would be damage.
    for name in sorted(damaged - used, key=lambda name: (not name.startswith("snapshots/"), name)):
        path = folder / name
        if name.startswith("indexes/"):
            remove_folder(folder, *Path(name).parts, own=INDEX_FILES)
            names = names_of(Path(name).name)
            again = "clipfake store index" + f" --vectors {','.join(names)}" * (names != (MAIN,))
            actions.append(RepairAction(name, f"removed; run `{again}` to build it again"))
        elif path.exists() or name.startswith("columns/"):
            if name.startswith("columns/"):
                forget_file(folder, path)
            is_missing = not path.exists()
            if not is_missing:
                move_to_quarantine(folder, path)
            done = "was missing; forgotten" if is_missing else f"moved to {QUARANTINE}/"
            again = f"; run `clipfake store add-vectors {path.parent.name}` to make the view again"
            actions.append(RepairAction(name, done + again * (path.name == PARAMETERS)))


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
    return ShardRef(path.name, header.rows, header.digest, Shard(path).size)


def _readable_tombstones(folder: Path, part: ShardRef) -> ShardRef | None:
    """The shard with its longest list of deleted rows that matches the checksum in a manifest."""
    candidates: list[ShardRef] = []
    for number in numbers(folder):
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
    number = max(numbers(folder), default=0) + 1
    for part in parts:
        rows = ids[ids >> 32 == part.number] & 0xFFFFFFFF
        yield write_tombstones(folder, part, rows, number) if len(rows) else part
