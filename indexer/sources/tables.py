"""Tables that name images, one row each: CSV, JSON lines and parquet, read as they stream."""

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
METADATA = tuple(f"metadata{suffix}" for suffix in SUFFIXES)  # beside the images it speaks of
LINE = 1 << 20  # letters of a line; one without an end would fill the memory
COLUMNS = 1000  # of a CSV
BLOCK = 1 << 20  # bytes that are looked through at once for their lines
PATHS = ("image_path", "file_name", "path", "image")  # the column that names the file, the first there is

Row = tuple[int, dict[str, Any]]  # line (or row) number, column -> value


def rows(name: str, file: BinaryIO) -> Generator[Row, None, None]:
    """The rows of a table, by the suffix of its name; raises SourceError where it is not one."""
    try:
        if name.endswith(".parquet"):
            yield from _parquet(name, file)
            return
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        try:
            yield from _csv(text) if name.endswith(".csv") else _json_lines(text)
        finally:
            text.detach()  # the file is closed by whoever opened it
    except (csv.Error, ValueError, RecursionError, OSError) as e:  # JSON: too deep, or a number of too many digits
        raise SourceError(f"{name} is not a readable table: {e}") from e


def count(name: str, file: BinaryIO) -> int:
    """About how many rows a table has, without reading them as such: a line break inside quotes counts as one.

    Raises SourceError where it is no table.
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
    """The column that names the files; raises SourceError where there is none, or no target beside image_path."""
    found = next((column for column in PATHS if column in columns), None)
    missing = [] if found else [PATHS[0]]
    if target and (found is None or found == "image_path") and not {"target", "label"} & set(columns):
        missing.append("target")
    if missing or found is None:
        raise SourceError(
            f"{name} has no column {' or '.join(missing)} (it has {', '.join(columns) or 'none'}); "
            f"expected filename,image_path,target,category, or file_name and label"
        )
    return found


def _csv(text: io.TextIOWrapper) -> Iterator[Row]:
    reader = csv.reader(_lines(text))
    columns = [column.strip() for column in next(reader, [])]
    if len(columns) > COLUMNS:
        raise csv.Error(f"its first line names {len(columns):,} columns, more than {COLUMNS:,}")
    yield 0, dict.fromkeys(columns)  # row 0 names the columns
    for values in reader:
        if values:
            values += [""] * (len(columns) - len(values))
            yield reader.line_num, dict(zip(columns, values, strict=False))


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    """Lines as they are, none longer than `LINE`."""
    while line := text.readline(LINE):
        if len(line) == LINE:
            raise ValueError(f"a line of {LINE:,} letters or more")
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
