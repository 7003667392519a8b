"""Base of sources: their interfaces, what becomes of each file, and labels by folder names."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import BinaryIO, NamedTuple, Protocol, runtime_checkable

from .file_names import FileKind, file_kind, is_image_name
from .image_ref import ByteSource, ImageRef, MissingFile, PassedOver
from .labels import FolderLabel, is_class_word, labels_from_folders
from .tables.columns import ColumnNames

LINKS = "links to other members of an archive"
NOT_NAMED = "images that the metadata table of their folder does not name"

Listed = ImageRef | PassedOver


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

    def images(self) -> Iterator[Listed]:
        """Iterate over the images while they are listed, and over what was passed over; raises SourceError."""
        ...


@runtime_checkable
class CountableSource(Protocol):
    """Interface of a source that can count its images far faster than list them."""

    def count(self) -> int | None:
        """Estimate the number of images; None if that would take as long as listing. Raises SourceError."""
        ...


class Tree(Source, Protocol):
    """Interface of a source with folders, any of which may have metadata tables."""

    @property
    def columns(self) -> ColumnNames:
        """Headings of the tables' columns that the user gave."""
        ...

    @property
    def labels(self) -> bool:
        """Whether tables are read and images labelled, or all images listed without labels."""
        ...

    def exists(self, inside: str) -> bool:
        """True if there is a file of this name; raises SourceError."""
        ...

    def locate(self, inside: str) -> tuple[str, ByteSource | None]:
        """Return the displayed path of a file and the location of its bytes (None: a local file at that path)."""
        ...

    def open(self, inside: str) -> BinaryIO:
        """Open a file for reading as a stream; raises SourceError or OSError."""
        ...

    def leads_out(self, inside: str) -> bool:
        """True if a folder is reached by a link that leads out of the tree and is not followed."""
        ...

    def head(self, inside: str) -> bytes:
        """First bytes of a file, b"" if they cannot be read; see `file_names.HEAD_BYTES`."""
        ...


class FolderListing(NamedTuple):
    """Content of one folder."""

    folders: list[str]  # names, sorted
    files: list[str]  # names, sorted
    passed_over: list[tuple[str, str]]  # reason and name of what is not followed or cannot be listed


class ListableTree(Tree, Protocol):
    """Interface of a tree that is listed one folder at a time."""

    def list(self, inside: str) -> FolderListing:
        """List the folder `inside`, "" for the root; raises SourceError."""
        ...


class PassedOverFiles:
    """Counts the files of a source that are not indexed, by reason."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, reason: str, path: str) -> None:
        self._counts[reason] += 1
        self._examples.setdefault(reason, path)

    def __iter__(self) -> Iterator[PassedOver]:
        return (PassedOver(reason, count, self._examples[reason]) for reason, count in self._counts.items())


def is_listed(tree: Tree, inside: str, name: str, passed_over: PassedOverFiles) -> bool:
    """True if a file is an image; any other file but a document is counted in `passed_over`.

    `name` is the last part of the path `inside` the tree.
    """
    if is_image_name(name) and name[0] != ".":
        return True
    kind = file_kind(name, lambda: tree.head(inside))
    if kind not in (FileKind.image, FileKind.document):
        passed_over.add(kind, f"{tree.path}/{inside}")
    return kind is FileKind.image


def image_from_path(tree: Tree, inside: str, path: str, location: ByteSource | None) -> ImageRef:
    """Return an image of a tree, labelled by the names of its folders if labels are read."""
    if not tree.labels:
        return ImageRef(to_text(f"{tree.name}/{inside}"), path, location=location)
    folder = labels_of_folder(tree.path, tree.name, inside.rpartition("/")[0])
    key = to_text(f"{tree.name}/{inside}")
    if folder.contradiction:
        return ImageRef(key, path, source=folder.source, refused=folder.contradiction)
    return ImageRef(key, path, folder.label, -1, folder.source, folder.generator, location=location)


@lru_cache(maxsize=1024)  # there are millions of files, but few folders
def labels_of_folder(path: str, tree: str, folder: str) -> FolderLabel:
    """Label, source and generator of the images in a folder of a tree, by the names on its path.

    The folder that holds the tree counts if it is named real or fake, as in `--folders fake/*`.

    Parameters
    ----------
    path, tree : path and name of the tree
    folder : path inside the tree, "" for its root
    """
    parts = [tree, *folder.split("/")] if folder else [tree]
    above = posixpath.basename(posixpath.dirname(path))
    labels = labels_from_folders([above, *parts] if is_class_word(above) else parts)
    return labels._replace(source=to_text(labels.source), generator=to_text(labels.generator))


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
