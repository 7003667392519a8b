"""Base of sources with folders in them: their images, by a metadata table or by the folders' names."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import lru_cache
from typing import Any, BinaryIO, Protocol, runtime_checkable

from ...store.records import FAKE
from . import tables
from .hash_set import HashSet
from .image_ref import ByteSource, ImageRef, MissingFile
from .labels import by_folders, by_row

# fmt: off
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".hif",
    ".ppm", ".jp2",
)
# fmt: on


class Source(Protocol):
    """A named heap of images."""

    @property
    def name(self) -> str:
        """Prefix of its keys, unless a metadata table inside stands for a source of its own."""
        ...

    @property
    def at(self) -> str:
        """Path or URL."""
        ...

    def entries(self) -> Iterator[ImageRef]:
        """Iterate over its images as they are read; raises SourceError."""
        ...


@runtime_checkable
class CountableSource(Protocol):
    """Interface of a source that can count its images far faster than list them."""

    def count(self) -> int | None:
        """None where it would take as long as listing; an estimate, for rows are not looked at; raises SourceError."""
        ...


class Tree(Source, Protocol):
    """A source with folders in it, any of which may have a metadata table."""

    def place(self, inside: str) -> tuple[str, ByteSource | None]:
        """A file's path for people, and where its bytes are if not there."""
        ...

    def open(self, inside: str) -> BinaryIO:
        """A table, to be read as it streams; raises SourceError."""
        ...


class ListableTree(Tree, Protocol):
    """A tree that is listed one folder at a time."""

    def list(self, inside: str) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files in the folder `inside` ("" for the root), each sorted."""
        ...


def tree_entries(tree: ListableTree) -> Iterator[ImageRef]:
    """Images of a tree: by the metadata table of their folder or of one above, else by the names of their folders."""
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        folders, files = tree.list(inside)
        if found := next((name for name in tables.METADATA if name in files), None):
            yield from by_table(tree, inside, posixpath.join(inside, found))
            continue
        before = f"{inside}/" if inside else ""
        for name in files:
            if is_image(name):
                yield by_name(tree.name, before + name, *tree.place(before + name))
        waiting += [before + name for name in reversed(folders)]


def tree_count(tree: ListableTree) -> int:
    """About how many images `tree_entries` will find, by lines of tables and names of files."""
    count, waiting = 0, [""]
    while waiting:
        inside = waiting.pop()
        folders, files = tree.list(inside)
        if found := next((name for name in tables.METADATA if name in files), None):
            name = posixpath.join(inside, found)
            with tree.open(name) as file:
                count += tables.count(f"{tree.at}/{name}", file)
            continue
        count += sum(map(is_image, files))
        waiting += [posixpath.join(inside, name) for name in folders]
    return count


def is_image(name: str) -> bool:
    """True if a file's name looks like an image's."""
    return name.lower().endswith(SUFFIXES)


def by_name(tree: str, inside: str, path: str, place: ByteSource | None) -> ImageRef:
    """An image of a tree of this name, by the names of the folders it lies in."""
    label, source, generator = by_folder(tree, inside.rpartition("/")[0])
    return ImageRef(text(f"{tree}/{inside}"), path, label, -1, source, generator, where=place)


@lru_cache(maxsize=1024)  # there are millions of files, and few folders
def by_folder(tree: str, folder: str) -> tuple[int, str, str]:
    """Label, source and generator of the images in a folder of a tree of this name, by the names on the way to it."""
    label, source, generator = by_folders([tree, *folder.split("/")] if folder else [tree])
    return label, text(source), text(generator)


def by_table(tree: Tree, folder: str, name: str) -> Iterator[ImageRef]:
    """Images of a tree by the table `name`, which speaks of `folder` and those below.

    ArtiFact's folder is a source of its own wherever it lies: it gives the keys their start.
    """
    told_at = f"{tree.at}/{name}"
    with tree.open(name) as file, closing(tables.rows(told_at, file)) as rows:
        column = tables.path_column(list(next(rows)[1]), told_at, target=True)
        own = posixpath.basename(folder) or tree.name
        artifact = column == "image_path"
        source = text(own if artifact else posixpath.join(tree.name, folder).rstrip("/"))
        generator = text(own) if artifact else ""
        before = f"{folder}/" if folder else ""
        seen = HashSet()
        for line, row in rows:
            inside = str(row[column] or "").strip()
            key = f"{source}/{text(inside)}"
            label_or_reason = by_row(row)
            if why := _refused(inside, label_or_reason, seen):
                why = why if isinstance(label_or_reason, str) else f"{column} {why}"
                yield ImageRef(key, f"{told_at}/../{inside}", source=source, refused=f"line {line} of {told_at}: {why}")
            else:
                yield _from_row(tree, before + inside, key, source, generator, row, label_or_reason)


def _refused(inside: str, label_or_reason: tuple[int, int] | str | None, seen: HashSet) -> str:
    """Why a row of a table makes no sense, "" if it does; `seen` takes note of it."""
    if not inside or inside[0] == "/" or (".." in inside and ".." in inside.split("/")):
        return f"{inside!r} is not inside the folder"
    if isinstance(label_or_reason, str):
        return label_or_reason
    return f"{inside} was listed before" if seen.again(inside) else ""


def _from_row(
    tree: Tree,
    inside: str,
    key: str,
    source: str,
    generator: str,
    row: Mapping[str, Any],
    label_or_reason: tuple[int, int] | str | None,
) -> ImageRef:
    path, place = tree.place(inside)
    if isinstance(label_or_reason, tuple):
        label, target = label_or_reason
    else:
        (label, source, generator), target = by_folder(tree.name, inside.rpartition("/")[0]), -1
    if label == FAKE:
        generator = text(str(row.get("generator") or "")) or generator or _generator(tree.name, inside)
    else:
        generator = ""
    return ImageRef(
        key, path, label, target, source, generator, text(str(row.get("category") or "").strip()), "", place
    )


def _generator(tree: str, inside: str) -> str:
    return by_folder(tree, inside.rpartition("/")[0])[2] or text(tree)


def text(name: str) -> str:
    """A file name as text: bytes that are not UTF-8 are written as \\xNN, and so is half a character of JSON's."""
    if name.isascii():
        return name
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return name.encode("utf-8", "surrogatepass").decode("utf-8", "backslashreplace")


def missing(archive: str, inside: str) -> tuple[str, ByteSource]:
    """Describe a file that a table names and an archive lacks."""
    return f"{archive}/{inside}", MissingFile(f"cannot be read: {archive} holds no {inside}")
