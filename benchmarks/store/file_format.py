"""Cost of reading and writing a store's files, compared with plain numpy.

    python -m clipfake.benchmarks.store.file_format --rows 1000000 --metadata-rows 2500000

Measured, with interleaved repeats:

- reading all vectors in order, and 20,000 random rows, from the store's shards and from one `numpy.memmap` of
  the same bytes, both in the page cache;
- reading keys, labels and sources of a store of many rows in a new process, with its memory;
- finding the nearest neighbours of each of a number of rows among all of them;
- core time per appended row, 256 at a time with a thumbnail of 3 KB each, sealed in shards of 16,384, and of appending
  the same rows again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...store.maintenance.near_duplicates import all_pairs
from ...store.records import Block
from ...store.snapshot import Snapshot
from ...store.store import Store
from ..common import command
from ..common.synthetic_rows import space, synthetic
from ..throughput import machine

DIM = 512
RANDOM_ROWS = 20_000
ROWS_PER_READ = 16_384
APPENDED_ROWS = 65_536
BATCH = 256
THUMBNAIL = 3000  # bytes


def create_store(folder: Path, rows: int, dim: int) -> Store:
    store = Store.create(folder, space(dim))
    with store.writer("synthetic") as writer:
        if not len(writer.snapshot):
            for block in synthetic(rows, dim):
                writer.append(block)
    return store


def run(rows: int, metadata_rows: int, pairs_rows: int, repeats: int) -> dict[str, Any]:
    """Median ratios to numpy.memmap (above 1: the store is faster), and the cost of metadata and neighbours."""
    result: dict[str, Any] = {"machine": machine(), "rows": rows, "dim": DIM}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        result |= vectors(create_store(folder / "s", rows, DIM).snapshot(), folder / "plain.npy", repeats)
        result["append_microseconds"] = appending(folder / "a", min(rows, APPENDED_ROWS))
        result["all_pairs"] = pairs(create_store(folder / "s", rows, DIM).snapshot(), folder / "pairs", pairs_rows)
        create_store(folder / "m", metadata_rows, 4)
        with multiprocessing.get_context("spawn").Pool(1) as process:
            result["metadata"] = {"rows": metadata_rows, **process.apply(metadata, (str(folder / "m"),))}
    return result


def appending(folder: Path, rows: int) -> dict[str, float]:
    """Core microseconds per row until it is sealed; "user" excludes the kernel's time for writing."""
    rng = np.random.default_rng(0)
    thumbnails = [rng.bytes(THUMBNAIL) for _ in range(BATCH)]
    blocks = [
        Block(block.space, block.rows, block.vectors, tuple(thumbnails[: len(block)]))
        for block in synthetic(rows, DIM, size=BATCH)
    ]
    store, result = Store.create(folder, space(DIM)), {}
    for name in ("new", "known"):
        began = os.times()
        with store.writer(seconds_per_shard=1e9) as writer:
            for block in blocks:
                writer.append(block)
        ended = os.times()
        result[f"{name}_user"] = round((ended.user - began.user) / rows * 1e6, 2)
        result[f"{name}_all"] = round(result[f"{name}_user"] + (ended.system - began.system) / rows * 1e6, 2)
    return result


def vectors(snapshot: Snapshot, copy: Path, repeats: int) -> dict[str, Any]:
    """Cost of reading a snapshot's vectors, compared with reading the same bytes from one plain file."""
    rows = len(snapshot)
    written = np.lib.format.open_memmap(copy, "w+", np.float16, (rows, DIM))
    for start in range(0, rows, ROWS_PER_READ):
        written[start : start + ROWS_PER_READ] = snapshot.vectors(slice(start, start + ROWS_PER_READ), np.float16)
    written.flush()
    plain = np.load(copy, mmap_mode="r")
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in ("order", "order_plain", "random", "random_plain")}
    for repeat in range(repeats + 1):  # the first repeat brings both into the page cache
        positions = rng.integers(0, rows, RANDOM_ROWS)
        reads: dict[str, Callable[[], object]] = {
            "order": lambda: _in_order(lambda part: snapshot.vectors(part, np.float16), rows),
            "order_plain": lambda: _in_order(lambda part: np.array(plain[part]), rows),
            "random": partial(snapshot.vectors, positions, np.float16),
            "random_plain": partial(plain.__getitem__, positions),
        }
        for name, read in reads.items():
            elapsed = timed(read)
            if repeat:
                seconds[name].append(elapsed)
    return {
        "gigabytes_per_second": {
            name: round(rows * DIM * 2 / float(np.median(seconds[name])) / 1e9, 2) for name in ("order", "order_plain")
        },
        "order_to_memmap": ratio(seconds["order_plain"], seconds["order"]),
        "random_to_memmap": ratio(seconds["random_plain"], seconds["random"]),
    }


def pairs(snapshot: Snapshot, folder: Path, rows: int) -> dict[str, Any]:
    """Cost of finding the ten nearest neighbours of each of the first rows among themselves."""
    elapsed = timed(lambda: all_pairs(snapshot, folder, 10, np.arange(len(snapshot)) < rows))
    return {"rows": rows, "seconds": round(elapsed, 2), "million_pairs_per_second": round(rows**2 / elapsed / 1e6, 1)}


def metadata(folder: str) -> dict[str, float]:
    """Seconds and MiB needed in this process to read keys, labels and sources of a store."""
    snapshot = Store.open(folder).snapshot()
    before = _resident()
    began = time.perf_counter()
    columns = [snapshot.column(name) for name in ("keys", "labels", "sources")]
    seconds = time.perf_counter() - began
    assert len({len(column) for column in columns}) == 1
    return {
        "seconds": round(seconds, 2),
        "mebibytes": round((_resident() - before) / 2**20),
        "peak_mebibytes": round((_peak() - before) / 2**20),
    }


def ratio(plain: list[float], ours: list[float]) -> float:
    """Median of the ratios of paired repeats."""
    return round(float(np.median(np.array(plain) / np.array(ours))), 3)


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _in_order(read: Callable[[slice], Any], rows: int) -> None:
    for start in range(0, rows, ROWS_PER_READ):
        read(slice(start, min(start + ROWS_PER_READ, rows)))


def _resident() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    """A field of /proc/self/status in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of vectors")
    parser.add_argument("--metadata-rows", type=int, default=2_500_000, help="rows of metadata")
    parser.add_argument("--pairs-rows", type=int, default=50_000, help="rows of the neighbour search")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats; medians are printed")
    options = parser.parse_args()
    command.print_result(run(options.rows, options.metadata_rows, options.pairs_rows, options.repeats))


if __name__ == "__main__":
    main()
