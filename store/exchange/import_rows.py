"""Import rows that `export_rows` wrote, or the embeddings and metadata of clip-retrieval and similar tools."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.atomic_files import final_name, read_json
from ...core.npy_file import open_npy
from ...core.reading import require_regular
from ...core.row_file import RowFile
from ...errors import BadBlock, SourceError, SpaceMismatch
from ..key_index import KeyIndex
from ..records import COLUMNS, FAKE, LABELS, REAL, TEXT, UNKNOWN, Block, Names, Rows
from ..shard import hash_keys
from ..space import Space
from ..store import Store
from ..writer import AppendCounts
from .class_names import MEANS_REAL, class_names_in_folder, class_names_in_schema, named_class
from .export_rows import BLOCK_ROWS, FORMAT, MANIFEST, VERSION
from .tables import NAMES, arrow, parquet_file, values_of

LABEL_SPELLINGS = {"0": REAL, "real": REAL, "1": FAKE, "fake": FAKE, "-1": UNKNOWN, "unknown": UNKNOWN, "": UNKNOWN}
PATH_COLUMNS = ("path", "image_path", "file_name", "url", "image")  # of foreign tables; the first one present is used
LENGTH_TOLERANCE = 0.02  # allowed difference from unit length in a normalised space


@dataclass(frozen=True)
class ImportDefaults:
    """Values for columns that a foreign table lacks, and the names of those it has."""

    source: str = ""  # for rows without one
    label: int = UNKNOWN  # for all rows if there is no label column
    columns: dict[str, str] = field(default_factory=dict)  # label, source, category or generator -> column name


@dataclass(frozen=True)
class ImportReport:
    """Report of `import_rows`."""

    folder: str
    rows: int  # read
    added: int
    known: int  # already in the store, unchanged
    replaced: int
    relabelled: int  # already in the store with the same vector and other labels, which were corrected
    snapshot: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ImportFiles:
    """A pair of files: vectors and their rows."""

    vectors: Path
    rows: Path


@dataclass(frozen=True)
class ImportFolder:
    """A folder of vectors and their rows. Create it with `ImportFolder.open`."""

    path: Path
    files: tuple[ImportFiles, ...]
    dim: int
    space: Space | None  # None if the folder does not name one, as in foreign layouts
    texts: dict[str, npt.NDArray[np.float32]]

    @classmethod
    def open(cls, path: Path | str) -> ImportFolder:
        """Open a folder in one of the layouts with vectors; raises SourceError if it has none of them."""
        path = Path(path)
        if final_name(path.resolve().name):
            raise SourceError(f"{path} was left by an export that was interrupted; export the rows again")
        content = _read_manifest(path)
        if content.get("layout") == "parquet":
            raise SourceError(
                f"{path} was exported without vectors (layout parquet); export with layout numpy to import the rows"
            )
        files = _find_files(path)
        shapes = [_open_vectors(pair.vectors).shape for pair in files]
        dims, rows = {dim for _, dim in shapes}, sum(rows for rows, _ in shapes)
        if content.get("rows", rows) != rows:
            raise SourceError(
                f"{path} holds {rows} vectors, but {content['rows']} were exported, as {MANIFEST} says; restore the "
                f"missing files, or remove those that are not of this export"
            )
        if len(dims) > 1:
            raise SourceError(
                f"the files in {path} hold vectors of {sorted(dims)} dimensions; all must have the same number"
            )
        texts: dict[str, npt.NDArray[np.float32]] = {}
        names = content.get("texts") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SourceError(f"{path / MANIFEST}: the field texts is not a list of strings; export the rows again")
        if names:
            vectors = np.asarray(_open_vectors(path / "texts.npy"), np.float32)
            if vectors.shape != (len(names), *dims):
                raise SourceError(
                    f"{path / 'texts.npy'} has shape {vectors.shape}, expected {(len(names), *dims)}; "
                    f"export the rows again"
                )
            texts = dict(zip(names, vectors, strict=True))
        try:
            space = Space.from_dict(content["space"]) if "space" in content else None
        except (KeyError, TypeError, ValueError) as e:
            raise SourceError(
                f"{path / MANIFEST} does not name its space in full ({e!r}); export the rows again"
            ) from e
        return cls(path, tuple(files), dims.pop(), space, texts)

    def blocks(self, space: Space, defaults: ImportDefaults, *, normalise: bool = False) -> Iterator[Block]:
        """Read the rows block by block; raises SourceError or BadBlock, naming the file."""
        for pair in self.files:
            vectors = _open_vectors(pair.vectors)
            parquet = _open_table(pair.rows)
            if parquet.metadata.num_rows != len(vectors):
                raise SourceError(
                    f"{pair.vectors} has {len(vectors)} vectors, but {pair.rows} has {parquet.metadata.num_rows} rows; "
                    f"export both again"
                )
            start = 0
            for batch in _batches(parquet, pair.rows):
                batch_vectors = np.asarray(vectors[start : start + len(batch)], np.float32)
                start += len(batch)
                if len(batch_vectors):
                    rows, thumbnails = _parse_batch(batch, defaults, pair.rows, exported=self.space is not None)
                    batch_vectors = _unit_length(batch_vectors, space, pair.vectors, normalise=normalise)
                    yield Block(space, rows, batch_vectors, thumbnails, self.texts)


def import_rows(
    folder: Path | str,
    store: Path | str,
    space: Space | None = None,
    defaults: ImportDefaults = ImportDefaults(),
    *,
    normalise: bool = False,
) -> ImportReport:
    """Import a folder of vectors and rows into a store, new or existing. Importing twice changes nothing.

    Parameters
    ----------
    space : embedding space of the vectors (default: the one named by an export of clipfake)
    defaults : values and column names for a foreign table
    normalise : scale vectors to unit length if the space is normalised, instead of rejecting others

    Raises
    ------
    SourceError
        The folder has an unknown layout, or its files do not match each other.
    SpaceMismatch
        The vectors are in another space than the store's, or no space was named.
    BadBlock
        Vectors that are NaN, zero or not of unit length, or a duplicate key. Rows before them stay in the store.
    """
    source = ImportFolder.open(folder)
    space = space or source.space
    if space is None:
        raise SpaceMismatch(f"{folder} does not say which encoder made its vectors; name the encoder or the space")
    if source.space is not None:
        space.require(source.space, f"the folder {folder}")
    if source.dim != space.dim:
        raise SpaceMismatch(f"{folder} holds vectors of {source.dim} dimensions, but {space} has {space.dim}")
    target, rows, total = Store.create(store, space), 0, AppendCounts()
    with target.writer(f"imported {Path(folder).name}") as writer:
        imported = KeyIndex()
        for block in source.blocks(space, defaults, normalise=normalise):
            _require_new_keys(block, imported, folder)
            total += writer.append(block)
            rows += len(block)
    return ImportReport(str(folder), rows, **asdict(total), snapshot=target.snapshot().number)


def _require_new_keys(block: Block, imported: KeyIndex, folder: Path | str) -> None:
    """Raise BadBlock if a key of the block was imported before; its keys are added to those imported."""
    hashes = hash_keys(block.rows.keys)
    repeated, _ = imported.candidates(hashes)
    if len(repeated):
        raise BadBlock(
            f"{folder} has several rows with the key {block.rows.keys[repeated.min()]}, and only one of them could be "
            f"stored; make the paths of each source unique. The rows before it are stored"
        )
    imported.add(hashes, np.zeros(len(block), np.int64))


def label_of(value: Any, class_names: tuple[str, ...] | None = None) -> int:
    """Parse a label from a table: 0, 1, -1, real, fake or unknown; raises ValueError for anything else.

    Parameters
    ----------
    class_names : meaning of the numbers 0, 1, … in this table, -1 being unknown (default: real, fake)
    """
    if class_names is not None:
        value = named_class(value, class_names)
    whole = isinstance(value, bool | float | np.floating) and float(value).is_integer()
    word = str(int(value)) if whole else str(value)
    word = "" if value is None or value != value else word
    if (label := LABEL_SPELLINGS.get(word.strip().lower())) is None:
        raise ValueError(word)
    return label


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path / MANIFEST)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise SourceError(f"{path / MANIFEST} cannot be read ({e}); remove it to import the folder as foreign") from e
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise SourceError(
            f"{path / MANIFEST} is not of this release (expected {FORMAT} {VERSION}); export the rows again"
        )
    return content


def _find_files(path: Path) -> list[ImportFiles]:
    """Files of vectors and their rows; raises SourceError for one without the other."""
    if (path / "vectors.npy").is_file() and (path / "rows.parquet").is_file():
        if (path / "img_emb").is_dir():
            raise SourceError(f"{path} holds two imports, vectors.npy and img_emb; move one to a folder of its own")
        return [ImportFiles(path / "vectors.npy", path / "rows.parquet")]
    vectors = _numbered(path / "img_emb", r"img_emb_(\d+)\.npy")
    rows = _numbered(path / "metadata", r"metadata_(\d+)\.parquet")
    if not vectors:
        raise SourceError(
            f"{path} holds neither vectors.npy and rows.parquet nor img_emb/img_emb_0.npy and "
            f"metadata/metadata_0.parquet; name a folder that `clipfake store export` or clip-retrieval wrote"
        )
    if unpaired := sorted(vectors.keys() ^ rows.keys()):
        raise SourceError(
            f"{path}: img_emb and metadata do not match, number {unpaired[0]} is in one of them only; "
            f"restore the missing file or remove its partner"
        )
    return [ImportFiles(vectors[number], rows[number]) for number in sorted(vectors, key=int)]


def _numbered(folder: Path, pattern: str) -> dict[str, Path]:
    """Files by their number as written, since 1 and 01 are of two runs; raises SourceError if both are there."""
    files: dict[int, tuple[str, Path]] = {}
    for path in sorted(folder.glob("*")):
        if match := re.fullmatch(pattern, path.name, re.IGNORECASE | re.ASCII):
            _, other = files.setdefault(int(match[1]), (match[1], path))
            if other is not path:
                raise SourceError(
                    f"{folder} has two files of number {int(match[1])}, {other.name} and {path.name}; keep those of "
                    f"one run, with their partners, in a folder of their own"
                )
    return dict(files.values())


def _open_vectors(path: Path) -> RowFile | npt.NDArray[Any]:
    try:
        vectors = open_npy(path, lambda problem: SourceError(f"{problem}; export the rows again"))
    except (OSError, ValueError) as e:
        raise SourceError(f"{path} is not a readable numpy array ({e}); export the rows again") from e
    if len(vectors.shape) != 2 or vectors.dtype.kind != "f":
        raise SourceError(
            f"{path} holds {vectors.dtype} of shape {vectors.shape}; expected floats of shape (rows, dim)"
        )
    return vectors


def _open_table(path: Path) -> Any:
    pyarrow = arrow(f"reading {path.name}")
    try:
        require_regular(path)
        parquet = parquet_file(path, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as e:
        raise SourceError(f"{path} is not a readable parquet file ({e}); export the rows again") from e
    repeated = [name for name, count in Counter(parquet.schema_arrow.names).items() if count > 1]
    if repeated:
        raise SourceError(f"{path} has several columns named {repeated[0]}; rename or remove all but one")
    return parquet


def _class_names(schema: Any, path: Path, column: str) -> tuple[str, ...] | None:
    """Names of the classes 0, 1, … of a column of Hugging Face's `datasets`; None if there are none."""
    folders = [path.parent, path.parent.parent]
    names = {**class_names_in_folder(folders[1]), **class_names_in_folder(folders[0])}
    return {**names, **class_names_in_schema(schema.metadata)}.get(column.casefold())


def _batches(parquet: Any, path: Path) -> Iterator[Any]:
    try:
        yield from parquet.iter_batches(batch_size=BLOCK_ROWS)
    except (arrow("reading parquet").ArrowException, OSError) as e:
        raise SourceError(f"{path} is damaged ({e}); export the rows again") from e


def _parse_batch(batch: Any, defaults: ImportDefaults, path: Path, *, exported: bool) -> tuple[Rows, tuple[bytes, ...]]:
    """Parse rows and thumbnails; raises SourceError for values that Arrow cannot convert, such as invalid text."""
    try:
        return _rows_and_thumbnails(batch, defaults, path, exported=exported)
    except (ValueError, TypeError, OverflowError, arrow("reading parquet").ArrowException) as e:
        raise SourceError(f"{path} has values that cannot be read ({e}); export the rows again") from e


def _rows_and_thumbnails(
    batch: Any, defaults: ImportDefaults, path: Path, *, exported: bool
) -> tuple[Rows, tuple[bytes, ...]]:
    table = {name: values_of(batch.column(i)) for i, name in enumerate(batch.schema.names)}
    thumbnails = tuple(thumbnail or b"" for thumbnail in table.get("thumbnail", ()))
    if not all(isinstance(thumbnail, bytes) for thumbnail in thumbnails):
        raise SourceError(f"{path}: the column thumbnail must hold the bytes of image files; fix or remove the column")
    if exported:
        if missing := sorted(set(NAMES.values()) - table.keys()):
            raise SourceError(f"{path} lacks the columns {', '.join(missing)}; export the rows again")
        columns = {name: _column(path, name, column, table[column]) for name, column in NAMES.items()}
        return Rows(**columns), thumbnails
    label_column = defaults.columns.get("label", "label")
    class_names = _class_names(batch.schema, path, label_column)
    return _foreign_rows(table, len(batch), defaults, path, class_names), thumbnails


def _foreign_rows(
    table: dict[str, list[Any]], rows: int, defaults: ImportDefaults, path: Path, class_names: tuple[str, ...] | None
) -> Rows:
    for column in defaults.columns.values():
        if column not in table:
            raise SourceError(f"{path} has no column {column}; it has {', '.join(table)}")

    def texts_of(name: str, default: str) -> list[str]:
        values = table.get(defaults.columns.get(name, name))
        return [default if value is None else _text(value) for value in values] if values else [default] * rows

    path_column = next((name for name in PATH_COLUMNS if name in table), None)
    if path_column is None:
        raise SourceError(f"{path} has no column of image paths ({', '.join(PATH_COLUMNS)}); it has {', '.join(table)}")
    paths = ["" if value is None else _text(value) for value in table[path_column]]
    if "" in paths:
        raise SourceError(f"{path}: row {paths.index('')} has no {path_column}; every row needs one, as its key")
    sources = texts_of("source", defaults.source)
    if "" in sources:
        raise SourceError(
            f"{path} does not say where its rows come from; name a source with --source, or the column that has it "
            f"with --column source=COLUMN"
        )
    labels = [defaults.label] * rows
    label_column = defaults.columns.get("label", "label")
    if label_column not in table and (other := next((name for name in table if name.lower() == "label"), "")):
        raise SourceError(f"{path} has a column {other}; to read the labels from it, add --column label={other}")
    if values := table.get(label_column):
        numeric = any(str(value).strip() in ("0", "1", "0.0", "1.0", "True", "False") for value in values)
        if numeric and class_names is None and MEANS_REAL.fullmatch(label_column):
            raise SourceError(
                f"{path}: a 1 in the column {label_column} seems to mean real, but 1 is read as fake; write the words "
                f"real and fake, or make a column in which 1 means fake"
            )
        try:
            labels = [label_of(value, class_names) for value in values]
        except ValueError as e:
            classes = f" (the classes are {', '.join(class_names)})" if class_names else ""
            raise SourceError(f"{path}: the label {e} is neither real (0), fake (1) nor unknown (-1){classes}") from e
    generators = [  # a fake row without a generator is taken to be made by its source
        generator or source if label == FAKE else generator
        for generator, source, label in zip(texts_of("generator", ""), sources, labels, strict=True)
    ]
    keys = [f"{source}/{image_path.lstrip('/')}" for source, image_path in zip(sources, paths, strict=True)]
    categories = texts_of("category", "")
    return Rows.make(keys, labels, sources=sources, generators=generators, categories=categories, paths=paths)


def _column(path: Path, name: str, column: str, values: Sequence[Any]) -> Names | npt.NDArray[Any]:
    try:
        if name == "digests":
            if any(len(value) != 16 for value in values):
                raise ValueError("a digest has 16 bytes")
            return np.frombuffer(b"".join(values), "V16")
        column_values = np.asarray(values, dtype=COLUMNS[name])
        if COLUMNS[name] is not TEXT and column_values.tolist() != list(values):
            raise ValueError(f"it holds other numbers than {np.dtype(COLUMNS[name])}")
        if name == "labels" and (wrong := set(column_values.tolist()) - LABELS.keys()):
            raise ValueError(f"there is no label {wrong.pop()}")
        return column_values
    except (TypeError, ValueError, OverflowError) as e:
        raise SourceError(f"{path}: the column {column} has been altered ({e}); export the rows again") from e


def _text(value: Any) -> str:
    """A value of a column of texts, also one stored as bytes; raises ValueError for one that is no text."""
    if isinstance(value, dict):  # an image of Hugging Face's `datasets`
        value = value.get("path") or ""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        raise ValueError(f"{str(value)[:80]} is not a text")
    return str(value)


def _unit_length(
    vectors: npt.NDArray[np.float32], space: Space, path: Path, *, normalise: bool
) -> npt.NDArray[np.float32]:
    """Scale the vectors to unit length, or check it, if the space is normalised."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not space.normalised or not np.isfinite(lengths).all() or not lengths.all():
        return vectors  # the writer rejects vectors that are not finite or zero, naming the row
    if normalise:
        return np.asarray(vectors / lengths, np.float32)
    if len(wrong := np.flatnonzero(abs(lengths[:, 0] - 1) > LENGTH_TOLERANCE)):
        raise BadBlock(
            f"{path}: row {wrong[0]} has a vector of length {float(lengths[wrong[0], 0]):.3f}, but {space} needs unit "
            f"length; import with --normalize"
        )
    return vectors


def foreign_space(name: str, dim: int) -> Space:
    """Space of an unknown encoder, known by name only: its vectors can be searched, but no image can be embedded."""
    import hashlib

    return replace(
        Space(name, "", dim), fingerprint=hashlib.blake2b(f"named {name}".encode(), digest_size=32).hexdigest()
    )
