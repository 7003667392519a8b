"""Rows that were lost with a shard, taken from whole shards that the snapshot does not name.

A copy of a store that was made file by file, while the store was compacted, may hold the shards of before and the
snapshot of after, or the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...core.atomic_files import require_readable
from ...core.reading import read_bounded
from ...core.sealed_json import checksum
from ...errors import ClipfakeError, Damaged, Unreadable
from ..manifest import Manifest, ShardRef, numbers, read_manifest
from ..rooms import SHARDS, own_files
from ..shard import Shard
from ..snapshot import Snapshot
from ..tombstones import read_tombstones, tombstones_of, write_tombstones
from .verify import check_shard


@dataclass(frozen=True)
class SalvagedShard:
    """A whole shard that was in no snapshot and is now, since rows were lost that it holds."""

    part: ShardRef
    rows: int  # that it brings back
    excess: int = 0  # of these, rows beyond those that were lost: they were perhaps deleted on purpose


def salvage(
    folder: Path, manifest: Manifest, lost: Mapping[str, int]
) -> tuple[Manifest, tuple[SalvagedShard, ...], dict[str, int]]:
    """Take rows over for shards that were lost from a snapshot. Writes tombstones, but commits nothing.

    The shards that a lost one was compacted from are recorded in the snapshot of the compaction, with the rows that
    were deleted then. A shard that is newer than every snapshot has the rows of a later one, which lacks in the copy.
    Any other shard is taken over only if it brings no more rows than were lost; otherwise rows could come back that
    were deleted on purpose.

    Parameters
    ----------
    manifest : the snapshot without the lost rows
    lost : name of a shard -> number of its rows that were lost

    Returns
    -------
    Manifest
        The snapshot with the shards that were taken over.
    tuple of SalvagedShard
        What was taken over.
    dict
        File name -> number of rows of whole shards that are in no snapshot and were not taken over, though they hold
        keys that this one does not have.
    """
    missing = sum(lost.values())
    next_shard = max((snapshot.next_shard for snapshot in _readable(folder)), default=0)
    salvaged: list[SalvagedShard] = []
    for part in _replaced_by(folder, lost):
        taken, rows = _with_unknown_rows(folder, manifest, part)
        if rows:
            excess = max(0, rows - max(0, missing))
            salvaged.append(SalvagedShard(taken, rows, excess))
            manifest, missing = _joined(manifest, taken), missing - rows
    aside = {}
    for part in unnamed_shards(folder, manifest):
        taken, rows = _with_unknown_rows(folder, manifest, part)
        if rows and (0 < rows <= missing or (lost and part.number >= next_shard)):
            salvaged.append(SalvagedShard(taken, rows))
            manifest, missing = _joined(manifest, taken), missing - rows
        elif rows:
            aside[part.name] = rows
    return manifest, tuple(salvaged), aside


def _replaced_by(folder: Path, lost: Iterable[str]) -> list[ShardRef]:
    """Whole shards that compaction rewrote as the lost ones, the newest first, as they were then."""
    wanted, found = set(lost), dict[str, ShardRef]()
    for manifest in sorted(_readable(folder), key=lambda manifest: -manifest.number):
        made = {
            part.name for part in manifest.parts if manifest.compaction and part.number >= manifest.compaction.first
        }
        if manifest.compaction and wanted & made:
            for part in manifest.compaction.replaced:
                wanted.add(part.name)  # it may be lost too, and have been compacted from others
                found.setdefault(part.name, part)
    return sorted((p for p in found.values() if _is_whole(folder, p)), key=lambda part: -part.number)


def unnamed_shards(folder: Path, manifest: Manifest) -> Iterator[ShardRef]:
    """Whole shards of the same space that neither this nor any readable snapshot names, by number.

    Rows are deleted as the newest list of deleted rows says.
    """
    named = {part.name for snapshot in (*_readable(folder), manifest) for part in snapshot.parts}
    for name in own_files(folder, "shards", own=SHARDS):
        if name in named or not SHARDS.fullmatch(name):
            continue
        try:
            shard = Shard(folder / "shards" / name)
            part = ShardRef(name, len(shard), shard.header.digest, shard.size)
        except Unreadable:
            raise
        except (ClipfakeError, ValueError):
            continue  # not whole
        if not check_shard(folder, replace(manifest, number=0), part):
            yield with_tombstones(part, latest_tombstones(folder, part))


def _is_whole(folder: Path, part: ShardRef) -> bool:
    manifests = _readable(folder)
    return bool(manifests) and not check_shard(folder, manifests[-1], replace(part, deleted="", deleted_rows=0))


def _readable(folder: Path) -> list[Manifest]:
    manifests = []
    for number in numbers(folder):
        try:
            manifests.append(read_manifest(folder, number))
        except Unreadable:
            raise
        except ClipfakeError:
            continue
    return manifests


def _with_unknown_rows(folder: Path, manifest: Manifest, part: ShardRef) -> tuple[ShardRef, int]:
    """The shard without the rows whose key the snapshot has, and how many remain; writes tombstones if some do."""
    try:
        read_tombstones(folder, part)
    except Damaged:
        part = with_tombstones(part, latest_tombstones(folder, part))
    live = np.delete(np.arange(part.rows), read_tombstones(folder, part))
    keys = Shard(folder / "shards" / part.name).column("keys")[live]
    known = Snapshot(folder, manifest).find(keys) >= 0
    if known.any() and not known.all():
        number = max([manifest.number, *numbers(folder)]) + 1
        part = write_tombstones(folder, part, live[known], number)
    return part, int((~known).sum())


def _joined(manifest: Manifest, part: ShardRef) -> Manifest:
    parts = sorted((*manifest.parts, part), key=lambda part: part.number)
    return replace(manifest, parts=tuple(parts), next_shard=max(manifest.next_shard, part.number + 1))


def with_tombstones(part: ShardRef, path: Path | None) -> ShardRef:
    """The shard with the deleted rows listed in a file, which is not checked; without deleted rows for None."""
    if path is None:
        return replace(part, deleted="", deleted_rows=0, deleted_digest="")
    content = path.read_bytes()
    return replace(part, deleted=path.name, deleted_rows=len(content) // 4, deleted_digest=checksum(content))


def latest_tombstones(folder: Path, part: ShardRef) -> Path | None:
    """The newest plausible list of a shard's deleted rows, whether or not a manifest records its checksum."""
    for name in reversed(tombstones_of(folder, part)):
        path = folder / "deleted" / name
        try:
            content = read_bounded(path, 4 * part.rows)
        except OSError as e:
            require_readable(path, e)
            continue
        rows: npt.NDArray[np.int64] = np.frombuffer(content[: len(content) // 4 * 4], "<u4").astype(np.int64)
        if len(content) % 4 == 0 and len(rows) and (np.diff(rows) > 0).all() and rows[-1] < part.rows:
            return path
    return None
