"""Named vectors: further vectors of the stored rows, by another encoder or as another view of the store's own.

`columns/<name>/column.json` names their embedding space and the file of each shard. A file has one vector for each row
of its shard, NaN where there is none yet. docs/FORMAT.md describes the format.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..core.atomic_files import require_readable, written_aside
from ..core.locking import WriterLock
from ..core.reading import read_bounded
from ..core.row_file import RowFile
from ..core.sealed_json import SealedJson, checksum
from ..errors import BadBlock, Damaged, StoreError, Unreadable
from .manifest import Manifest, ShardRef, read_manifest
from .records import Ids, Vectors, invalid_rows, to_float16
from .retention import complete_manifests
from .rooms import NAMED_VECTORS, own_files, own_folders, remove_files, store_lock
from .search.matches import Positions
from .shard import SECONDS_PER_SHARD
from .snapshot import Snapshot, open_snapshot
from .space import MAIN as MAIN
from .space import Space

FOLDER, LIST, PARAMETERS = "columns", "column.json", "view.safetensors"
_AGAIN = "the store itself is intact; remove the folder of these vectors and run `clipfake store add-vectors` again"
VECTORS_LIMIT = 1 << 34  # bytes of the vectors of one shard
PARAMETERS_LIMIT = 1 << 30  # bytes of the parameters of a view
FILE = SealedJson("clipfake-column", 1, "list of named vectors", Damaged, _AGAIN)
ROWS_HELD = 65_536  # rows a writer buffers before it writes them
ROWS_READ = 4096  # at a time


@dataclass(frozen=True)
class VectorFile:
    """The vectors of one shard's rows."""

    shard: str  # name of the shard
    header: str  # digest of the shard's header, which differs for a shard of the same name with other rows
    file: str
    digest: str  # checksum of the file
    complete: bool = False  # every row has a vector, so that the file need not be read to know which have none

    def __post_init__(self) -> None:
        if not NAMED_VECTORS.fullmatch(self.file) or self.file in (LIST, PARAMETERS):
            raise ValueError(f"invalid file name {self.file!r}")  # it could be a path out of the store


@dataclass(frozen=True)
class ViewRecord:
    """How the store's own encoder computes named vectors in the pass of the main vector; see `clipfake.indexer.views`.

    The content of `view.safetensors`, if `digest` is set, is what was fitted when the view was made.
    """

    kind: str
    digest: str = ""  # checksum of the file `view.safetensors`, "" for a view without one
    rows: int = 0  # of patches, for the vectors of patches side by side, row by row; 0 for other vectors
    columns: int = 0


@dataclass(frozen=True)
class NamedVectors:
    """The vectors of one name in a store. Open them with `open_named_vectors`."""

    folder: Path
    name: str
    space: Space
    pieces: dict[str, VectorFile]  # by name of the shard
    view: ViewRecord | None = None  # None for the vectors of another encoder
    _files: dict[str, RowFile] = field(default_factory=dict, init=False, repr=False, compare=False)

    def open_files(self, snapshot: Snapshot) -> None:
        """Open the files of a snapshot's shards, so that they stay readable when a writer replaces them."""
        for part in snapshot.manifest.parts:
            if self.covers(part):
                self.shard_vectors(part)

    def vectors(self, snapshot: Snapshot, positions: Positions) -> npt.NDArray[np.float32]:
        """(n, dim) float32 vectors of the rows at these positions, NaN where there is none; raises Damaged."""
        ids = snapshot.ids[positions]
        result = np.full((len(ids), self.space.dim), np.nan, np.float32)
        for part in snapshot.manifest.parts:
            in_shard = np.flatnonzero(ids >> 32 == part.number)
            if len(in_shard) and self.covers(part):
                result[in_shard] = self.shard_vectors(part)[ids[in_shard] & 0xFFFFFFFF]
        return result

    def missing(self, snapshot: Snapshot) -> npt.NDArray[np.bool_]:
        """(rows,) True for the rows without a vector of this name."""
        result = np.ones(len(snapshot), bool)
        number, row = snapshot.ids >> 32, snapshot.ids & 0xFFFFFFFF
        for part in snapshot.manifest.parts:
            if self.covers(part):
                in_shard = number == part.number
                complete = self.pieces[part.name].complete
                result[in_shard] = False if complete else np.isnan(self._first_values(part))[row[in_shard]]
        return result

    def _first_values(self, part: ShardRef) -> npt.NDArray[np.float16]:
        vectors = self.shard_vectors(part)
        pieces = [vectors[start : start + ROWS_READ][:, 0] for start in range(0, part.rows, ROWS_READ)]
        return np.concatenate([np.zeros(0, np.float16), *pieces])

    def check(self, part: ShardRef) -> None:
        """Verify the checksum of a shard's vectors, reading every byte; raises Damaged."""
        if self.covers(part):
            self._verified(self.pieces[part.name].file, self.pieces[part.name].digest)

    def parameters(self) -> bytes:
        """Content of the file that was fitted when the view was made, b"" for none; raises Damaged."""
        if self.view is None or not self.view.digest:
            return b""
        return self._verified(PARAMETERS, self.view.digest, PARAMETERS_LIMIT)

    def covers(self, part: ShardRef) -> bool:
        """True if there is a file with vectors of this shard's rows."""
        return part.name in self.pieces and self.pieces[part.name].header == part.header

    def shard_vectors(self, part: ShardRef) -> RowFile:
        """(rows of the shard, dim) float16 vectors of a shard that is covered, read when indexed; raises Damaged."""
        name = self.pieces[part.name].file
        if name not in self._files:
            path = self.folder / name
            shape = (part.rows, self.space.dim)
            # a file of this name always has the same content, as its checksum is in the name
            file = RowFile(path, "<f2", shape, error=_invalid_file, verify=lambda: None)
            if (size := path.stat().st_size) != (expected := 2 * part.rows * self.space.dim):
                raise _invalid_file(f"{path} has {size} bytes instead of {expected}")
            self._files[name] = file
        return self._files[name]

    def _verified(self, name: str, digest: str, limit: int = VECTORS_LIMIT) -> bytes:
        try:
            content = read_bounded(self.folder / name, limit)
        except OSError as e:
            require_readable(self.folder / name, e)
            raise Damaged(f"{self.folder / name} cannot be read ({e.strerror}); {_AGAIN}") from e
        if checksum(content) != digest:
            raise Damaged(f"{self.folder / name} was altered (checksum differs); {_AGAIN}")
        return content


def _invalid_file(problem: str) -> Damaged:
    return Damaged(f"{problem}; {_AGAIN}")


def vector_names(store: Path) -> list[str]:
    """Names of the named vectors of a store, without the main vectors; raises Unreadable if they cannot be listed."""
    return [name for name in own_folders(store, FOLDER) if LIST in own_files(store, FOLDER, name, own=NAMED_VECTORS)]


def open_named_vectors(store: Path, name: str) -> NamedVectors:
    """Open named vectors; raises StoreError if there are none of this name, Damaged if they cannot be read."""
    folder = store / FOLDER / name
    try:
        with FILE.reading(folder / LIST) as content:
            pieces = {piece["shard"]: VectorFile(**piece) for piece in content["pieces"]}
            view = ViewRecord(**content["view"]) if content.get("view") else None
            return NamedVectors(folder, name, Space.from_dict(content["space"]), pieces, view)
    except FileNotFoundError as e:
        names = ", ".join([MAIN, *vector_names(store)])
        raise StoreError(
            f"the store {store} has no vectors named {name}, only {names}; "
            f"add them with `clipfake store add-vectors {name} --encoder ...`"
        ) from e


class NamedVectorsWriter:
    """Writer of named vectors; accepts rows in any order. Make it with `named_vectors_writer`."""

    def __init__(self, lock: WriterLock, column: NamedVectors) -> None:
        self._lock = lock
        self.snapshot = open_snapshot(lock.folder)
        self.column = column
        self._parts = {part.number: part for part in self.snapshot.manifest.parts}
        self._waiting: list[tuple[Ids, Vectors]] = []
        self._sealed_at = time.monotonic()

    def put(self, positions: Positions, vectors: Vectors) -> None:
        """Add (n, dim) vectors for the rows of `snapshot` at these positions.

        Raises
        ------
        BadBlock
            The array has another shape, or a vector is zero or not finite as float16; nothing is added.
        """
        dim = self.column.space.dim
        if vectors.shape != (len(positions), dim):
            raise BadBlock(f"vectors of shape {vectors.shape} for {len(positions)} rows; expected (rows, {dim})")
        stored = to_float16(vectors)
        if len(invalid := invalid_rows(stored)):
            key = self.snapshot.column("keys")[positions[invalid[0]]]
            raise BadBlock(f"the vector of row {key} is zero or not finite as float16; leave the row out")
        self._waiting.append((self.snapshot.ids[positions], stored))
        late = time.monotonic() - self._sealed_at > SECONDS_PER_SHARD
        if late or sum(len(ids) for ids, _ in self._waiting) >= ROWS_HELD:
            self.seal()

    def seal(self) -> None:
        """Write the buffered vectors and make them visible."""
        if not self._waiting:
            return
        self._lock.require_held()
        ids = np.concatenate([ids for ids, _ in self._waiting])
        vectors = np.concatenate([vectors for _, vectors in self._waiting])
        pieces = dict(self.column.pieces)
        for number in np.unique(ids >> 32).tolist():
            part, in_shard = self._parts[number], ids >> 32 == number
            merged = np.full((part.rows, self.column.space.dim), np.nan, np.float16)
            if self.column.covers(part):
                self.column.check(part)  # otherwise damaged vectors would get a valid checksum
                merged[:] = self.column.shard_vectors(part)
            merged[ids[in_shard] & 0xFFFFFFFF] = vectors[in_shard]
            pieces[part.name] = write_vector_file(self.column.folder, part, merged)
        self.column = replace(self.column, pieces=pieces)
        write_list(self.column, self._lock)
        tidy(self._lock, self.column)
        self._waiting, self._sealed_at = [], time.monotonic()


@contextmanager
def named_vectors_writer(store: Path, name: str, space: Space) -> Iterator[NamedVectorsWriter]:
    """Open named vectors for writing, creating them if needed. Added vectors are written when the block ends.

    A view is created by `create_view`.

    Parameters
    ----------
    store : folder of the store

    Raises
    ------
    StoreError
        The name is not valid.
    SpaceMismatch
        Vectors of this name exist and belong to another encoder.
    Locked
        Another process is writing to the store.
    """
    require_valid_name(name)
    with store_lock(store) as lock:
        if name in vector_names(store):
            column = open_named_vectors(store, name)
            space.require(column.space, f"the vectors {name}")
        else:
            column = NamedVectors(store / FOLDER / name, name, space, {})
            write_list(column, lock)
        writer = NamedVectorsWriter(lock, column)
        try:
            yield writer
        finally:
            writer.seal()


def require_valid_name(name: str) -> None:
    """Raise StoreError unless named vectors may have this name."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) or name == MAIN:
        raise StoreError(
            f"invalid name {name!r} for vectors; use lowercase letters, digits, hyphens and underscores, not {MAIN!r}"
        )


def create_view(store: Path, name: str, space: Space, view: ViewRecord, parameters: bytes = b"") -> NamedVectors:
    """Create named vectors that the store's own encoder computes as a view, without any vector yet.

    If another process has created them meanwhile, theirs are returned.

    Parameters
    ----------
    view : without the digest of the parameters
    parameters : what was fitted for the view, written as `view.safetensors`; b"" for nothing

    Raises
    ------
    StoreError
        The name is not valid, or the disk is full or read-only.
    Locked
        Another process is writing to the store.
    """
    require_valid_name(name)
    with store_lock(store) as lock:
        if name in vector_names(store):
            return open_named_vectors(store, name)
        column = NamedVectors(store / FOLDER / name, name, space, {}, view)
        if parameters:
            with written_aside(column.folder / PARAMETERS, pending=True) as temporary:
                temporary.write_bytes(parameters)
            column = replace(column, view=replace(view, digest=checksum(parameters)))
        write_list(column, lock)
        return column


def store_named_vectors(lock: WriterLock, part: ShardRef, named: Mapping[str, Vectors], old: Ids, new: Ids) -> None:
    """Store the named vectors of a shard that is about to be committed: its own, and those of rows moved to it.

    Parameters
    ----------
    named : name -> (rows of the shard, dim) float16 vectors, NaN for rows without one
    old, new : (n,) ids of the rows that are moved to the shard, before and after; see `copy_vectors`

    Raises
    ------
    Damaged, Unreadable, StoreError
        There are no vectors of a name in `named`, or vectors to copy are damaged or cannot be read now.
    """
    if len(old):
        copy_vectors(lock, old, new, [part])
    for name, vectors in named.items():
        column = open_named_vectors(lock.folder, name)
        merged = np.array(vectors, np.float16)
        if column.covers(part):
            moved = new & 0xFFFFFFFF
            merged[moved] = column.shard_vectors(part)[moved]
        if not np.isnan(merged[:, 0]).all():
            pieces = {**column.pieces, part.name: write_vector_file(column.folder, part, merged)}
            write_list(replace(column, pieces=pieces), lock)


def copy_vectors(lock: WriterLock, old: Ids, new: Ids, parts: Sequence[ShardRef]) -> None:
    """Copy all readable named vectors of rows that are about to be moved to new shards.

    The files of the old shards stay until no snapshot refers to them, so nothing is lost if the process is killed
    before the move is committed.

    Parameters
    ----------
    lock : of the store
    old, new : (n,) ids of the rows, before and after
    parts : the new shards

    Raises
    ------
    Damaged
        The checksum of vectors to copy differs.
    Unreadable
        Vectors to copy cannot be read now.
    """
    store = lock.folder
    for name in vector_names(store):
        try:
            column = open_named_vectors(store, name)
        except Unreadable:
            raise  # without a copy they would be lost
        except StoreError:
            continue  # reported by `verify`
        pieces = dict(column.pieces)
        before = {part.number: part for part in read_manifest(store).parts}
        for part in parts:
            moved = np.flatnonzero(new >> 32 == part.number)  # rows that go to this shard
            copied = np.full((part.rows, column.space.dim), np.nan, np.float16)
            for number in np.unique(old[moved] >> 32).tolist():
                if number in before and column.covers(before[number]):
                    column.check(before[number])
                    rows = moved[old[moved] >> 32 == number]
                    copied[new[rows] & 0xFFFFFFFF] = column.shard_vectors(before[number])[old[rows] & 0xFFFFFFFF]
            if not np.isnan(copied[:, 0]).all():
                pieces[part.name] = write_vector_file(column.folder, part, copied)
        write_list(replace(column, pieces=pieces), lock)


def write_vector_file(folder: Path, part: ShardRef, vectors: npt.NDArray[np.float16]) -> VectorFile:
    """Write the (rows of the shard, dim) vectors of one shard; `write_list` makes them visible."""
    content = np.ascontiguousarray(vectors, "<f2").tobytes()
    digest = checksum(content)
    name = f"{part.number:06d}-{secrets.token_hex(6)}.f2"  # never used before: another writer may be removing others
    with written_aside(folder / name, pending=True) as temporary:
        temporary.write_bytes(content)
    return VectorFile(part.name, part.header, name, digest, complete=not np.isnan(vectors[:, 0]).any())


def write_list(column: NamedVectors, lock: WriterLock | None = None) -> None:
    """Write the list of vector files; replacing it commits the files it names. The lock is checked right before."""
    check = lock.require_held if lock else None
    pieces = [asdict(piece) for _, piece in sorted(column.pieces.items())]
    fields = {"space": column.space.to_dict(), "pieces": pieces}
    if column.view:
        fields["view"] = asdict(column.view)
    FILE.write(column.folder / LIST, fields, check=check)


def tidy(lock: WriterLock, column: NamedVectors) -> None:
    """Remove files that are no longer listed, and those of shards that no snapshot refers to."""
    manifests = complete_manifests(lock.folder)
    if not manifests:
        return  # an unreadable snapshot may refer to any shard; `store repair` decides
    shards = {(part.name, part.header) for manifest in manifests for part in manifest.parts}
    kept = {name: piece for name, piece in column.pieces.items() if (name, piece.header) in shards}
    if len(kept) < len(column.pieces):
        column = replace(column, pieces=kept)
        write_list(column, lock)
    listed = {piece.file for piece in kept.values()} | {LIST, PARAMETERS}
    files = own_files(lock.folder, FOLDER, column.name, own=NAMED_VECTORS)
    unlisted = [name for name in files if name not in listed]
    remove_files(lock.folder, FOLDER, column.name, own=NAMED_VECTORS, names=unlisted, lock=lock)


def tidy_all(lock: WriterLock) -> None:
    """Run `tidy` on all named vectors that can be read."""
    for name in vector_names(lock.folder):
        with suppress(StoreError):
            tidy(lock, open_named_vectors(lock.folder, name))


def find_damage(store: Path, manifests: Sequence[Manifest]) -> dict[str, str]:
    """Damaged files of named vectors, each with a description of the damage; reads every byte."""
    damage = {}
    for name in vector_names(store):
        try:
            column = open_named_vectors(store, name)
        except Unreadable:
            raise
        except StoreError as e:
            damage[f"{FOLDER}/{name}/{LIST}"] = str(e)
            continue
        try:
            column.parameters()
        except Damaged as e:
            damage[f"{FOLDER}/{name}/{PARAMETERS}"] = str(e)
        for part in {part.name: part for manifest in manifests for part in manifest.parts}.values():
            try:
                column.check(part)
            except Damaged as e:
                if _current_file(store, name, part) != column.pieces[part.name]:
                    continue  # a writer has replaced the file in the meantime
                damage[f"{FOLDER}/{name}/{column.pieces[part.name].file}"] = str(e)
    return damage


def _current_file(store: Path, name: str, part: ShardRef) -> VectorFile | None:
    with suppress(StoreError):
        return open_named_vectors(store, name).pieces.get(part.name)
    return None


def forget_file(store: Path, path: Path) -> None:
    """Remove a damaged file from the list it is in. If the list itself is damaged, there is nothing to do.

    Without what was fitted for a view, no image can be compared with its vectors: the whole view is forgotten.
    """
    if path.name == PARAMETERS:
        with suppress(OSError):
            (path.parent / LIST).unlink()
        return
    with suppress(StoreError):
        column = open_named_vectors(store, path.parent.name)
        pieces = {shard: piece for shard, piece in column.pieces.items() if piece.file != path.name}
        write_list(replace(column, pieces=pieces))
