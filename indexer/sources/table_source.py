"""Table of paths and labels, named as a source of its own."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from .base import to_text
from .cloud import open_binary, remote
from .file_names import spellings
from .hash_set import HashSet
from .image_ref import ByteSource, ImageRef, LocalFile, MissingFile
from .labels import FolderLabel, label_from_row, labels_from_folders
from .table_images import (
    class_names_beside,
    holds_image,
    image_in_cell,
    labelled,
    normalised,
    path_field_of,
    path_in_cell,
    text_of,
)
from .tables.columns import DEFAULT_COLUMNS, ColumnNames
from .tables.reading import count_rows, read_rows
from .urls import is_url, local_path, refusal_of

OF_ANOTHER_MACHINE = "cannot be read: a table at a URL may not name files of this machine; download the table"


@dataclass(frozen=True)
class TableSource:
    """CSV, JSON lines or parquet file with labels and paths (absolute, URLs, or relative to the table), or images."""

    path: str  # or URL
    columns: ColumnNames = DEFAULT_COLUMNS

    @cached_property
    def name(self) -> str:
        return posixpath.splitext(posixpath.basename(self.path))[0]

    @cached_property
    def _folder(self) -> str:
        return posixpath.dirname(self.path).rstrip("/") + "/"

    def images(self) -> Iterator[ImageRef]:
        names = {**class_names_beside(posixpath.dirname(self.path)), **class_names_beside(self.path)}
        with open_binary(self.path) as file, closing(read_rows(self.path, file, self.columns, names)) as rows:
            path_field = path_field_of(next(rows)[1])
            seen = HashSet()
            for line, row in rows:
                yield self._image(line, row[path_field], row, seen)

    def _image(self, line: int, cell: Any, row: Mapping[str, Any], seen: HashSet) -> ImageRef:
        location: ByteSource
        why = ""
        if holds_image(cell):
            name, location = image_in_cell(cell)
            name = f"{name or self.name}#{line}" if not name or seen.contains_or_add(name) else name
            path = f"{self.path}#{line}"
        else:
            name = path_in_cell(cell)
            name, path, location = self._locate(normalised(name))
            if not name or seen.contains_or_add(path if "/." not in path else posixpath.normpath(path)):
                why = f"{name} was listed before" if name else "no path"
        key, source = to_text(f"{self.name}/{name.lstrip('/')}"), text_of(row, "source") or to_text(self.name)
        label_or_reason = label_from_row(row)
        if not why and not isinstance(label_or_reason, str):
            folders = _labels_of(self.path, self.name, source, name.rpartition("/")[0])
            outcome = labelled(key, path, location, row, label_or_reason, folders)
            if isinstance(outcome, ImageRef):
                return outcome
            why = outcome
        return ImageRef(key, path, source=source, refused=f"line {line} of {self.path}: {why or label_or_reason}")

    def _locate(self, name: str) -> tuple[str, str, ByteSource]:
        """Name of an image as it is spelled on the disk, its path or URL, and the location of its bytes."""
        name = local_path(name) or name
        is_remote = is_url(self.path)
        if is_url(name):
            reason = refusal_of(name, self.path)
            return name, name, MissingFile(reason) if reason else remote(name)
        if is_remote and name.startswith("/"):
            return name, name, MissingFile(OF_ANOTHER_MACHINE)
        if not is_remote and ("\\" in name or not name.isascii()):
            tries = (name, *spellings(name))
            name = next((path for path in tries if _is_file(self._folder + path)), name.replace("\\", "/"))
        path = name if name.startswith("/") else self._folder + name
        return name, path, remote(path) if is_remote else LocalFile(path)

    def count(self) -> int | None:
        if is_url(self.path):
            return None  # the table would be fetched twice
        with open_binary(self.path) as file:
            return count_rows(self.path, file)


def _is_file(path: str) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - `Path.is_file` raises an error for a path that is too long


@lru_cache(maxsize=1024)  # there are millions of rows, but few folders
def _labels_of(table: str, name: str, source: str, folder: str) -> FolderLabel:
    """Label of the images in a folder as the table names it; a relative path begins with the table's own folder."""
    if not folder.startswith("/") and not is_url(folder):
        folder = posixpath.normpath(f"{posixpath.basename(posixpath.dirname(table))}/{folder}")
    return labels_from_folders(folder.split("/"))._replace(source=to_text(name), generator=source)
