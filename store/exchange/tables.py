"""Rows as a table that other tools read: pandas in memory, Arrow and parquet on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import MissingExtra
from ..records import COLUMNS, FAKE, LABELS, REAL, TEXT, UNKNOWN, Rows

if TYPE_CHECKING:
    import pandas
    import pyarrow

    from ..snapshot import Snapshot

# A column of Rows -> its name in a table, where one row is one image.
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
    """The rows of a snapshot as a pandas DataFrame, without vectors.

    One column for each of `NAMES`. `label` is "real", "fake" or "unknown"; `digest` is hexadecimal, "" where unknown.

    Parameters
    ----------
    where : a mask over the rows, or positions (default: all rows)
    """
    import pandas

    wanted = slice(None) if where is None else where
    return pandas.DataFrame({NAMES[name]: _plain(name, snapshot.column(name)[wanted]) for name in NAMES})


def table_of(rows: Rows, thumbnails: tuple[bytes, ...] = (), **more: Any) -> pyarrow.Table:
    """Rows as an Arrow table, with their thumbnails if there are any, and with other columns."""
    pyarrow = arrow("writing parquet")
    kinds = {"V16": pyarrow.binary(16), TEXT: pyarrow.string()}
    columns = {}
    for name, called in NAMES.items():
        values = getattr(rows, name)
        kind = kinds.get(COLUMNS[name]) or pyarrow.from_numpy_dtype(np.dtype(COLUMNS[name]))
        plain_values = [value.tobytes() for value in values] if name == "digests" else values.tolist()
        columns[called] = pyarrow.array(plain_values, kind)
    if thumbnails:
        columns["thumbnail"] = pyarrow.array(thumbnails, pyarrow.binary())
    return pyarrow.table({**columns, **more})


def arrow(what: str) -> Any:
    """pyarrow with its parquet; raises MissingExtra where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise MissingExtra(what, "parquet") from e
    return pyarrow


def parquet_file(source: Any, **options: Any) -> Any:
    """A parquet file to be read, its texts with their words apart: a small file can say a long one in every row.

    Read what its columns hold with `values_of`. Raises what Arrow does.
    """
    parquet = arrow("reading parquet").parquet
    schema = parquet.read_schema(source)
    texts = [field.name for field in schema if str(field.type) in ("string", "large_string", "binary", "large_binary")]
    return parquet.ParquetFile(source, read_dictionary=texts, **options)


def values_of(column: Any) -> list[Any]:
    """Return the values of an Arrow column; in dictionary-encoded text each word is made once."""
    if not hasattr(column, "indices"):
        return list(column.to_pylist())
    words = column.dictionary.to_pylist()
    return [None if i is None else words[i] for i in column.indices.to_pylist()]


def _plain(name: str, values: Any) -> Any:
    if name == "labels":
        return np.array([LABELS[label] for label in (UNKNOWN, REAL, FAKE)], object)[values.astype(int) + 1]
    if name == "digests":
        return ["" if not any(value) else value.hex() for value in (one.tobytes() for one in values)]
    return values.astype(object) if COLUMNS[name] is TEXT else values
