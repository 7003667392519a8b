"""Convert rows to tables that other tools read: pandas in memory, Arrow and parquet on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import MissingExtra
from ..records import COLUMNS, FAKE, LABELS, REAL, TEXT, UNKNOWN, Rows

if TYPE_CHECKING:
    import pandas
    import pyarrow

    from ..snapshot import Snapshot

# column of Rows -> its name in a table
NAMES = {
    "keys": "key",
    "labels": "label",
    "targets": "target",
    "sources": "source",
    "generators": "generator",
    "categories": "category",
    "paths": "path",
    "digests": "digest",
    "bytes": "bytes",
    "widths": "width",
    "heights": "height",
    "formats": "format",
    "qualities": "quality",
    "mtimes": "mtime",
}


def to_pandas(snapshot: Snapshot, where: Any = None) -> pandas.DataFrame:
    """Return the rows of a snapshot as a pandas DataFrame, without vectors.

    One column for each of `NAMES`. `label` is "real", "fake" or "unknown"; `digest` is hexadecimal, "" where unknown.

    Parameters
    ----------
    where : mask over the rows, or positions (default: all rows)
    """
    import pandas

    selection = slice(None) if where is None else where
    return pandas.DataFrame({NAMES[name]: _plain(name, snapshot.column(name)[selection]) for name in NAMES})


def table_of(rows: Rows, thumbnails: tuple[bytes, ...] = (), **extra_columns: Any) -> pyarrow.Table:
    """Return rows as an Arrow table, with thumbnails if there are any and with extra columns."""
    pyarrow = arrow("writing parquet")
    types = {"V16": pyarrow.binary(16), TEXT: pyarrow.string()}
    columns = {}
    for name, column in NAMES.items():
        values = getattr(rows, name)
        arrow_type = types.get(COLUMNS[name]) or pyarrow.from_numpy_dtype(np.dtype(COLUMNS[name]))
        plain_values = [value.tobytes() for value in values] if name == "digests" else values.tolist()
        columns[column] = pyarrow.array(plain_values, arrow_type)
    if thumbnails:
        columns["thumbnail"] = pyarrow.array(thumbnails, pyarrow.binary())
    return pyarrow.table({**columns, **extra_columns})


def arrow(purpose: str) -> Any:
    """Import pyarrow with its parquet module; raises MissingExtra, naming the purpose, if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise MissingExtra(purpose, "parquet") from e
    return pyarrow


def parquet_file(source: Any, **options: Any) -> Any:
    """Open a parquet file. Text columns stay dictionary-encoded: a small file can repeat a long text in every row.

    Read the columns with `values_of`. Raises the errors of Arrow.
    """
    parquet = arrow("reading parquet").parquet
    schema = parquet.read_schema(source)
    text_types = ("string", "large_string", "binary", "large_binary")
    text_columns = [field.name for field in schema if str(field.type) in text_types]
    return parquet.ParquetFile(source, read_dictionary=text_columns, **options)


def values_of(column: Any) -> list[Any]:
    """Return the values of an Arrow column; equal values of a dictionary-encoded column share one object."""
    if not hasattr(column, "indices"):
        return list(column.to_pylist())
    dictionary = column.dictionary.to_pylist()
    return [None if i is None else dictionary[i] for i in column.indices.to_pylist()]


def _plain(name: str, values: Any) -> Any:
    if name == "labels":
        return np.array([LABELS[label] for label in (UNKNOWN, REAL, FAKE)], object)[values.astype(int) + 1]
    if name == "digests":
        return ["" if not any(value) else value.hex() for value in (digest.tobytes() for digest in values)]
    return values.astype(object) if COLUMNS[name] is TEXT else values
