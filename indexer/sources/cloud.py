"""Files behind URLs (s3://, gs://, https://, memory://), through fsspec."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import SourceError
from .base import tree_entries
from .image_ref import ByteSource, ImageRef, RemoteFile, file_system, is_url


@dataclass(frozen=True)
class CloudFolder:
    """A folder behind a URL, as a tree."""

    at: str
    _facts: dict[str, RemoteFile] = field(default_factory=dict, compare=False, repr=False)  # of the folder being listed

    @property
    def name(self) -> str:
        return posixpath.basename(self.at)

    def entries(self) -> Iterator[ImageRef]:
        return tree_entries(self)

    def list(self, inside: str) -> tuple[list[str], list[str]]:
        system, path = file_system(posixpath.join(self.at, inside) if inside else self.at)
        try:
            found = system.ls(path, detail=True)
        except (OSError, ValueError) as e:
            raise SourceError(f"{self.at}/{inside} cannot be listed: {e}") from e
        self._facts.clear()
        folders, files = [], []
        for facts in found:
            name = posixpath.basename(str(facts["name"]).rstrip("/"))
            if facts["type"] == "directory":
                folders.append(name)
            elif name:
                files.append(name)
                place = posixpath.join(inside, name)
                self._facts[place] = RemoteFile(f"{self.at}/{place}", int(facts.get("size") or -1), time_of(facts))
        return sorted(folders), sorted(files)

    def place(self, inside: str) -> tuple[str, ByteSource]:
        return f"{self.at}/{inside}", self._facts.get(inside) or remote(f"{self.at}/{inside}")

    def open(self, inside: str) -> BinaryIO:
        return open_remote(f"{self.at}/{inside}")


def remote(url: str) -> RemoteFile:
    """One file; its size and time are not asked for, that would be a request each."""
    return RemoteFile(url)


def open_remote(url: str) -> BinaryIO:
    """A remote file, to be read from its start; raises SourceError."""
    system, path = file_system(url)
    try:
        opened: BinaryIO = system.open(path, "rb")
    except (OSError, ValueError) as e:
        raise SourceError(f"{url} cannot be opened: {e}") from e
    return opened


def time_of(facts: dict[str, Any]) -> int:
    """Nanoseconds since the epoch, 0 where the file system tells none; file systems name it differently."""
    for name in ("mtime", "LastModified", "created", "updated"):
        stamp = facts.get(name)
        if isinstance(stamp, datetime):
            return int(stamp.timestamp() * 10**9)
        if isinstance(stamp, int | float):
            return int(stamp * 10**9)
    return 0


def open_binary(at: str) -> BinaryIO:
    """A local or remote file, to be read from its start; raises SourceError."""
    try:
        if is_url(at):
            return open_remote(at)
        return Path(at).open("rb")
    except OSError as e:
        raise SourceError(f"{at} cannot be opened: {e.strerror or e}") from e
