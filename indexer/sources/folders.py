"""List the images of any supported source, one at a time, with the metadata of each.

Supported layouts: ArtiFact (a metadata.csv with image_path and target), Hugging Face image folders (metadata.csv or
.jsonl with file_name), folders named by label (real/fake, 0_real/1_fake, nature/ai, nested per generator) and other
folders (label unknown); each as a folder, inside a zip, or at a URL. Also tar files (WebDataset) and tables of paths
and labels.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from ...errors import SourceError
from .archives.tar_archive import TARS, TarArchive
from .archives.zip_archive import ZipArchive
from .base import CountableSource, Listed, Source
from .cloud import CloudFolder
from .file_names import HEAD_BYTES, SUFFIXES, FileKind, is_foreign, is_image_name
from .image_ref import ByteSource, ImageRef, PassedOver, is_url
from .table_source import TableSource
from .tables.columns import DEFAULT_COLUMNS, ColumnNames
from .tables.reading import METADATA, is_metadata
from .tables.reading import SUFFIXES as TABLE_SUFFIXES
from .trees import tree_count, tree_images

BESIDE_FOLDERS = "images beside the folders that a pattern matches, which are indexed if their own folder is named"


@dataclass(frozen=True)
class FolderSource:
    """Folder on this machine."""

    root: Path
    columns: ColumnNames = DEFAULT_COLUMNS
    labels: bool = True  # False: list every image without reading labels

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

    def list(self, inside: str) -> tuple[list[str], list[str]]:
        path = os.path.join(self.root, inside)  # noqa: PTH118 - a Path would cost more than the listing
        folders, files = [], []
        try:
            with os.scandir(path) as entries:
                for entry in entries:  # keep only the names: a folder may hold a million files
                    if entry.is_dir():
                        if not (entry.is_symlink() and _is_loop(entry.path)):
                            folders.append(entry.name)
                    else:
                        files.append(entry.name)
        except OSError as e:
            raise SourceError(f"{path} cannot be listed: {e.strerror}; give read access or exclude it") from e
        return sorted(folders), sorted(files)

    def locate(self, inside: str) -> tuple[str, ByteSource | None]:
        return f"{self.path}/{inside}", None

    def exists(self, inside: str) -> bool:
        return os.path.isfile(os.path.join(self.root, inside))  # noqa: PTH113, PTH118 - called for many rows

    def open(self, inside: str) -> BinaryIO:
        return (self.root / inside).open("rb")

    def head(self, inside: str) -> bytes:
        try:
            handle = os.open(self.root / inside, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would block
            try:
                return os.read(handle, HEAD_BYTES) if stat.S_ISREG(os.fstat(handle).st_mode) else b""
            finally:
                os.close(handle)
        except OSError:
            return b""


def _is_loop(link: str) -> bool:
    """True if a symbolic link points to a folder that contains it."""
    target, folder = os.path.realpath(link).rstrip("/") + "/", posixpath.dirname(link)
    while folder and folder != posixpath.dirname(folder):
        if (os.path.realpath(folder) + "/").startswith(target):
            return True
        folder = posixpath.dirname(folder)
    return False


def expand(
    folders: Iterable[str | Path | Source], columns: ColumnNames = DEFAULT_COLUMNS, *, labels: bool = True
) -> list[Source]:
    """Expand paths, quoted patterns and URLs to sources, each one once, in order.

    Parameters
    ----------
    columns : headings of the columns of their tables
    labels : read labels and tables; without them every image is listed

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
                elif source := source_at(path, columns, labels=labels):
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


def source_at(path: str, columns: ColumnNames = DEFAULT_COLUMNS, *, labels: bool = True) -> Source | None:
    """Return the source at a path or URL; None for a metadata table, which describes the folder it is in."""
    name = path.lower()
    if is_metadata(posixpath.basename(name)):  # a pattern such as `data/*` may match one
        return None
    if not is_url(path):
        local = Path(path)
        if not local.exists():
            raise SourceError(f"the folder {path} does not exist; check the path")
        path = str(local.resolve())
        if local.is_dir():
            return FolderSource(Path(path), columns, labels)
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
    if is_url(pattern) or not any(wildcard in pattern for wildcard in "*?[") or Path(pattern).exists():
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
