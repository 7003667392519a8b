"""Metadata of the images of a tar that is not beside them: tables, and sidecars elsewhere in the archive."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

from ....errors import SourceError
from ....store.exchange.class_names import ClassNames
from ..base import to_text
from ..file_names import spellings
from ..image_ref import ImageRef
from ..labels import FolderLabel
from ..table_images import holds_image, normalised, path_field_of, path_in_cell
from ..tables.columns import IMAGE_PATH, ColumnNames
from ..tables.reading import read_rows
from .sidecars import Fields, known_fields, stem_of, stems_above

NOT_IN_ARCHIVE = "cannot be read: the archive holds no such file"


@dataclass
class TarTable:
    """Metadata table in a tar; rows are removed as their images are listed."""

    path: str  # displayed
    folder: str  # that it describes
    source: str  # name of that folder, or of the archive
    artifact: bool  # the folder is a source of its own, as in ArtiFact
    rows: dict[str, tuple[int, Fields]] = field(default_factory=dict)  # path inside the folder -> line and row
    repeated: list[tuple[int, str]] = field(default_factory=list)  # line and path of rows listed before
    _spelled: dict[str, str] = field(default_factory=dict)  # another spelling -> path

    @classmethod
    def read(
        cls, archive: str, source: str, name: str, content: bytes, columns: ColumnNames, class_names: ClassNames
    ) -> TarTable:
        """Read a table of an archive whose own name is `source`; raises SourceError."""
        path, folder = f"{archive}/{name}", posixpath.dirname(name)
        with closing(read_rows(path, io.BytesIO(content), columns, class_names, target=True)) as rows:
            path_field = path_field_of(next(rows)[1])
            source = to_text(posixpath.basename(folder) or source)
            table = cls(path, folder, source, path_field == IMAGE_PATH)
            for line, row in rows:
                if holds_image(row[path_field]):
                    raise SourceError(f"{path} holds images, which cannot be read inside a tar; unpack the archive")
                inside = normalised(path_in_cell(row[path_field]))
                if inside in table.rows:
                    table.repeated.append((line, inside))
                    continue
                table.rows[inside] = line, row
                if not inside.isascii() or "\\" in inside:
                    table._spelled |= dict.fromkeys(spellings(inside), inside)
        return table

    def take(self, name: str) -> tuple[int, Fields] | None:
        """Remove and return the line and the row of a member, None if the table does not name it."""
        inside = name[len(self.folder) + 1 :] if self.folder else name
        if inside not in self.rows and not inside.isascii():
            inside = next((self._spelled[path] for path in (inside, *spellings(inside)) if path in self._spelled), "")
        return self.rows.pop(inside if inside in self.rows else self._spelled.get(inside, inside), None)

    def key_of(self, name: str) -> str:
        """Key of a member of an ArtiFact folder: the same as of the unpacked archive."""
        return f"{self.source}/{to_text(name[len(self.folder) + 1 :] if self.folder else name)}"

    def refused_rows(self) -> Iterator[ImageRef]:
        """Rows whose image is not in the archive, or was listed before."""
        for line, inside in self.repeated:
            yield self._refused(line, inside, f"{inside} was listed before")
        for inside, (line, _) in self.rows.items():
            yield self._refused(line, inside, NOT_IN_ARCHIVE)

    def _refused(self, line: int, inside: str, why: str) -> ImageRef:
        key = f"{self.source}/{to_text(inside)}"
        return ImageRef(
            key, f"{self.path}/../{inside}", source=self.source, refused=f"line {line} of {self.path}: {why}"
        )


@dataclass
class TarMetadata:
    """Tables and loose sidecars of a tar, and the members that stand twice."""

    tables: dict[str, list[TarTable]] = field(default_factory=dict)  # by folder
    class_names: ClassNames = field(default_factory=dict)  # of the data set cards
    loose: dict[str, dict[str, Fields]] = field(default_factory=dict)  # stem -> sidecars beside no image, by name
    latest: dict[str, int] = field(default_factory=dict)  # name of a member that stands twice -> offset of the last
    _used: set[str] = field(default_factory=set)  # loose sidecars that belong to an image

    def is_replaced(self, name: str, offset: int) -> bool:
        """True if a later member has the same name."""
        return self.latest.get(name, offset) != offset

    def add_table(self, table: TarTable) -> None:
        self.tables.setdefault(table.folder, []).append(table)

    def add_loose(self, name: str, fields: Fields) -> None:
        """Add a sidecar that is beside no image; a later one of the same name replaces it."""
        if fields:
            self.loose.setdefault(stem_of(name), {})[name] = fields

    def row_of(self, name: str) -> tuple[TarTable, Fields | None] | None:
        """Return the topmost table that names a member, and its row; or a table above the member, and no row.

        None if the member is below no table. The rows of further tables that name it are refused.
        """
        if not self.tables:
            return None
        folders = reversed(list(_folders_above(name)))
        above = [table for folder in folders for table in self.tables.get(folder, ())]
        first: tuple[TarTable, Fields | None] | None = None
        for table in above:
            if (taken := table.take(name)) is None:
                continue
            if first is None:
                first = table, taken[1]
            else:
                table.repeated.append((taken[0], name))
        return first or ((above[-1], None) if above else None)

    def loose_fields_of(self, name: str) -> Fields:
        """Fields of the loose sidecars of an image, {} if it has none."""
        stem = next((stem for stem in stems_above(stem_of(name)) if stem in self.loose), None) if self.loose else None
        if stem is None:
            return {}
        self._used.add(stem)
        return known_fields(pair for fields in self.loose[stem].values() for pair in fields.items())

    def unused(self) -> list[str]:
        """Stems of the loose sidecars that belong to no image."""
        return [stem for stem in self.loose if stem not in self._used]


def in_artifact_folder(folders: FolderLabel, table: TarTable) -> FolderLabel:
    """Source and generator of the images of a table, of those by folder names."""
    return folders._replace(source=table.source, generator=table.source) if table.artifact else folders


def _folders_above(name: str) -> Iterator[str]:
    while name:
        name = posixpath.dirname(name)
        yield name
