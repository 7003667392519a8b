"""Two of the indexer's targets in one command: memory flat in the number of images, and a start without a wait.

    python -m clipfake.benchmarks.indexing --images ../shared/data/minifact/* \\
        --encoder ../shared/encoders/clip-vit-base-patch32-untrained --untrained --zip-rows 250000

`--only memory start` chooses parts. Prints a table and one JSON object, and writes benchmarks/results/indexing.json;
parts that were not run keep the figures the file has.

memory  peak of the resident memory for 10,000 to 1,000,000 images through the pipeline into a store (Linux).
start   seconds to the first encoded batch of 2.5 million listed images; only the first of them are there.

Other people's programs count in all times of a shared machine.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from ..indexer.encoder import UNTRAINED, Embeddings, unit
from ..indexer.entry import Entry, Held
from ..indexer.image import Pixels
from ..indexer.index import IndexOptions, default_batch_size, index
from ..indexer.load import load_encoder
from ..indexer.report import IndexReport
from ..store.errors import EncoderError
from ..store.space import Space
from ..store.store import Store
from . import command
from .throughput import linked, machine

RESULTS = Path(__file__).parent / "results"
PARTS = ("memory", "start")
MEMORY_ROWS = (10_000, 100_000, 1_000_000)
START_ROWS = 2_500_000


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
class Repeated:
    """A source of one tiny image under so many keys."""

    rows: int
    content: bytes
    name = at = "repeated"

    def entries(self) -> Iterator[Entry]:
        place = Held(self.content, 0)
        for i in range(self.rows):
            key = f"repeated/{i // 1000:05d}/{i:09d}.jpg"
            yield Entry(key, f"/{key}", 0, 0, "repeated", "", f"category-{i % 400}", where=place)


def tiny() -> bytes:
    """A JPEG of 16 x 16 pixels."""
    out = io.BytesIO()
    Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def resident(what: str) -> float:
    """MiB of this process by a line of Linux's /proc/self/status: VmHWM (the peak), VmRSS or RssAnon."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:"))


def filled(rows: int) -> dict[str, float]:
    """What indexing so many images holds in this process' memory."""
    before, own = resident("VmRSS"), 0.0

    def look(report: IndexReport) -> None:
        nonlocal own
        own = max(own, resident("RssAnon"))

    with tempfile.TemporaryDirectory() as folder:
        encoder = Trivial()
        options = IndexOptions(text=False, thumbnails=False, batch_size=1024)
        report = index(
            [Repeated(rows, tiny())], Store.create(Path(folder) / "s", encoder.space), encoder, options, look
        )
    assert report.added == rows
    figures = {"before_mib": before, "peak_mib": resident("VmHWM"), "peak_without_files_mib": own}
    return {**{k: round(v, 1) for k, v in figures.items()}, "rows_per_second": round(rows / report.seconds)}


def memory(rows: Sequence[int] = MEMORY_ROWS) -> dict[str, Any]:
    """Peaks by number of rows, each in a new process, and the last over the first.

    Returns
    -------
    dict
        By rows: `before_mib` (with all imports), `peak_mib`, `peak_without_files_mib` (without pages of files that the
        system takes back when it needs them), `rows_per_second`; and `peak_ratio`, `bytes_per_row` (of growth).
    """
    call = "import json, sys; from clipfake.benchmarks import indexing; "
    told: dict[str, Any] = {}
    for count in rows:
        program = call + "print(json.dumps(indexing.filled(int(sys.argv[1]))))"
        told[str(count)] = json.loads(_said(program, str(count)))
    few, many = (told[str(count)] for count in (rows[0], rows[-1]))
    told["peak_ratio"] = round(many["peak_mib"] / few["peak_mib"], 3)
    told["bytes_per_row"] = round(2**20 * (many["peak_mib"] - few["peak_mib"]) / max(rows[-1] - rows[0], 1))
    return told


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
    """A source of so many images, `paths` over and over or the first of them."""
    if kind == "zip":
        at = folder / "images.zip"
        content = [path.read_bytes() for path in paths]
        with zipfile.ZipFile(at, "w") as archive:
            for i in range(rows):
                archive.writestr(f"x/{i:07d}.jpg", content[i] if i < len(content) else b"")
        return at
    linked(folder / "images", paths)
    names = sorted(path.name for path in (folder / "images").iterdir())
    at, inside = (folder / "images", "") if kind == "metadata.csv" else (folder, "images/")
    with (at / kind).open("w") as table:
        table.write("filename,image_path,target,category\n")
        for i in range(rows):
            name = names[i] if i < len(names) else f"{i:07d}.jpg"
            table.write(f"{name},{inside}{name},{i % 2},category-{i % 400}\n")
    return at if kind == "metadata.csv" else at / kind


def begun(at: str, encoder: str) -> dict[str, float]:
    """Seconds of this process until a source's first batch is encoded."""
    start = time.perf_counter()
    told = load_encoder(encoder)
    loaded = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "s", told.space)
        with suppress(Begun):
            index([at], store, First(told), IndexOptions(text=False, batch_size=default_batch_size(told)))
    now = time.perf_counter()
    return {"encoder": round(loaded - start, 2), "listing_to_first_batch": round(now - loaded, 2)}


def start(paths: Sequence[Path], encoder: str, *, rows: int = START_ROWS, zipped: int | None = None) -> dict[str, Any]:
    """Start-up by kind of source, each in a new process.

    Returns
    -------
    dict
        By kind (`metadata.csv`, `list.csv`, `zip`): `rows`, `seconds` (the whole process to the end of the first
        batch), and of them `encoder` (loading it) and `listing_to_first_batch` (with encoding that batch).
    """
    told: dict[str, Any] = {}
    program = (
        "import json, sys; from clipfake.benchmarks.indexing import begun; print(json.dumps(begun(*sys.argv[1:])))"
    )
    for kind, count in {"metadata.csv": rows, "list.csv": rows, "zip": rows if zipped is None else zipped}.items():
        with tempfile.TemporaryDirectory() as folder:
            at = listed(kind, Path(folder), paths, count)
            began = time.perf_counter()
            found = json.loads(_said(program, str(at), encoder))
            told[kind] = {"rows": count, "seconds": round(time.perf_counter() - began, 2), **found}
    return told


def _said(program: str, *told: str) -> str:
    return subprocess.run([sys.executable, "-c", program, *told], check=True, capture_output=True, text=True).stdout


def run(paths: Sequence[Path], encoder: str, only: Sequence[str], **told: Any) -> dict[str, Any]:
    """The parts that were asked for, each with the machine it ran on."""
    work: dict[str, Callable[[], dict[str, Any]]] = {
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
    parser.add_argument("--images", nargs="+", required=True, metavar="FOLDERS")
    parser.add_argument("--encoder", default="openai/clip-vit-base-patch32", help="hub id or directory of a CLIP")
    parser.add_argument("--untrained", action="store_true", help="random weights of seed 0: speed, not accuracy")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--memory-rows", nargs="+", type=int, default=list(MEMORY_ROWS))
    parser.add_argument("--start-rows", type=int, default=START_ROWS)
    parser.add_argument("--zip-rows", type=int, help="default: as many as --start-rows")
    parser.add_argument("--out", type=Path, default=RESULTS / "indexing.json")
    told = vars(parser.parse_args())
    encoder = f"{UNTRAINED}0:{told['encoder']}" if told.pop("untrained") else told["encoder"]
    paths = command.image_paths(told.pop("images"), 64)
    out, only = told.pop("out"), told.pop("only")
    told.pop("encoder")
    result = run(paths, encoder, only, **told)
    before = json.loads(out.read_text()) if out.exists() else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**before, **result}, indent=1) + "\n")
    command.tell(result)


if __name__ == "__main__":
    main()
