"""Cost of indexing apart from the encoder: reading, listing, peak memory and time to the first batch.

    python -m clipfake.benchmarks.indexing --images ../shared/data/minifact/* \\
        --encoder ../shared/encoders/clip-vit-base-patch32-untrained --untrained

`--only read list memory start` selects parts. Prints a table and one JSON object, and writes
benchmarks/results/indexing.json; parts that are not run keep their figures in that file.

read    core microseconds per image: reading its file plainly and with all checks, decoding, the thumbnail.
list    core microseconds per image to list and to count a source, by kind: a table in a folder, a table of paths, a
        zip, a folder without subfolders; with the time to the first image and the peak memory (Linux).
memory  peak resident memory of the whole pipeline for 10,000 to 1,000,000 rows of a table or members of a zip (Linux).
start   seconds to the first encoded batch of 2.5 million listed images; only the files of the first batch exist.

On a shared machine other programs slow down wall-clock times; core times are affected less.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from ..indexer.decoding.image import Pixels, decode, thumbnail
from ..indexer.encoders.base import Embeddings, Encoder, unit
from ..indexer.encoders.encoder_name import model_id_of, seed_of
from ..indexer.encoders.load import load_encoder
from ..indexer.index import IndexOptions, index
from ..indexer.report import IndexReport
from ..indexer.sources.archives.zip_directory import END, END_64, IN_EXTRA, LOCATOR_64
from ..indexer.sources.folders import FolderSource, count, expand, images_in
from ..indexer.sources.image_ref import ByteSource, InMemory, LocalFile
from ..store.space import Space
from ..store.store import Store
from .common import command
from .common.architecture import write_checkpoint
from .throughput import link_images, machine

RESULTS = Path(__file__).parent / "results"
PARTS = ("read", "list", "memory", "start")
LIST_ROWS = 1_000_000
MEMORY_ROWS = (10_000, 100_000, 1_000_000)
START_ROWS = 2_500_000
NAME = "data/{:09d}.jpg"  # names of the members of a generated zip
REPEATS = 5
PROGRAM = "import json, sys; from clipfake.benchmarks import indexing; print(json.dumps(indexing.{}))"


class TrivialEncoder(Encoder):
    """An encoder that does no work: each image gets one of 1024 random 512-d vectors."""

    def __init__(self) -> None:
        self._space = Space("trivial", "7e" * 32, 512)
        self._vectors = unit(np.random.default_rng(0).standard_normal((1024, 512)))

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        return np.resize(self._vectors, (len(images), 512))


@dataclass(frozen=True)
class RepeatedImageFolder(FolderSource):
    """A folder whose table may name any number of files: all have the bytes of one image."""

    content: bytes = b""

    def locate(self, inside: str) -> tuple[str, ByteSource | None]:
        return f"{self.path}/{inside}", InMemory(self.content, 0)


def tiny_jpeg() -> bytes:
    """A JPEG of 16 x 16 pixels."""
    out = io.BytesIO()
    Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def memory_mib(field: str) -> float:
    """Memory of this process in MiB, from a field of /proc/self/status: VmHWM (the peak), VmRSS or RssAnon."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def core_microseconds(call: Callable[[Any], object], values: Sequence[Any]) -> float:
    """Core microseconds per call, the best of several rounds over all values."""
    best = float("inf")
    for _ in range(REPEATS):
        began = time.process_time()
        for value in values:
            call(value)
        best = min(best, time.process_time() - began)
    return round(best / len(values) * 1e6, 2)


def measure_reading(paths: Sequence[Path]) -> dict[str, float]:
    """Core microseconds per image for reading and decoding.

    Returns
    -------
    dict
        `plain_read` (open and read), `read` (with all checks), `decode` (with digest and header), `thumbnail`, and
        `images`.
    """
    names = [str(path) for path in paths]
    contents = [path.read_bytes() for path in paths]
    return {
        "images": len(paths),
        "plain_read": core_microseconds(_read_plainly, names),
        "read": core_microseconds(lambda name: LocalFile(name).read(), names),
        "decode": core_microseconds(decode, contents),
        "thumbnail": core_microseconds(thumbnail, [decode(content).pixels for content in contents]),
    }


def _read_plainly(name: str) -> bytes:
    with open(name, "rb") as file:  # noqa: PTH123 - the baseline of the comparison
        return file.read()


def measure_listing(path: str) -> dict[str, float]:
    """Cost of listing and of counting a source in this process."""
    [source], initial_mib = expand([path]), memory_mib("VmRSS")
    began, wall = time.process_time(), time.perf_counter()
    entries = images_in([source])
    next(entries)
    first_image = time.perf_counter() - wall
    images = 1 + sum(1 for _ in entries)
    spent, peak = time.process_time() - began, memory_mib("VmHWM")
    began = time.process_time()
    counted = count([path])
    return {
        "images": images,
        "first_image_seconds": round(first_image, 2),
        "microseconds_an_image": round(spent / images * 1e6, 2),
        "peak_mib": round(peak - initial_mib, 1),
        "counted": counted or 0,
        "count_microseconds_an_image": round((time.process_time() - began) / images * 1e6, 3),
    }


def measure_all_listings(paths: Sequence[Path], rows: int = LIST_ROWS) -> dict[str, Any]:
    """Cost of listing by kind of source, each in a new process.

    Returns
    -------
    dict
        By kind (`metadata.csv`, `list.csv`, `zip`, `folder`): `images`, `first_image_seconds` (wall),
        `microseconds_an_image` (core), `peak_mib` (growth of the resident memory), `counted` and
        `count_microseconds_an_image` (core).
    """
    program = PROGRAM.format("measure_listing(sys.argv[1])")
    result: dict[str, Any] = {}
    for kind in ("metadata.csv", "list.csv", "zip", "folder"):
        with tempfile.TemporaryDirectory() as folder:
            source = make_source(kind, Path(folder), paths, rows)
            result[kind] = json.loads(_run_python(program, str(source)))
    return result


def measure_peak_memory(rows: int, kind: str) -> dict[str, float]:
    """Peak memory of this process while it indexes `rows` images of a kind of source."""
    initial, anonymous = memory_mib("VmRSS"), 0.0

    def on_progress(report: IndexReport) -> None:
        nonlocal anonymous
        anonymous = max(anonymous, memory_mib("RssAnon"))

    with tempfile.TemporaryDirectory() as folder:
        encoder, path = TrivialEncoder(), make_source(kind, Path(folder), [], rows)
        source = RepeatedImageFolder(path, content=tiny_jpeg()) if kind == "metadata.csv" else path
        options = IndexOptions(text=False, thumbnails=False, batch_size=1024)
        report = index([source], Store.create(Path(folder) / "s", encoder.space), encoder, options, on_progress)
    assert report.added == rows
    figures = {"before_mib": initial, "peak_mib": memory_mib("VmHWM"), "peak_without_files_mib": anonymous}
    return {**{k: round(v, 1) for k, v in figures.items()}, "rows_per_second": round(rows / report.seconds)}


def measure_memory(rows: Sequence[int] = MEMORY_ROWS) -> dict[str, Any]:
    """Peak memory by kind of source and number of rows, each in a new process.

    Returns
    -------
    dict
        By kind (`metadata.csv`, `zip`): by rows, `before_mib` (with all imports), `peak_mib`, `peak_without_files_mib`
        (without file pages, which the system can reclaim), `rows_per_second`; and `peak_ratio` (most rows over fewest)
        and `bytes_per_row` of growth. Beside the kinds, the `peak_ratio` of `metadata.csv`.
    """
    program = PROGRAM.format("measure_peak_memory(int(sys.argv[1]), sys.argv[2])")
    result: dict[str, Any] = {}
    for kind in ("metadata.csv", "zip"):
        by_rows = {str(number): json.loads(_run_python(program, str(number), kind)) for number in rows}
        smallest, largest = (by_rows[str(number)]["peak_mib"] for number in (rows[0], rows[-1]))
        bytes_per_row = round(2**20 * (largest - smallest) / max(rows[-1] - rows[0], 1))
        result[kind] = {**by_rows, "peak_ratio": round(largest / smallest, 3), "bytes_per_row": bytes_per_row}
    return {**result, "peak_ratio": result["metadata.csv"]["peak_ratio"]}


class FirstBatchEncoded(Exception):
    """Raised when the first batch has been encoded."""


class StopAfterFirstBatch(Encoder):
    """An encoder that stops the run after its first batch."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._space = inner.space

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        self._inner.encode(images)
        raise FirstBatchEncoded


def make_source(kind: str, folder: Path, paths: Sequence[Path], rows: int) -> Path:
    """Create a source that lists `rows` images; the first ones are `paths`, the others do not exist."""
    if kind == "zip":
        return make_zip(folder / "images.zip", rows, paths[0].read_bytes() if paths else tiny_jpeg())
    if kind == "folder":
        (folder / "images").mkdir()
        for i in range(rows):
            path = folder / f"images/{i:07d}.jpg"
            if i % 50_000 == 0:  # ext4 allows 65,000 hard links to a file
                (first := path).touch()
            else:
                os.link(first, path)
        return folder / "images"
    link_images(folder / "images", paths)
    names = sorted(path.name for path in (folder / "images").iterdir())
    table_folder, prefix = (folder / "images", "") if kind == "metadata.csv" else (folder, "images/")
    with (table_folder / kind).open("w") as table:
        table.write("filename,image_path,target,category\n")
        for i in range(rows):
            name = names[i] if i < len(names) else f"{i:07d}.jpg"
            table.write(f"{name},{prefix}{name},{i % 2},category-{i % 400}\n")
    return table_folder if kind == "metadata.csv" else table_folder / kind


def make_zip(path: Path, rows: int, content: bytes) -> Path:
    """Create a zip whose directory lists one image `rows` times, without storing copies of it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(NAME.format(0), content)
    archive_bytes = path.read_bytes()
    start, end = archive_bytes.index(b"PK\1\2"), archive_bytes.index(b"PK\5\6")
    before, after = archive_bytes[start:end].split(NAME.format(0).encode())
    with path.open("wb") as file:
        file.write(archive_bytes[:start])
        file.writelines(before + NAME.format(i).encode() + after for i in range(rows))
        directory_end = file.tell()
        file.write(END_64.pack(b"PK\6\6", END_64.size - 12, 45, 45, 0, 0, rows, rows, directory_end - start, start))
        file.write(LOCATOR_64.pack(b"PK\6\7", 0, directory_end, 1))
        file.write(END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, IN_EXTRA, IN_EXTRA, 0))
    return path


def measure_first_batch(path: str, encoder_name: str) -> dict[str, float]:
    """Seconds in this process until the first batch of a source is encoded."""
    started = time.perf_counter()
    encoder = load_encoder(encoder_name)
    loaded, core = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "s", encoder.space)
        options = IndexOptions(text=False, batch_size=encoder.batch_size)
        with suppress(FirstBatchEncoded):
            index([path], store, StopAfterFirstBatch(encoder), options)
    ended, core = time.perf_counter(), time.process_time() - core
    spent = {"encoder": loaded - started, "listing_to_first_batch": ended - loaded, "listing_to_first_batch_core": core}
    return {name: round(seconds, 2) for name, seconds in spent.items()}


def measure_start(
    paths: Sequence[Path], encoder: str, *, rows: int = START_ROWS, zip_rows: int | None = None
) -> dict[str, Any]:
    """Start-up time by kind of source, each in a new process.

    Returns
    -------
    dict
        By kind (`metadata.csv`, `list.csv`, `zip`): `rows`, `seconds` (the whole process until the first batch is
        encoded), and its parts `encoder` (loading it) and `listing_to_first_batch` (with encoding that batch), the
        latter in core seconds too, which other programs do not disturb.
    """
    if seed_of(encoder) is not None:  # drawing random weights would take longer than reading them
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = write_checkpoint(Path(folder) / "clip", model_id_of(encoder)[0])
            return measure_start(paths, str(checkpoint), rows=rows, zip_rows=zip_rows)
    result: dict[str, Any] = {}
    program = PROGRAM.format("measure_first_batch(*sys.argv[1:])")
    for kind, number in {"metadata.csv": rows, "list.csv": rows, "zip": rows if zip_rows is None else zip_rows}.items():
        with tempfile.TemporaryDirectory() as folder:
            source = make_source(kind, Path(folder), paths, number)
            began = time.perf_counter()
            spent = json.loads(_run_python(program, str(source), encoder))
            result[kind] = {"rows": number, "seconds": round(time.perf_counter() - began, 2), **spent}
    return result


def _run_python(program: str, *arguments: str) -> str:
    command_line = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command_line, check=True, capture_output=True, text=True).stdout


def run(paths: Sequence[Path], encoder: str, only: Sequence[str], **sizes: Any) -> dict[str, Any]:
    """Run the selected parts; each result names its machine.

    Parameters
    ----------
    sizes : `list_rows`, `memory_rows`, `start_rows` and `zip_rows` (None: as many as `start_rows`)
    """
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "read": lambda: measure_reading(paths),
        "list": lambda: measure_all_listings(paths, sizes["list_rows"]),
        "memory": lambda: measure_memory(sizes["memory_rows"]),
        "start": lambda: measure_start(paths, encoder, rows=sizes["start_rows"], zip_rows=sizes["zip_rows"]),
    }
    result: dict[str, Any] = {}
    for part in only:
        load = os.getloadavg()[0]
        result[part] = {"machine": machine(), "load_before": round(load, 1), **parts[part]()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_images_option(parser)
    command.add_encoder_options(parser)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--list-rows", type=int, default=LIST_ROWS, help="images per listed source")
    parser.add_argument("--memory-rows", nargs="+", type=int, default=list(MEMORY_ROWS), help="numbers of indexed rows")
    parser.add_argument("--start-rows", type=int, default=START_ROWS, help="listed images of the start")
    parser.add_argument("--zip-rows", type=int, help="listed images of the start from a zip (default: --start-rows)")
    parser.add_argument("--out", type=Path, default=RESULTS / "indexing.json", help="file to update with the results")
    options = command.parse_options(parser)
    paths = command.image_paths(options.pop("images"), 64)
    out = options.pop("out")
    result = run(paths, options.pop("encoder"), options.pop("only"), **options)
    earlier = json.loads(out.read_text()) if out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**earlier, **result}, indent=1) + "\n")
    command.print_result(result)


if __name__ == "__main__":
    main()
