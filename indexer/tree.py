"""What any heap of images with folders in it can be asked: its images, by a metadata table or by the folders' names."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any, BinaryIO, Protocol

from ..store.block import FAKE
from . import table
from .entry import Absent, Entry, File, Place
from .labels import by_folders, by_row

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".ppm", ".jp2")
)


class Source(Protocol):
    """A named heap of images."""

    @property
    def name(self) -> str:
        """What its keys begin with, unless a metadata table inside stands for a source of its own."""
        ...

    @property
    def at(self) -> str:
        """Where it is: a path or URL."""
        ...

    def entries(self) -> Iterator[Entry]:
        """Its images, as they are read; raises SourceError."""
        ...


class Tree(Source, Protocol):
    """A source with folders in it, listed one folder at a time."""

    def list(self, inside: str) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files in the folder `inside` ("" for the root), each sorted."""
        ...

    def place(self, inside: str) -> tuple[str, Place]:
        """A file's path for people, and where its bytes are."""
        ...

    def open(self, inside: str) -> BinaryIO:
        """A table, to be read as it streams."""
        ...


def tree_entries(tree: Tree) -> Iterator[Entry]:
    """Images of a tree: by the metadata table of their folder or of one above, else by the names of their folders."""
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        folders, files = tree.list(inside)
        if found := next((name for name in table.METADATA if name in files), None):
            yield from _tabled(tree, inside, posixpath.join(inside, found))
            continue
        for name in files:
            if posixpath.splitext(name)[1].lower() in SUFFIXES:
                yield _by_name(tree, posixpath.join(inside, name))
        waiting += [posixpath.join(inside, name) for name in reversed(folders)]


def _by_name(tree: Tree, inside: str) -> Entry:
    label, source, generator = by_folders([tree.name, *inside.split("/")[:-1]])
    path, place = tree.place(inside)
    where = None if isinstance(place, File) else place
    return Entry(
        text(f"{tree.name}/{inside}"), path, label, source=text(source), generator=text(generator), where=where
    )


def _tabled(tree: Tree, folder: str, name: str) -> Iterator[Entry]:
    """By a metadata table. ArtiFact's folder is a source of its own wherever it lies: it gives the keys their start."""
    told_at = f"{tree.at}/{name}"
    with tree.open(name) as file, closing(table.rows(told_at, file)) as rows:
        column = table.path_column(list(next(rows)[1]), told_at, target=True)
        own = posixpath.basename(folder) or tree.name
        artifact = column == "image_path"
        source = text(own if artifact else posixpath.join(tree.name, folder).rstrip("/"))
        generator = text(own) if artifact else ""
        before = f"{folder}/" if folder else ""
        seen: set[int] = set()
        for line, row in rows:
            inside = str(row[column] or "").strip()
            key = f"{source}/{text(inside)}"
            told = by_row(row)
            if why := _refused(inside, told, seen):
                why = why if isinstance(told, str) else f"{column} {why}"
                yield Entry(key, f"{told_at}/../{inside}", source=source, refused=f"line {line} of {told_at}: {why}")
            else:
                yield _from_row(tree, before + inside, key, source, generator, row, told)


def _refused(inside: str, told: tuple[int, int] | str | None, seen: set[int]) -> str:
    """Why a row of a table makes no sense, "" if it does; `seen` takes note of it."""
    if not inside or inside[0] == "/" or (".." in inside and ".." in inside.split("/")):
        return f"{inside!r} is not inside the folder"
    if isinstance(told, str):
        return told
    if (mark := hash(inside)) in seen:
        return f"{inside} was listed before"
    seen.add(mark)
    return ""


def _from_row(
    tree: Tree,
    inside: str,
    key: str,
    source: str,
    generator: str,
    row: Mapping[str, Any],
    told: tuple[int, int] | str | None,
) -> Entry:
    path, place = tree.place(inside)
    where = None if isinstance(place, File) else place
    if isinstance(told, tuple):
        label, target = told
    else:
        (label, source, generator), target = by_folders([tree.name, *inside.split("/")[:-1]]), -1
        source, generator = text(source), text(generator)
    named = text(str(row.get("generator") or "")) or generator
    generator = "" if label != FAKE else named or _generator(tree, inside)
    return Entry(key, path, label, target, source, generator, text(str(row.get("category") or "").strip()), "", where)


def _generator(tree: Tree, inside: str) -> str:
    return text(by_folders([tree.name, *inside.split("/")[:-1]])[2] or tree.name)


def text(name: str) -> str:
    """A file name as text: bytes that are not UTF-8 are written as \\xNN."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def missing(archive: str, inside: str) -> tuple[str, Place]:
    """For a file that a table names and an archive lacks."""
    return f"{archive}/{inside}", Absent(f"cannot be read: {archive} holds no {inside}")
