"""Export rows as numpy and parquet files, which other tools read and from which the store can be restored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ...core.atomic_files import disk_errors, flush, make_folder, require_local, temporary_name, unflushed
from ...core.npy_file import write_npy
from ...errors import StoreError
from ..records import Block
from ..search.matches import Positions
from ..snapshot import Snapshot
from .tables import arrow, table_of

Layout = Literal["clip-retrieval", "numpy", "parquet"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
FORMAT, VERSION = "clipfake-export", 1
MANIFEST = "clipfake.json"  # describes the export; other tools do not need it
ROWS_PER_FILE = 1_000_000
BLOCK_ROWS = 16_384  # rows in memory at a time


@dataclass(frozen=True)
class ExportReport:
    """Report of `export_rows`."""

    folder: str
    layout: Layout
    rows: int
    files: int
    bytes: int
    snapshot: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def export_rows(
    snapshot: Snapshot,
    folder: Path | str,
    layout: Layout = "clip-retrieval",
    where: Any = None,
    rows_per_file: int = ROWS_PER_FILE,
) -> ExportReport:
    """Write the rows of a snapshot into a new folder. If the export fails, nothing is left behind.

    Parameters
    ----------
    layout
        - "clip-retrieval": `img_emb/img_emb_0.npy` (rows, dim) float16 and `metadata/metadata_0.parquet`, a pair for
          every `rows_per_file` rows; also `text_emb/` if every row has a text vector. Read by clip-retrieval,
          autofaiss and embedding-reader.
        - "numpy": `vectors.npy` and `rows.parquet`.
        - "parquet": `rows.parquet` alone, without vectors.

        The parquet files have all columns of `clipfake.store.exchange.tables.NAMES`, and `thumbnail`.
    where
        Mask over the rows, or positions (default: all rows).
    rows_per_file
        Rows per file of the layout "clip-retrieval".

    Raises
    ------
    StoreError
        The folder exists and is not empty, the layout is unknown, or the disk is full.
    MissingExtra
        pyarrow is not installed.
    """
    folder = Path(folder)
    require_local(folder, "an export")
    arrow("exporting rows")
    if layout not in LAYOUTS:
        raise StoreError(f"unknown layout {layout!r}; use one of {', '.join(LAYOUTS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} already exists and is not empty; name a new folder")
    positions = np.arange(len(snapshot))[slice(None) if where is None else where]
    step = rows_per_file if layout == "clip-retrieval" else max(len(positions), 1)
    parts = [positions[start : start + step] for start in range(0, len(positions), step)] or [positions]
    with _new_folder(folder) as temporary:
        digits = len(str(len(parts) - 1))  # zero-padded, so that names sort like their numbers
        for number, part in enumerate(parts):
            _write(snapshot, part, _files(temporary, layout, f"{number:0{digits}d}"))
        texts = _text_vectors(snapshot, positions) if layout != "parquet" else {}
        if texts:
            write_npy(temporary / "texts.npy", np.stack(list(texts.values())))
        content = {
            "format": FORMAT,
            "version": VERSION,
            "layout": layout,
            "space": snapshot.space.to_dict(),
            "snapshot": snapshot.number,
            "rows": len(positions),
            "texts": list(texts),
        }
        (temporary / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return ExportReport(str(folder), layout, len(positions), len(files), size, snapshot.number)


def _files(folder: Path, layout: Layout, number: str) -> dict[str, Path]:
    """Paths of the vectors, rows and texts of one part."""
    if layout == "parquet":
        return {"rows": folder / "rows.parquet"}
    if layout == "numpy":
        return {"vectors": folder / "vectors.npy", "rows": folder / "rows.parquet"}
    return {
        "vectors": folder / "img_emb" / f"img_emb_{number}.npy",
        "texts": folder / "text_emb" / f"text_emb_{number}.npy",
        "rows": folder / "metadata" / f"metadata_{number}.parquet",
    }


def _write(snapshot: Snapshot, positions: Positions, files: dict[str, Path]) -> None:
    """Write one part, a block at a time."""
    pyarrow, like_clip_retrieval = arrow("exporting rows"), "texts" in files
    categories = snapshot.column("categories")[positions] if like_clip_retrieval else ()
    if not len(positions) or not set(categories) <= snapshot.texts.keys():
        files.pop("texts", None)
    for path in files.values():
        path.parent.mkdir(exist_ok=True)
    with ExitStack() as stack:
        arrays = {
            name: stack.enter_context(_array_file(files[name], (len(positions), snapshot.space.dim)))
            for name in ("vectors", "texts")
            if name in files
        }
        writer: Any = None
        for block in _blocks(snapshot, positions):
            if "vectors" in arrays:
                arrays["vectors"](block.vectors)
            if "texts" in arrays:
                arrays["texts"](np.array([block.texts[name] for name in block.rows.categories.tolist()]))
            extra = {}
            if like_clip_retrieval:
                paths = [path or key for path, key in zip(block.rows.paths, block.rows.keys, strict=True)]
                extra = {"image_path": paths, "caption": block.rows.categories.tolist()}
            arrow_table = table_of(
                block.rows, block.thumbnails, **{k: pyarrow.array(v, pyarrow.string()) for k, v in extra.items()}
            )
            if writer is None:
                writer = stack.enter_context(
                    pyarrow.parquet.ParquetWriter(
                        files["rows"], arrow_table.schema, compression="zstd", write_page_checksum=True
                    )
                )
            writer.write_table(arrow_table)


@contextmanager
def _array_file(path: Path, shape: tuple[int, int]) -> Iterator[Callable[[npt.NDArray[Any]], int]]:
    """A float16 .npy file, written array by array. Not memory-mapped: with a full disk that would kill the process."""
    with path.open("wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda rows: file.write(np.ascontiguousarray(rows, "<f2").tobytes())


def _text_vectors(snapshot: Snapshot, positions: Positions) -> dict[str, npt.NDArray[np.float32]]:
    """Text vectors of the categories of these rows, by category."""
    occurring = set(snapshot.column("categories")[positions].tolist())
    return {name: snapshot.texts[name] for name in sorted(occurring & snapshot.texts.keys())}


def _blocks(snapshot: Snapshot, positions: Positions) -> Iterator[Block]:
    """Blocks of rows with their thumbnails; a single empty block if there are no rows."""
    if not len(positions):
        yield Block(snapshot.space, snapshot.rows.take(positions), np.zeros((0, snapshot.space.dim), np.float32))
    start = 0
    for block in snapshot.blocks(BLOCK_ROWS, positions):
        thumbnails = snapshot.thumbnails(positions[start : start + len(block)]) if snapshot.has_thumbnails else ()
        yield Block(block.space, block.rows, block.vectors, thumbnails, block.texts)
        start += len(block)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `folder` on success and removed on failure."""
    folder = folder.resolve()  # "." has no name
    temporary = folder.with_name(temporary_name(folder.name))  # never a folder of the user
    with disk_errors(f"write {folder}"):
        try:
            make_folder(temporary)
            yield temporary
            for path in (temporary, *temporary.rglob("*")):
                flush(path)
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        try:
            flush(folder.parent)
        except OSError as e:
            raise unflushed(folder, e) from e
