"""Rows of a table in CSV, JSON lines or parquet, read as a stream.

CSV and JSON lines may be in UTF-8, UTF-16 or another encoding whose bytes are kept; a CSV may be separated by commas,
semicolons, tabs or bars.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from ....core.reading import shown_names
from ....errors import MissingExtra, SourceError
from ....store.exchange.class_names import ClassNames, class_names_in_schema, named_class
from ....store.exchange.tables import parquet_file, values_of
from ..labels import INVALID
from .columns import (
    DEFAULT_COLUMNS,
    FIELDS,
    FILE_NAME,
    IMAGE_PATH,
    PATHS,
    ColumnNames,
    JsonPairs,
    heading_name,
    names_file,
)

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # tables that describe the folder they are in
SEPARATORS = ",;\t|"
MAX_LINE = 1 << 20  # characters; a longer line could fill the memory
MAX_ROW = 1 << 24  # characters of a row of a CSV, which may have line breaks inside quotes
MAX_COLUMNS = 1000  # columns of a CSV
BLOCK = 1 << 20  # bytes read at once when counting lines
COUNTED_LINE = 4 * MAX_LINE  # bytes without a line break after which counting ends: such a table is refused
IMAGES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "image_bytes")  # columns of image bytes
TEXT_PATHS = frozenset(PATHS) - {"image", "img", "file"}  # columns that hold a path even if it is stored as bytes
PARQUET_ROWS, PARQUET_IMAGES = 4096, 32  # rows of a parquet file read at once, without and with images in them
BOMS = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))

Row = tuple[int, dict[str, Any]]  # line (or row) number, field (see `columns.FIELDS`) -> value


@dataclass(frozen=True)
class _Layout:
    """What is known of a table before it is read."""

    name: str
    columns: ColumnNames
    target: bool  # image_path must be accompanied by target or label

    def require_fields(self, fields: Collection[str], headings: Sequence[str]) -> None:
        """Raise SourceError if no column names the file, or its label is missing."""
        missing = [] if {IMAGE_PATH, FILE_NAME} & set(fields) else [IMAGE_PATH]
        if self.target and FILE_NAME not in fields and not {"target", "label"} & set(fields):
            missing.append("target")
        if missing:
            raise SourceError(
                f"{self.name} has no column {' or '.join(missing)} (it has "
                f"{shown_names(headings, (*FIELDS, *PATHS))}); expected filename,image_path,target,category, or "
                f"file_name and label; name other columns with --columns, as in --columns "
                f"image_path=COLUMN,target=COLUMN"
            )


def metadata_tables(names: Iterable[str]) -> list[str]:
    """Return those of the files of a folder that describe it, in the order of `METADATA`; case does not matter.

    >>> metadata_tables(["a.jpg", "metadata.jsonl", "Metadata.CSV"])
    ['Metadata.CSV', 'metadata.jsonl']
    """
    return sorted(filter(is_metadata, names), key=lambda name: METADATA.index(name.lower()))


def is_metadata(name: str) -> bool:
    """True for the file name of a table that describes its folder."""
    return name.lower() in METADATA


def read_rows(
    name: str,
    file: BinaryIO,
    columns: ColumnNames = DEFAULT_COLUMNS,
    class_names: ClassNames | None = None,
    *,
    target: bool = False,
) -> Generator[Row, None, None]:
    """Iterate over the rows of a table, whose format is given by its suffix.

    Row 0 comes first and holds the fields that the table has: `image_path` or `file_name`, and others.

    Parameters
    ----------
    columns : headings of the user
    class_names : names of the classes behind the numbers of a column; a parquet file may hold its own
    target : the column image_path must be accompanied by target or label

    Raises
    ------
    SourceError
        The table cannot be read, lacks a column, or has one of them twice.
    """
    layout, class_names = _Layout(name, columns, target), class_names or {}
    try:
        if name.lower().endswith(".parquet"):
            yield from _parquet(layout, file, class_names)
            return
        peekable: Any = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)
        text = io.TextIOWrapper(peekable, encoding=_encoding(peekable), errors="surrogateescape", newline="")
        try:
            read = _json_lines if name.lower().endswith(".jsonl") else _csv
            yield from read(layout, text, class_names)
        finally:
            text.detach()  # leave the file open for the caller
            if peekable is not file:
                peekable.detach()
    except (csv.Error, ValueError, RecursionError, OSError) as e:  # JSON may nest too deeply or have huge numbers
        raise SourceError(f"{name} is not a readable table: {getattr(e, 'strerror', None) or e}") from e
    except MemoryError as e:
        raise SourceError(f"{name} is not a readable table: a part of it takes more memory than there is") from e


def _encoding(file: Any) -> str:
    """Encoding of a text by its first bytes."""
    head = file.peek(64)[:64]
    if bom := next((encoding for mark, encoding in BOMS if head.startswith(mark)), None):
        return bom
    zeros = [i % 2 for i, byte in enumerate(head) if not byte]
    if len(zeros) > len(head) // 4:  # UTF-16 without a mark: every other byte of English text is 0
        return "utf-16-le" if sum(zeros) * 2 > len(zeros) else "utf-16-be"
    return "utf-8-sig"


def count_rows(name: str, file: BinaryIO) -> int:
    """Estimate the number of rows by counting lines; line breaks inside quotes are counted too.

    Raises SourceError if the table cannot be read.
    """
    try:
        if name.lower().endswith(".parquet"):
            with _opened_parquet(name, file) as table:
                return int(table.metadata.num_rows)
        lines, last, since = 0, b"\n", 0
        while since < COUNTED_LINE and (block := file.read(BLOCK)):
            breaks = block.count(b"\n")
            lines, last, since = lines + breaks, block[-1:], 0 if breaks else since + len(block)
    except OSError as e:
        raise SourceError(f"{name} is not a readable table: {e.strerror or e}") from e
    lines += last != b"\n"
    has_headings = name.lower().endswith((".csv", ".tsv"))
    return max(lines - 1, 0) if has_headings else lines


class _RowParser:
    """Makes rows of values by the headings of their columns.

    Raises SourceError if no column names the file, or if `target` is true and image_path is not accompanied by target
    or label.
    """

    def __init__(
        self, layout: _Layout, headings: Sequence[str], class_names: ClassNames, *, first: bool = True
    ) -> None:
        self.fields = layout.columns.fields_of(headings, layout.name, all_given=first)
        if first:
            layout.require_fields(self.fields.keys(), headings)
        names = [heading_name(heading) for heading in headings]
        self._named = {
            field: class_names[names[i]]
            for field, i in self.fields.items()
            if field in ("label", "target") and names[i] in class_names
        }

    def __call__(self, values: Sequence[Any]) -> dict[str, Any]:
        row = {field: values[i] for field, i in self.fields.items()}
        for field, names in self._named.items():
            row[field] = named_class(row[field], names)
        return row


def _csv(layout: _Layout, text: io.TextIOWrapper, class_names: ClassNames) -> Iterator[Row]:
    lines, row_lines = _lines(text), list[str]()
    skipped, first = next(((i, line) for i, line in enumerate(lines) if line.strip()), (0, ""))
    separator = ""
    if first.lower().startswith("sep=") and len(first.strip()) == 5:  # Excel's mark
        separator, first, skipped = first.strip()[4], next(lines, ""), skipped + 1
    reader = csv.reader(_noted(itertools.chain([first], lines), row_lines), delimiter=separator or _separator(first))
    headings = next(reader, [])
    if len(headings) > MAX_COLUMNS:
        raise csv.Error(f"its first line names {len(headings):,} columns, more than {MAX_COLUMNS:,}")
    parse = _RowParser(layout, headings, class_names)
    yield 0, dict.fromkeys(parse.fields)
    row_lines.clear()
    last: Sequence[str] = ()
    for values in reader:
        last = row_lines.copy() if len(row_lines) > 1 else ()
        row_lines.clear()
        if values:
            extra = len(values) > len(headings) and any(map(str.strip, values[len(headings) :]))
            values += [""] * (len(headings) - len(values))
            row = parse(values)
            if extra:  # an unquoted separator has moved the values to the right
                row[INVALID] = f"it has {len(values)} values for {len(headings)} columns; quote those with a separator"
            yield reader.line_num + skipped, row
    if last and _is_unclosed(last, reader.dialect.delimiter):
        raise csv.Error(f"a quote in line {reader.line_num + skipped - len(last) + 1} is not closed")


def _is_unclosed(lines: Sequence[str], separator: str) -> bool:
    """True if a quote in the last row is not closed, so that it takes all lines after it for one value."""
    try:
        list(csv.reader(lines, delimiter=separator, strict=True))
    except csv.Error as e:
        return "unexpected end of data" in str(e)  # other errors, such as a quote within a value, do no harm
    return False


def _separator(first: str) -> str:
    """Return the separator of a table by its first line: one that gives a column of paths, and the most columns."""

    def merit(separator: str) -> tuple[bool, int]:
        headings = next(csv.reader([first], delimiter=separator), [])
        return names_file(headings), len(headings)

    return max(SEPARATORS, key=merit)  # the first of equals, a comma


def _noted(lines: Iterable[str], row_lines: list[str]) -> Iterator[str]:
    size = 0
    for line in lines:
        size = size + len(line) if row_lines else len(line)
        if size > MAX_ROW:
            raise ValueError(f"a row of more than {MAX_ROW:,} characters; a quote may not be closed")
        row_lines.append(line)
        yield line


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    """Iterate over the lines; raises ValueError for one of `MAX_LINE` characters or more."""
    while line := text.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise ValueError(f"a line of {MAX_LINE:,} characters or more")
        yield line


def _json_lines(layout: _Layout, text: io.TextIOWrapper, class_names: ClassNames) -> Iterator[Row]:
    parsers: dict[tuple[str, ...], _RowParser] = {}
    none: Mapping[str, Any] | None = None
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        try:
            pairs = json.loads(line, object_pairs_hook=JsonPairs)
        except json.JSONDecodeError as e:
            raise ValueError(f"line {number}: {e.msg} at character {e.colno}") from e
        if not isinstance(pairs, JsonPairs):
            raise ValueError(f"line {number} is not an object")
        headings = tuple(heading for heading, _ in pairs)
        if (parse := parsers.get(headings)) is None:
            parse = _RowParser(layout, headings, class_names, first=none is None)
            if len(parsers) < MAX_COLUMNS:  # the lines of a table seldom differ in their keys
                parsers[headings] = parse
        if none is None:
            none = dict.fromkeys(parse.fields)
            yield 0, dict(none)
        yield number, {**none, **parse([value for _, value in pairs])}
    if none is None:
        yield 0, {}


def _parquet(layout: _Layout, file: BinaryIO, class_names: ClassNames) -> Iterator[Row]:
    with _opened_parquet(layout.name, file) as table:
        schema = table.schema_arrow
        class_names = {**class_names, **class_names_in_schema(schema.metadata)}
        fields = layout.columns.fields_of(schema.names, layout.name)
        image_column = _image_column(layout, schema, fields)
        layout.require_fields({*fields, *([FILE_NAME] if image_column else [])}, schema.names)
        path_field = IMAGE_PATH if IMAGE_PATH in fields else FILE_NAME
        yield 0, dict.fromkeys((*fields, path_field))
        headings = list(dict.fromkeys([*(schema.names[i] for i in fields.values()), *filter(None, [image_column])]))
        parse: _RowParser | None = None
        number = 0
        for batch in table.iter_batches(PARQUET_IMAGES if image_column else PARQUET_ROWS, columns=headings):
            parse = parse or _RowParser(layout, batch.schema.names, class_names, first=False)
            images = values_of(batch.column(batch.schema.names.index(image_column))) if image_column else None
            for i, values in enumerate(zip(*(values_of(column) for column in batch.columns), strict=True)):
                number += 1
                row = parse(values)
                if images is None:
                    row[path_field] = _as_text(row[path_field])
                else:
                    row[path_field] = _image_cell(images[i], row.get(path_field))
                yield number, row


def _image_column(layout: _Layout, schema: Any, fields: Mapping[str, int]) -> str | None:
    """Return the column with the bytes of images, None if the table has only paths.

    It is the column that names the file, or one called like an image, or, in a table without paths, the only one of
    bytes. Beside paths, other bytes may be checksums. Raises SourceError if there are several.
    """
    columns = [name for name, field in zip(schema.names, schema, strict=True) if _holds_bytes(field.type)]
    paths = [schema.names[i] for field, i in fields.items() if field in (IMAGE_PATH, FILE_NAME)]
    own = [name for name in columns if name in paths and heading_name(name) not in TEXT_PATHS]
    named = own or [name for name in columns if heading_name(name) in IMAGES] or ([] if paths else columns)
    if len(named) > 1:
        raise SourceError(
            f"{layout.name} has {len(named)} columns of images ({', '.join(named)}); choose one, as in "
            f"--columns image={named[0]}"
        )
    return named[0] if named else None


def _as_text(path: Any) -> Any:
    """Decode a path that is stored as bytes."""
    return path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path


def _image_cell(image: Any, path: Any) -> Any:
    """Join the bytes of an image and the path in another column, or in the image itself."""
    if isinstance(image, dict):
        content, own_path = image.get("bytes"), image.get("path")
    else:
        content, own_path = image, None
    path = None if path is image else _as_text(path)  # the column of paths may be that of the images
    return {"bytes": content, "path": path if isinstance(path, str) and path else own_path}


def _holds_bytes(type_: Any) -> bool:
    """True for the bytes of images, alone or in the structure of Hugging Face's `datasets`."""
    import pyarrow

    if pyarrow.types.is_dictionary(type_):
        return _holds_bytes(type_.value_type)
    if pyarrow.types.is_struct(type_):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in type_)
    return bool(pyarrow.types.is_binary(type_) or pyarrow.types.is_large_binary(type_))


@contextmanager
def _opened_parquet(name: str, file: BinaryIO) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise MissingExtra(f"reading {name}", "parquet") from e
    try:
        yield parquet_file(file)
    except (pyarrow.ArrowException, OSError) as e:
        raise SourceError(f"{name} is not a readable table: {e}") from e
