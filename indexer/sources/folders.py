"""Images as they are found in the wild, listed one at a time with what is known of each, whatever holds them.

Understood: ArtiFact (a metadata.csv with image_path and target), Hugging Face image folders (metadata.csv or .jsonl
with file_name), trees whose folders say the label (real/fake, 0_real/1_fake, nature/ai, nested per generator) and
folders that say nothing (label unknown); each as a folder, inside a zip, or behind a URL. Also tar files (WebDataset)
and tables of paths and labels.
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
from .base import SUFFIXES, CountableSource, Source, is_image, text, tree_count, tree_entries
from .cloud import open_binary, remote
from .hash_set import HashSet
from .image_ref import ByteSource, ImageRef, is_url
from .labels import by_folders, by_row


@dataclass(frozen=True)
class FolderSource:
    """A folder of this machine."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @cached_property
    def at(self) -> str:
        return str(self.root)

    def entries(self) -> Iterator[ImageRef]:
        return tree_entries(self)

    def count(self) -> int:
        return tree_count(self)

    def list(self, inside: str) -> tuple[list[str], list[str]]:
        here = os.path.join(self.root, inside)  # noqa: PTH118 - a Path would cost more than the listing
        folders, files = [], []
        try:
            with os.scandir(here) as found:
                for entry in found:  # names only: a folder may hold a million
                    if entry.is_dir():
                        if not (entry.is_symlink() and _leads_up(entry.path)):
                            folders.append(entry.name)
                    else:
                        files.append(entry.name)
        except OSError as e:
            raise SourceError(f"{here} cannot be listed: {e.strerror}; give read access or leave it out") from e
        return sorted(folders), sorted(files)

    def place(self, inside: str) -> tuple[str, ByteSource | None]:
        return f"{self.at}/{inside}", None

    def open(self, inside: str) -> BinaryIO:
        return (self.root / inside).open("rb")


def _leads_up(link: str) -> bool:
    """True if a link leads to a folder on the way to it, or above one: a loop."""
    real, here = os.path.realpath(link).rstrip("/") + "/", posixpath.dirname(link)
    while here and here != posixpath.dirname(here):
        if (os.path.realpath(here) + "/").startswith(real):
            return True
        here = posixpath.dirname(here)
    return False


@dataclass(frozen=True)
class TableSource:
    """A CSV, JSON lines or parquet file of paths (absolute, URLs, or relative to it) and labels."""

    at: str

    @property
    def name(self) -> str:
        return posixpath.splitext(posixpath.basename(self.at))[0]

    def entries(self) -> Iterator[ImageRef]:
        beside = posixpath.dirname(self.at).rstrip("/") + "/"
        with open_binary(self.at) as file, closing(tables.rows(self.at, file)) as rows:
            column = tables.path_column(list(next(rows)[1]), self.at, target=False)
            seen = HashSet()
            for line, row in rows:
                told_path = str(row[column] or "").strip()
                far = is_url(told_path)
                path = told_path if far or told_path.startswith("/") else beside + told_path
                key = text(f"{self.name}/{told_path.lstrip('/')}")
                source = text(str(row.get("source") or "") or self.name)
                label_or_reason = by_row(row)
                if not told_path or isinstance(label_or_reason, str) or seen.again(told_path):
                    why = label_or_reason if isinstance(label_or_reason, str) else f"{told_path} was listed before"
                    why = why if told_path else f"no {column}"
                    yield ImageRef(key, path, source=source, refused=f"line {line} of {self.at}: {why}")
                else:
                    label, target = (
                        label_or_reason
                        if isinstance(label_or_reason, tuple)
                        else (by_folders(path.split("/")[:-1])[0], -1)
                    )
                    generator = text(str(row.get("generator") or "") or source) if label == FAKE else ""
                    category = text(str(row.get("category") or "").strip())
                    where = remote(path) if far else None
                    yield ImageRef(key, path, label, target, source, generator, category, "", where)

    def count(self) -> int | None:
        if is_url(self.at):
            return None  # it would be fetched twice
        with open_binary(self.at) as file:
            return tables.count(self.at, file)


def expand(folders: Iterable[str | Path | Source]) -> list[Source]:
    """Sources from names, quoted patterns and URLs, each once, in order; raises SourceError for one that is not there.

    Two different sources of one name would give two images one key: that is a SourceError too.
    """
    found: dict[str, Source] = {}
    inner_tables: list[str] = []  # that speak of the folder they lie in
    for given in folders:
        if not isinstance(given, str | Path):
            found.setdefault(given.at, given)
            continue
        for place in _braces(str(given)):
            for at in _matches(place):
                if source := source_at(at):
                    found.setdefault(source.at, source)
                else:
                    inner_tables.append(at)
    if inner_tables and not found:
        raise SourceError(f"{inner_tables[0]} speaks of the folder it lies in; name that folder")
    by_name: dict[str, Source] = {}
    for source in found.values():
        if (other := by_name.setdefault(source.name, source)) is not source:
            raise SourceError(
                f"{other.at} and {source.at} have one name, and so their images would have one key; rename one"
            )
    return list(found.values())


def source_at(at: str) -> Source | None:
    """Return the source at a path or URL; None for a metadata table, which describes the folder it is in."""
    name = at.lower()
    if posixpath.basename(name) in tables.METADATA:  # `data/*` may well hold a stray one
        return None
    if not is_url(at):
        path = Path(at)
        if not path.exists():
            raise SourceError(f"the folder {at} does not exist; check the path")
        at = str(path.resolve())
        if path.is_dir():
            return FolderSource(Path(at))
    if name.endswith(".zip"):
        return archive.ZipArchive(at)
    if name.endswith(archive.TARS):
        return archive.TarArchive(at)
    if name.endswith(tables.SUFFIXES):
        return TableSource(at)
    if is_url(at):
        return cloud.CloudFolder(at.rstrip("/"))
    if is_image(at):
        raise SourceError(f"{at} is one image; name the folder it lies in, or ask about it with `clipfake query`")
    raise SourceError(f"{at} is not a folder; name folders of images, zip or tar archives, or a CSV or parquet table")


def _matches(place: str) -> list[str]:
    if is_url(place) or not any(sign in place for sign in "*?[") or Path(place).exists():
        return [place]
    base = Path(place).anchor or "."
    wanted = (*tables.SUFFIXES, ".zip", ".tar", ".tgz", ".gz")
    matches = [p for p in Path(base).glob(place.removeprefix(base)) if p.is_dir() or p.name.lower().endswith(wanted)]
    if not matches:
        raise SourceError(f"no folder matches {place}")
    return sorted(map(str, matches))


def _braces(place: str) -> list[str]:
    """WebDataset's ranges.

    >>> _braces("data/{08..11}.tar")
    ['data/08.tar', 'data/09.tar', 'data/10.tar', 'data/11.tar']
    """
    if not (found := re.search(r"\{(\d+)\.\.(\d+)\}", place)):
        return [place]
    first, last = found.groups()
    return [
        made
        for number in range(int(first), int(last) + 1)
        for made in _braces(f"{place[: found.start()]}{number:0{len(first)}d}{place[found.end() :]}")
    ]


def listing(folders: Sequence[str | Path | Source]) -> Iterator[ImageRef]:
    """Every image of these sources, as they are read; raises SourceError for a source without any."""
    for source in expand(folders):
        count = 0
        for entry in source.entries():
            count += 1
            yield entry
        if not count:
            raise SourceError(
                f"{source.at} holds no images (looked for {', '.join(sorted(SUFFIXES))} and {tables.METADATA[0]})"
            )


def count(folders: Iterable[str | Path | Source]) -> int | None:
    """About how many images these sources hold, at a small part of what listing costs; None where one cannot tell.

    For a progress bar: rows of tables are counted by lines, whatever they say, and files by their names. Hand over the
    sources that are listed (`expand`), then a zip's directory is read once for both. Raises SourceError.
    """
    found = [source.count() if isinstance(source, CountableSource) else None for source in expand(folders)]
    known_counts = [number for number in found if number is not None]
    return sum(known_counts) if len(known_counts) == len(found) else None
