"""Manifest of a snapshot: its shards and their deleted rows. The newest snapshot is the state of the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..core.locking import WriterLock
from ..core.sealed_json import SealedJson
from ..errors import Damaged, NoStore, NotAStore, StoreError, Unflushed
from .rooms import SHARDS, SNAPSHOTS, TOMBSTONES, own_files
from .space import Space

MAX_NUMBER = 10**17  # of a snapshot that can be followed by others
MAX_SHARD = 10**9 - 1_000_000  # number of the next shard; a writer makes up to a million
REPAIR = "run `clipfake store repair` to return to an earlier snapshot"
FILE = SealedJson(
    "clipfake-store", 1, "manifest", Damaged, REPAIR, foreign=NotAStore
)  # for raising the version, see shard.VERSION


@dataclass(frozen=True)
class ShardRef:
    """One shard as a snapshot sees it."""

    name: str  # "000001.h5" in the folder shards/
    rows: int
    header: str  # digest of the shard's header
    size: int  # bytes of the file
    deleted: str = ""  # "000001-000012.u4" in the folder deleted/, "" if no row is deleted
    deleted_rows: int = 0
    deleted_digest: str = ""

    def __post_init__(self) -> None:
        if not SHARDS.fullmatch(self.name) or not (self.deleted == "" or TOMBSTONES.fullmatch(self.deleted)):
            # They could be paths out of the store.
            raise ValueError(f"invalid file names {self.name!r} and {self.deleted!r}")
        counts = (self.rows, self.size, self.deleted_rows)
        if not all(isinstance(count, int) and 0 <= count < 1 << 63 for count in counts):
            raise ValueError(f"{self.name} has invalid numbers of rows, bytes and deleted rows: {counts}")
        if self.rows >= 1 << 32 or self.deleted_rows > (self.rows if self.deleted else 0):
            raise ValueError(f"{self.name} has {self.rows} rows, of which {self.deleted_rows} are deleted")

    @property
    def number(self) -> int:
        return int(Path(self.name).stem)


@dataclass(frozen=True)
class Compaction:
    """What a compaction has rewritten, and until when the snapshots before it are kept."""

    first: int  # number of the first shard it wrote
    replaced: tuple[ShardRef, ...]  # the shards it rewrote, with the rows that were deleted then
    earlier_until: str  # ISO time after which the snapshots before it may be removed

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Compaction:
        """Parse the fields; raises KeyError, TypeError or ValueError if they are invalid."""
        if not isinstance(fields["first"], int) or not isinstance(fields["replaced"], list):
            raise ValueError("compaction has an invalid shard number or list of shards")
        until = datetime.fromisoformat(fields["earlier_until"])
        if until.tzinfo is None:
            raise ValueError("compaction has a time without UTC offset")
        return cls(fields["first"], tuple(ShardRef(**part) for part in fields["replaced"]), until.isoformat())

    def is_over(self, now: datetime) -> bool:
        """True if the earlier snapshots may be removed."""
        return datetime.fromisoformat(self.earlier_until) <= now


@dataclass(frozen=True)
class Manifest:
    """List of the shards of a snapshot."""

    number: int
    space: Space
    parts: tuple[ShardRef, ...] = ()  # ascending by number, so that positions follow the order of insertion
    next_shard: int = 1  # a number never used before, so that the name of a lost shard is not used again
    note: str = ""  # what created the snapshot, for the user
    created: str = ""
    compaction: Compaction | None = None  # of the snapshot that `compact` made

    @property
    def rows(self) -> int:
        return sum(part.rows - part.deleted_rows for part in self.parts)

    def follow(self, note: str, **changes: Any) -> Manifest:
        """Make the manifest of the next snapshot."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return replace(self, **{"compaction": None, **changes}, number=self.number + 1, note=note, created=now)


def path_of(folder: Path, number: int) -> Path:
    return folder / "snapshots" / f"{number:06d}.json"


def numbers(folder: Path) -> list[int]:
    """Numbers of the snapshots of a store, oldest first; raises Unreadable if they cannot be listed now."""
    names = own_files(folder, "snapshots", own=SNAPSHOTS)
    return sorted(int(name.removesuffix(".json")) for name in names if SNAPSHOTS.fullmatch(name))


def _newest(folder: Path) -> int:
    if existing := numbers(folder):
        return existing[-1]
    if folder.is_dir() and any(folder.iterdir()):
        raise NoStore(f"{folder} is not a store: it has no snapshots; name the folder that `clipfake index` created")
    raise NoStore(f"there is no store at {folder}; create one with `clipfake index --folders ... --store {folder}`")


def write_manifest(folder: Path, manifest: Manifest, lock: WriterLock | None = None) -> None:
    """Write a manifest; the name that makes it visible is the commit.

    Parameters
    ----------
    lock : checked right before the commit (default: the store is new, and not locked)

    Raises
    ------
    StoreError
        The disk is full, read-only or failing, the lock was lost, or another process has committed the same snapshot or
        a newer one; nothing was committed.
    Unflushed
        The snapshot was committed, and a power failure may undo that.
    """
    if (existing := numbers(folder)) and existing[-1] >= manifest.number:
        raise StoreError(
            f"another process has committed snapshot {existing[-1]} of {folder} meanwhile, and snapshot "
            f"{manifest.number} of this one was not stored; run the same command again when no other process writes"
        )
    fields = asdict(manifest)
    if manifest.compaction is None:
        del fields["compaction"]
    check = lock.require_held if lock else None
    try:
        FILE.write(path_of(folder, manifest.number), fields, exclusive=True, check=check)
    except Unflushed as e:
        raise Unflushed(
            f"snapshot {manifest.number} of {folder} was committed, as `clipfake store snapshots` shows. {e}"
        ) from e


def unused_shard(folder: Path, number: int) -> int:
    """A number for a new shard, at least `number`: above those of all files, also of what a killed writer left."""
    names = [name for name in own_files(folder, "shards", own=SHARDS) if SHARDS.fullmatch(name)]
    unused = max([number, *(int(Path(name).stem) + 1 for name in names)])
    if unused > MAX_SHARD:
        raise StoreError(
            f"the shards of {folder} have used up their numbers; export the rows and import them into a new store"
        )
    return unused


def read_manifest(folder: Path, number: int | None = None) -> Manifest:
    """Read the manifest of a snapshot by its number (default: the newest).

    Raises
    ------
    NoStore
        There is no store, or no snapshot with this number.
    NotAStore
        The manifest has another format or version.
    Damaged
        The manifest cannot be read.
    """
    if number is None:
        newest = _newest(folder)
        try:
            return read_manifest(folder, newest)
        except NoStore:  # a writer has replaced it in the meantime
            if _newest(folder) == newest:
                raise
            return read_manifest(folder)
    path = path_of(folder, number)
    try:
        with FILE.reading(path) as content:
            if not isinstance(content["parts"], list):
                raise ValueError("parts is not a list")
            parts = tuple(ShardRef(**part) for part in content["parts"])
            space = Space.from_dict(content["space"])
            note, created = str(content["note"]), str(content["created"])
            fields = content.get("compaction")
            compaction = None if fields is None else Compaction.from_dict(fields)
            manifest = Manifest(content["number"], space, parts, content["next_shard"], note, created, compaction)
            _validate(manifest, number)
            return manifest
    except FileNotFoundError as e:
        raise NoStore(f"{folder} has no snapshot {number}; `clipfake store snapshots` lists the existing ones") from e


def _validate(manifest: Manifest, number: int) -> None:
    """Raise ValueError for inconsistent fields: an altered manifest can have a valid checksum."""
    if manifest.number != number:
        raise ValueError(f"the number of snapshot {number} is {manifest.number!r}")
    shards = [part.number for part in manifest.parts]
    ascending = [0, *shards, manifest.next_shard]
    if manifest.number > MAX_NUMBER or not isinstance(manifest.next_shard, int) or manifest.next_shard > MAX_SHARD:
        raise ValueError(f"the numbers {manifest.number} and {manifest.next_shard!r} are too large to go on from")
    if sorted(set(ascending)) != ascending:
        raise ValueError(f"the shards {shards[:5]} and the next one, {manifest.next_shard!r}, are not ascending")
    for part in manifest.parts:
        if part.rows * manifest.space.dim * 2 > part.size:
            raise ValueError(f"{part.name} has {part.rows:,} rows in only {part.size:,} bytes")
