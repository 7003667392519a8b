"""Tables with one row per image: CSV, JSON lines and parquet, read as streams."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from ...errors import MissingExtra, SourceError
from ...store.exchange.tables import parquet_file, values_of

SUFFIXES = (".csv", ".jsonl", ".parquet")
METADATA = tuple(f"metadata{suffix}" for suffix in SUFFIXES)  # tables that describe the folder they are in
MAX_LINE = 1 << 20  # characters; a longer line could fill the memory
MAX_COLUMNS = 1000  # columns of a CSV
BLOCK = 1 << 20  # bytes read at once when counting lines
PATHS = ("image_path", "file_name", "path", "image")  # columns that name the file, by priority

Row = tuple[int, dict[str, Any]]  # line (or row) number, column -> value


def rows(name: str, file: BinaryIO) -> Generator[Row, None, None]:
    """Iterate over the rows of a table, whose format is given by its suffix; raises SourceError.

    Row 0 comes first and holds the column names.
    """
    try:
        if name.endswith(".parquet"):
            yield from _parquet(name, file)
            return
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        try:
            yield from _csv(text) if name.endswith(".csv") else _json_lines(text)
        finally:
            text.detach()  # leave the file open for the caller
    except (csv.Error, ValueError, RecursionError, OSError) as e:  # JSON may nest too deeply or have huge numbers
        raise SourceError(f"{name} is not a readable table: {e}") from e


def count(name: str, file: BinaryIO) -> int:
    """Estimate the number of rows by counting lines; line breaks inside quotes are counted too.

    Raises SourceError if the table cannot be read.
    """
    try:
        if name.endswith(".parquet"):
            with _opened_parquet(name, file) as table:
                return int(table.metadata.num_rows)
        lines, last = 0, b"\n"
        while block := file.read(BLOCK):
            lines, last = lines + block.count(b"\n"), block[-1:]
    except OSError as e:
        raise SourceError(f"{name} is not a readable table: {e}") from e
    lines += last != b"\n"
    return max(lines - 1, 0) if name.endswith(".csv") else lines  # the first line of a CSV names the columns


def path_column(columns: list[str], name: str, *, target: bool) -> str:
    """Return the column that names the files.

    Raises SourceError if there is none, or if `target` is true and image_path is not accompanied by target or label.
    """
    column = next((name for name in PATHS if name in columns), None)
    missing = [] if column else [PATHS[0]]
    if target and (column is None or column == "image_path") and not {"target", "label"} & set(columns):
        missing.append("target")
    if missing or column is None:
        raise SourceError(
            f"{name} has no column {' or '.join(missing)} (it has {', '.join(columns) or 'none'}); "
            f"expected filename,image_path,target,category, or file_name and label"
        )
    return column


def _csv(text: io.TextIOWrapper) -> Iterator[Row]:
    reader = csv.reader(_lines(text))
    columns = [column.strip() for column in next(reader, [])]
    if len(columns) > MAX_COLUMNS:
        raise csv.Error(f"its first line names {len(columns):,} columns, more than {MAX_COLUMNS:,}")
    yield 0, dict.fromkeys(columns)  # row 0 names the columns
    for values in reader:
        if values:
            values += [""] * (len(columns) - len(values))
            yield reader.line_num, dict(zip(columns, values, strict=False))


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    """Iterate over the lines; raises ValueError for one of `MAX_LINE` characters or more."""
    while line := text.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise ValueError(f"a line of {MAX_LINE:,} characters or more")
        yield line


def _json_lines(text: io.TextIOWrapper) -> Iterator[Row]:
    number = 0
    columns: dict[str, None] = {}
    for number, line in enumerate(filter(str.strip, _lines(text)), 1):
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise json.JSONDecodeError("a line is not an object", line, 0)
        if number == 1:
            columns = dict.fromkeys(fields)
            yield 0, columns
        yield number, fields if fields.keys() >= columns.keys() else columns | fields
    if not number:
        yield 0, {}


def _parquet(name: str, file: BinaryIO) -> Iterator[Row]:
    with _opened_parquet(name, file) as table:
        yield 0, dict.fromkeys(table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(batch_size=4096):
            columns = [values_of(column) for column in batch.columns]
            for row in zip(*columns, strict=True):
                number += 1
                yield number, dict(zip(batch.schema.names, row, strict=True))


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
