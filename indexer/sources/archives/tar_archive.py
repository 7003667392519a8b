"""Tar archives: WebDataset shards, or any folder packed into one file.

A tar has no directory. The headers of a local, uncompressed one are read twice: first for the metadata tables, for
sidecars that are not beside their image, and for members that stand twice, of which the last counts. Others are read
once, so that tables and sidecars must come before or beside their images.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import posixpath
import tarfile
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Self

from ....errors import ClipfakeError, SourceError
from ....store.exchange.class_names import CARDS, class_names_in_cards
from ..base import LINKS, NOT_NAMED, Listed, PassedOverFiles, labels_of_folder, to_text
from ..cloud import open_binary
from ..file_names import HEAD_BYTES, FileKind, file_kind, is_foreign_path, is_image_name
from ..hash_set import HashSet
from ..image_ref import ArchiveSpan, ByteSource, ImageRef, InMemory, MissingFile, too_large
from ..labels import label_from_row
from ..table_images import class_names_beside, labelled
from ..tables.columns import DEFAULT_COLUMNS, ColumnNames
from ..tables.reading import is_metadata
from ..urls import is_url
from .sidecars import (
    AMBIGUOUS,
    SIDECARS,
    Fields,
    known_fields,
    own_fields,
    parse_sidecar,
    sample_of,
    stem_of,
    with_class_names,
)
from .tar_metadata import TarMetadata, TarTable, in_artifact_folder

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
EXTENDED_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
HEADER_LIMIT = 1 << 20  # bytes of an extended header
HELD_LIMIT = 1 << 30  # bytes held in memory: a table that is read as a whole, or a tar's files of one name
MOST_UNPACKED = 200  # times the size of a compressed archive; images are hardly compressed
SPARSE = 1 << 26  # zeros at the end of an archive from which on holes are skipped, of which a file may have terabytes
NO_END = "archives without an end mark, which may be incomplete"
ZEROS = "archives that end in many zeros, which may be an incomplete download"
LOOSE = "metadata files without an image of their name"
TWICE = "stands twice in an archive that is read only once; unpack it to a folder or an uncompressed tar"


class _Member(NamedTuple):
    """Image, sidecar or metadata table in a tar."""

    name: str
    offset: int  # of its data
    content: ByteSource | bytes  # location of an image, content of any other


@dataclass
class _Sample:
    """Members of one WebDataset sample, which are beside each other."""

    images: dict[str, ByteSource] = field(default_factory=dict)
    sidecars: dict[str, Fields] = field(default_factory=dict)  # by name
    tables: dict[str, bytes] = field(default_factory=dict)
    cards: dict[str, bytes] = field(default_factory=dict)
    size: int = 0  # bytes held in memory

    def add(self, member: _Member) -> None:
        content = member.content
        held = content.content if isinstance(content, InMemory) else content
        self.size += len(held) if isinstance(held, bytes) else 0
        if not isinstance(content, bytes):
            self.images[member.name] = content
        elif is_metadata(posixpath.basename(member.name)):
            self.tables[member.name] = content
        elif posixpath.basename(member.name) in CARDS:
            self.cards[member.name] = content
        else:
            self.sidecars[member.name] = parse_sidecar(posixpath.splitext(member.name)[1].lower(), content)

    def by_stem(self) -> dict[str, Fields]:
        """Fields of the sidecars, by their names without suffix."""
        fields: dict[str, Fields] = {}
        for name, of_file in self.sidecars.items():
            stem = stem_of(name)
            fields[stem] = known_fields([*fields.get(stem, {}).items(), *of_file.items()])
        return fields


@dataclass(frozen=True)
class TarArchive:
    """Tar archive.

    The images of a local, uncompressed tar are read later, from any thread; those of others are held in memory while
    the archive is listed.
    """

    path: str  # or URL
    columns: ColumnNames = DEFAULT_COLUMNS
    labels: bool = True  # False: list every image without reading labels

    @cached_property
    def name(self) -> str:
        base = posixpath.basename(self.path)
        ends = [end for end in TARS if base.lower().endswith(end)]  # none where a link had the suffix
        return base.removesuffix(base[-len(max(ends, key=len)) :]) if ends else base

    @property
    def _in_place(self) -> bool:
        """True if the archive can be read twice, and its images later."""
        return self.path.lower().endswith(".tar") and not is_url(self.path)

    def images(self) -> Iterator[Listed]:
        passed_over = PassedOverFiles()
        try:
            metadata = self._read_ahead() if self._in_place and self.labels else self._new_metadata()
            for sample in self._samples(metadata, passed_over):
                for name, fields in own_fields(list(sample.images), sample.by_stem()).items():
                    if (ref := self._image(name, sample.images[name], fields, metadata)) is None:
                        passed_over.add(NOT_NAMED, f"{self.path}/{name}")
                    else:
                        yield ref
        except ClipfakeError:
            raise
        except Exception as e:  # a damaged archive can make tarfile raise almost anything
            raise SourceError(f"{self.path} is not a readable tar archive ({e}); download it again") from e
        for table in itertools.chain.from_iterable(metadata.tables.values()):
            yield from table.refused_rows()
        for stem in metadata.unused():
            passed_over.add(LOOSE, f"{self.path}/{stem}")
        yield from passed_over

    def _image(self, name: str, location: ByteSource, fields: Fields | None, metadata: TarMetadata) -> ImageRef | None:
        """Return the image `name`, None if it is below a table that does not name it.

        `fields` are those of the sidecars beside it, None if they are ambiguous.
        """
        path, key = f"tar://{name}::{self.path}", to_text(f"{self.name}/{name}")
        if not self.labels:
            return ImageRef(key, path, location=location)
        if location == MissingFile(TWICE):
            return ImageRef(key, path, refused=f"{path}: it {TWICE}")
        folders = labels_of_folder(self.path, self.name, posixpath.dirname(name))
        if (described := metadata.row_of(name)) is not None:
            table, fields = described
            if fields is None:
                return None
            folders = in_artifact_folder(folders, table)
            key = table.key_of(name) if table.artifact else key
        elif fields is not None:
            fields = fields or metadata.loose_fields_of(name)
            fields = with_class_names(fields, metadata.class_names)
        ref = ImageRef(key, path, source=folders.source, location=location)
        if fields is None:
            return ref.refuse(f"{path}: {AMBIGUOUS}")
        label_or_reason = label_from_row(fields)
        if isinstance(label_or_reason, str):
            return ref.refuse(f"{path}: {label_or_reason}")
        folders = folders._replace(generator=folders.generator or to_text(self.name))
        outcome = labelled(key, path, location, fields, label_or_reason, folders)
        return ref.refuse(f"{path}: {outcome}") if isinstance(outcome, str) else outcome

    def _samples(self, metadata: TarMetadata, passed_over: PassedOverFiles) -> Iterator[_Sample]:
        """Iterate over the samples; of an archive that is read once, tables and loose sidecars are added on the way."""
        order = None if self._in_place or not self.labels else _Order(self.path)
        with closing(self._members(passed_over)) as members:
            for key, group in groupby(members, key=lambda member: sample_of(member.name)):
                sample = _Sample()
                for member in group:
                    if metadata.is_replaced(member.name, member.offset):
                        continue
                    sample.add(member)
                    if sample.size > HELD_LIMIT:
                        raise SourceError(
                            f"{self.path} holds over {HELD_LIMIT:,} bytes named {key}; unpack it, and name the folder"
                        )
                if order is not None:
                    order.check(sample)
                    self._add(metadata, sample)
                yield sample

    def _read_ahead(self) -> TarMetadata:
        """Read the cards, tables and loose sidecars, and find the members that stand twice."""
        metadata, names = self._new_metadata(), HashSet()
        tables: dict[str, bytes] = {}
        with closing(self._members(PassedOverFiles())) as members:
            for _, group in groupby(members, key=lambda member: sample_of(member.name)):
                sample = _Sample()
                for member in group:
                    sample.add(member)
                    if names.contains_or_add(member.name):
                        metadata.latest[member.name] = member.offset
                tables |= sample.tables
                sample.tables.clear()
                self._add(metadata, sample)
        for name, content in tables.items():  # when all cards are known
            self._add_table(metadata, name, content)
        return metadata

    def _new_metadata(self) -> TarMetadata:
        return TarMetadata(class_names=class_names_beside(self.path))

    def _add(self, metadata: TarMetadata, sample: _Sample) -> None:
        """Add the cards and tables of a sample and, if it has no image, its sidecars."""
        for name, content in sample.cards.items():
            contents = [content if card == posixpath.basename(name) else b"" for card in CARDS]
            metadata.class_names = {**metadata.class_names, **class_names_in_cards(contents)}
        for name, content in sample.tables.items():
            self._add_table(metadata, name, content)
        for name, fields in ({} if sample.images else sample.sidecars).items():
            metadata.add_loose(name, fields)

    def _add_table(self, metadata: TarMetadata, name: str, content: bytes) -> None:
        metadata.add_table(TarTable.read(self.path, self.name, name, content, self.columns, metadata.class_names))

    def _members(self, passed_over: PassedOverFiles) -> Generator[_Member, None, None]:
        """Iterate over the images, sidecars and tables; whatever else is not a document is counted."""
        stamp = Path(self.path).stat().st_mtime_ns if self._in_place else 0
        with (
            open_binary(self.path) as file,
            tarfile.open(fileobj=file, mode="r:" if self._in_place else "r|*", tarinfo=_Header) as archive,
        ):
            for info in self._headers(archive, passed_over):
                archive.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps all of them
                name = posixpath.normpath(info.name.replace("\\", "/"))
                if not info.isreg():
                    if (info.islnk() or info.issym()) and is_image_name(name):
                        passed_over.add(LINKS, f"{self.path}/{name}")
                    continue
                folder, base = posixpath.split(name)
                suffix = posixpath.splitext(base)[1].lower()
                if is_foreign_path(folder):
                    passed_over.add(FileKind.foreign, f"{self.path}/{name}")
                elif is_metadata(base) or base in CARDS or (suffix in SIDECARS and base[0] != "."):
                    if info.size > HELD_LIMIT:
                        raise SourceError(f"{self.path} holds {name} with {info.size:,} bytes, too many for metadata")
                    yield _Member(name, info.offset_data, _content(archive, info))
                else:
                    kind, content = self._kind(archive, info, base)
                    if kind is FileKind.image:
                        yield _Member(name, info.offset_data, self._locate(archive, info, stamp, content))
                    elif kind is not FileKind.document:
                        passed_over.add(kind, f"{self.path}/{name}")

    def _headers(self, archive: tarfile.TarFile, passed_over: PassedOverFiles) -> Iterator[tarfile.TarInfo]:
        """Iterate over the headers, then check that nothing follows the end of a local archive.

        Raises SourceError if more members follow, as in archives that were joined.
        """
        most = self._most_unpacked()
        for info in archive:
            if info.offset_data + info.size > most:
                raise SourceError(
                    f"{self.path} unpacks to more than {MOST_UNPACKED:,} times its size, like a decompression bomb; "
                    f"unpack it if it comes from a trusted place, and name the folder"
                )
            yield info
        if not self._in_place:
            return
        file, zeros = archive.fileobj, 0
        assert file is not None
        file.seek(archive.offset)  # after the last member
        while piece := file.read(HEADER_LIMIT):
            if zeros > SPARSE:
                zeros += _skip_hole(file)
            if piece.strip(b"\0"):
                raise SourceError(
                    f"{self.path} goes on after its end, like archives that were joined; unpack it with "
                    f"tar --ignore-zeros and name the folder"
                )
            zeros += len(piece)
        if not zeros:
            passed_over.add(NO_END, self.path)
        elif zeros > HEADER_LIMIT:
            passed_over.add(ZEROS, self.path)

    def _most_unpacked(self) -> float:
        """Bytes to which a compressed archive on this machine may unpack."""
        if self._in_place or is_url(self.path):
            return math.inf
        return max(HELD_LIMIT, MOST_UNPACKED * os.stat(self.path).st_size)  # noqa: PTH116

    def _kind(self, archive: tarfile.TarFile, info: tarfile.TarInfo, base: str) -> tuple[FileKind, bytes | None]:
        """Kind of a member and, if its first bytes were needed and the archive is read only once, its content."""
        contents: list[bytes] = []

        def head() -> bytes:
            if too_large(info.size) or info.issparse():
                return b""
            contents.append(_content(archive, info, HEAD_BYTES if self._in_place else -1))
            return contents[0][:HEAD_BYTES]

        kind = file_kind(base, head)
        return kind, contents[0] if contents and not self._in_place else None

    def _locate(self, archive: tarfile.TarFile, info: tarfile.TarInfo, stamp: int, content: bytes | None) -> ByteSource:
        if why := "it is sparse" if info.issparse() else too_large(info.size):
            return MissingFile(why)
        time = _nanoseconds(info.mtime)
        if self._in_place:
            return ArchiveSpan(self.path, stamp, info.offset_data, info.size, info.size, time)
        return InMemory(_content(archive, info) if content is None else content, time)


class _Order:
    """Checks that an archive that is read only once has its metadata before or beside its images."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._names, self._unlabelled = HashSet(), HashSet()  # images, and stems of those without a sidecar
        self._folders = set[str]()  # folders of the images

    def check(self, sample: _Sample) -> None:
        """Raise SourceError for metadata after its images; an image that was listed before is refused."""
        for name in sample.tables:
            folder = posixpath.dirname(name)
            if any(f"{before}/".startswith(f"{folder}/" if folder else "") for before in self._folders):
                raise SourceError(
                    f"{self._path} holds {name} after images that it describes, and this archive is read only once; "
                    f"pack the table first, or unpack the archive to a folder or an uncompressed tar"
                )
        if not sample.images:
            for stem, fields in sample.by_stem().items():
                if fields and stem in self._unlabelled:
                    raise SourceError(
                        f"{self._path} holds metadata of {stem} apart from the image, which was listed before, and "
                        f"this archive is read only once; pack them together, or unpack the archive to a folder or an "
                        f"uncompressed tar"
                    )
        for name in sample.images:
            self._folders.add(posixpath.dirname(name))
            if self._names.contains_or_add(name):
                sample.images[name] = MissingFile(TWICE)
            if not any(sample.sidecars.values()):
                self._unlabelled.contains_or_add(stem_of(name))


def _skip_hole(file: Any) -> int:
    """Move a stream past the hole of a sparse file that it is in, and return the number of zeros that were skipped."""
    start: int = file.tell()
    try:
        position = os.lseek(file.fileno(), 0, os.SEEK_CUR)
        try:
            end = os.lseek(file.fileno(), start, os.SEEK_DATA)
        finally:
            os.lseek(file.fileno(), position, os.SEEK_SET)  # where the stream left it
    except (AttributeError, ValueError):
        return 0  # the system or the stream knows no holes
    except OSError as e:
        if e.errno != errno.ENXIO:
            return 0
        end = os.fstat(file.fileno()).st_size  # no data follows
    file.seek(end)
    return int(end - start)


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo, size: int = -1) -> bytes:
    file = archive.extractfile(info)
    return file.read(size) if file else b""


class _Header(tarfile.TarInfo):
    """Tar header; of a regular file only name, size and time are parsed, as the rest takes longer.

    A damaged header raises an error, where tarfile would treat it as the end of the archive and silently skip the rest.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        name, nul, _ = bytes(buf[:100]).partition(b"\0")
        if buf[156:157] == b"0" and nul and len(buf) == tarfile.BLOCKSIZE and not buf[345]:  # the name has no prefix
            try:
                size, time, checksum = (
                    int(buf[a:b].rstrip(b"\0 "), 8) for a, b in ((124, 136), (136, 148), (148, 156))
                )
                if checksum == sum(buf) - sum(buf[148:156]) + 8 * 32 and min(size, time) >= 0:
                    header = cls(name.decode(encoding, errors))
                    header.size, header.mtime, header.type = size, time, tarfile.REGTYPE
                    return header
            except ValueError:
                pass  # numbers in another format
        try:
            header = super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as e:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"it is damaged: {e}") from e
        if header.type in EXTENDED_HEADERS and header.size > HEADER_LIMIT:  # tarfile reads it as a whole
            raise tarfile.ReadError(f"an extended header of {header.size:,} bytes")
        return header

    def _block(self, count: int) -> int:
        """Round bytes up to whole blocks; refuse negative sizes, which would lead back and never end."""
        if count < 0:
            raise tarfile.ReadError(f"a file of {count} bytes")
        return -(-count // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _nanoseconds(seconds: float) -> int:
    """Time of a tar member in nanoseconds, 0 if it is invalid."""
    return int(seconds * 10**9) if abs(seconds) < 1 << 33 else 0  # the store's range; False for NaN
