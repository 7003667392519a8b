"""Cost of an image apart from the encoder (read, decode, thumbnail, store), and how many images a GPU can be fed.

The encoder takes no time. One process is measured, and then a driver with worker processes: core time per image, as the
difference between a large and a small run, so that start-up does not count. The maximum rate of a number of cores
(`of_cores`) is computed from these, not measured: the workers' cores divided by their core time per image, or what the
driver's one core can list and commit, whichever is lower.

    python -m clipfake.benchmarks.feeding --images ../shared/data/minifact/* --small-run 10000 --large-run 40000
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..indexer.distributed.process_pool import ProcessPool
from ..indexer.distributed.worker_pool import index_with
from ..indexer.encoder_spec import EncoderSpec
from ..indexer.encoders.base import Encoder
from ..indexer.index import IndexOptions, index
from ..indexer.sources.folders import images_in
from ..indexer.sources.image_ref import ImageRef
from ..store.store import Store
from .common import command
from .indexing import TrivialEncoder
from .throughput import machine

RESULTS = Path(__file__).parent / "results" / "feeding.json"
CORES = (4, 8, 16, 32)
BATCH = 1024  # as on a GPU


@dataclass(frozen=True)
class TrivialEncoderSpec(EncoderSpec):
    """The trivial encoder, for workers."""

    def load(self) -> Encoder:
        return TrivialEncoder()


@dataclass(frozen=True)
class RepeatedImages:
    """A source of `rows` images: the files of a listing, repeated under new keys."""

    files: tuple[ImageRef, ...]
    rows: int
    name = path = "repeated"

    def images(self) -> Iterator[ImageRef]:
        for i in range(self.rows):
            ref = self.files[i % len(self.files)]
            yield ref._replace(key=f"repeated/{i // 1000:05d}/{i:09d}.jpg", source="repeated")


def run(
    images: Sequence[str | Path],
    *,
    small_run: int = 10_000,
    large_run: int = 40_000,
    processes: int = 2,
    thumbnails: bool = True,
) -> dict[str, Any]:
    """Core microseconds per image, and the maximum rates that follow from them.

    Returns
    -------
    dict
        `one_process`: `core_us`, `images_per_second` (measured with this machine's cores); `crew` (the worker pool):
        `worker_us`, `driver_us`, `images_per_second`; `of_cores`: by number of cores, images per second and its limit.
    """
    files = tuple(ref for ref in images_in(images) if not ref.refused)
    options = IndexOptions(text=False, thumbnails=thumbnails, batch_size=BATCH)
    one_process = [_measure_one_process(RepeatedImages(files, rows), options) for rows in (small_run, large_run)]
    worker_pool = [_measure_pool(RepeatedImages(files, rows), options, processes) for rows in (small_run, large_run)]
    extra_images = large_run - small_run
    worker, driver = (
        (worker_pool[1][part] - worker_pool[0][part]) / extra_images * 1e6 for part in ("workers", "driver")
    )
    result: dict[str, Any] = {
        "machine": machine(),
        "images": large_run,
        "thumbnails": thumbnails,
        "one_process": {
            "core_us": round((one_process[1]["core"] - one_process[0]["core"]) / extra_images * 1e6, 1),
            "images_per_second": round(extra_images / (one_process[1]["wall"] - one_process[0]["wall"])),
        },
        "crew": {
            "processes": processes,
            "worker_us": round(worker, 1),
            "driver_us": round(driver, 1),
            "images_per_second": round(extra_images / max(worker_pool[1]["wall"] - worker_pool[0]["wall"], 1e-9)),
        },
    }
    result["of_cores"] = {str(cores): max_rate(cores, worker, driver) for cores in CORES}
    return result


def max_rate(cores: int, worker_us: float, driver_us: float) -> dict[str, Any]:
    """Maximum rate of a number of cores, one of them the driver's.

    >>> max_rate(17, 400.0, 20.0), max_rate(65, 400.0, 20.0)
    ({'images_per_second': 40000, 'limit': 'workers'}, {'images_per_second': 50000, 'limit': 'driver'})
    """
    rates = {"workers": (cores - 1) * 1e6 / max(worker_us, 0.1), "driver": 1e6 / max(driver_us, 0.1)}
    limit = min(rates, key=lambda part: rates[part])
    return {"images_per_second": round(rates[limit]), "limit": limit}


def _measure_one_process(source: RepeatedImages, options: IndexOptions) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        encoder = TrivialEncoder()
        store = Store.create(Path(folder) / "s", encoder.space)
        core, wall = time.process_time(), time.perf_counter()
        report = index([source], store, encoder, options)
        core, wall = time.process_time() - core, time.perf_counter() - wall
    assert report.added == source.rows, report.skipped[:3]
    return {"core": core, "wall": wall}


def _measure_pool(source: RepeatedImages, options: IndexOptions, processes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "s", TrivialEncoder().space)
        before, core, wall = _ended_children_seconds(), time.process_time(), time.perf_counter()
        with ProcessPool(TrivialEncoderSpec("trivial"), store.folder, options, processes) as pool:
            report = index_with(pool, [source], store, options)
        workers, core, wall = _ended_children_seconds() - before, time.process_time() - core, time.perf_counter() - wall
    assert report.added == source.rows, report.skipped[:3]
    return {"workers": workers, "driver": core, "wall": wall}


def _ended_children_seconds() -> float:
    """Core seconds of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_images_option(parser)
    parser.add_argument("--small-run", type=int, default=10_000, help="number of images of the small run")
    parser.add_argument("--large-run", type=int, default=40_000, help="number of images of the large run")
    parser.add_argument("--processes", type=int, default=2, help="number of worker processes")
    parser.add_argument("--no-thumbnails", dest="thumbnails", action="store_false", help="make no thumbnails")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file to write the results to")
    options = vars(parser.parse_args())
    out = options.pop("out")
    result = run(options.pop("images"), **options)
    out.write_text(json.dumps(result, indent=1) + "\n")
    command.print_result(result)


if __name__ == "__main__":
    main()
