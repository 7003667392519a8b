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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from ...errors import SourceError
from ...store.records import FAKE
from . import archive, cloud, tables
from .base import SUFFIXES, CountableSource, Source, is_image, to_text, tree_count, tree_images
from .cloud import open_binary, remote
from .hash_set import HashSet
from .image_ref import ByteSource, ImageRef, is_url
from .labels import label_from_row, labels_from_folders


@dataclass(frozen=True)
class FolderSource:
    """Folder on this machine."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @cached_property
    def path(self) -> str:
        return str(self.root)

    def images(self) -> Iterator[ImageRef]:
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

    def open(self, inside: str) -> BinaryIO:
        return (self.root / inside).open("rb")


def _is_loop(link: str) -> bool:
    """True if a symbolic link points to a folder that contains it."""
    target, folder = os.path.realpath(link).rstrip("/") + "/", posixpath.dirname(link)
    while folder and folder != posixpath.dirname(folder):
        if (os.path.realpath(folder) + "/").startswith(target):
            return True
        folder = posixpath.dirname(folder)
    return False


@dataclass(frozen=True)
class TableSource:
    """CSV, JSON lines or parquet file with labels and paths (absolute, URLs, or relative to the table)."""

    path: str  # or URL

    @property
    def name(self) -> str:
        return posixpath.splitext(posixpath.basename(self.path))[0]

    def images(self) -> Iterator[ImageRef]:
        folder = posixpath.dirname(self.path).rstrip("/") + "/"
        with open_binary(self.path) as file, closing(tables.rows(self.path, file)) as rows:
            column = tables.path_column(list(next(rows)[1]), self.path, target=False)
            seen = HashSet()
            for line, row in rows:
                given_path = str(row[column] or "").strip()
                remote_file = is_url(given_path)
                path = given_path if remote_file or given_path.startswith("/") else folder + given_path
                key = to_text(f"{self.name}/{given_path.lstrip('/')}")
                source = to_text(str(row.get("source") or "") or self.name)
                label_or_reason = label_from_row(row)
                if not given_path or isinstance(label_or_reason, str) or seen.contains_or_add(given_path):
                    why = label_or_reason if isinstance(label_or_reason, str) else f"{given_path} was listed before"
                    why = why if given_path else f"no {column}"
                    yield ImageRef(key, path, source=source, refused=f"line {line} of {self.path}: {why}")
                else:
                    label, target = (
                        label_or_reason
                        if isinstance(label_or_reason, tuple)
                        else (labels_from_folders(path.split("/")[:-1])[0], -1)
                    )
                    generator = to_text(str(row.get("generator") or "") or source) if label == FAKE else ""
                    category = to_text(str(row.get("category") or "").strip())
                    location = remote(path) if remote_file else None
                    yield ImageRef(key, path, label, target, source, generator, category, "", location)

    def count(self) -> int | None:
        if is_url(self.path):
            return None  # the table would be fetched twice
        with open_binary(self.path) as file:
            return tables.count(self.path, file)


def expand(folders: Iterable[str | Path | Source]) -> list[Source]:
    """Expand paths, quoted patterns and URLs to sources, each one once, in order.

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
                if source := source_at(path):
                    sources.setdefault(source.path, source)
                else:
                    folder_tables.append(path)
    if folder_tables and not sources:
        raise SourceError(f"{folder_tables[0]} describes the folder it is in; name that folder instead")
    by_name: dict[str, Source] = {}
    for source in sources.values():
        if (other := by_name.setdefault(source.name, source)) is not source:
            raise SourceError(
                f"{other.path} and {source.path} have one name, so their images would have the same keys; rename one"
            )
    return list(sources.values())


def source_at(path: str) -> Source | None:
    """Return the source at a path or URL; None for a metadata table, which describes the folder it is in."""
    name = path.lower()
    if posixpath.basename(name) in tables.METADATA:  # a pattern such as `data/*` may match one
        return None
    if not is_url(path):
        local = Path(path)
        if not local.exists():
            raise SourceError(f"the folder {path} does not exist; check the path")
        path = str(local.resolve())
        if local.is_dir():
            return FolderSource(Path(path))
    if name.endswith(".zip"):
        return archive.ZipArchive(path)
    if name.endswith(archive.TARS):
        return archive.TarArchive(path)
    if name.endswith(tables.SUFFIXES):
        return TableSource(path)
    if is_url(path):
        return cloud.CloudFolder(path.rstrip("/"))
    if is_image(path):
        raise SourceError(f"{path} is a single image; name the folder it is in, or judge it with `clipfake query`")
    raise SourceError(f"{path} is not a folder; name folders of images, zip or tar archives, or a CSV or parquet table")


def _matches(pattern: str) -> list[str]:
    if is_url(pattern) or not any(wildcard in pattern for wildcard in "*?[") or Path(pattern).exists():
        return [pattern]
    base = Path(pattern).anchor or "."
    suffixes = (*tables.SUFFIXES, ".zip", ".tar", ".tgz", ".gz")
    paths = Path(base).glob(pattern.removeprefix(base))
    matches = [path for path in paths if path.is_dir() or path.name.lower().endswith(suffixes)]
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


def listing(folders: Sequence[str | Path | Source]) -> Iterator[ImageRef]:
    """Iterate over the images of these sources; raises SourceError for a source without images."""
    for source in expand(folders):
        count = 0
        for ref in source.images():
            count += 1
            yield ref
        if not count:
            raise SourceError(
                f"{source.path} holds no images (looked for {', '.join(sorted(SUFFIXES))} and {tables.METADATA[0]})"
            )


def count(folders: Iterable[str | Path | Source]) -> int | None:
    """Estimate the number of images, far faster than by listing; None if a source cannot be counted.

    It serves a progress bar: tables are counted by lines and files by their names. Pass the same expanded sources
    (`expand`) as to `listing`, so that the directory of a zip is read only once. Raises SourceError.
    """
    counts = [source.count() if isinstance(source, CountableSource) else None for source in expand(folders)]
    known_counts = [number for number in counts if number is not None]
    return sum(known_counts) if len(known_counts) == len(counts) else None
