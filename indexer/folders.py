"""Folders of images as they are found in the wild, listed one image at a time with what is known of each.

Understood: ArtiFact (a metadata.csv with image_path and target), trees whose folders say the label (real/fake,
0_real/1_fake, nature/ai, nested per generator), and folders that say nothing (label unknown).
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..store.block import FAKE, REAL, UNKNOWN
from ..store.errors import SourceError

METADATA = "metadata.csv"
COLUMNS = ("image_path", "target")
TARGETS = range(7)  # 0 is real, 1 to 6 are all fake
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".ppm", ".jp2")
)
REAL_NAMES = frozenset(("real", "reals", "0_real", "nature", "original", "authentic"))
FAKE_NAMES = frozenset(("fake", "fakes", "1_fake", "ai", "generated", "synthetic"))


@dataclass(frozen=True)
class Entry:
    """One image that is to be indexed, or the reason it cannot be."""

    key: str  # source folder / path inside it
    path: str
    label: int = UNKNOWN
    target: int = -1
    source: str = ""
    generator: str = ""
    category: str = ""
    refused: str = ""  # why it is left out, "" if it is not


def expand(folders: Iterable[str | Path]) -> list[Path]:
    """Folders from names and quoted patterns, each once, in order; raises SourceError for one that is not there.

    Two different folders of one name would give two images one key: that is a SourceError too.
    """
    found: dict[Path, None] = {}
    for folder in map(str, folders):
        if any(sign in folder for sign in "*?["):
            base = Path(folder).anchor or "."
            matches = sorted(p for p in Path(base).glob(folder.removeprefix(base)) if p.is_dir())
            if not matches:
                raise SourceError(f"no folder matches {folder}")
            found.update(dict.fromkeys(p.resolve() for p in matches))
        elif Path(folder).is_dir():
            found[Path(folder).resolve()] = None
        elif not Path(folder).exists():
            raise SourceError(f"the folder {folder} does not exist; check the path")
        elif Path(folder).name != METADATA:  # `data/*` may well hold a stray file
            raise SourceError(f"{folder} is not a folder; name folders of images")
    by_name: dict[str, Path] = {}
    for path in found:
        if (other := by_name.setdefault(path.name, path)) != path:
            raise SourceError(f"{other} and {path} have one name, and so their images would have one key; rename one")
    return list(found)


def listing(folders: Sequence[Path]) -> Iterator[Entry]:
    """Every image of these folders, as they are read; raises SourceError for a folder without any."""
    for folder in folders:
        count = 0
        for entry in list_folder(folder):
            count += 1
            yield entry
        if not count:
            raise SourceError(f"{folder} holds no images (looked for {', '.join(sorted(SUFFIXES))} and {METADATA})")


def list_folder(folder: Path) -> Iterator[Entry]:
    """The images of one folder: by its metadata.csv if it has one, else by the names of its folders."""
    return _artifact(folder) if (folder / METADATA).is_file() else _tree(folder)


def _artifact(folder: Path) -> Iterator[Entry]:
    path = folder / METADATA
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise SourceError(
                f"{path} has no column {' or '.join(missing)} (it has {', '.join(reader.fieldnames or ['none'])}); "
                f"expected filename,image_path,target,category"
            )
        seen: set[str] = set()
        for row in reader:
            inside, told = (row["image_path"] or "").strip(), (row["target"] or "").strip()
            entry = Entry(f"{folder.name}/{inside}", str(folder / inside), source=folder.name)
            if not inside or Path(inside).is_absolute() or ".." in Path(inside).parts:
                yield _refuse(
                    entry, f"line {reader.line_num} of {path}: image_path {inside!r} is not inside the folder"
                )
            elif not told.isdecimal() or int(told) not in TARGETS:
                yield _refuse(entry, f"line {reader.line_num} of {path}: target {told!r} is not one of 0 to 6")
            elif inside in seen:
                yield _refuse(entry, f"line {reader.line_num} of {path}: {inside} was listed before")
            else:
                seen.add(inside)
                target = int(told)
                label = REAL if target == 0 else FAKE
                generator = folder.name if label == FAKE else ""
                category = (row.get("category") or "").strip()
                yield Entry(entry.key, entry.path, label, target, folder.name, generator, category)


def _refuse(entry: Entry, why: str) -> Entry:
    return Entry(entry.key, entry.path, source=entry.source, refused=why)


def _tree(folder: Path) -> Iterator[Entry]:
    for path in _files(folder, set()):
        inside = os.path.relpath(path, folder)
        parts = [folder.name, *Path(inside).parent.parts]
        said = [i for i, part in enumerate(parts) if part.lower() in REAL_NAMES | FAKE_NAMES]
        key = _text(f"{folder.name}/{inside}")
        if not said:
            yield Entry(key, path, source=_text(folder.name))
            continue
        at = said[-1]  # the name nearest to the file decides
        label = REAL if parts[at].lower() in REAL_NAMES else FAKE
        # progan/1_fake/x.png: the folder above says the generator; fake/progan/x.png: the one below
        around = [*parts[at + 1 : at + 2], *parts[1:at][-1:], *parts[:1]]
        generator = next((p for p in around if p.lower() not in FAKE_NAMES), "fake") if label == FAKE else ""
        yield Entry(key, path, label, source=_text("/".join(parts[: at + 1])), generator=_text(generator))


def _files(folder: Path | str, above: set[tuple[int, int]]) -> Iterator[str]:
    """Image files below a folder, by name; a link back to a folder above is not followed."""
    status = Path(folder).stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_dir():
            yield from _files(entry.path, above | {here})
        elif entry.is_file() and Path(entry.name).suffix.lower() in SUFFIXES:
            yield entry.path


def _text(name: str) -> str:
    """A file name as text: bytes that are not UTF-8 are written as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
