"""One sealed HDF5 file of rows, as docs/FORMAT.md says. Written once, whole or absent, never changed."""

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
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ..core.atomic_files import reserve, written_aside
from ..core.sealed_json import checksum
from ..errors import BadBlock, Damaged, NotAStore
from .key_index import Hashes
from .records import COLUMNS, TEXT, Block, Names, Rows, Vectors, distinct, invalid_rows, names, to_float16
from .space import Space

FORMAT = "clipfake-shard"
# To raise it: keep the reader of the old number, add a store written by the old release to tests/, and say in
# docs/FORMAT.md what changed.
VERSION = 1
# Tables of contents with checksums (HDF5 1.8 and later), so that a damaged one is noticed by HDF5 itself; the older
# layout has none, and a flipped bit there can send the library into an endless loop.
LAYOUT = ("v108", "v108")
PAGE = 4096  # large datasets begin at a page of memory, so that they can be mapped
TABLE = 1024  # bytes that HDF5 notes of a dataset, and more
HEAP, TAIL = b"GCOL\x01\0\0\0", 1 << 16  # how it begins; bytes at a shard's end in which it is
ROWS_PER_DIGEST = 256
PICTURES_PER_DIGEST = 16  # small JPEGs, about as many bytes as that many rows of vectors
ROWS_READ = 4096  # whose pictures are in memory where many are asked for

CODED = ("sources", "generators", "categories", "formats")  # few distinct values: a table and a code a row
TEXTUAL = ("keys", "paths")  # nearly all distinct: bytes end to end, and where each ends


@dataclass(frozen=True)
class Header:
    """Header of a shard; its digest is in the manifest, so that neither can change unnoticed."""

    rows: int
    space: Space
    checksums: dict[str, str]  # dataset -> hex BLAKE2b-128 of its bytes, little-endian, row by row

    @property
    def digest(self) -> str:
        fields = {"rows": self.rows, "space": self.space.to_dict(), "checksums": self.checksums}
        return checksum(json.dumps(fields, sort_keys=True).encode())


def hash_keys(keys: Sequence[str] | Names) -> Hashes:
    """The first eight bytes of each key's BLAKE2b, little-endian, shape (rows,): to find a key among millions."""
    texts = keys if isinstance(keys, Sequence) else keys.tolist()
    return np.frombuffer(b"".join([hashlib.blake2b(key.encode(), digest_size=8).digest() for key in texts]), "<u8")


def digest_groups(vectors: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """BLAKE2b-128 of every 256 rows, shape (groups, 16): damage to vectors can be named to these rows."""
    groups = [vectors[i : i + ROWS_PER_DIGEST] for i in range(0, len(vectors), ROWS_PER_DIGEST)]
    digests = bytes.fromhex("".join(checksum(np.ascontiguousarray(group)) for group in groups))
    return np.frombuffer(digests, np.uint8).reshape(-1, 16)


def write_shard(path: Path, block: Block, hashes: Hashes | None = None) -> Header:
    """Seal a block as the file `path`: whole or absent. float16 keeps a unit vector's inner products to about 0.0005.

    Parameters
    ----------
    hashes : (rows,) of the keys, from whoever has them already

    Raises
    ------
    BadBlock
        Vectors that are zero or not finite as float16, or a key that stands twice; nothing is written.
    StoreError
        The disk is full or read-only; nothing is left behind.
    """
    block = replace(block, vectors=to_float16(block.vectors))
    hashes = hash_keys(block.rows.keys) if hashes is None else hashes
    reject_unfit(block, hashes)
    datasets = dict(_datasets(block, hashes))
    header = Header(len(block), block.space, {name: checksum(values) for name, values in datasets.items()})
    room = sum(values.nbytes + PAGE + TABLE for values in datasets.values()) + 2**16
    with written_aside(path) as temporary, _new_file(temporary, room) as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values)
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file.attrs["rows"] = len(block)
        file.attrs["space"] = json.dumps(block.space.to_dict(), sort_keys=True)
        file.attrs["checksums"] = json.dumps(header.checksums, sort_keys=True)
        file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    return header


def _new_file(path: Path, room: int) -> h5py.File:
    """An empty file that so many bytes can be written to: HDF5 itself ends the process where the disk is full."""
    path.write_bytes(_empty())
    reserve(path, room)
    return h5py.File(path, "r+", **_LAID_OUT)  # cuts off what was not needed when it is closed


@cache
def _empty() -> bytes:
    content = io.BytesIO()  # of its own: HDF5 takes files of one name, in memory too, for one, and threads collide
    h5py.File(content, "w", **_LAID_OUT).close()
    return content.getvalue()


_LAID_OUT: Any = {"libver": LAYOUT, "alignment_threshold": PAGE, "alignment_interval": PAGE}


def reject_unfit(block: Block, hashes: Hashes) -> None:
    """Raise BadBlock if the block, with vectors as float16, holds a row that may not be stored."""
    if len(wrong := invalid_rows(block.vectors)):
        raise BadBlock(
            f"row {wrong[0]} ({block.rows.keys[wrong[0]]}) has a vector that is zero or not finite, "
            f"{len(wrong)} such rows in all; they cannot be compared with anything, so leave them out"
        )
    if len(np.unique(hashes)) == len(hashes):
        return
    keys, _, counts = distinct(block.rows.keys)
    if len(twice := np.flatnonzero(counts > 1)):
        raise BadBlock(f"the key {keys[twice[0]]} stands {counts[twice[0]]} times in one block; keys are unique")


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
        yield "thumbnails/digests", _digests_of_pictures(block.thumbnails)
    occurring = set(block.rows.categories.tolist())
    if here := sorted(occurring & block.texts.keys()):
        yield from _strings("texts", names(here))
        rows = [block.texts[category] for category in here]
        yield "texts/vectors", np.asarray(rows, dtype="<f2").reshape(len(here), -1)


def _digests_of_pictures(pictures: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    """BLAKE2b-128 of every 16 rows' pictures end to end, shape (groups, 16): some can be checked without the rest."""
    groups = [b"".join(pictures[i : i + PICTURES_PER_DIGEST]) for i in range(0, len(pictures), PICTURES_PER_DIGEST)]
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
    """A sealed shard, read lazily and without holding the file open. Errors name the file."""

    path: Path

    @contextmanager
    def _file(self) -> Iterator[h5py.File]:
        try:
            with h5py.File(self.path, "r") as file:
                yield file
        except FileNotFoundError as e:
            raise Damaged(f"{self.path} is missing; {_REPAIR}") from e
        except _SENSELESS as e:
            raise Damaged(f"{self.path} is not a readable shard ({e}); {_REPAIR}") from e

    @cached_property
    def header(self) -> Header:
        """Format, version, rows, space and checksums; raises NotAStore or Damaged."""
        with self._file() as file:
            _follow_words(self.path)
            if file.attrs.get("format") != FORMAT:
                raise NotAStore(f"{self.path} is an HDF5 file, but not a clipfake shard; remove it from the store")
            if not 1 <= (version := int(file.attrs["version"])) <= VERSION:
                raise NotAStore(
                    f"{self.path} has format version {version}, this release reads 1 to {VERSION}; upgrade clipfake"
                )
            if (rows := int(file.attrs["rows"])) < 0:
                raise ValueError(f"{rows} rows")
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
            raise Damaged(f"{self.path} is missing ({e.strerror}); {_REPAIR}") from e

    @cached_property
    def vectors(self) -> Vectors:
        """(rows, dim), mapped from the file as it lies: pages are read when they are touched, and are not checked
        (`damaged_rows` does). Writing to the array changes this process's copy only."""
        with self._file() as file:
            dataset = self._dataset(file, "vectors")
            offset, shape, dtype = dataset.id.get_offset(), dataset.shape, dataset.dtype
        if shape != (len(self), self.header.space.dim) or dtype.kind != "f":
            raise Damaged(f"{self.path} has {dtype} vectors of shape {shape} for {len(self)} rows; {_REPAIR}")
        if offset is None:  # no rows, or chunked by another writer
            return np.asarray(self._read("vectors"), dtype=dtype)
        if self.size < offset + dtype.itemsize * shape[0] * shape[1]:
            raise Damaged(f"{self.path} is truncated; {_REPAIR}")
        mapped = np.memmap(self.path, dtype=dtype, mode="c", offset=offset, shape=shape)
        return mapped.view(np.ndarray)  # the same bytes, without what np.memmap does at every access

    def column(self, name: str) -> npt.NDArray[Any]:
        """One column of Rows, checked against its checksum."""
        with self._sense(name):
            values = self._column(name)
            if values.shape != (len(self),):
                raise ValueError(f"it has the shape {values.shape} for {len(self)} rows")
            return values

    def _column(self, name: str) -> npt.NDArray[Any]:
        if name in TEXTUAL:
            return self._read_strings(name)
        if name in CODED:
            return np.asarray(self._read_strings(name)[self._read(f"{name}/codes")])
        values = self._read(name)
        return values.view("V16").reshape(-1) if name == "digests" else values.astype(COLUMNS.get(name, values.dtype))

    def rows(self) -> Rows:
        return Rows(**{f.name: self.column(f.name) for f in fields(Rows)})

    def block(self) -> Block:
        """Read all rows with everything that belongs to them; each part but the vectors is verified."""
        return Block(self.header.space, self.rows(), self.vectors, self.thumbnails(), self.texts)

    @cached_property
    def texts(self) -> dict[str, Vectors]:
        """category -> (dim,) float32, the text vectors of the categories that occur here."""
        if "texts/vectors" not in self.header.checksums:
            return {}
        with self._sense("texts"):
            vectors = self._read("texts/vectors").astype(np.float32)
            if vectors.shape[1:] != (self.header.space.dim,):
                raise ValueError(f"they have the shape {vectors.shape}")
            return dict(zip(self._read_strings("texts").tolist(), vectors, strict=True))

    def pictures(self, rows: npt.NDArray[np.int64]) -> list[bytes]:
        """The small JPEGs of some rows, b"" where none was kept; little more is read, and all that is is checked."""
        found = [b""] * len(rows)
        if not self.has_thumbnails or not len(rows):
            return found
        ends, digests = self._picture_ends, self._picture_digests
        order = np.argsort(rows, kind="stable")
        groups = rows[order] // PICTURES_PER_DIGEST
        apart = (np.diff(groups) > 1) | (np.diff(groups // (ROWS_READ // PICTURES_PER_DIGEST)) > 0)
        with self._sense("thumbnails"), self._file() as file:
            if int(ends[-1]) != self._dataset(file, "thumbnails/bytes").size:
                raise ValueError("they end elsewhere than their bytes do")
            for wanted in np.split(order, np.flatnonzero(apart) + 1):  # rows whose groups are read at once
                first, last = (int(rows[one]) // PICTURES_PER_DIGEST for one in (wanted[0], wanted[-1]))
                begin = first * PICTURES_PER_DIGEST
                cuts = [int(ends[begin - 1]) if begin else 0]
                cuts += ends[begin : (last + 1) * PICTURES_PER_DIGEST].tolist()
                content = file["thumbnails/bytes"][cuts[0] : cuts[-1]].tobytes()
                pieces = _cut(content, [end - cuts[0] for end in cuts[1:]])
                if len(digests) and not np.array_equal(_digests_of_pictures(pieces), digests[first : last + 1]):
                    raise self._altered("thumbnails/bytes")
                for one in wanted.tolist():
                    found[one] = pieces[int(rows[one]) - begin]
        return found

    @cached_property
    def _picture_ends(self) -> npt.NDArray[np.uint64]:
        return self._ends("thumbnails")

    @cached_property
    def _picture_digests(self) -> npt.NDArray[np.uint8]:
        """(groups, 16); of a shard from before there were any none, and its pictures have been compared as a whole."""
        if "thumbnails/digests" in self.header.checksums:
            return self._read("thumbnails/digests")
        self.check("thumbnails/bytes")
        return np.zeros((0, 16), np.uint8)

    @property
    def has_thumbnails(self) -> bool:
        """True if any thumbnail was kept."""
        return "thumbnails/ends" in self.header.checksums

    def thumbnails(self) -> tuple[bytes, ...]:
        """All thumbnails, one a row; () if none were kept."""
        if not self.has_thumbnails:
            return ()
        return tuple(_cut(self._read("thumbnails/bytes").tobytes(), self._ends("thumbnails").tolist()))

    @cached_property
    def digests(self) -> npt.NDArray[np.void]:
        """The column of that name, kept: a writer asks for it again and again."""
        return self.column("digests")

    def keys_at(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """The keys of some rows; the text of all is kept as it lies, a row costs its length and eight bytes."""
        text, ends = self._keys
        with self._sense("keys"):
            return self._texts_at(text, ends, rows)

    @staticmethod
    def _texts_at(text: bytes, ends: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]) -> list[str]:
        return [text[int(ends[row - 1]) if row else 0 : int(ends[row])].decode() for row in rows.tolist()]

    @cached_property
    def _keys(self) -> tuple[bytes, npt.NDArray[np.uint64]]:
        return self._read("keys/bytes").tobytes(), self._ends("keys")

    def damaged_rows(self) -> npt.NDArray[np.int64]:
        """Rows whose vectors stand in a group of 256 that is not what was written; shape (rows,), sorted."""
        groups = digest_groups(np.asarray(self.vectors))
        digests = self._read("vector_digests")
        if digests.shape != groups.shape:
            raise self._altered("vector_digests")
        wrong = np.flatnonzero((groups != digests).any(axis=1))
        rows = np.arange(len(self))
        return rows[np.isin(rows // ROWS_PER_DIGEST, wrong)]

    def check(self, dataset: str) -> None:
        """Raise Damaged unless the dataset is there and has its checksum."""
        self._read(dataset)

    def _read(self, name: str) -> npt.NDArray[Any]:
        with self._file() as file:
            values: npt.NDArray[Any] = self._dataset(file, name)[...]
            same = checksum(np.ascontiguousarray(values)) == self.header.checksums[name]
        if not same:
            raise self._altered(name)
        return values

    def _dataset(self, file: h5py.File, name: str) -> h5py.Dataset:
        """A dataset of numbers that lie in this very file, as many as it has room for; raises ValueError for others.

        HDF5 also knows such that lie in another file, are packed a thousand to one, or were never written.
        """
        found = file[name]
        if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "biuf":
            raise ValueError(f"{name} is no dataset of numbers")
        if found.file.filename != file.filename or found.external or found.is_virtual:
            raise ValueError(f"{name} lies in another file")
        if found.size * found.dtype.itemsize > self.size:
            raise ValueError(f"{name} of the shape {found.shape} is larger than the file")
        return found

    @contextmanager
    def _sense(self, name: str) -> Iterator[None]:
        """Check the values of a column: they may have the right checksum and make no sense; raises Damaged."""
        try:
            yield
        except _SENSELESS as e:
            raise Damaged(f"{self.path}: {name} makes no sense ({e}); {_REPAIR}") from e

    def _ends(self, name: str) -> npt.NDArray[np.uint64]:
        """Read where the pieces of each row end; raises Damaged unless there is one per row, in order."""
        ends = self._read(f"{name}/ends")
        with self._sense(name):
            if ends.shape != (len(self),) or ends.dtype.kind != "u" or (ends[1:] < ends[:-1]).any():
                raise ValueError(f"{ends.dtype} ends of the shape {ends.shape} for {len(self)} rows, or in no order")
        return ends

    def _altered(self, name: str) -> Damaged:
        return Damaged(f"{self.path}: {name} is not what was written (checksum differs); {_REPAIR}")

    def _read_strings(self, name: str) -> Names:
        blob, stored_ends = self._read(f"{name}/bytes").tobytes(), self._read(f"{name}/ends")
        if (stored_ends[1:] < stored_ends[:-1]).any() or (stored_ends[-1] if len(stored_ends) else 0) != len(blob):
            raise ValueError("its texts do not follow each other to the end of its bytes")
        ends = stored_ends.tolist()
        if blob.isascii():  # then the ends in bytes are the ends in characters
            return np.array(_cut(blob.decode("ascii"), ends), dtype=TEXT)
        return np.array([piece.decode() for piece in _cut(blob, ends)], dtype=TEXT)


# What reading arrays of strange shapes and kinds raises.
_SENSELESS = (
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

_REPAIR = "the other shards keep working; run `clipfake store verify` to see what is hit, then `clipfake store repair`"


def _follow_words(path: Path) -> None:
    """Raise ValueError where HDF5 would look for the words of a shard's attributes without an end.

    Of all that it writes for us, the heap that holds them has no checksum, and a length of 0 in it leads back to where
    it stands (HDF5 File Format Specification 3.0, III.E). It is the last thing we have written.
    """
    with path.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(max(length - TAIL, 0) // 8 * 8)
        tail = file.read()
    at = tail.find(HEAP)
    while at >= 0:
        place, end = at + 16, at + int.from_bytes(tail[at + 8 : at + 16], "little")
        while place + 16 <= end:
            number, size = tail[place : place + 2], int.from_bytes(tail[place + 8 : place + 16], "little")
            step = 16 + -(-size // 8) * 8 if any(number) else size  # number 0: what is left of the heap
            if step < 16 or place + step > min(end, len(tail)):
                raise ValueError("the lengths of its words lead nowhere")
            place += step
        at = tail.find(HEAP, at + 8)


def _cut(whole: Any, ends: list[int]) -> list[Any]:
    """The pieces of a string or of bytes that end at these places."""
    return [whole[start:end] for start, end in itertools.pairwise([0, *ends])]
