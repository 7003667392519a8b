"""Files at URLs (s3://, gs://, https://, memory://), read with fsspec."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, BinaryIO

from ...core.reading import open_stream
from ...errors import ClipfakeError, ImageError, SourceError
from . import web
from .base import FolderListing, Listed
from .file_names import HEAD_BYTES
from .image_ref import ByteSource, RemoteFile
from .tables.columns import DEFAULT_COLUMNS, ColumnNames
from .trees import tree_images
from .urls import file_system, is_url, open_url, read_url, reason_of

MOST_FOLDERS, MOST_DEPTH = 100_000, 64  # of a folder at a web server


@dataclass(frozen=True)
class CloudFolder:
    """Folder at a URL."""

    path: str  # or URL
    columns: ColumnNames = DEFAULT_COLUMNS
    labels: bool = True  # False: list every image without reading labels
    # files of the folder that is being listed, by path inside
    _files: dict[str, RemoteFile] = field(default_factory=dict, compare=False, repr=False)
    _found: Counter[str] = field(default_factory=Counter, compare=False, repr=False)  # number of "folders" so far

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    def images(self) -> Iterator[Listed]:
        return tree_images(self)

    def list(self, inside: str) -> FolderListing:
        try:
            system, path = file_system(posixpath.join(self.path, inside) if inside else self.path)
            if web.is_http(path):
                return self._within_limits(inside, FolderListing(*web.list_links(system, path), []))
            infos = system.ls(path, detail=True)
        except ClipfakeError:
            raise
        except Exception as e:  # of a library for one protocol, which can be anything
            raise SourceError(f"{self.path}/{inside} cannot be listed: {reason_of(e)}") from e
        self._files.clear()
        folders, files = [], []
        for info in infos:
            name = posixpath.basename(str(info["name"]).rstrip("/"))
            if info["type"] == "directory":
                folders.append(name)
            elif name:
                files.append(name)
                file = posixpath.join(inside, name)
                self._files[file] = RemoteFile(f"{self.path}/{file}", int(info.get("size") or -1), time_of(info))
        return FolderListing(sorted(folders), sorted(files), [])

    def _within_limits(self, inside: str, found: FolderListing) -> FolderListing:
        """The listing by a page of a web server, whose folders need not have an end; raises SourceError."""
        self._files.clear()
        self._found["folders"] = len(found.folders) + (self._found["folders"] if inside else 0)
        if (found.folders and inside.count("/") + 1 >= MOST_DEPTH) or self._found["folders"] > MOST_FOLDERS:
            raise SourceError(
                f"{self.path} has more than {MOST_FOLDERS:,} folders, or folders in each other more than {MOST_DEPTH} "
                f"deep; download it, or name a folder of it"
            )
        for name in found.files:
            self._files[posixpath.join(inside, name)] = remote(f"{self.path}/{posixpath.join(inside, name)}")
        return found

    def locate(self, inside: str) -> tuple[str, ByteSource]:
        return f"{self.path}/{inside}", self._files.get(inside) or remote(f"{self.path}/{inside}")

    def exists(self, inside: str) -> bool:
        if inside in self._files:
            return True
        try:
            if web.is_http(self.path):
                read_url(f"{self.path}/{inside}", 1)
                return True
            system, path = file_system(f"{self.path}/{inside}")
            return bool(system.isfile(path))
        except Exception:  # noqa: BLE001 - of a library for one protocol, which can be anything
            return False

    def leads_out(self, inside: str) -> bool:
        return False

    def head(self, inside: str) -> bytes:
        try:
            return read_url(f"{self.path}/{inside}", HEAD_BYTES)
        except ImageError:
            return b""

    def open(self, inside: str) -> BinaryIO:
        return open_url(f"{self.path}/{inside}")


def remote(url: str) -> RemoteFile:
    """File at a URL; its size and time are unknown, as they would take another request."""
    return RemoteFile(url)


def time_of(info: dict[str, Any]) -> int:
    """Modification time in nanoseconds since the epoch, 0 if unknown; its key depends on the file system."""
    for name in ("mtime", "LastModified", "created", "updated"):
        stamp = info.get(name)
        if isinstance(stamp, datetime):
            return int(stamp.timestamp() * 10**9)
        if isinstance(stamp, int | float):
            return int(stamp * 10**9)
    return 0


def open_binary(path: str) -> BinaryIO:
    """Open a local or remote file for reading; raises SourceError, also for a file that is not a regular one."""
    try:
        return open_url(path) if is_url(path) else open_stream(path)
    except OSError as e:
        raise SourceError(f"{path} cannot be opened: {e.strerror or e}") from e
