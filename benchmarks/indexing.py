"""What indexing costs besides the encoder: reading, listing, memory that does not grow, and a start without a wait.

    python -m clipfake.benchmarks.indexing --images ../shared/data/minifact/* \\
        --encoder ../shared/encoders/clip-vit-base-patch32-untrained --untrained

`--only read list memory start` chooses parts. Prints a table and one JSON object, and writes
benchmarks/results/indexing.json; parts that were not run keep the figures the file has.

read    core microseconds an image: opening and reading its file plainly and as we do, decoding, the thumbnail.
list    core microseconds an image listed, and to count them, by kind of source: a table in a folder, a table of paths,
        a zip, a folder without subfolders; with the time to the first image and the peak of memory (Linux).
memory  peak of the resident memory for 10,000 to 1,000,000 rows of a table, or members of a zip, through the pipeline
        into a store (Linux).
start   seconds to the first encoded batch of 2.5 million listed images; only the first of them are there.

Other people's programs count in all times of a shared machine, and less in core time.
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

from ..errors import EncoderError
from ..indexer.decoding.image import Pixels, decode, thumbnail
from ..indexer.encoders.base import Embeddings, unit
from ..indexer.encoders.encoder_spec import place_of, seed_of
from ..indexer.encoders.load import load_encoder
from ..indexer.index import IndexOptions, default_batch_size, index
from ..indexer.report import IndexReport
from ..indexer.sources.folders import FolderSource, count, expand, listing
from ..indexer.sources.image_ref import ByteSource, InMemory, LocalFile
from ..indexer.sources.zip_directory import END, END_64, IN_EXTRA, LOCATOR_64
from ..store.space import Space
from ..store.store import Store
from .common import command
from .common.architecture import write_checkpoint
from .throughput import linked, machine

RESULTS = Path(__file__).parent / "results"
PARTS = ("read", "list", "memory", "start")
LIST_ROWS = 1_000_000
MEMORY_ROWS = (10_000, 100_000, 1_000_000)
START_ROWS = 2_500_000
NAME = "data/{:09d}.jpg"  # of a member of a zip that we make
REPEATS = 5


class Trivial:
    """An encoder that does no work: 512 numbers an image, from a list of random ones."""

    has_text = False

    def __init__(self) -> None:
        self.space = Space("trivial", "7e" * 32, 512)
        self._vectors = unit(np.random.default_rng(0).standard_normal((1024, 512)))

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        return np.resize(self._vectors, (len(images), 512))

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        raise EncoderError("the trivial encoder knows no text")


@dataclass(frozen=True)
class OnePicture(FolderSource):
    """A folder whose table names as many files as it likes: each has the bytes of one."""

    content: bytes = b""

    def place(self, inside: str) -> tuple[str, ByteSource | None]:
        return f"{self.at}/{inside}", InMemory(self.content, 0)


def tiny() -> bytes:
    """A JPEG of 16 x 16 pixels."""
    out = io.BytesIO()
    Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def resident(what: str) -> float:
    """MiB of this process by a line of Linux's /proc/self/status: VmHWM (the peak), VmRSS or RssAnon."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:"))


def core_microseconds(do: Callable[[Any], object], values: Sequence[Any]) -> float:
    """Core time for one of these values, the best of a few rounds."""
    best = float("inf")
    for _ in range(REPEATS):
        began = time.process_time()
        for value in values:
            do(value)
        best = min(best, time.process_time() - began)
    return round(best / len(values) * 1e6, 2)


def read(paths: Sequence[Path]) -> dict[str, float]:
    """Core microseconds an image.

    Returns
    -------
    dict
        `plain_read` (open and read), `read` (with all that is checked), `decode` (with its digest and the header's
        facts), `thumbnail`, and `images`.
    """
    names = [str(path) for path in paths]
    contents = [path.read_bytes() for path in paths]
    return {
        "images": len(paths),
        "plain_read": core_microseconds(_plainly, names),
        "read": core_microseconds(lambda name: LocalFile(name).read(), names),
        "decode": core_microseconds(decode, contents),
        "thumbnail": core_microseconds(thumbnail, [decode(content).pixels for content in contents]),
    }


def _plainly(name: str) -> bytes:
    with open(name, "rb") as file:  # noqa: PTH123 - what it is measured against
        return file.read()


def cost(at: str) -> dict[str, float]:
    """What listing a source costs this process."""
    [source], before = expand([at]), resident("VmRSS")
    began, wall = time.process_time(), time.perf_counter()
    entries = listing([source])
    next(entries)
    first = time.perf_counter() - wall
    images = 1 + sum(1 for _ in entries)
    spent, peak = time.process_time() - began, resident("VmHWM")
    began = time.process_time()
    counted = count([at])
    return {
        "images": images,
        "first_image_seconds": round(first, 2),
        "microseconds_an_image": round(spent / images * 1e6, 2),
        "peak_mib": round(peak - before, 1),
        "counted": counted or 0,
        "count_microseconds_an_image": round((time.process_time() - began) / images * 1e6, 3),
    }


def list_all(paths: Sequence[Path], rows: int = LIST_ROWS) -> dict[str, Any]:
    """What listing costs by kind of source, each in a new process.

    Returns
    -------
    dict
        By kind (`metadata.csv`, `list.csv`, `zip`, `folder`): `images`, `first_image_seconds` (wall),
        `microseconds_an_image` (core), `peak_mib` (growth of the resident memory), `counted` and
        `count_microseconds_an_image` (core).
    """
    program = "import json, sys; from clipfake.benchmarks.indexing import cost; print(json.dumps(cost(sys.argv[1])))"
    told: dict[str, Any] = {}
    for kind in ("metadata.csv", "list.csv", "zip", "folder"):
        with tempfile.TemporaryDirectory() as folder:
            told[kind] = json.loads(_said(program, str(listed(kind, Path(folder), paths, rows))))
    return told


def filled(rows: int, kind: str) -> dict[str, float]:
    """What indexing so many images of a kind of source holds in this process' memory."""
    before, own = resident("VmRSS"), 0.0

    def look(report: IndexReport) -> None:
        nonlocal own
        own = max(own, resident("RssAnon"))

    with tempfile.TemporaryDirectory() as folder:
        encoder, at = Trivial(), listed(kind, Path(folder), [], rows)
        source = OnePicture(at, tiny()) if kind == "metadata.csv" else at
        options = IndexOptions(text=False, thumbnails=False, batch_size=1024)
        report = index([source], Store.create(Path(folder) / "s", encoder.space), encoder, options, look)
    assert report.added == rows
    figures = {"before_mib": before, "peak_mib": resident("VmHWM"), "peak_without_files_mib": own}
    return {**{k: round(v, 1) for k, v in figures.items()}, "rows_per_second": round(rows / report.seconds)}


def memory(rows: Sequence[int] = MEMORY_ROWS) -> dict[str, Any]:
    """Peaks by kind of source and number of rows, each in a new process, and the last over the first.

    Returns
    -------
    dict
        By kind (`metadata.csv`, `zip`): by rows, `before_mib` (with all imports), `peak_mib`, `peak_without_files_mib`
        (without pages of files that the system takes back when it needs them), `rows_per_second`; and `peak_ratio`,
        `bytes_per_row` (of growth). Beside the kinds, the table's `peak_ratio`.
    """
    call = "import json, sys; from clipfake.benchmarks import indexing; "
    program = call + "print(json.dumps(indexing.filled(int(sys.argv[1]), sys.argv[2])))"
    told: dict[str, Any] = {}
    for kind in ("metadata.csv", "zip"):
        by_rows = {str(number): json.loads(_said(program, str(number), kind)) for number in rows}
        few, many = (by_rows[str(number)]["peak_mib"] for number in (rows[0], rows[-1]))
        grown = round(2**20 * (many - few) / max(rows[-1] - rows[0], 1))
        told[kind] = {**by_rows, "peak_ratio": round(many / few, 3), "bytes_per_row": grown}
    return {**told, "peak_ratio": told["metadata.csv"]["peak_ratio"]}


class Begun(Exception):
    """The first batch is encoded."""


class First:
    """An encoder that ends the run once it has encoded a batch."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.space, self.has_text = inner.space, False

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        self._inner.encode(images)
        raise Begun

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        raise EncoderError("only images are measured")


def listed(kind: str, folder: Path, paths: Sequence[Path], rows: int) -> Path:
    """A source of so many images, of which the first are `paths`."""
    if kind == "zip":
        return zipped(folder / "images.zip", rows, paths[0].read_bytes() if paths else tiny())
    if kind == "folder":
        (folder / "images").mkdir()
        for i in range(rows):
            path = folder / f"images/{i:07d}.jpg"
            if i % 50_000 == 0:  # a file may have 65,000 names
                (first := path).touch()
            else:
                os.link(first, path)
        return folder / "images"
    linked(folder / "images", paths)
    names = sorted(path.name for path in (folder / "images").iterdir())
    at, inside = (folder / "images", "") if kind == "metadata.csv" else (folder, "images/")
    with (at / kind).open("w") as table:
        table.write("filename,image_path,target,category\n")
        for i in range(rows):
            name = names[i] if i < len(names) else f"{i:07d}.jpg"
            table.write(f"{name},{inside}{name},{i % 2},category-{i % 400}\n")
    return at if kind == "metadata.csv" else at / kind


def zipped(at: Path, rows: int, content: bytes) -> Path:
    """A zip that names one image so many times: a true directory without a disk full of copies."""
    with zipfile.ZipFile(at, "w") as archive:
        archive.writestr(NAME.format(0), content)
    whole = at.read_bytes()
    start, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    before, after = whole[start:end].split(NAME.format(0).encode())
    with at.open("wb") as file:
        file.write(whole[:start])
        file.writelines(before + NAME.format(i).encode() + after for i in range(rows))
        ends = file.tell()
        file.write(END_64.pack(b"PK\6\6", END_64.size - 12, 45, 45, 0, 0, rows, rows, ends - start, start))
        file.write(LOCATOR_64.pack(b"PK\6\7", 0, ends, 1))
        file.write(END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, IN_EXTRA, IN_EXTRA, 0))
    return at


def begun(at: str, encoder: str) -> dict[str, float]:
    """Seconds of this process until a source's first batch is encoded."""
    start = time.perf_counter()
    told = load_encoder(encoder)
    loaded, core = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "s", told.space)
        with suppress(Begun):
            index([at], store, First(told), IndexOptions(text=False, batch_size=default_batch_size(told)))
    now, core = time.perf_counter(), time.process_time() - core
    spent = {"encoder": loaded - start, "listing_to_first_batch": now - loaded, "listing_to_first_batch_core": core}
    return {name: round(seconds, 2) for name, seconds in spent.items()}


def start(paths: Sequence[Path], encoder: str, *, rows: int = START_ROWS, zipped: int | None = None) -> dict[str, Any]:
    """Start-up by kind of source, each in a new process.

    Returns
    -------
    dict
        By kind (`metadata.csv`, `list.csv`, `zip`): `rows`, `seconds` (the whole process to the end of the first
        batch), and of them `encoder` (loading it) and `listing_to_first_batch` (with encoding that batch; also in
        seconds of core time, which others' programs do not disturb).
    """
    if seed_of(encoder) is not None:  # drawing random weights takes longer than reading them
        with tempfile.TemporaryDirectory() as folder:
            made = write_checkpoint(Path(folder) / "clip", place_of(encoder)[0])
            return start(paths, str(made), rows=rows, zipped=zipped)
    told: dict[str, Any] = {}
    program = (
        "import json, sys; from clipfake.benchmarks.indexing import begun; print(json.dumps(begun(*sys.argv[1:])))"
    )
    for kind, number in {"metadata.csv": rows, "list.csv": rows, "zip": rows if zipped is None else zipped}.items():
        with tempfile.TemporaryDirectory() as folder:
            at = listed(kind, Path(folder), paths, number)
            began = time.perf_counter()
            found = json.loads(_said(program, str(at), encoder))
            told[kind] = {"rows": number, "seconds": round(time.perf_counter() - began, 2), **found}
    return told


def _said(program: str, *told: str) -> str:
    return subprocess.run([sys.executable, "-c", program, *told], check=True, capture_output=True, text=True).stdout


def run(paths: Sequence[Path], encoder: str, only: Sequence[str], **told: Any) -> dict[str, Any]:
    """The parts that were asked for, each with the machine it ran on."""
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "read": lambda: read(paths),
        "list": lambda: list_all(paths, told["list_rows"]),
        "memory": lambda: memory(told["memory_rows"]),
        "start": lambda: start(paths, encoder, rows=told["start_rows"], zipped=told["zip_rows"]),
    }
    result: dict[str, Any] = {}
    for part in only:
        load = os.getloadavg()[0]
        result[part] = {"machine": machine(), "load_before": round(load, 1), **work[part]()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_images_option(parser)
    command.add_encoder_options(parser)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--list-rows", type=int, default=LIST_ROWS)
    parser.add_argument("--memory-rows", nargs="+", type=int, default=list(MEMORY_ROWS))
    parser.add_argument("--start-rows", type=int, default=START_ROWS)
    parser.add_argument("--zip-rows", type=int, help="default: as many as --start-rows")
    parser.add_argument("--out", type=Path, default=RESULTS / "indexing.json")
    told = command.parse_options(parser)
    paths = command.image_paths(told.pop("images"), 64)
    out = told.pop("out")
    result = run(paths, told.pop("encoder"), told.pop("only"), **told)
    before = json.loads(out.read_text()) if out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**before, **result}, indent=1) + "\n")
    command.print_result(result)


if __name__ == "__main__":
    main()
