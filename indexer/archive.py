"""Zip and tar archives, read in place: nothing is unpacked.

A zip says at its end what it holds, so it is listed like a folder. A tar is read once from start to end, so whatever
speaks of an image must lie beside it (WebDataset: one name, several suffixes) or, for a metadata table, before it.
"""

from __future__ import annotations

import calendar
import io
import json
import posixpath
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from ..store.errors import SourceError
from . import table
from .cloud import open_binary
from .entry import Entry, Held, Place, Span, is_url
from .labels import by_folders, by_row
from .tree import SUFFIXES, missing, text, tree_entries

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SIDECARS = (".json", ".cls", ".txt")


@dataclass(frozen=True)
class Zip:
    """A zip archive as a tree."""

    at: str

    @property
    def name(self) -> str:
        return posixpath.basename(self.at)[: -len(".zip")]

    def entries(self) -> Iterator[Entry]:
        return tree_entries(self)

    @cached_property
    def _folders(self) -> dict[str, tuple[set[str], dict[str, zipfile.ZipInfo]]]:
        """folder -> its folders and its files, as the archive's directory tells them."""
        found: dict[str, tuple[set[str], dict[str, zipfile.ZipInfo]]] = {"": (set(), {})}
        try:
            with open_binary(self.at) as file, zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, OSError, NotImplementedError) as e:
            raise SourceError(f"{self.at} is not a readable zip archive ({e}); fetch it again") from e
        for member in members:
            if member.is_dir():
                continue
            folder, _, name = member.filename.strip("/").rpartition("/")
            if folder not in found:
                parts = folder.split("/")
                for depth in range(len(parts)):
                    above, below = "/".join(parts[:depth]), "/".join(parts[: depth + 1])
                    found.setdefault(above, (set(), {}))[0].add(parts[depth])
                    found.setdefault(below, (set(), {}))
            found[folder][1][name] = member
        return found

    @cached_property
    def _stamp(self) -> int:
        return 0 if is_url(self.at) else Path(self.at).stat().st_mtime_ns

    def list(self, inside: str) -> tuple[list[str], list[str]]:
        folders, files = self._folders.get(inside, (set(), {}))
        return sorted(name for name in folders if name != "__MACOSX"), sorted(files)

    def place(self, inside: str) -> tuple[str, Place]:
        folder, _, name = posixpath.normpath(inside).rpartition("/")
        member = self._folders.get(folder, (set(), {}))[1].get(name)
        if member is None:
            return missing(self.at, inside)
        # The archive's times are whole seconds; the CRC in place of the nanoseconds shows a change they would hide.
        time = calendar.timegm((*member.date_time, 0, 0, 0)) * 10**9 + member.CRC % 10**9
        deflated = member.compress_type == zipfile.ZIP_DEFLATED
        path = f"zip://{inside}::{self.at}"
        if member.flag_bits & 1 or not (deflated or member.compress_type == zipfile.ZIP_STORED):
            how = "encrypted" if member.flag_bits & 1 else f"packed by method {member.compress_type}"
            return missing(self.at, f"{inside} that can be read in place: it is {how}")
        offset, packed, size = member.header_offset, member.compress_size, member.file_size
        return path, Span(self.at, self._stamp, offset, packed, size, time, zipped=True, deflated=deflated)

    def open(self, inside: str) -> BinaryIO:
        # By its path a zip file closes itself once the member is closed; a remote one is closed with its last use.
        with zipfile.ZipFile(open_binary(self.at) if is_url(self.at) else self.at) as archive:
            return io.BufferedReader(archive.open(inside))  # type: ignore[type-var]


@dataclass(frozen=True)
class Tar:
    """A tar archive as a stream: WebDataset's shards, or any tree packed in one file.

    Where the file can be sought in (a local one that is not packed) images are read later, from any thread;
    otherwise they are held as they come by.
    """

    at: str

    @property
    def name(self) -> str:
        base = posixpath.basename(self.at)
        return next(base[: -len(end)] for end in sorted(TARS, key=len, reverse=True) if base.lower().endswith(end))

    def entries(self) -> Iterator[Entry]:
        in_place = self.at.lower().endswith(".tar") and not is_url(self.at)
        stamp = Path(self.at).stat().st_mtime_ns if in_place else 0
        try:
            with open_binary(self.at) as file, tarfile.open(fileobj=file, mode="r:" if in_place else "r|*") as archive:
                members = self._members(archive, stamp if in_place else None)
                tables: dict[str, dict[str, dict[str, Any]]] = {}  # folder -> image_path -> row
                passed: set[str] = set()  # folders whose images were listed
                for stem, group in groupby(members, key=lambda found: _stem(found[0])):
                    yield from self._sample(stem, list(group), tables, passed)
        except (tarfile.TarError, EOFError, OSError) as e:
            raise SourceError(f"{self.at} is not a readable tar archive ({e}); fetch it again") from e

    def _members(self, archive: tarfile.TarFile, stamp: int | None) -> Iterator[tuple[str, Place | bytes]]:
        """Name and place of every image, name and content of whatever speaks of images."""
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps them all otherwise
            name = posixpath.normpath(member.name)
            suffix = posixpath.splitext(name)[1].lower()
            if not member.isreg():
                continue
            if suffix in SIDECARS or posixpath.basename(name) in table.METADATA:
                file = archive.extractfile(member)
                yield name, file.read() if file else b""
            elif suffix in SUFFIXES:
                time = int(member.mtime * 10**9)
                if stamp is not None:
                    yield name, Span(self.at, stamp, member.offset_data, member.size, member.size, time)
                else:
                    file = archive.extractfile(member)
                    yield name, Held(file.read() if file else b"", time)

    def _sample(
        self,
        stem: str,
        group: list[tuple[str, Place | bytes]],
        tables: dict[str, dict[str, dict[str, Any]]],
        passed: set[str],
    ) -> Iterator[Entry]:
        """The images of one name, with what the files beside them say."""
        beside: dict[str, Any] = {}
        for name, content in group:
            if not isinstance(content, bytes):
                continue
            if posixpath.basename(name) in table.METADATA:
                folder = posixpath.dirname(name)
                if any(f"{before}/".startswith(f"{folder}/" if folder else "") for before in passed):
                    raise SourceError(
                        f"{self.at} holds {name} after images it speaks of, and a tar is read once; "
                        f"pack the table first, or use a zip or a folder"
                    )
                tables[folder] = self._table(name, content)
            else:
                beside |= _said(posixpath.splitext(name)[1].lower(), content)
        for name, content in group:
            if isinstance(content, bytes):
                continue
            passed.add(posixpath.dirname(name))
            yield self._entry(name, content, beside, tables)

    def _entry(
        self, name: str, place: Place, beside: dict[str, Any], tables: dict[str, dict[str, dict[str, Any]]]
    ) -> Entry:
        folder = next((above for above in _above(name) if above in tables), None)
        inside = name if not folder else name[len(folder) + 1 :]
        row = beside if folder is None else {**tables[folder].get(inside, {"target": "none: not in the table"})}
        label, source, generator = by_folders([self.name, *name.split("/")[:-1]])
        key, target = f"{self.name}/{name}", -1
        if folder is not None and "image_path" in row:  # as if it were unpacked: the same keys
            source = posixpath.basename(folder) or self.name
            key, generator = f"{source}/{inside}", source
        path = f"tar://{name}::{self.at}"
        told = by_row(row)
        if isinstance(told, str):
            return Entry(text(key), path, source=text(source), refused=f"{path}: {told}")
        if told is not None:
            label, target = told
        generator = str(row.get("generator") or "") or generator or self.name
        category = text(str(row.get("category") or "").strip())
        return Entry(
            text(key), path, label, target, text(source), text(generator) if label == 1 else "", category, where=place
        )

    def _table(self, name: str, content: bytes) -> dict[str, dict[str, Any]]:
        with closing(table.rows(f"{self.at}/{name}", io.BytesIO(content))) as rows:
            column = table.path_column(list(next(rows)[1]), f"{self.at}/{name}", target=True)
            return {posixpath.normpath(str(row[column])): row for _, row in rows}


def _stem(name: str) -> str:
    """WebDataset's key: the name up to the first dot of its last part."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def _above(name: str) -> Iterator[str]:
    while name:
        name = posixpath.dirname(name)
        yield name


def _said(suffix: str, content: bytes) -> dict[str, Any]:
    """What a sidecar says: a JSON object's fields, a class code (0 is real), or a label word.

    >>> _said(".cls", b"1"), _said(".txt", b"real"), _said(".txt", b"a cat on a mat")
    ({'target': '1'}, {'label': 'real'}, {})
    """
    told = content.decode("utf-8", "replace").strip()
    if suffix == ".cls":
        return {"target": told}
    if suffix == ".json":
        try:
            found = json.loads(told)
        except json.JSONDecodeError:
            return {}
        return found if isinstance(found, dict) else {}
    return {"label": told} if isinstance(by_row({"label": told}), tuple) and told else {}
