"""Base of sources that contain folders: lists their images by metadata tables or by folder names."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, Protocol, runtime_checkable

from ...store.records import FAKE
from . import tables
from .hash_set import HashSet
from .image_ref import ByteSource, ImageRef, MissingFile
from .labels import label_from_row, labels_from_folders

# fmt: off
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".hif",
    ".ppm", ".jp2",
)
# fmt: on


class Source(Protocol):
    """Interface of a named collection of images."""

    @property
    def name(self) -> str:
        """First part of the images' keys, unless a metadata table inside makes its folder a source of its own."""
        ...

    @property
    def path(self) -> str:
        """Path or URL."""
        ...

    def images(self) -> Iterator[ImageRef]:
        """Iterate over the images while they are listed; raises SourceError."""
        ...


@runtime_checkable
class CountableSource(Protocol):
    """Interface of a source that can count its images far faster than list them."""

    def count(self) -> int | None:
        """Estimate the number of images; None if that would take as long as listing. Raises SourceError."""
        ...


class Tree(Source, Protocol):
    """Interface of a source with folders, any of which may have a metadata table."""

    def locate(self, inside: str) -> tuple[str, ByteSource | None]:
        """Return the displayed path of a file and the location of its bytes (None: a local file at that path)."""
        ...

    def open(self, inside: str) -> BinaryIO:
        """Open a table for reading as a stream; raises SourceError."""
        ...


class ListableTree(Tree, Protocol):
    """Interface of a tree that is listed one folder at a time."""

    def list(self, inside: str) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files in the folder `inside` ("" for the root), each sorted."""
        ...


def tree_images(tree: ListableTree) -> Iterator[ImageRef]:
    """Images of a tree: by the metadata table of their folder or a folder above, otherwise by folder names."""
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        folders, files = tree.list(folder)
        if table := next((name for name in tables.METADATA if name in files), None):
            yield from images_from_table(tree, folder, posixpath.join(folder, table))
            continue
        prefix = f"{folder}/" if folder else ""
        for name in files:
            if is_image(name):
                yield image_from_path(tree.name, prefix + name, *tree.locate(prefix + name))
        waiting += [prefix + name for name in reversed(folders)]


def tree_count(tree: ListableTree) -> int:
    """Estimate the number of images in a tree from the lines of tables and the names of files."""
    count, waiting = 0, [""]
    while waiting:
        folder = waiting.pop()
        folders, files = tree.list(folder)
        if table := next((name for name in tables.METADATA if name in files), None):
            name = posixpath.join(folder, table)
            with tree.open(name) as file:
                count += tables.count(f"{tree.path}/{name}", file)
            continue
        count += sum(map(is_image, files))
        waiting += [posixpath.join(folder, name) for name in folders]
    return count


def is_image(name: str) -> bool:
    """True if a file name has the suffix of an image format."""
    return name.lower().endswith(SUFFIXES)


def image_from_path(tree: str, inside: str, path: str, location: ByteSource | None) -> ImageRef:
    """Return an image of the tree named `tree`, labelled by the names of its folders."""
    label, source, generator = labels_of_folder(tree, inside.rpartition("/")[0])
    return ImageRef(to_text(f"{tree}/{inside}"), path, label, -1, source, generator, location=location)


@lru_cache(maxsize=1024)  # there are millions of files, but few folders
def labels_of_folder(tree: str, folder: str) -> tuple[int, str, str]:
    """Label, source and generator of the images in a folder of the tree named `tree`, by the names on its path."""
    label, source, generator = labels_from_folders([tree, *folder.split("/")] if folder else [tree])
    return label, to_text(source), to_text(generator)


def images_from_table(tree: Tree, folder: str, name: str) -> Iterator[ImageRef]:
    """Images of a tree by the table `name`, which describes `folder` and the folders below.

    An ArtiFact folder is a source of its own at any depth: its name is the first part of the keys.
    """
    table = f"{tree.path}/{name}"
    with tree.open(name) as file, closing(tables.rows(table, file)) as rows:
        column = tables.path_column(list(next(rows)[1]), table, target=True)
        folder_name = posixpath.basename(folder) or tree.name
        artifact = column == "image_path"
        source = to_text(folder_name if artifact else posixpath.join(tree.name, folder).rstrip("/"))
        reader = _RowReader(tree, f"{folder}/" if folder else "", source, to_text(folder_name) if artifact else "")
        seen = HashSet()
        for line, row in rows:
            inside = str(row[column] or "").strip()
            label_or_reason = label_from_row(row)
            if why := _refused(inside, label_or_reason, seen):
                why = why if isinstance(label_or_reason, str) else f"{column} {why}"
                key, path = f"{source}/{to_text(inside)}", f"{table}/../{inside}"
                yield ImageRef(key, path, source=source, refused=f"line {line} of {table}: {why}")
            else:
                yield reader.image(inside, row, label_or_reason)


def _refused(inside: str, label_or_reason: tuple[int, int] | str | None, seen: HashSet) -> str:
    """Why a row of a table is refused, "" if it is not; its path is added to `seen`."""
    if not inside or inside[0] == "/" or (".." in inside and ".." in inside.split("/")):
        return f"{inside!r} is not inside the folder"
    if isinstance(label_or_reason, str):
        return label_or_reason
    return f"{inside} was listed before" if seen.contains_or_add(inside) else ""


@dataclass(frozen=True)
class _RowReader:
    """Reader of the rows of one table."""

    tree: Tree
    prefix: str  # path of the table's folder in the tree, with a slash, or ""
    source: str
    generator: str  # of fake images whose row names none, "" to derive it from the folders

    def image(self, inside: str, row: Mapping[str, Any], label_or_reason: tuple[int, int] | str | None) -> ImageRef:
        """Return the image of a row whose path is `inside` the table's folder."""
        tree, source, generator = self.tree, self.source, self.generator
        key, inside = f"{source}/{to_text(inside)}", self.prefix + inside
        path, location = tree.locate(inside)
        if isinstance(label_or_reason, tuple):
            label, target = label_or_reason
        else:
            (label, source, generator), target = labels_of_folder(tree.name, inside.rpartition("/")[0]), -1
        if label == FAKE:
            generator = to_text(str(row.get("generator") or "")) or generator or _generator(tree.name, inside)
        else:
            generator = ""
        category = to_text(str(row.get("category") or "").strip())
        return ImageRef(key, path, label, target, source, generator, category, "", location)


def _generator(tree: str, inside: str) -> str:
    return labels_of_folder(tree, inside.rpartition("/")[0])[2] or to_text(tree)


def to_text(name: str) -> str:
    """Convert a file name to valid text: bytes that are not UTF-8, and unpaired surrogates, are written as \\xNN."""
    if name.isascii():
        return name
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that does not represent a byte
        return name.encode("utf-8", "surrogatepass").decode("utf-8", "backslashreplace")


def missing(archive: str, inside: str) -> tuple[str, ByteSource]:
    """Path and location of a file that a table names but the archive lacks."""
    return f"{archive}/{inside}", MissingFile(f"cannot be read: {archive} holds no {inside}")
