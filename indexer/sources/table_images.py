"""Images that the rows of a metadata table describe."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from ...errors import SourceError
from ...store.exchange.class_names import CARDS, MAX_CARD, ClassNames, class_names_in_cards, class_names_in_folder
from ...store.records import FAKE
from .base import Tree, labels_of_folder, to_text
from .file_names import from_latin_1, spellings
from .hash_set import HashSet
from .image_ref import LINK_LEADS_OUT, ByteSource, ImageRef, InMemory
from .labels import FolderLabel, contradiction_with_folder, label_from_row
from .tables.columns import IMAGE_PATH
from .tables.reading import read_rows
from .urls import is_url

FOLDERS_KEPT = 4096  # whose labels are kept while a table is read


def images_from_table(tree: Tree, folder: str, name: str, named: HashSet) -> Iterator[ImageRef]:
    """Images of a tree by the table `name`, which describes `folder` and the folders below.

    An ArtiFact folder is a source of its own at any depth: its name is the first part of the keys.

    Parameters
    ----------
    named : paths in the tree of the images that tables named before; those of this table are added
    """
    table = f"{tree.path}/{name}"
    names = class_names_around(tree, folder)
    with tree.open(name) as file, closing(read_rows(table, file, tree.columns, names, target=True)) as rows:
        path_field = path_field_of(next(rows)[1])
        folder_name = posixpath.basename(folder) or tree.name
        artifact = path_field == IMAGE_PATH
        source = to_text(folder_name if artifact else posixpath.join(tree.name, folder).rstrip("/"))
        reader = _RowReader(
            tree, f"{folder}/" if folder else "", source, to_text(folder_name) if artifact else "", named
        )
        for line, row in rows:
            cell = row[path_field]
            outcome = (
                reader.image_in_table(table, line, cell, row)
                if holds_image(cell)
                else reader.image(path_in_cell(cell), row)
            )
            if isinstance(outcome, str):
                inside = path_in_cell(cell)[:1000]
                key, path = f"{source}/{to_text(inside)}", f"{table}/../{inside}"
                yield ImageRef(key, path, source=source, refused=f"line {line} of {table}: {outcome}")
            else:
                yield outcome


def path_field_of(fields: Mapping[str, Any]) -> str:
    """Field that names the file, of the fields of a table."""
    return next(iter(fields.keys() & {IMAGE_PATH}), "file_name")


def holds_image(cell: Any) -> bool:
    """True if a cell of a table holds the bytes of an image, as in a Hugging Face parquet file."""
    return isinstance(cell, bytes) or (isinstance(cell, dict) and isinstance(cell.get("bytes"), bytes))


def path_in_cell(cell: Any) -> str:
    """Path in a cell of a table, "" if there is none."""
    if isinstance(cell, str):
        return cell.strip()
    cell = cell.get("path") if isinstance(cell, dict) else cell
    return "" if cell is None or cell != cell else str(cell).strip()


def image_in_cell(cell: Any) -> tuple[str, InMemory]:
    """Path and content of an image in a cell; the path is "" if the table does not give it."""
    content = cell if isinstance(cell, bytes) else cell["bytes"]
    path = "" if isinstance(cell, bytes) else str(cell.get("path") or "")
    return path, InMemory(content, crc32(content))  # a checksum in place of the time reveals changes


def text_of(row: Mapping[str, Any], field: str) -> str:
    """Text of a field, "" if the row has none."""
    value = row.get(field)
    if not value and value != 0:
        return ""
    if isinstance(value, str) and value.isascii():
        return value.strip()
    return "" if value != value else to_text(from_latin_1(str(value).strip()))


def labelled(
    key: str,
    path: str,
    location: ByteSource | None,
    row: Mapping[str, Any],
    label_and_target: tuple[int, int] | None,
    folders: FolderLabel,
) -> ImageRef | str:
    """Return an image with the metadata of its row, or the reason why it is refused.

    Parameters
    ----------
    label_and_target : of the row, None to take the label of the folders
    folders : source and generator where the row names none
    """
    if label_and_target is None:
        if folders.contradiction:
            return folders.contradiction
        label_and_target = folders.label, -1
    label, target = label_and_target
    if label != folders.label and (reason := contradiction_with_folder(row, label, folders)):
        return reason
    source, generator = text_of(row, "source"), text_of(row, "generator") if label == FAKE else ""
    source = source or (f"{folders.source}/{generator}" if generator else folders.source)
    generator = generator or (folders.generator if label == FAKE else "")
    return ImageRef(key, path, label, target, source, generator, text_of(row, "category"), "", location)


def normalised(path: str) -> str:
    """Remove `.` and empty parts of a path.

    >>> normalised("./x//a.jpg"), normalised("x/../a.jpg")
    ('x/a.jpg', 'x/../a.jpg')
    """
    if ("./" not in path and "//" not in path) or is_url(path):
        return path
    parts = [part for part in path.split("/")[1:] if part not in ("", ".")]
    first = path.split("/", 1)[0]
    return "/".join(parts if first == "." else [first, *parts])


def class_names_around(tree: Tree, folder: str) -> ClassNames:
    """Class names in the data set cards of a folder, of those above it in its tree, and beside the tree.

    The nearest card decides.
    """
    names = class_names_beside(tree.path)
    for place in reversed([folder, *_folders_above(folder)]):
        contents = [_read_card(tree, posixpath.join(place, card)) for card in CARDS]
        names = {**names, **class_names_in_cards(contents)}
    return names


def class_names_beside(path: str) -> ClassNames:
    """Class names in the data set cards beside a local source."""
    return {} if is_url(path) else class_names_in_folder(Path(path).parent)


def _read_card(tree: Tree, path: str) -> bytes | None:
    """Content of a card, b"" if there is none, None if it cannot be read."""
    if not tree.exists(path):
        return b""
    try:
        with tree.open(path) as file:
            return file.read(MAX_CARD)
    except (OSError, SourceError):
        return None


def _folders_above(folder: str) -> Iterator[str]:
    while folder:
        folder = posixpath.dirname(folder)
        yield folder


@dataclass(frozen=True)
class _RowReader:
    """Reader of the rows of one table; each method returns an image, or the reason why the row is refused."""

    tree: Tree
    prefix: str  # path of the table's folder in the tree, with a slash, or ""
    source: str
    generator: str  # of fake images whose row names none, "" to derive it from the folders
    named: HashSet
    _folder_labels: dict[tuple[str, bool], FolderLabel] = field(default_factory=dict)

    def image(self, inside: str, row: Mapping[str, Any]) -> ImageRef | str:
        """Image of a row whose path is `inside` the table's folder."""
        inside = self._spelled(normalised(inside))
        if not inside or inside[0] == "/" or (".." in inside and ".." in inside.split("/")):
            return f"{inside!r} is not inside the folder"
        path_in_tree = self.prefix + inside
        is_repeated = self.named.contains_or_add(path_in_tree)
        label_or_reason = label_from_row(row)
        if isinstance(label_or_reason, str):
            return label_or_reason
        if is_repeated:
            return f"{inside} was listed before"
        path, location = self.tree.locate(path_in_tree)
        folder = path_in_tree.rpartition("/")[0]
        if self.tree.leads_out(folder):
            return LINK_LEADS_OUT
        folders = self._folder_label(folder, label_or_reason is None)
        return labelled(f"{self.source}/{to_text(inside)}", path, location, row, label_or_reason, folders)

    def image_in_table(self, table: str, line: int, cell: Any, row: Mapping[str, Any]) -> ImageRef | str:
        """Image of a row that holds the image itself."""
        label_or_reason = label_from_row(row)
        if isinstance(label_or_reason, str):
            return label_or_reason
        name, content = image_in_cell(cell)
        name = f"{name or posixpath.basename(table)}#{line}" if self._is_taken(table, name) else name
        folders = self._folder_label((self.prefix + name).rpartition("/")[0], label_or_reason is None)
        key = f"{self.source}/{to_text(name)}"
        return labelled(key, f"{table}#{line}", content, row, label_or_reason, folders)

    def _is_taken(self, table: str, name: str) -> bool:
        """True if an image in the table has no name, or that of an image before it."""
        return not name or self.named.contains_or_add(f"{table}#{name}")

    def _folder_label(self, folder: str, unlabelled: bool) -> FolderLabel:
        """Label of a folder of the tree; with the source and generator of the table, unless its row has no label."""
        if (label := self._folder_labels.get((folder, unlabelled))) is None:
            label = labels_of_folder(self.tree.path, self.tree.name, folder)
            generator = label.generator or to_text(self.tree.name)
            if not unlabelled:
                label = label._replace(source=self.source, generator=self.generator or generator)
            if len(self._folder_labels) < FOLDERS_KEPT:
                self._folder_labels[folder, unlabelled] = label
        return label

    def _spelled(self, inside: str) -> str:
        """Return the path in the spelling of the tree; a plain one is not looked up."""
        if inside.isascii() and "\\" not in inside:
            return inside
        tries = (inside, *spellings(inside))
        return next((path for path in tries if self.tree.exists(self.prefix + path)), inside.replace("\\", "/"))
