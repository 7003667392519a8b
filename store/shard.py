"""Shard: an immutable HDF5 file of rows in the format of docs/FORMAT.md, written atomically."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import numpy.typing as npt

from ..core.atomic_files import require_readable, reserve, written_aside
from ..core.reading import require_regular
from ..core.row_file import RowFile
from ..core.sealed_json import checksum
from ..errors import BadBlock, Damaged, NotAStore
from .key_index import Hashes
from .records import (
    COLUMNS,
    LABEL_COLUMNS,
    TEXT,
    Block,
    Names,
    RowLabels,
    Rows,
    Vectors,
    distinct,
    invalid_rows,
    names,
    to_float16,
)
from .space import Space

FORMAT = "clipfake-shard"
# To raise it: keep the reader of the old version, add a store written by the old release to tests/, and document the
# change in docs/FORMAT.md.
VERSION = 1
# The layout of HDF5 1.8 and later has checksums in its metadata, so HDF5 itself detects damage. The older layout has
# none, and a flipped bit there can send the library into an endless loop.
LAYOUT = ("v108", "v108")
PAGE = 4096  # large datasets are aligned to memory pages, so that they can be mapped
DATASET_METADATA = 1024  # bytes; an upper bound for what HDF5 stores about one dataset
HEAP_SIGNATURE = b"GCOL\x01\0\0\0"
HEAP_WITHIN = 1 << 16  # bytes at the end of a shard that contain its global heap
ROWS_PER_DIGEST = 256
THUMBNAILS_PER_DIGEST = 16  # small JPEGs, in all about as large as 256 vectors
ROWS_READ = 4096  # rows whose thumbnails are read at a time
ROWS_PER_SHARD = 16_384
SECONDS_PER_SHARD = 30.0  # so that the rows of a slow encoder are saved this often

CODED = ("sources", "generators", "categories", "formats")  # few distinct values: stored as a table and codes
TEXTUAL = ("keys", "paths")  # mostly distinct values: stored as concatenated bytes and end offsets
NAMED = "named"  # group of the named vectors of a shard that waits to be adopted


@dataclass(frozen=True)
class Header:
    """Header of a shard. The manifest holds its digest, so that no change of either goes unnoticed."""

    rows: int
    space: Space
    checksums: dict[str, str]  # dataset -> hex BLAKE2b-128 of its bytes, little-endian, row by row

    @property
    def digest(self) -> str:
        fields = {"rows": self.rows, "space": self.space.to_dict(), "checksums": self.checksums}
        return checksum(json.dumps(fields, sort_keys=True).encode())


def hash_keys(keys: Sequence[str] | Names) -> Hashes:
    """(n,) hashes by which keys are looked up: the first eight bytes of each key's BLAKE2b, little-endian."""
    texts = keys if isinstance(keys, Sequence) else keys.tolist()
    return np.frombuffer(b"".join([hashlib.blake2b(key.encode(), digest_size=8).digest() for key in texts]), "<u8")


def digest_groups(vectors: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """(groups, 16) BLAKE2b-128 of every 256 rows, so that damage can be narrowed down to these rows."""
    groups = [vectors[i : i + ROWS_PER_DIGEST] for i in range(0, len(vectors), ROWS_PER_DIGEST)]
    digests = bytes.fromhex("".join(checksum(np.ascontiguousarray(group)) for group in groups))
    return np.frombuffer(digests, np.uint8).reshape(-1, 16)


def write_shard(path: Path, block: Block, *, exclusive: bool = False) -> Header:
    """Check a block and write it as a shard, atomically. With `exclusive`, a file that exists is not replaced.

    The named vectors of the block are written too, for a writer that adopts the shard: see `Writer.adopt`. Vectors are
    stored as float16, which changes inner products of unit vectors by about 0.0005.

    Raises
    ------
    BadBlock
        A vector is zero or not finite as float16, or a key occurs twice; nothing is written.
    StoreError
        The disk is full or read-only, or `exclusive` is set and the file exists; nothing is left behind.
    """
    named = {name: to_float16(vectors) for name, vectors in block.named.items()}
    block = replace(block, vectors=to_float16(block.vectors), named=named)
    hashes = hash_keys(block.rows.keys)
    require_valid_vectors(block)
    _require_unique_keys(block, hashes)
    return write_checked_shard(path, block, hashes, exclusive=exclusive)


def write_checked_shard(path: Path, block: Block, hashes: Hashes, *, exclusive: bool = False) -> Header:
    """Write a block as a shard without checking it again; see `write_shard`.

    Parameters
    ----------
    block : float16 vectors that passed `require_valid_vectors`, and no key twice
    hashes : (rows,) hashes of the keys
    """
    datasets = dict(_datasets(block, hashes))
    header = Header(len(block), block.space, {name: checksum(values) for name, values in datasets.items()})
    size = sum(values.nbytes + PAGE + DATASET_METADATA for values in datasets.values()) + 2**16
    with written_aside(path, exclusive=exclusive, pending=True) as temporary, _new_file(temporary, size) as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values)
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file.attrs["rows"] = len(block)
        file.attrs["space"] = json.dumps(block.space.to_dict(), sort_keys=True)
        file.attrs["checksums"] = json.dumps(header.checksums, sort_keys=True)
        file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    return header


@contextmanager
def _new_file(path: Path, size: int) -> Iterator[h5py.File]:
    """Create an HDF5 file with disk space for `size` bytes reserved, and truncate it to its actual size at the end."""
    path.write_bytes(_empty())
    reserve(path, size)
    with path.open("r+b") as file:
        kept = _KeptErrors(file)
        try:
            with h5py.File(kept, "r+", **_LAYOUT_OPTIONS) as created:
                yield created
        finally:
            kept.raise_first()  # rather than what HDF5 makes of it


class _KeptErrors(io.RawIOBase):
    """A file for HDF5, which would crash the process if a write failed: the first error is kept, to be raised later."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._error: OSError | ValueError | None = None

    def raise_first(self) -> None:
        if self._error is not None:
            raise self._error

    def _try(self, method: str, *arguments: Any) -> Any:
        if self._error is None:
            try:
                return getattr(self._file, method)(*arguments)
            except (OSError, ValueError) as e:  # ValueError: HDF5 could not close it, and Python has
                self._error = e
        return None

    def write(self, content: Any) -> int:
        self._try("write", content)
        return len(content)

    def read(self, size: int = -1) -> bytes:  # by which h5py recognises a file
        return self._try("read", size) or b""

    def readinto(self, content: Any) -> int:
        return self._try("readinto", content) or 0

    def seek(self, *place: int) -> int:
        return self._try("seek", *place) or 0

    def truncate(self, size: int | None = None) -> int:
        return self._try("truncate", size) or 0

    def flush(self) -> None:
        self._try("flush")

    def close(self) -> None:
        """Leave the file open: it belongs to the caller."""


@cache
def _empty() -> bytes:
    # In a buffer: HDF5 treats files of one name as the same file, even in memory, so that threads would collide.
    content = io.BytesIO()
    h5py.File(content, "w", **_LAYOUT_OPTIONS).close()
    return content.getvalue()


_LAYOUT_OPTIONS: Any = {"libver": LAYOUT, "alignment_threshold": PAGE, "alignment_interval": PAGE}


def require_valid_vectors(block: Block) -> None:
    """Raise BadBlock if a vector of the block is zero or not finite as float16; named vectors may be missing (NaN)."""
    for name, vectors in {"": block.vectors, **block.named}.items():
        invalid = invalid_rows(vectors)
        if name:
            invalid = invalid[~np.isnan(vectors[invalid]).all(1)]
        if len(invalid):
            raise BadBlock(
                f"row {invalid[0]} ({block.rows.keys[invalid[0]]}) has a vector {name and name + ' '}that is zero or "
                f"not finite, {len(invalid)} such rows in all; they cannot be compared with anything, so leave them out"
            )


def _require_unique_keys(block: Block, hashes: Hashes) -> None:
    if len(np.unique(hashes)) == len(hashes):
        return
    keys, _, counts = distinct(block.rows.keys)
    if len(repeated := np.flatnonzero(counts > 1)):
        raise BadBlock(
            f"the key {keys[repeated[0]]} occurs {counts[repeated[0]]} times in one block; keys must be unique"
        )


def _require_hard_links(file: h5py.File, name: str) -> None:
    """Raise ValueError if a name leads through a link to another file, or to another place of this one."""
    parts = name.split("/")
    for i in range(1, len(parts) + 1):
        path = "/".join(parts[:i])
        if not isinstance(file.get(path, getlink=True), h5py.HardLink | None):
            raise ValueError(f"{path} is a link to another place")


def _datasets(block: Block, hashes: Hashes) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    yield "vectors", block.vectors
    yield "vector_digests", digest_groups(block.vectors)
    for column in fields(Rows):
        name, values = column.name, getattr(block.rows, column.name)
        if name in TEXTUAL:
            yield from _strings(name, values)
        elif name in CODED:
            table, codes, _ = distinct(values)
            yield f"{name}/codes", codes.astype("<u4")
            yield from _strings(name, table)
        elif name == "digests":
            yield name, np.ascontiguousarray(values).view(np.uint8).reshape(len(values), 16)
        else:
            yield name, np.ascontiguousarray(values, dtype=np.dtype(COLUMNS[name]).newbyteorder("<"))
    yield "key_hashes", hashes
    if block.thumbnails:
        yield from _pieces("thumbnails", b"".join(block.thumbnails), map(len, block.thumbnails))
        yield "thumbnails/digests", _thumbnail_digests_of(block.thumbnails)
    occurring = set(block.rows.categories.tolist())
    if categories := sorted(occurring & block.texts.keys()):
        yield from _strings("texts", names(categories))
        vectors = [block.texts[category] for category in categories]
        yield "texts/vectors", np.asarray(vectors, dtype="<f2").reshape(len(categories), -1)
    for name, named in sorted(block.named.items()):
        yield f"{NAMED}/{name}", named


def _thumbnail_digests_of(thumbnails: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    """(groups, 16) BLAKE2b-128 of every 16 thumbnails, so that a few can be verified without reading all."""
    step = THUMBNAILS_PER_DIGEST
    groups = [b"".join(thumbnails[i : i + step]) for i in range(0, len(thumbnails), step)]
    return np.frombuffer(bytes.fromhex("".join(map(checksum, groups))), np.uint8).reshape(-1, 16)


def _strings(name: str, values: Names) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    texts = values.tolist()
    whole = "".join(texts)
    lengths = map(len, texts) if whole.isascii() else (len(text.encode()) for text in texts)
    yield from _pieces(name, whole.encode(), lengths)


def _pieces(name: str, whole: bytes, lengths: Iterable[int]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    yield f"{name}/bytes", np.frombuffer(whole, dtype=np.uint8)
    yield f"{name}/ends", np.fromiter(lengths, "<u8").cumsum(dtype="<u8")


@dataclass(frozen=True)
class Shard:
    """Reader of a shard. Reads lazily and does not keep the file open; errors name the file."""

    path: Path

    @contextmanager
    def _file(self) -> Iterator[h5py.File]:
        try:
            require_regular(self.path)
            # Shards never change, and HDF5's own locks fail where there are none.
            with h5py.File(self.path, "r", locking=False) as file:
                yield file
        except FileNotFoundError as e:
            raise Damaged(f"{self.path} is missing; {_REPAIR}") from e
        except _INVALID_CONTENT as e:
            require_readable(self.path, e)
            raise Damaged(f"{self.path} is not a readable shard ({e}); {_REPAIR}") from e

    @cached_property
    def header(self) -> Header:
        """Format, version, rows, space and checksums; raises NotAStore or Damaged."""
        with self._file() as file:
            _check_global_heap(self.path)
            if file.attrs.get("format") != FORMAT:
                raise NotAStore(f"{self.path} is an HDF5 file, but not a clipfake shard; remove it from the store")
            if not 1 <= (version := int(file.attrs["version"])) <= VERSION:
                raise NotAStore(
                    f"{self.path} has format version {version}, this release reads 1 to {VERSION}; upgrade clipfake"
                )
            if (rows := int(file.attrs["rows"])) < 0:
                raise ValueError(f"invalid number of rows: {rows}")
            return Header(
                rows=rows,
                space=Space.from_dict(json.loads(file.attrs["space"])),
                checksums={str(k): str(v) for k, v in json.loads(file.attrs["checksums"]).items()},
            )

    def __len__(self) -> int:
        return self.header.rows

    @property
    def size(self) -> int:
        """Bytes of the file; raises Damaged if it is missing."""
        try:
            return self.path.stat().st_size
        except OSError as e:
            require_readable(self.path, e)
            raise Damaged(f"{self.path} is missing ({e.strerror}); {_REPAIR}") from e

    @cached_property
    def vectors(self) -> RowFile | Vectors:
        """(rows, dim) vectors, read from the file when they are indexed with a slice, integers or a mask.

        Their checksums are not verified; see `damaged_rows`.
        """
        offset, shape, dtype = self._vectors_location
        if shape != (len(self), self.header.space.dim) or dtype.kind != "f":
            raise Damaged(
                f"{self.path} has {dtype} vectors of shape {shape} for {len(self)} rows of "
                f"{self.header.space.dim} dimensions; {_REPAIR}"
            )
        if offset is None:  # no rows, or written in chunks by other software
            return np.asarray(self._read("vectors"), dtype=dtype)
        return RowFile(self.path, dtype, shape, offset=offset, error=self._invalid_file, verify=self._require_same_file)

    @cached_property
    def _vectors_location(self) -> tuple[int | None, tuple[int, ...], np.dtype[Any]]:
        """Offset, shape and dtype of the vectors."""
        with self._file() as file:
            dataset = self._dataset(file, "vectors")
            return dataset.id.get_offset(), dataset.shape, dataset.dtype

    def _require_same_file(self) -> None:
        """Raise Damaged unless the file at the path now is a copy of the one that was opened, as from a backup."""
        now = Shard(self.path)
        if now.header != self.header or now._vectors_location != self._vectors_location:
            raise self._invalid_file(f"{self.path} was replaced by another shard")

    def _invalid_file(self, problem: str) -> Damaged:
        return Damaged(f"{problem}; {_REPAIR}")

    def column(self, name: str) -> npt.NDArray[Any]:
        """One column of Rows; its checksum is verified."""
        with self._parsing(name):
            values = self._column(name)
            if values.shape != (len(self),):
                raise ValueError(f"shape {values.shape} for {len(self)} rows")
            return values

    def _column(self, name: str) -> npt.NDArray[Any]:
        if name in TEXTUAL:
            return self._read_strings(name)
        if name in CODED:
            return np.asarray(self._read_strings(name)[self._read(f"{name}/codes")])
        values = self._read(name)
        return values.view("V16").reshape(-1) if name == "digests" else values.astype(COLUMNS.get(name, values.dtype))

    def rows(self) -> Rows:
        """Metadata of all rows; the checksums are verified."""
        return Rows(**{f.name: self.column(f.name) for f in fields(Rows)})

    def block(self) -> Block:
        """Read all rows with vectors, thumbnails and texts. All checksums but those of the vectors are verified."""
        vectors, named = np.asarray(self.vectors), {name: self._named(name) for name in self.named}
        return Block(self.header.space, self.rows(), vectors, self.thumbnails(), self.texts, named)

    @property
    def named(self) -> list[str]:
        """Names of the named vectors in the file, which only a shard that waits to be adopted has."""
        names = [name.removeprefix(f"{NAMED}/") for name in self.header.checksums if name.startswith(f"{NAMED}/")]
        return sorted(names)

    def _named(self, name: str) -> npt.NDArray[np.float16]:
        with self._parsing(name):
            vectors = self._read(f"{NAMED}/{name}")
            if vectors.ndim != 2 or len(vectors) != len(self) or vectors.dtype != np.float16:
                raise ValueError(f"{vectors.dtype} of shape {vectors.shape} for {len(self)} rows")
            return vectors

    @cached_property
    def texts(self) -> dict[str, Vectors]:
        """category -> (dim,) float32 text vector, for the categories of this shard's rows."""
        if "texts/vectors" not in self.header.checksums:
            return {}
        with self._parsing("texts"):
            vectors = self._read("texts/vectors").astype(np.float32)
            if vectors.shape[1:] != (self.header.space.dim,):
                raise ValueError(f"vectors of shape {vectors.shape} in a space of {self.header.space.dim} dimensions")
            return dict(zip(self._read_strings("texts").tolist(), vectors, strict=True))

    def thumbnails_of(self, rows: npt.NDArray[np.int64]) -> list[bytes]:
        """Thumbnails (JPEG) of these rows, b"" for a row without one. Reads and verifies only their digest groups."""
        thumbnails = [b""] * len(rows)
        if not self.has_thumbnails or not len(rows):
            return thumbnails
        ends, digests = self._thumbnail_ends, self._thumbnail_digests
        order = np.argsort(rows, kind="stable")
        groups = rows[order] // THUMBNAILS_PER_DIGEST
        is_gap = (np.diff(groups) > 1) | (np.diff(groups // (ROWS_READ // THUMBNAILS_PER_DIGEST)) > 0)
        content_of, size = self._thumbnail_bytes, len(self._thumbnail_bytes)
        with self._parsing("thumbnails"):
            if int(ends[-1]) != size:
                raise ValueError(f"the last one ends at byte {int(ends[-1])} of {size}")
            for run in np.split(order, np.flatnonzero(is_gap) + 1):  # rows of adjacent groups are read together
                first, last = (int(rows[i]) // THUMBNAILS_PER_DIGEST for i in (run[0], run[-1]))
                begin = first * THUMBNAILS_PER_DIGEST
                cuts = [int(ends[begin - 1]) if begin else 0]
                cuts += ends[begin : (last + 1) * THUMBNAILS_PER_DIGEST].tolist()
                content = content_of[cuts[0] : cuts[-1]].tobytes()
                pieces = _split(content, [end - cuts[0] for end in cuts[1:]])
                if len(digests) and not np.array_equal(_thumbnail_digests_of(pieces), digests[first : last + 1]):
                    raise self._altered("thumbnails/bytes")
                for i in run.tolist():
                    thumbnails[i] = pieces[int(rows[i]) - begin]
        return thumbnails

    @cached_property
    def _thumbnail_ends(self) -> npt.NDArray[np.uint64]:
        return self._ends("thumbnails")

    @cached_property
    def _thumbnail_bytes(self) -> RowFile | npt.NDArray[Any]:
        """(bytes,) uint8 of all thumbnails, read from the file where a slice is taken."""
        with self._parsing("thumbnails"), self._file() as file:
            dataset = self._dataset(file, "thumbnails/bytes")
            if dataset.dtype != np.uint8 or dataset.ndim != 1:
                raise ValueError(f"{dataset.dtype} of shape {dataset.shape} instead of bytes")
            offset, shape = dataset.id.get_offset(), dataset.shape
        if offset is None:  # no bytes, or written in chunks by other software
            return self._read("thumbnails/bytes")
        return RowFile(
            self.path, np.uint8, shape, offset=offset, error=self._invalid_file, verify=self._require_same_file
        )

    @cached_property
    def _thumbnail_digests(self) -> npt.NDArray[np.uint8]:
        """(groups, 16) digests; empty for old shards without them, whose thumbnails are verified as a whole."""
        if "thumbnails/digests" in self.header.checksums:
            return self._read("thumbnails/digests")
        self.check("thumbnails/bytes")
        return np.zeros((0, 16), np.uint8)

    @property
    def has_thumbnails(self) -> bool:
        """True if the shard has thumbnails."""
        return "thumbnails/ends" in self.header.checksums

    def thumbnails(self) -> tuple[bytes, ...]:
        """One thumbnail per row; () if the shard has none."""
        if not self.has_thumbnails:
            return ()
        return tuple(_split(self._read("thumbnails/bytes").tobytes(), self._ends("thumbnails").tolist()))

    def labels_of(self, rows: npt.NDArray[np.int64]) -> list[RowLabels]:
        """Labels of these rows. The columns are cached as codes, at the cost of fifteen bytes per row."""
        with self._parsing("labels"):
            columns = [
                values[rows].tolist() if table is None else [table[code] for code in values[rows].tolist()]
                for table, values in self._label_columns
            ]
            return [RowLabels(*values) for values in zip(*columns, strict=True)]

    @cached_property
    def _label_columns(self) -> list[tuple[list[str] | None, npt.NDArray[Any]]]:
        """The columns of `RowLabels`, each a table of texts and the codes of the rows, or None and the values."""
        with self._parsing("labels"):
            return [
                (self._read_strings(name).tolist(), self._read(f"{name}/codes"))
                if name in CODED
                else (None, self.column(name))
                for name in LABEL_COLUMNS
            ]

    def check_vectors(self, rows: npt.NDArray[np.int64]) -> None:
        """Raise Damaged unless the vectors of these rows are as they were written; reads their digest groups only."""
        digests = self._read("vector_digests")
        for group in np.unique(rows // ROWS_PER_DIGEST).tolist():
            first = group * ROWS_PER_DIGEST
            expected = digests[group : group + 1]
            if not np.array_equal(digest_groups(np.asarray(self.vectors[first : first + ROWS_PER_DIGEST])), expected):
                raise self._altered(f"a vector of rows {first} to {first + ROWS_PER_DIGEST - 1}")

    @cached_property
    def digests(self) -> npt.NDArray[np.void]:
        """The column "digests", cached because writers read it for every block."""
        return self.column("digests")

    def keys_at(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Keys of these rows. All keys are cached as bytes, at the cost of their length plus eight bytes per row."""
        text, ends = self._keys
        with self._parsing("keys"):
            return self._texts_at(text, ends, rows)

    @staticmethod
    def _texts_at(text: bytes, ends: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]) -> list[str]:
        return [text[int(ends[row - 1]) if row else 0 : int(ends[row])].decode() for row in rows.tolist()]

    @cached_property
    def _keys(self) -> tuple[bytes, npt.NDArray[np.uint64]]:
        return self._read("keys/bytes").tobytes(), self._ends("keys")

    def damaged_rows(self) -> npt.NDArray[np.int64]:
        """(n,) rows in groups of 256 vectors whose checksum differs, ascending."""
        groups = digest_groups(np.asarray(self.vectors))
        digests = self._read("vector_digests")
        if digests.shape != groups.shape:
            raise self._altered("vector_digests")
        damaged = np.flatnonzero((groups != digests).any(axis=1))
        rows = np.arange(len(self))
        return rows[np.isin(rows // ROWS_PER_DIGEST, damaged)]

    def check(self, dataset: str) -> None:
        """Raise Damaged unless the dataset exists and its checksum matches."""
        self._read(dataset)

    def _read(self, name: str) -> npt.NDArray[Any]:
        with self._file() as file:
            values: npt.NDArray[Any] = self._dataset(file, name)[...]
            same = checksum(np.ascontiguousarray(values)) == self.header.checksums[name]
        if not same:
            raise self._altered(name)
        return values

    def _dataset(self, file: h5py.File, name: str) -> h5py.Dataset:
        """A numeric dataset stored in this file and no larger than it; raises ValueError for any other.

        HDF5 also has datasets that are stored in another file, compressed a thousand to one, or never written.
        """
        _require_hard_links(file, name)  # before HDF5 opens another file, which may be a pipe
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "biuf":
            raise ValueError(f"{name} is not a numeric dataset")
        if dataset.file.filename != file.filename or dataset.external or dataset.is_virtual:
            raise ValueError(f"{name} is stored in another file")
        if dataset.size * dataset.dtype.itemsize > self.size:
            raise ValueError(f"{name} of shape {dataset.shape} is larger than the file")
        return dataset

    @contextmanager
    def _parsing(self, name: str) -> Iterator[None]:
        """Raise Damaged for invalid values: even a column with a valid checksum may have been written by a stranger."""
        try:
            yield
        except _INVALID_CONTENT as e:
            require_readable(self.path, e)
            raise Damaged(f"{self.path}: {name} is invalid ({e}); {_REPAIR}") from e

    def _ends(self, name: str) -> npt.NDArray[np.uint64]:
        """End offset of each row's bytes; raises Damaged unless there is one per row, in ascending order."""
        ends = self._read(f"{name}/ends")
        with self._parsing(name):
            if ends.shape != (len(self),) or ends.dtype.kind != "u":
                raise ValueError(f"{ends.dtype} end offsets of shape {ends.shape} for {len(self)} rows")
            if (ends[1:] < ends[:-1]).any():
                raise ValueError("the end offsets are not in ascending order")
        return ends

    def _altered(self, name: str) -> Damaged:
        return Damaged(f"{self.path}: {name} was altered (checksum differs); {_REPAIR}")

    def _read_strings(self, name: str) -> Names:
        blob, stored_ends = self._read(f"{name}/bytes").tobytes(), self._read(f"{name}/ends")
        if (stored_ends[1:] < stored_ends[:-1]).any() or (stored_ends[-1] if len(stored_ends) else 0) != len(blob):
            raise ValueError("the end offsets do not match the bytes")
        ends = stored_ends.tolist()
        if blob.isascii():  # then offsets in bytes are offsets in characters
            return np.array(_split(blob.decode("ascii"), ends), dtype=TEXT)
        return np.array([piece.decode() for piece in _split(blob, ends)], dtype=TEXT)


# What can be raised when arrays of unexpected shapes and dtypes are read.
_INVALID_CONTENT = (
    OSError,
    KeyError,
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
)

_REPAIR = "the other shards remain usable; run `clipfake store verify` to list the damage, then `clipfake store repair`"


def _check_global_heap(path: Path) -> None:
    """Raise ValueError if HDF5 would loop forever over the global heap, which holds the strings of the attributes.

    The heap is the only structure in a shard without a checksum, and an object of size 0 in it points back to itself
    (HDF5 File Format Specification 3.0, III.E). It is at the end of the file, as attributes are written last.
    """
    with path.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(max(length - HEAP_WITHIN, 0) // 8 * 8)
        tail = file.read()
    start = tail.find(HEAP_SIGNATURE)
    while start >= 0:
        offset, end = start + 16, start + int.from_bytes(tail[start + 8 : start + 16], "little")
        while offset + 16 <= end:
            index, size = tail[offset : offset + 2], int.from_bytes(tail[offset + 8 : offset + 16], "little")
            step = 16 + -(-size // 8) * 8 if any(index) else size  # index 0: the free space of the heap
            if step < 16 or offset + step > min(end, len(tail)):
                raise ValueError("corrupt HDF5 global heap: invalid object size")
            offset += step
        start = tail.find(HEAP_SIGNATURE, start + 8)


def _split(content: Any, ends: list[int]) -> list[Any]:
    """Split a string or bytes at the end offsets of the pieces."""
    return [content[start:end] for start, end in itertools.pairwise([0, *ends])]
