"""Import rows: what `export_rows` wrote, or the embeddings and metadata of clip-retrieval and similar tools."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.atomic_files import read_array, read_json
from ...errors import BadBlock, SourceError, SpaceMismatch
from ..records import COLUMNS, FAKE, REAL, UNKNOWN, Block, Names, Rows
from ..space import Space
from ..store import Store
from ..writer import AppendCounts
from .export_rows import BLOCK_ROWS, CARD, FORMAT, VERSION
from .tables import NAMES, arrow, parquet_file, values_of

WORDS = {"0": REAL, "real": REAL, "1": FAKE, "fake": FAKE, "-1": UNKNOWN, "unknown": UNKNOWN, "": UNKNOWN}
PATHS = ("path", "image_path", "file_name", "url", "image")  # a foreign table's column that names the image
TOLERANCE = 0.02  # how far from 1 the length of a vector of a normalised space may be


@dataclass(frozen=True)
class ImportDefaults:
    """Values for what a foreign table does not say of its rows."""

    source: str = ""  # of all rows, or where the named column has none
    label: int = UNKNOWN
    columns: dict[str, str] = field(default_factory=dict)  # ours (label, source, category, generator) -> theirs


@dataclass(frozen=True)
class ImportReport:
    """Report of `import_rows`."""

    folder: str
    rows: int  # read
    added: int
    known: int  # were there already, unchanged
    replaced: int
    snapshot: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ImportFiles:
    """One pair of files."""

    vectors: Path
    rows: Path


@dataclass(frozen=True)
class ImportFolder:
    """A folder of vectors and their rows. Make it with `ImportFolder.open`."""

    path: Path
    pieces: tuple[ImportFiles, ...]
    dim: int
    space: Space | None  # None where the folder does not say
    texts: dict[str, npt.NDArray[np.float32]]

    @classmethod
    def open(cls, path: Path | str) -> ImportFolder:
        """One of the layouts that hold vectors; raises SourceError where it is none, saying what is missing."""
        path = Path(path)
        content = _card(path)
        if content.get("layout") == "parquet":
            raise SourceError(
                f"{path} was exported without vectors (layout parquet); export it as numpy to bring it back"
            )
        pieces = _pieces(path)
        dims = {_opened(piece.vectors).shape[1] for piece in pieces}
        if len(dims) > 1:
            raise SourceError(
                f"the files of {path} hold vectors of {sorted(dims)} dimensions; one store takes one of them"
            )
        texts: dict[str, npt.NDArray[np.float32]] = {}
        names = content.get("texts") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SourceError(f"{path / CARD} names no texts in its field texts; export it again")
        if names:
            vectors = _opened(path / "texts.npy").astype(np.float32)
            if vectors.shape != (len(names), *dims):
                raise SourceError(f"{path / 'texts.npy'} holds vectors of shape {vectors.shape} for {len(names)} texts")
            texts = dict(zip(names, vectors, strict=True))
        try:
            space = Space.from_dict(content["space"]) if "space" in content else None
        except (KeyError, TypeError, ValueError) as e:
            raise SourceError(f"{path / CARD} does not name its space in full ({e!r}); export it again") from e
        return cls(path, tuple(pieces), dims.pop(), space, texts)

    def blocks(self, space: Space, meaning: ImportDefaults, *, normalise: bool = False) -> Iterator[Block]:
        """The rows, a block at a time; raises SourceError or BadBlock, naming the file."""
        for piece in self.pieces:
            vectors = _opened(piece.vectors)
            parquet = _parquet(piece.rows)
            if parquet.metadata.num_rows != len(vectors):
                raise SourceError(
                    f"{piece.vectors} has {len(vectors)} vectors and {piece.rows} {parquet.metadata.num_rows} rows; "
                    f"each vector needs its row, so export both again"
                )
            start = 0
            for batch in _batches(parquet, piece.rows):
                taken = np.asarray(vectors[start : start + len(batch)], np.float32)
                start += len(batch)
                if len(taken):
                    rows, pictures = _readable(batch, meaning, piece.rows, ours=self.space is not None)
                    taken = _fitting(taken, space, piece.vectors, normalise=normalise)
                    yield Block(space, rows, taken, pictures, self.texts)


def import_rows(
    folder: Path | str,
    store: Path | str,
    space: Space | None = None,
    meaning: ImportDefaults = ImportDefaults(),
    *,
    normalise: bool = False,
) -> ImportReport:
    """Take a folder of vectors and rows into a store, which is made if it is not there. Doing it twice changes nothing.

    Parameters
    ----------
    space : where the vectors live; may be left out for what `export` wrote, which says so itself
    normalise : bring vectors to unit length instead of refusing others where the space is normalised

    Raises
    ------
    SourceError
        The folder has no layout we know, or its files do not fit each other.
    SpaceMismatch
        The vectors are of another space than the store, or no space was named.
    BadBlock
        NaN or zero vectors, vectors that are not of unit length, or a key that stands twice. What came before is kept.
    """
    found = ImportFolder.open(folder)
    space = space or found.space
    if space is None:
        raise SpaceMismatch(f"{folder} does not say which encoder made its vectors; name it")
    if found.space is not None:
        space.require(found.space, f"the folder {folder}")
    if found.dim != space.dim:
        raise SpaceMismatch(f"{folder} holds vectors of {found.dim} dimensions, {space} has {space.dim}")
    target, rows, total = Store.create(store, space), 0, AppendCounts()
    with target.writer(f"imported {Path(folder).name}") as writer:
        for block in found.blocks(space, meaning, normalise=normalise):
            total += writer.append(block)
            rows += len(block)
    return ImportReport(str(folder), rows, total.added, total.known, total.replaced, target.snapshot().number)


def label_of(value: Any) -> int:
    """A label as tables write it: 0, 1, -1, real, fake or unknown; raises ValueError for another word."""
    whole = isinstance(value, bool | float | np.floating) and float(value).is_integer()
    word = str(int(value)) if whole else str(value)
    word = "" if value is None or value != value else word
    if (label := WORDS.get(word.strip().lower())) is None:
        raise ValueError(word)
    return label


def _card(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path / CARD)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise SourceError(f"{path / CARD} cannot be read ({e}); remove it to take the folder for a foreign one") from e
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise SourceError(f"{path / CARD} is not of this release (expected {FORMAT} {VERSION}); export it again")
    return content


def _pieces(path: Path) -> list[ImportFiles]:
    """Vectors with the rows beside them; raises SourceError for one without the other."""
    if (path / "vectors.npy").is_file() and (path / "rows.parquet").is_file():
        return [ImportFiles(path / "vectors.npy", path / "rows.parquet")]
    vectors = _numbered(path / "img_emb", r"img_emb_(\d+)\.npy")
    rows = _numbered(path / "metadata", r"metadata_(\d+)\.parquet")
    if not vectors:
        raise SourceError(
            f"{path} holds neither vectors.npy and rows.parquet nor img_emb/img_emb_0.npy and "
            f"metadata/metadata_0.parquet; name a folder that `clipfake store export` or clip-retrieval wrote"
        )
    if alone := sorted(vectors.keys() ^ rows.keys()):
        raise SourceError(
            f"{path}: img_emb and metadata do not match, number {alone[0]} is in one of them only; "
            f"a vector without its row is of no use"
        )
    return [ImportFiles(vectors[number], rows[number]) for number in sorted(vectors)]


def _numbered(folder: Path, pattern: str) -> dict[int, Path]:
    found = ((re.fullmatch(pattern, path.name), path) for path in folder.glob("*"))
    return {int(match[1]): path for match, path in found if match}


def _opened(path: Path) -> npt.NDArray[Any]:
    try:
        vectors = read_array(path)
    except (OSError, ValueError) as e:
        raise SourceError(f"{path} is not a readable numpy array ({e}); export it again") from e
    if vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise SourceError(f"{path} holds {vectors.dtype} of shape {vectors.shape}; expected floats of (rows, dim)")
    return vectors


def _parquet(path: Path) -> Any:
    pyarrow = arrow(f"reading {path.name}")
    try:
        return parquet_file(path, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as e:
        raise SourceError(f"{path} is not a readable parquet file ({e}); export it again") from e


def _batches(parquet: Any, path: Path) -> Iterator[Any]:
    try:
        yield from parquet.iter_batches(batch_size=BLOCK_ROWS)
    except (arrow("reading parquet").ArrowException, OSError) as e:
        raise SourceError(f"{path} is damaged ({e}); export it again") from e


def _readable(batch: Any, meaning: ImportDefaults, path: Path, *, ours: bool) -> tuple[Rows, tuple[bytes, ...]]:
    """Parse as `_rows` does; values that Arrow cannot convert, such as invalid text, are a SourceError."""
    try:
        return _rows(batch, meaning, path, ours=ours)
    except (ValueError, TypeError, OverflowError, arrow("reading parquet").ArrowException) as e:
        raise SourceError(f"{path} holds what cannot be read ({e}); export it again") from e


def _rows(batch: Any, meaning: ImportDefaults, path: Path, *, ours: bool) -> tuple[Rows, tuple[bytes, ...]]:
    """The rows of a piece of a table, and their thumbnails."""
    there = {name: values_of(batch.column(i)) for i, name in enumerate(batch.schema.names)}
    pictures = tuple(picture or b"" for picture in there.get("thumbnail", ()))
    if not all(isinstance(picture, bytes) for picture in pictures):
        raise SourceError(f"{path} has a column thumbnail of other things than files; leave it out")
    if ours:
        if missing := sorted(set(NAMES.values()) - there.keys()):
            raise SourceError(f"{path} lacks the columns {', '.join(missing)}; export it again")
        return Rows(**{name: _column(path, name, called, there[called]) for name, called in NAMES.items()}), pictures
    return _foreign(there, len(batch), meaning, path), pictures


def _foreign(there: dict[str, list[Any]], rows: int, meaning: ImportDefaults, path: Path) -> Rows:
    for called in meaning.columns.values():
        if called not in there:
            raise SourceError(f"{path} has no column {called}; it has {', '.join(there)}")

    def named(ours: str, otherwise: str) -> list[str]:
        column = there.get(meaning.columns.get(ours, ours))
        return [str(value) if value is not None else otherwise for value in column] if column else [otherwise] * rows

    name = next((name for name in PATHS if name in there), None)
    if name is None:
        raise SourceError(f"{path} has no column that names the images ({', '.join(PATHS)}); it has {', '.join(there)}")
    paths = [str(value or "") for value in there[name]]
    if "" in paths:
        raise SourceError(f"{path}: row {paths.index('')} has no {name}; a row is named by its path")
    sources = named("source", meaning.source)
    if "" in sources:
        raise SourceError(f"{path} does not say where its rows come from; name a source, or the column that has it")
    labels = [meaning.label] * rows
    if column := there.get(meaning.columns.get("label", "label")):
        try:
            labels = [label_of(value) for value in column]
        except ValueError as e:
            raise SourceError(f"{path}: the label {e} is neither real (0), fake (1) nor unknown (-1)") from e
    generators = named("generator", "")
    made = [g or s if label == FAKE else g for g, s, label in zip(generators, sources, labels, strict=True)]
    keys = [f"{source}/{place.lstrip('/')}" for source, place in zip(sources, paths, strict=True)]
    more = {"sources": sources, "generators": made, "categories": named("category", ""), "paths": paths}
    return Rows.make(keys, labels, **more)


def _column(path: Path, name: str, called: str, values: Sequence[Any]) -> Names | npt.NDArray[Any]:
    try:
        if name == "digests":
            if any(len(one) != 16 for one in values):
                raise ValueError("a digest has 16 bytes")
            return np.frombuffer(b"".join(values), "V16")
        return np.asarray(values, dtype=COLUMNS[name])
    except (TypeError, ValueError, OverflowError) as e:
        raise SourceError(f"{path} has a column {called} that is not what was exported ({e}); export it again") from e


def _fitting(vectors: npt.NDArray[np.float32], space: Space, path: Path, *, normalise: bool) -> npt.NDArray[np.float32]:
    """The vectors as the space wants them."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not space.normalised or not np.isfinite(lengths).all() or not lengths.all():
        return vectors  # what is not finite or zero is refused, by name, where it is stored
    if normalise:
        return np.asarray(vectors / lengths, np.float32)
    if len(off := np.flatnonzero(abs(lengths[:, 0] - 1) > TOLERANCE)):
        raise BadBlock(
            f"{path}: row {off[0]} has a vector of length {float(lengths[off[0], 0]):.3f}, {space} wants unit length; "
            f"ask for them to be normalised"
        )
    return vectors


def foreign_space(name: str, dim: int) -> Space:
    """A space known by name only: its vectors may be compared with each other, no image can be asked about."""
    import hashlib

    return replace(
        Space(name, "", dim), fingerprint=hashlib.blake2b(f"named {name}".encode(), digest_size=32).hexdigest()
    )
