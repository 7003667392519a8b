"""Out of a store: numpy and parquet files that other tools read, and from which the same store can be made again."""

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

from ...core.atomic_files import TEMPORARY, disk_errors, flush, make_folder
from ...errors import StoreError
from ..records import Block
from ..search.matches import Positions
from ..snapshot import Snapshot
from .tables import arrow, table_of

Layout = Literal["clip-retrieval", "numpy", "parquet"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
FORMAT, VERSION = "clipfake-export", 1
CARD = "clipfake.json"  # what the folder holds; without it, it is still what its layout says
ROWS_PER_FILE = 1_000_000
BLOCK_ROWS = 16_384  # in memory at a time


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
    """Write the rows of a snapshot, or those of a mask or at some positions, into a new folder: whole, or not at all.

    - "clip-retrieval": `img_emb/img_emb_0.npy` (rows, dim) float16 beside `metadata/metadata_0.parquet`, a pair for
      every `rows_per_file` rows; `text_emb/` too where every row has a text vector. Read by clip-retrieval, autofaiss
      and embedding-reader.
    - "numpy": `vectors.npy` and `rows.parquet`.
    - "parquet": `rows.parquet` alone, without vectors.

    The parquet has all columns of `clipfake.store.exchange.tables.NAMES`, and `thumbnail`. A block is in memory at a
    time.

    Raises
    ------
    StoreError
        The folder is there and not empty, or the disk is full: nothing is left behind.
    MissingExtra
        pyarrow is not installed.
    """
    folder = Path(folder)
    arrow("exporting rows")
    if layout not in LAYOUTS:
        raise StoreError(f"there is no layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} is there already and not empty; name a new folder, nothing was written")
    positions = np.arange(len(snapshot))[slice(None) if where is None else where]
    whole = rows_per_file if layout == "clip-retrieval" else max(len(positions), 1)
    pieces = [positions[start : start + whole] for start in range(0, len(positions), whole)] or [positions]
    with _whole_folder(folder) as aside:
        digits = len(str(len(pieces) - 1))  # of equal length, so that names and numbers sort alike
        for number, piece in enumerate(pieces):
            _write(snapshot, piece, _files(aside, layout, f"{number:0{digits}d}"))
        texts = _texts(snapshot, positions) if layout != "parquet" else {}
        if texts:
            np.save(aside / "texts.npy", np.stack(list(texts.values())))
        content = {
            "format": FORMAT,
            "version": VERSION,
            "layout": layout,
            "space": snapshot.space.to_dict(),
            "snapshot": snapshot.number,
            "rows": len(positions),
            "texts": list(texts),
        }
        (aside / CARD).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    written = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in written)
    return ExportReport(str(folder), layout, len(positions), len(written), size, snapshot.number)


def _files(folder: Path, layout: Layout, number: str) -> dict[str, Path]:
    """Files for the vectors, rows and texts of one piece."""
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
    """One piece, a block at a time."""
    pyarrow, like_clip_retrieval = arrow("exporting rows"), "texts" in files
    categories = snapshot.column("categories")[positions] if like_clip_retrieval else ()
    if not len(positions) or not set(categories) <= snapshot.texts.keys():
        files.pop("texts", None)
    for path in files.values():
        path.parent.mkdir(exist_ok=True)
    with ExitStack() as stack:
        arrays = {
            name: stack.enter_context(_appended_to(files[name], (len(positions), snapshot.space.dim)))
            for name in ("vectors", "texts")
            if name in files
        }
        table: Any = None
        for block in _blocks(snapshot, positions):
            if "vectors" in arrays:
                arrays["vectors"](block.vectors)
            if "texts" in arrays:
                arrays["texts"](np.array([block.texts[name] for name in block.rows.categories.tolist()]))
            more = {}
            if like_clip_retrieval:  # its own two columns
                paths = [path or key for path, key in zip(block.rows.paths, block.rows.keys, strict=True)]
                more = {"image_path": paths, "caption": block.rows.categories.tolist()}
            arrow_table = table_of(
                block.rows, block.thumbnails, **{k: pyarrow.array(v, pyarrow.string()) for k, v in more.items()}
            )
            if table is None:
                table = stack.enter_context(
                    pyarrow.parquet.ParquetWriter(
                        files["rows"], arrow_table.schema, compression="zstd", write_page_checksum=True
                    )
                )
            table.write_table(arrow_table)


@contextmanager
def _appended_to(path: Path, shape: tuple[int, int]) -> Iterator[Callable[[npt.NDArray[Any]], int]]:
    """A numpy file of float16 that is written a piece at a time, and not mapped: a full disk would end the process."""
    with path.open("wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda piece: file.write(np.ascontiguousarray(piece, "<f2").tobytes())


def _texts(snapshot: Snapshot, positions: Positions) -> dict[str, npt.NDArray[np.float32]]:
    """The text vectors of the categories that these rows have, by name."""
    occurring = set(snapshot.column("categories")[positions].tolist())
    return {name: snapshot.texts[name] for name in sorted(occurring & snapshot.texts.keys())}


def _blocks(snapshot: Snapshot, positions: Positions) -> Iterator[Block]:
    """The rows with their thumbnails; one block without rows if there are none."""
    if not len(positions):
        yield Block(snapshot.space, snapshot.rows.take(positions), np.zeros((0, snapshot.space.dim), np.float32))
    start = 0
    for block in snapshot.blocks(BLOCK_ROWS, positions):
        pictures = snapshot.thumbnails(positions[start : start + len(block)]) if snapshot.has_thumbnails else ()
        yield Block(block.space, block.rows, block.vectors, pictures, block.texts)
        start += len(block)


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside it that becomes `folder` when all went well."""
    aside = folder.with_name(folder.name + TEMPORARY)
    shutil.rmtree(aside, ignore_errors=True)
    with disk_errors(f"write {folder}"):
        try:
            make_folder(aside)
            yield aside
            for path in (aside, *aside.rglob("*")):
                flush(path)
            aside.replace(folder)
            flush(folder.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
