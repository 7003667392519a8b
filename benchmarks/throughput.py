"""Images per second, end to end and by stage, beside the naive script in the same run.

Absolute rates on a shared machine are unreliable; ratios within one run are not. The repeats of the stages are
interleaved, and medians of the rates and of each repeat's ratios are reported. Rates per core-second (`per_cpu_second`)
are not affected by other programs.

    python -m clipfake.benchmarks.throughput --images ../shared/data/minifact/* \\
        --encoder ../shared/encoders/clip-vit-base-patch32-untrained --untrained --precision float32,bf16 --limit 128
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..indexer.decoding.image import Pixels, decode
from ..indexer.distributed.process_pool import ProcessPool
from ..indexer.distributed.worker_pool import index_with
from ..indexer.encoder_spec import EncoderSpec
from ..indexer.encoders.base import Embeddings, Encoder
from ..indexer.index import IndexOptions, index
from ..store.records import Block, Rows
from ..store.store import Store
from .common import command
from .common.naive import load_naive
from .parity import agreement

Rate = tuple[float, float]  # images per second, images per core-second


def run(
    images: Sequence[str | Path],
    encoder: str,
    *,
    precision: str = "auto",
    limit: int | None = 256,
    repeats: int = 3,
    threads: int | None = None,
    device: str = "auto",
    options: IndexOptions | None = None,
    naive_limit: int | None = None,
    repeated: bool = False,
    processes: int = 1,
) -> dict[str, Any]:
    """Rates of every stage, of the whole pipeline and of the naive script, for each precision.

    Parameters
    ----------
    naive_limit : number of images for the naive script (default: all)
    repeated : repeat the images up to `limit`, because a GPU needs many for a measurable duration
    processes : number of worker processes; if more than one, the whole pipeline is also measured with a worker pool
        (`crew`), after the workers have loaded their encoders

    Returns
    -------
    dict
        `machine`, `images`, and for each precision: `decode`, `encode`, `write`, `end_to_end`, `naive` (each with
        `images_per_second` and `per_cpu_second`), `share_of_encoder` (end to end over encode), `ratio_to_naive`
        and `agreement` (cosines of our vectors with the naive script's).
    """
    if threads:
        torch.set_num_threads(threads)
    paths = command.image_paths(images, limit)
    naive_paths = paths[:: max(len(paths) // naive_limit, 1)][:naive_limit] if naive_limit else paths
    if repeated and limit:
        paths = list(islice(cycle(paths), limit))
    naive = load_naive(encoder, device)
    result: dict[str, Any] = {"machine": machine(), "images": len(paths), "encoder": encoder, "repeats": repeats}
    for name in precision.split(","):
        spec, index_options = EncoderSpec(encoder, device, name), options or IndexOptions(text=False)
        result[name] = _measure(spec.load(), naive, paths, naive_paths, repeats, index_options)
        if processes > 1:
            rate = _measure_pool(spec, paths, repeats, index_options, processes)
            result[name]["crew"] = {"processes": processes, **rate}
    return result


def machine() -> dict[str, Any]:
    """Description of the machine that is measured."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
    }


def _measure(
    encoder: Encoder,
    naive: Callable[[Sequence[Path]], Any],
    paths: Sequence[Path],
    naive_paths: Sequence[Path],
    repeats: int,
    options: IndexOptions,
) -> dict[str, Any]:
    decoded = {path: decode(path.read_bytes()).pixels for path in set(paths)}
    pixels = [decoded[path] for path in paths]
    size = options.batch_size or encoder.batch_size
    batches = [pixels[i : i + size] for i in range(0, len(pixels), size)]
    vectors = np.concatenate(encode_batches(encoder, batches))
    rows = Rows.make([f"{i} {path}" for i, path in enumerate(paths)], [0] * len(paths))
    block = Block(encoder.space, rows, vectors)

    def decode_one(path: Path) -> None:
        decode(path.read_bytes())

    def decode_all() -> None:
        with ThreadPoolExecutor(options.threads) as pool:
            list(pool.map(decode_one, paths))

    with (
        tempfile.TemporaryDirectory() as scratch
    ):  # one folder for all repeats, so that creating and deleting it is not timed
        folder, numbers = Path(scratch), count()
        data = link_images(folder / "images", paths)

        def new_store() -> Store:
            return Store.create(folder / f"store-{next(numbers)}", encoder.space)

        def write() -> None:
            with new_store().writer() as writer:
                writer.append(block)

        def end_to_end() -> None:
            index([data], new_store(), encoder, replace(options, limit=None))

        reference, position = naive(naive_paths), {path: i for i, path in enumerate(paths)}
        stages: dict[str, Callable[[], object]] = {
            "decode": decode_all,
            "encode": lambda: encode_batches(encoder, batches),
            "write": write,
            "end_to_end": end_to_end,
        }
        rates: dict[str, list[Rate]] = {name: [] for name in [*stages, "naive"]}
        for _ in range(repeats):
            for name, stage in stages.items():
                rates[name].append(_rate(stage, len(paths)))
            rates["naive"].append(_rate(lambda: naive(naive_paths), len(naive_paths)))
    return {
        **{name: _median(samples) for name, samples in rates.items()},
        "share_of_encoder": _ratio(rates["end_to_end"], rates["encode"]),
        "ratio_to_naive": _ratio(rates["end_to_end"], rates["naive"]),
        "agreement": agreement(vectors[[position[path] for path in naive_paths]], reference),
    }


def _measure_pool(
    encoder: EncoderSpec, paths: Sequence[Path], repeats: int, options: IndexOptions, processes: int
) -> dict[str, float]:
    """Rate of the whole pipeline with several worker processes, without their start and a warm-up run."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPool(encoder, Path(scratch) / "store", options, processes) as pool,
    ):
        store = Store.create(Path(scratch) / "store", pool.space)
        rates = []
        for number in range(repeats + 1):
            data = link_images(Path(scratch) / f"images-{number}", paths)
            rates.append(_rate(lambda data=data: index_with(pool, [data], store, options), len(paths)))  # type: ignore[misc]
    return {"images_per_second": _median(rates[1:])["images_per_second"]}


def encode_batches(encoder: Encoder, batches: Sequence[Sequence[Pixels]]) -> list[Embeddings]:
    """The vectors of each batch; launches batch n+1 before waiting for batch n, like the indexer."""
    begin = getattr(encoder, "begin", None)
    if begin is None or not getattr(encoder, "overlaps", False):
        return [encoder.encode(batch) for batch in batches]
    vectors, pending = [], begin(batches[0])
    for batch in batches[1:]:
        pending, wait = begin(batch), pending
        vectors.append(wait())
    return [*vectors, pending()]


def link_images(folder: Path, paths: Sequence[Path]) -> Path:
    """Create a folder with these images only: hard links, or copies if the folder is on another file system."""
    folder.mkdir()
    for i, path in enumerate(paths):
        target = folder / f"{i:07d}{path.suffix}"
        try:
            target.hardlink_to(path.resolve())
        except OSError:
            shutil.copyfile(path, target)
    return folder


def _rate(call: Callable[[], object], images: int) -> Rate:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return images / (time.perf_counter() - wall), images / max(time.process_time() - cpu, 1e-9)


def _median(rates: Sequence[Rate]) -> dict[str, float]:
    wall, cpu = np.median(np.array(rates), axis=0)
    return {"images_per_second": round(float(wall), 2), "per_cpu_second": round(float(cpu), 2)}


def _ratio(ours: Sequence[Rate], theirs: Sequence[Rate]) -> dict[str, float]:
    """Medians of the ratios within each repeat, of wall-clock and of core time."""
    wall, cpu = np.median(np.array(ours) / np.array(theirs), axis=0)
    return {"wall": round(float(wall), 3), "cpu": round(float(cpu), 3)}


if __name__ == "__main__":
    command.main(run, __doc__ or "", precisions="auto")
