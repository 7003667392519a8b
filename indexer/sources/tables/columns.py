"""Columns of tables of images: which names the file, the label and so on, whatever their headings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ....core.reading import shown_names
from ....errors import SourceError
from ....store.exchange.class_names import MEANS_REAL

FIELDS = ("image_path", "file_name", "target", "label", "category", "generator", "source")
# Headings that name the file, by priority; each is read as `file_name`, except image_path, which is ArtiFact's.
PATHS = ("image_path", "file_name", "path", "image", "filename", "file", "filepath", "file_path", "img_path", "img")
IMAGE_PATH, FILE_NAME = PATHS[:2]


class JsonPairs(list[tuple[str, Any]]):
    """A JSON object as pairs, so that a key that stands twice is noticed."""


@dataclass(frozen=True)
class ColumnNames:
    """Headings that the user gave for fields: pairs of one of `FIELDS` and a heading."""

    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> ColumnNames:
        """Parse `image_path=filename,target=class`; raises ValueError.

        >>> ColumnNames.parse("image_path=filename, target=class").pairs
        (('image_path', 'filename'), ('target', 'class'))
        """
        pairs = []
        for pair in filter(None, (pair.strip() for pair in text.split(","))):
            field, equals, heading = (part.strip() for part in pair.partition("="))
            field = FILE_NAME if field in PATHS[2:] else field
            if not equals or not heading or field not in FIELDS:
                raise ValueError(f"{pair!r} is not FIELD=COLUMN with one of the fields {', '.join(FIELDS)}")
            pairs.append((field, heading))
        if repeated := [field for field, number in Counter(field for field, _ in pairs).items() if number > 1]:
            raise ValueError(f"{repeated[0]} is given two columns")
        return cls(tuple(pairs))

    def fields_of(self, headings: Sequence[str], table: str, *, all_given: bool = True) -> dict[str, int]:
        """Return the position of the column of each field that the table has.

        Headings are compared without case and spaces around them. The file is `image_path` or `file_name`, never both.

        Raises
        ------
        SourceError
            A column stands twice, or with `all_given` one of the user's columns is missing.
        """
        names = [heading_name(heading) for heading in headings]
        fields: dict[str, int] = {}
        for field, heading in self.pairs:
            if all_given or heading.casefold() in names:
                fields[field] = _position(heading.casefold(), names, table)
        path = next((path for path in PATHS if path in names), None)
        if path is not None and not fields.keys() & {IMAGE_PATH, FILE_NAME}:
            fields[IMAGE_PATH if path == IMAGE_PATH else FILE_NAME] = _position(path, names, table)
        chosen = {"target", "label"} if fields.keys() & {"target", "label"} else set(fields)
        for field in FIELDS[2:]:
            if field in names and field not in fields and field not in chosen:
                fields[field] = _position(field, names, table)
        for field in fields.keys() & {"target", "label"}:
            if MEANS_REAL.fullmatch(names[fields[field]]):
                raise SourceError(
                    f"a 1 in the column {names[fields[field]]} of {table} seems to mean real, but 1 is read as fake; "
                    f"make a column with the words real and fake"
                )
        return fields


DEFAULT_COLUMNS = ColumnNames()


def names_file(headings: Iterable[str]) -> bool:
    """True if one of the headings is one of `PATHS`."""
    return any(heading_name(heading) in PATHS for heading in headings)


def heading_name(heading: str) -> str:
    """A heading as it is compared: without case and the spaces around it."""
    return heading.strip().lstrip("\ufeff").casefold()


def _position(name: str, names: Sequence[str], table: str) -> int:
    """Position of the only column of a name; raises SourceError if there is none, or if it stands twice."""
    if not (number := names.count(name)):
        raise SourceError(f"{table} has no column {name}; it has {shown_names(names, (*FIELDS, *PATHS))}")
    if number > 1:
        raise SourceError(
            f"{table} has {number} columns named {name}, and only one can be right; rename or remove the others"
        )
    return names.index(name)
