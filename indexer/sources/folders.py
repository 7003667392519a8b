"""List the images of any supported source, one at a time, with the metadata of each.

Supported layouts: ArtiFact (a metadata.csv with image_path and target), Hugging Face image folders (metadata.csv or
.jsonl with file_name), folders named by label (real/fake, 0_real/1_fake, nature/ai, nested per generator) and other
folders (label unknown); each as a folder, inside a zip, or at a URL. Also tar files (WebDataset) and tables of paths
and labels.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO

from ...core.reading import open_regular
from ...errors import SourceError
from .archives.tar_archive import TARS, TarArchive
from .archives.zip_archive import ZipArchive
from .base import CountableSource, FolderListing, Listed, Source
from .cloud import CloudFolder, open_binary
from .file_names import HEAD_BYTES, SUFFIXES, FileKind, is_foreign, is_image_name
from .image_ref import LINK_LEADS_OUT, ByteSource, ImageRef, LocalFile, PassedOver, leads_inside
from .table_source import TableSource
from .tables.columns import DEFAULT_COLUMNS, ColumnNames
from .tables.reading import METADATA, is_metadata
from .tables.reading import SUFFIXES as TABLE_SUFFIXES
from .trees import tree_count, tree_images
from .urls import is_url, local_path

BESIDE_FOLDERS = "images beside the folders that a pattern matches, which are indexed if their own folder is named"
LINKS_OUT = "links that lead out of their folder, which are followed with --follow-links"
NESTED_LINKS = "links to folders inside linked folders, whose images are listed in their own place"
TOO_LONG = "folders whose path is longer than the system allows"
MAX_NESTED = 8  # links to folders on one path with `follow_links`: those of a stranger may multiply at each level


@dataclass(frozen=True)
class FolderSource:
    """Folder on this machine."""

    root: Path
    columns: ColumnNames = DEFAULT_COLUMNS
    labels: bool = True  # False: list every image without reading labels
    follow_links: bool = False  # symbolic links that lead out of the folder

    @property
    def name(self) -> str:
        return self.root.name

    @cached_property
    def path(self) -> str:
        return str(self.root)

    def images(self) -> Iterator[Listed]:
        return tree_images(self)

    def count(self) -> int:
        return tree_count(self)

    def list(self, inside: str) -> FolderListing:
        path = os.path.join(self.root, inside)  # noqa: PTH118 - a Path would cost more than the listing
        listing, links = FolderListing([], [], []), []
        try:
            with os.scandir(path) as entries:
                for entry in entries:  # keep only the names: a folder may hold a million files
                    if entry.is_symlink():
                        links.append(entry.name)
                    elif entry.is_dir():
                        listing.folders.append(entry.name)
                    else:
                        listing.files.append(entry.name)
        except OSError as e:
            if e.errno == errno.ENAMETOOLONG and inside:
                return FolderListing([], [], [(TOO_LONG, "")])
            raise SourceError(f"{path} cannot be listed: {e.strerror}; give read access or exclude it") from e
        for name in sorted(links):
            self._add_link(listing, path, name)
        listing.folders.sort()
        listing.files.sort()
        return listing

    def _add_link(self, listing: FolderListing, folder: str, name: str) -> None:
        """Add a symbolic link in a folder to its listing; one to a folder that contains it is left out."""
        link = os.path.join(folder, name)  # noqa: PTH118
        if not self.follow_links and not leads_inside(os.path.realpath(link), _real(self.path)):
            listing.passed_over.append((LINKS_OUT, name))
        elif not os.path.isdir(link):  # noqa: PTH112 - `Path.is_dir` raises an error for a path that is too long
            listing.files.append(name)
        elif not _is_loop(link):
            if _links_on(folder, self.path) < (MAX_NESTED if self.follow_links else 1):
                listing.folders.append(name)
            else:
                listing.passed_over.append((NESTED_LINKS, name))

    def locate(self, inside: str) -> tuple[str, ByteSource | None]:
        path = f"{self.path}/{inside}"
        return path, LocalFile(path) if self.follow_links else None

    def exists(self, inside: str) -> bool:
        return os.path.isfile(os.path.join(self.root, inside))  # noqa: PTH113, PTH118 - called for many rows

    def leads_out(self, inside: str) -> bool:
        return not self.follow_links and _leads_out(self.path, inside)

    def open(self, inside: str) -> BinaryIO:
        path = f"{self.path}/{inside}"
        if not self.follow_links and _leads_out(self.path, inside):
            raise SourceError(f"{path}: {LINK_LEADS_OUT}")
        return open_binary(path)

    def head(self, inside: str) -> bytes:
        try:
            handle, _ = open_regular(f"{self.path}/{inside}")
            try:
                return os.read(handle, HEAD_BYTES)
            finally:
                os.close(handle)
        except OSError:
            return b""


@lru_cache(maxsize=64)
def _real(path: str) -> str:
    return os.path.realpath(path)


@lru_cache(maxsize=4096)  # there are millions of rows, but few folders
def _leads_out(root: str, inside: str) -> bool:
    """True if a path in a folder leads out of it by a link."""
    try:
        return bool(inside) and not leads_inside(os.path.realpath(f"{root}/{inside}"), _real(root))
    except (OSError, ValueError):  # no path that a file can have
        return False


def _links_on(folder: str, root: str) -> int:
    """Number of symbolic links on the path from a root to a folder in it."""
    count = 0
    while len(folder) > len(root):
        count += os.path.islink(folder)  # noqa: PTH114
        folder = posixpath.dirname(folder)
    return count


def _is_loop(link: str) -> bool:
    """True if a symbolic link points to a folder that contains it."""
    target, folder = os.path.realpath(link).rstrip("/") + "/", posixpath.dirname(link)
    while folder and folder != posixpath.dirname(folder):
        if (os.path.realpath(folder) + "/").startswith(target):
            return True
        folder = posixpath.dirname(folder)
    return False


def expand(
    folders: Iterable[str | Path | Source],
    columns: ColumnNames = DEFAULT_COLUMNS,
    *,
    labels: bool = True,
    follow_links: bool = False,
) -> list[Source]:
    """Expand paths, quoted patterns and URLs to sources, each one once, in order.

    Parameters
    ----------
    columns : headings of the columns of their tables
    labels : read labels and tables; without them every image is listed
    follow_links : follow symbolic links that lead out of a folder; a source that is a link itself is always followed

    Raises
    ------
    SourceError
        A source does not exist, or two sources have the same name, so that their images would have the same keys.
    """
    sources: dict[str, Source] = {}  # by path or URL
    folder_tables: list[str] = []  # metadata tables, which describe their own folder
    for folder in folders:
        if not isinstance(folder, str | Path):
            sources.setdefault(folder.path, folder)
            continue
        for pattern in _braces(str(folder)):
            for path in _matches(pattern):
                if reason := _passed_over(path, is_pattern=path != pattern):
                    sources.setdefault(path, PassedOverPath(path, reason))
                elif source := source_at(path, columns, labels=labels, follow_links=follow_links):
                    sources.setdefault(source.path, source)
                else:
                    folder_tables.append(path)
    for table in folder_tables:
        if str(Path(table).parent.resolve()) not in sources and posixpath.dirname(table) not in sources:
            raise SourceError(
                f"{table} describes the folder it is in; name that folder ({posixpath.dirname(table) or '.'}) instead"
            )
    by_name: dict[str, Source] = {}
    for source in sources.values():
        if isinstance(source, PassedOverPath):
            continue
        if (other := by_name.setdefault(source.name, source)) is not source:
            raise SourceError(
                f"{other.path} and {source.path} have one name, so their images would have the same keys; rename one, "
                f"leave one out, or name the folder that holds both"
            )
    return list(sources.values())


@dataclass(frozen=True)
class PassedOverPath:
    """Path among the sources that is not indexed, such as a folder of another program that a pattern matches."""

    path: str
    reason: str

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    def images(self) -> Iterator[Listed]:
        yield PassedOver(self.reason, 1, self.path)

    def count(self) -> int:
        return 0


def _passed_over(path: str, *, is_pattern: bool) -> str:
    """Why a path is passed over, "" if it is not. A hidden folder is indexed if it is named in full."""
    name = posixpath.basename(path.rstrip("/"))
    if is_foreign(name) and (is_pattern or name[:1] != "."):
        return FileKind.foreign
    return BESIDE_FOLDERS if is_pattern and is_image_name(name) and not Path(path).is_dir() else ""


def source_at(
    path: str, columns: ColumnNames = DEFAULT_COLUMNS, *, labels: bool = True, follow_links: bool = False
) -> Source | None:
    """Return the source at a path or URL; None for a metadata table, which describes the folder it is in."""
    path = local_path(path) or path
    name = path.lower()
    if is_metadata(posixpath.basename(name)):  # a pattern such as `data/*` may match one
        return None
    if not is_url(path):
        if not os.path.exists(path):  # noqa: PTH110 - `Path.exists` raises an error for a path that is too long
            raise SourceError(f"the folder {path} does not exist; check the path")
        path = os.path.realpath(path)
        if os.path.isdir(path):  # noqa: PTH112
            return FolderSource(Path(path), columns, labels, follow_links)
    if name.endswith(".zip"):
        return ZipArchive(path, columns, labels)
    if name.endswith(TARS):
        return TarArchive(path, columns, labels)
    if name.endswith(TABLE_SUFFIXES):
        return TableSource(path, columns)
    if is_url(path):
        return CloudFolder(path.rstrip("/"), columns, labels)
    if is_image_name(path):
        raise SourceError(f"{path} is a single image; name the folder it is in, or judge it with `clipfake query`")
    raise SourceError(f"{path} is not a folder; name folders of images, zip or tar archives, or a CSV or parquet table")


def _matches(pattern: str) -> list[str]:
    if is_url(pattern) or not any(wildcard in pattern for wildcard in "*?[") or os.path.exists(pattern):  # noqa: PTH110
        return [pattern]
    base = Path(pattern).anchor or "."
    suffixes = (*TABLE_SUFFIXES, ".zip", ".tar", ".tgz", ".gz")
    paths = Path(base).glob(pattern.removeprefix(base))
    matches = [path for path in paths if path.is_dir() or path.name.lower().endswith((*suffixes, *SUFFIXES))]
    if not matches:
        raise SourceError(f"no folder matches {pattern}; check the pattern")
    return sorted(map(str, matches))


def _braces(pattern: str) -> list[str]:
    """Expand WebDataset's numeric ranges.

    >>> _braces("data/{08..11}.tar")
    ['data/08.tar', 'data/09.tar', 'data/10.tar', 'data/11.tar']
    """
    if not (match := re.search(r"\{(\d+)\.\.(\d+)\}", pattern)):
        return [pattern]
    first, last = match.groups()
    return [
        path
        for number in range(int(first), int(last) + 1)
        for path in _braces(f"{pattern[: match.start()]}{number:0{len(first)}d}{pattern[match.end() :]}")
    ]


def listing(folders: Sequence[str | Path | Source]) -> Iterator[Listed]:
    """Iterate over the images of these sources, and what was passed over.

    Raises SourceError for a source without images.
    """
    listed_images = 0
    sources = expand(folders)
    for source in sources:
        images, passed_over = 0, []
        for listed in source.images():
            if isinstance(listed, PassedOver):
                passed_over.append(listed)
            else:
                images += 1
            yield listed
        listed_images += images
        if not images and not isinstance(source, PassedOverPath):
            others = "; ".join(f"{other.reason} ({other.files:,})" for other in passed_over)
            raise SourceError(
                f"{source.path} holds no images to index{f'; passed over: {others}' if others else ''}. Looked for "
                f"images by suffix and first bytes, and for {METADATA[0]}; check the path"
            )
    if not listed_images and sources:  # nothing but paths that are passed over
        reasons = {source.reason: source.path for source in sources if isinstance(source, PassedOverPath)}
        others = "; ".join(f"{reason}, as {path}" for reason, path in reasons.items())
        raise SourceError(f"nothing to index: {others}; name the folder of the images")


def images_in(folders: Sequence[str | Path | Source]) -> Iterator[ImageRef]:
    """Iterate over the images of these sources, see `listing`."""
    return (listed for listed in listing(folders) if not isinstance(listed, PassedOver))


def count(folders: Iterable[str | Path | Source]) -> int | None:
    """Estimate the number of images, far faster than by listing; None if a source cannot be counted.

    It serves a progress bar: tables are counted by lines and files by their names. Pass the same expanded sources
    (`expand`) as to `listing`, so that the directory of a zip is read only once. Raises SourceError.
    """
    counts = [source.count() if isinstance(source, CountableSource) else None for source in expand(folders)]
    known_counts = [number for number in counts if number is not None]
    return sum(known_counts) if len(known_counts) == len(counts) else None
