"""A second vector of the rows that are there: another encoder's, kept beside the shards and added at any time.

`columns/<name>/column.json` says whose vectors they are and which file has those of which shard; a file has a row for
each row of its shard, NaN where there is no vector yet. docs/FORMAT.md has it in full.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..core.atomic_files import TEMPORARY, remove_leftover, written_aside
from ..core.locking import writer_lock
from ..core.sealed_json import SealedJson, checksum
from ..errors import BadBlock, Damaged, StoreError
from .manifest import Manifest, ShardRef, numbers, read_manifest
from .records import Ids, Vectors, invalid_rows, to_float16
from .search.matches import Positions
from .snapshot import Snapshot
from .space import Space
from .writer import SECONDS_PER_SHARD

if TYPE_CHECKING:
    from .store import Store

FOLDER, CARD = "columns", "column.json"
_AGAIN = "remove their folder and add them again with `clipfake store add-vectors`; the store itself is whole"
FILE = SealedJson("clipfake-column", 1, "list of named vectors", Damaged, _AGAIN)
MAIN = "main"  # what the store's own vectors are called where columns are named
ROWS_HELD = 65_536  # that a writer keeps before it writes them


@dataclass(frozen=True)
class VectorFile:
    """The vectors of one shard's rows."""

    shard: str  # its name
    header: str  # digest of its header: a shard of the same name with other rows has other ones
    file: str
    digest: str  # checksum of the file

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d{6,}-[0-9a-f]{12}\.f2", self.file):
            raise ValueError(f"{self.file!r} is no name of ours")  # a path out of the store?


@dataclass(frozen=True)
class NamedVectors:
    """A named column of a store. Open it with `open_named_vectors`."""

    folder: Path
    name: str
    space: Space
    pieces: dict[str, VectorFile]  # by shard
    _maps: dict[str, npt.NDArray[np.float16]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def held(self, snapshot: Snapshot) -> NamedVectors:
        """Itself, with the files of a snapshot mapped: a writer may replace them meanwhile, what is mapped stays."""
        for part in snapshot.manifest.parts:
            if self._has(part):
                self._mapped(part)
        return self

    def vectors(self, snapshot: Snapshot, positions: Positions) -> npt.NDArray[np.float32]:
        """(n, dim) float32 of the rows at these positions, NaN where there is none; raises Damaged."""
        ids = snapshot.ids[positions]
        result = np.full((len(ids), self.space.dim), np.nan, np.float32)
        for part in snapshot.manifest.parts:
            here = np.flatnonzero(ids >> 32 == part.number)
            if len(here) and self._has(part):
                result[here] = self._mapped(part)[ids[here] & 0xFFFFFFFF]
        return result

    def missing(self, snapshot: Snapshot) -> npt.NDArray[np.bool_]:
        """(rows,) True for the rows that have no vector here."""
        result = np.ones(len(snapshot), bool)
        number, row = snapshot.ids >> 32, snapshot.ids & 0xFFFFFFFF
        for part in snapshot.manifest.parts:
            if self._has(part):
                here = number == part.number
                result[here] = np.isnan(self._mapped(part)[:, 0])[row[here]]
        return result

    def check(self, part: ShardRef) -> None:
        """Compare every byte of a shard's vectors with their checksum; raises Damaged."""
        if self._has(part):
            self._content(self.pieces[part.name])

    def _has(self, part: ShardRef) -> bool:
        return part.name in self.pieces and self.pieces[part.name].header == part.header

    def _mapped(self, part: ShardRef) -> npt.NDArray[np.float16]:
        name = self.pieces[part.name].file
        if name in self._maps:
            return self._maps[name]
        path = self.folder / name
        expected = part.rows * self.space.dim * 2
        try:
            if path.stat().st_size != expected:
                raise Damaged(f"{path} has {path.stat().st_size} bytes instead of {expected}; {_AGAIN}")
            mapped = np.memmap(path, "<f2", "r", shape=(part.rows, self.space.dim))
        except (OSError, ValueError) as e:
            raise Damaged(f"{path} cannot be read ({getattr(e, 'strerror', None) or e}); {_AGAIN}") from e
        self._maps[name] = mapped.view(np.ndarray)
        return self._maps[name]

    def _content(self, piece: VectorFile) -> bytes:
        try:
            content = (self.folder / piece.file).read_bytes()
        except OSError as e:
            raise Damaged(f"{self.folder / piece.file} cannot be read ({e.strerror}); {_AGAIN}") from e
        if checksum(content) != piece.digest:
            raise Damaged(f"{self.folder / piece.file} is not what was written (checksum differs); {_AGAIN}")
        return content


def vector_names(store: Path) -> list[str]:
    """The columns a store has beside its own vectors."""
    return sorted(path.parent.name for path in (store / FOLDER).glob(f"*/{CARD}"))


def open_named_vectors(store: Path, name: str) -> NamedVectors:
    """A column by name; raises StoreError where there is none, Damaged where it cannot be read."""
    folder = store / FOLDER / name
    try:
        with FILE.reading(folder / CARD) as content:
            pieces = {piece["shard"]: VectorFile(**piece) for piece in content["pieces"]}
            return NamedVectors(folder, name, Space.from_dict(content["space"]), pieces)
    except FileNotFoundError as e:
        names = ", ".join([MAIN, *vector_names(store)])
        raise StoreError(
            f"the store {store} has no vectors {name} (it has {names}); "
            f"add them with `clipfake store add-vectors {name} --encoder ...`"
        ) from e


class NamedVectorsWriter:
    """Takes vectors of rows in any order. Make it with `named_vectors_writer`."""

    def __init__(self, store: Store, column: NamedVectors) -> None:
        self.snapshot = store.snapshot()
        self.column = column
        self._store = store.folder
        self._parts = {part.number: part for part in self.snapshot.manifest.parts}
        self._waiting: list[tuple[Ids, Vectors]] = []
        self._sealed_at = time.monotonic()

    def put(self, positions: Positions, vectors: Vectors) -> None:
        """(n, dim) vectors of the rows of `snapshot` at these positions; raises BadBlock for one that is none."""
        if vectors.shape != (len(positions), self.column.space.dim):
            raise BadBlock(f"vectors of shape {vectors.shape} for {len(positions)} rows of {self.column.space}")
        stored = to_float16(vectors)
        if len(wrong := invalid_rows(stored)):
            key = self.snapshot.column("keys")[positions[wrong[0]]]
            raise BadBlock(f"the row {key} was given a vector that is zero or not finite as float16; leave it out")
        self._waiting.append((self.snapshot.ids[positions], stored))
        late = time.monotonic() - self._sealed_at > SECONDS_PER_SHARD
        if late or sum(len(ids) for ids, _ in self._waiting) >= ROWS_HELD:
            self.seal()

    def seal(self) -> None:
        """Write what was taken in and make it visible."""
        if not self._waiting:
            return
        ids = np.concatenate([ids for ids, _ in self._waiting])
        vectors = np.concatenate([vectors for _, vectors in self._waiting])
        pieces = dict(self.column.pieces)
        for number in np.unique(ids >> 32).tolist():
            part, here = self._parts[number], ids >> 32 == number
            whole = np.full((part.rows, self.column.space.dim), np.nan, np.float16)
            if self.column._has(part):
                self.column.check(part)  # or damage would be given a checksum that is right
                whole[:] = self.column._mapped(part)
            whole[ids[here] & 0xFFFFFFFF] = vectors[here]
            pieces[part.name] = write_piece(self.column.folder, part, whole)
        self.column = replace(self.column, pieces=pieces)
        write_card(self.column)
        tidy(self._store, self.column)
        self._waiting, self._sealed_at = [], time.monotonic()


@contextmanager
def named_vectors_writer(store: Store, name: str, space: Space) -> Iterator[NamedVectorsWriter]:
    """Hold a column for writing; it is made if it is not there. What was put is sealed when the block ends.

    Raises
    ------
    StoreError
        The name is none for a folder.
    SpaceMismatch
        The column is there with another encoder's vectors.
    Locked
        Another process is writing to the store.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) or name == MAIN:
        raise StoreError(f"{name!r} is no name for a column; use small letters, digits and dashes (and not {MAIN!r})")
    with writer_lock(store.folder):
        if name in vector_names(store.folder):
            column = open_named_vectors(store.folder, name)
            space.require(column.space, f"the column {name}")
        else:
            column = NamedVectors(store.folder / FOLDER / name, name, space, {})
            write_card(column)
        writer = NamedVectorsWriter(store, column)
        try:
            yield writer
        finally:
            writer.seal()


def carry(store: Path, old: Ids, new: Ids, parts: Sequence[ShardRef]) -> None:
    """Before rows are moved to new shards: their vectors go with them, in every column that can be read.

    The files of the old shards stay until no snapshot names those, so a process that is killed before the move is
    committed has lost nothing.

    Parameters
    ----------
    old, new : (n,) ids of the rows, before and after
    parts : the new shards

    Raises
    ------
    Damaged
        Vectors that are to be moved are not what was written.
    """
    for name in vector_names(store):
        try:
            column = open_named_vectors(store, name)
        except StoreError:
            continue  # `verify` names it
        pieces = dict(column.pieces)
        before = {part.number: part for part in read_manifest(store).parts}
        for part in parts:
            here = np.flatnonzero(new >> 32 == part.number)
            whole = np.full((part.rows, column.space.dim), np.nan, np.float16)
            for number in np.unique(old[here] >> 32).tolist():
                if number in before and column._has(before[number]):
                    column.check(before[number])
                    some = here[old[here] >> 32 == number]
                    whole[new[some] & 0xFFFFFFFF] = column._mapped(before[number])[old[some] & 0xFFFFFFFF]
            if not np.isnan(whole[:, 0]).all():
                pieces[part.name] = write_piece(column.folder, part, whole)
        write_card(replace(column, pieces=pieces))


def write_piece(folder: Path, part: ShardRef, vectors: npt.NDArray[np.float16]) -> VectorFile:
    content = np.ascontiguousarray(vectors, "<f2").tobytes()
    digest = checksum(content)
    name = f"{part.number:06d}-{digest[:12]}.f2"
    with written_aside(folder / name) as temporary:
        temporary.write_bytes(content)
    return VectorFile(part.name, part.header, name, digest)


def write_card(column: NamedVectors) -> None:
    """Make the files of the vectors visible: this rename is the commit."""
    pieces = [asdict(piece) for _, piece in sorted(column.pieces.items())]
    FILE.write(column.folder / CARD, {"space": column.space.to_dict(), "pieces": pieces})


def tidy(store: Path, column: NamedVectors) -> None:
    """Remove files that the column no longer names, and pieces of shards that no snapshot has."""
    try:
        manifests: list[Manifest] = [read_manifest(store, n) for n in numbers(store)]
    except StoreError:
        return  # one that cannot be read may have any shard: `store repair` decides
    shards = {(part.name, part.header) for manifest in manifests for part in manifest.parts}
    kept = {name: piece for name, piece in column.pieces.items() if (name, piece.header) in shards}
    if len(kept) < len(column.pieces):
        column = replace(column, pieces=kept)
        write_card(column)
    named = {piece.file for piece in kept.values()} | {CARD}
    for path in column.folder.iterdir():
        if path.name not in named or path.suffix == TEMPORARY:
            remove_leftover(path)


def tidy_all(store: Path) -> None:
    """Tidy all named vectors that can be read."""
    for name in vector_names(store):
        with suppress(StoreError):
            tidy(store, open_named_vectors(store, name))


def damage(store: Path, manifests: Sequence[Manifest]) -> dict[str, str]:
    """Files of columns that are not what was written -> what is wrong with each; reads every byte."""
    found = {}
    for name in vector_names(store):
        try:
            column = open_named_vectors(store, name)
        except StoreError as e:
            found[f"{FOLDER}/{name}/{CARD}"] = str(e)
            continue
        for part in {part.name: part for manifest in manifests for part in manifest.parts}.values():
            try:
                column.check(part)
            except Damaged as e:
                if _now(store, name, part) != column.pieces[part.name]:
                    continue  # a writer put another file in its place meanwhile
                found[f"{FOLDER}/{name}/{column.pieces[part.name].file}"] = str(e)
    return found


def _now(store: Path, name: str, part: ShardRef) -> VectorFile | None:
    with suppress(StoreError):
        return open_named_vectors(store, name).pieces.get(part.name)
    return None


def let_go(store: Path, path: Path) -> None:
    """Drop a damaged file from the list of named vectors; if the list itself is damaged there is nothing to do."""
    with suppress(StoreError):
        column = open_named_vectors(store, path.parent.name)
        pieces = {shard: piece for shard, piece in column.pieces.items() if piece.file != path.name}
        write_card(replace(column, pieces=pieces))
