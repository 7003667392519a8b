"""The manifest of a snapshot: which shards, and which of their rows, make it up. The newest snapshot is the store."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..core.sealed_json import SealedJson
from ..errors import Damaged, NoStore, NotAStore
from .space import Space

REPAIR = "run `clipfake store repair` to return to an earlier one"
FILE = SealedJson("clipfake-store", 1, "manifest", Damaged, REPAIR, foreign=NotAStore)  # versioned like shard.VERSION


@dataclass(frozen=True)
class ShardRef:
    """One shard as a snapshot sees it."""

    name: str  # "000001.h5" in the folder shards/
    rows: int
    header: str  # digest of the shard's header
    size: int  # bytes of the file
    deleted: str = ""  # "000001-000012.u4" in the folder deleted/, "" where no row is
    deleted_rows: int = 0
    deleted_digest: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d{6,9}\.h5", self.name) or not re.fullmatch(r"(\d{6,9}-\d{6,}\.u4)?", self.deleted):
            raise ValueError(
                f"{self.name!r} with {self.deleted!r} are not names of files in a store"
            )  # a path out of the store?
        counts = (self.rows, self.size, self.deleted_rows)
        if not all(isinstance(count, int) and 0 <= count < 1 << 63 for count in counts):
            raise ValueError(f"{self.name} has {counts} rows, bytes and deleted rows")
        if self.rows >= 1 << 32 or self.deleted_rows > (self.rows if self.deleted else 0):
            raise ValueError(f"{self.name} has {self.rows} rows, of which {self.deleted_rows} are deleted")

    @property
    def number(self) -> int:
        return int(Path(self.name).stem)


@dataclass(frozen=True)
class Manifest:
    """A snapshot's table of contents."""

    number: int
    space: Space
    parts: tuple[ShardRef, ...] = ()  # by shard number: a row's position follows from its age
    next_shard: int = 1  # never used before: a lost shard must not lead to writing under an old name
    note: str = ""  # what made it, for people
    created: str = ""

    @property
    def rows(self) -> int:
        return sum(part.rows - part.deleted_rows for part in self.parts)

    def follow(self, note: str, **changes: Any) -> Manifest:
        """The next snapshot's manifest."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return replace(self, number=self.number + 1, note=note, created=now, **changes)


def path_of(folder: Path, number: int) -> Path:
    return folder / "snapshots" / f"{number:06d}.json"


def numbers(folder: Path) -> list[int]:
    """The snapshots there are, oldest first."""
    return sorted(int(p.stem) for p in (folder / "snapshots").glob("*.json") if p.stem.isdigit())


def _newest(folder: Path) -> int:
    if known := numbers(folder):
        return known[-1]
    if folder.is_dir() and any(folder.iterdir()):
        raise NoStore(f"{folder} is no store: it has no snapshots; name the folder that `clipfake index` made")
    raise NoStore(f"there is no store at {folder}; make one with `clipfake index --folders ... --store {folder}`")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make a snapshot visible: this rename is the commit."""
    FILE.write(path_of(folder, manifest.number), asdict(manifest))


def read_manifest(folder: Path, number: int | None = None) -> Manifest:
    """The newest snapshot's manifest, or that of `number`.

    Raises
    ------
    NoStore, NotAStore, Damaged
    """
    if number is None:
        newest = _newest(folder)
        try:
            return read_manifest(folder, newest)
        except NoStore:  # a writer went on to the next one meanwhile
            if _newest(folder) == newest:
                raise
            return read_manifest(folder)
    path = path_of(folder, number)
    try:
        with FILE.reading(path) as content:
            if not isinstance(content["parts"], list):
                raise ValueError("its parts are not a list")
            parts = tuple(ShardRef(**part) for part in content["parts"])
            space = Space.from_dict(content["space"])
            note, created = str(content["note"]), str(content["created"])
            manifest = Manifest(content["number"], space, parts, content["next_shard"], note, created)
            _require_sense(manifest, number)
            return manifest
    except FileNotFoundError as e:
        raise NoStore(f"{folder} has no snapshot {number}; `clipfake store snapshots` lists those there are") from e


def _require_sense(manifest: Manifest, number: int) -> None:
    """Raise ValueError for what no writer of ours says; whoever alters a manifest can give it a right checksum."""
    if manifest.number != number:
        raise ValueError(f"it calls itself snapshot {manifest.number!r}")
    shards = [part.number for part in manifest.parts]
    if not isinstance(manifest.next_shard, int) or sorted({0, *shards, manifest.next_shard}) != [
        0,
        *shards,
        manifest.next_shard,
    ]:
        raise ValueError(f"its shards are {shards[:5]}, the next one is {manifest.next_shard!r}; their numbers grow")
    for part in manifest.parts:
        if part.rows * manifest.space.dim * 2 > part.size:
            raise ValueError(f"{part.name} has {part.rows:,} rows in {part.size:,} bytes")
