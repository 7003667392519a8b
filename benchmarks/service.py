"""Throughput of the service compared with its encoder's, and the gain from batching requests.

A real server is queried at /v1/query by clients in another process, 32 at a time by default, with one image per
request. Measured in turn: the encoder alone in full batches and with one image per pass (their ratio limits the gain
from batching), the service, the service with one image per pass, the service with one client, and the naive script of
`benchmarks.common.naive` with one image per pass, as a service without batching would run it. On a shared machine use
the ratios, which are taken within one repeat, rather than the rates; ratios of core time are the most reliable. Medians
are printed.

    python -m clipfake.benchmarks.service \\
        --encoder ../shared/encoders/clip-vit-base-patch32-untrained --untrained
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the clients' process has no use for the rest
    from ..store.space import Space
    from ..store.store import Store

ROWS = 6_000  # of the bank
Rate = tuple[float, float]  # images a second, images a core-second


def bank(folder: Path, space: Space) -> Store:
    """A store of clustered vectors with a trained head; rows alternate between 8 real sources and 12 generators."""
    import numpy as np

    from ..detector.training.fit import fit_detector
    from ..detector.training.train import TrainOptions
    from ..detector.training.triplet import TripletOptions
    from ..store.records import Block, Rows
    from ..store.store import Store

    rng = np.random.default_rng(0)
    source = np.arange(ROWS) % 20
    vectors = rng.standard_normal((20, space.dim))[source] + 1.5 * rng.standard_normal((ROWS, space.dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"source{number:02d}" for number in source]
    rows = Rows.make(
        keys=[f"{name}/{i}" for i, name in enumerate(names)],
        labels=(source >= 8).astype(np.int8),
        sources=names,
        generators=[name if number >= 8 else "" for name, number in zip(names, source, strict=True)],
        digests=np.frombuffer(rng.bytes(16 * ROWS), "V16"),
    )
    store = Store.create(folder, space)
    with store.writer("synthetic") as writer:
        writer.append(Block(space, rows, vectors.astype(np.float32)))
    fit_detector(store, options=TrainOptions(triplet=TripletOptions(epochs=3), baselines=())).save()
    return store


def run(
    encoder: str,
    *,
    images: int = 128,
    concurrency: int = 32,
    batch: int = 16,
    repeats: int = 3,
    threads: int | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> dict[str, Any]:
    """Images per second of each, and the ratios of the service to the encoder and to one image per pass."""
    import numpy as np
    import torch

    from ..indexer.decoding.image import decode, thumbnail
    from ..indexer.encoders.load import load_encoder
    from ..service.app import app
    from ..service.limits import Limits
    from ..simulated.images import SOURCES, simulated
    from .common.naive import load_naive
    from .throughput import machine

    if threads:
        torch.set_num_threads(threads)
    inner = load_encoder(encoder, device=device, precision=precision)
    files = [simulated(i % len(SOURCES), i // len(SOURCES), seed=9) for i in range(images)]
    pixels = [decode(file).pixels for file in files]
    limits = {"together": Limits(batch=batch), "one_by_one": Limits(batch=1)}
    embed = load_naive(encoder, device)
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as clients:
        store = bank(Path(folder) / "bank", inner.space)
        paths = [Path(folder) / f"{i}.jpg" for i in range(len(files))]
        for path, content in zip(paths, files, strict=True):
            path.write_bytes(content)
        embed(paths[:2])
        apps = {name: app(store, inner, decode, thumbnail, limits=metrics) for name, metrics in limits.items()}
        metrics = apps["together"].state.service.metrics.registry
        rates: dict[str, list[Rate]] = {
            name: [] for name in ("encoder", "encoder_one", *limits, "one_client", "naive_one")
        }
        at_once: list[float] = []
        with (
            serving(apps["together"]) as together,
            serving(apps["one_by_one"]) as one_by_one,
        ):

            def rate_of(port: int, many: int, some: int = images) -> Rate:
                cpu = time.process_time()
                wall = float(clients.apply(ask, (port, files[:some], many)))
                return some / wall, some / (time.process_time() - cpu)

            def alone(at_once: int, some: int) -> Rate:
                wall, cpu = time.perf_counter(), time.process_time()
                for i in range(0, some, at_once):
                    inner.encode(pixels[i : min(i + at_once, some)])
                return some / (time.perf_counter() - wall), some / (time.process_time() - cpu)

            def naively(some: int) -> Rate:
                wall, cpu = time.perf_counter(), time.process_time()
                for path in paths[:some]:
                    embed([path])
                return some / (time.perf_counter() - wall), some / (time.process_time() - cpu)

            def batches() -> float:
                return float(metrics.get_sample_value("clipfake_batch_images_count") or 0)

            for port in (together, one_by_one):  # everything is loaded and compiled by then
                rate_of(port, concurrency, max(images // 4, 1))
            for _ in range(repeats):
                rates["encoder"].append(alone(batch, images))
                rates["encoder_one"].append(alone(1, max(images // 4, 1)))
                before = batches()
                rates["together"].append(rate_of(together, concurrency))
                at_once.append(images / (batches() - before))
                rates["one_by_one"].append(rate_of(one_by_one, concurrency, max(images // 2, 1)))
                rates["naive_one"].append(naively(max(images // 4, 1)))
                rates["one_client"].append(rate_of(together, 1, max(images // 8, 1)))
    found = {name: np.array(values) for name, values in rates.items()}  # (repeats, 2)

    def ratio(one: str, other: str) -> dict[str, float]:
        wall, core = np.median(found[one] / found[other], axis=0)
        return {"wall": round(float(wall), 3), "cpu": round(float(core), 3)}

    return {
        "machine": machine(),
        "encoder": encoder,
        "images": images,
        "concurrency": concurrency,
        "batch": batch,
        "repeats": repeats,
        "images_per_second": {name: round(float(np.median(values[:, 0])), 2) for name, values in found.items()},
        "per_cpu_second": {name: round(float(np.median(values[:, 1])), 2) for name, values in found.items()},
        "images_at_once": round(float(np.median(at_once)), 2),
        "service_to_encoder": ratio("together", "encoder"),
        "together_to_one_by_one": ratio("together", "one_by_one"),
        "together_to_naive_one": ratio("together", "naive_one"),
        "encoder_together_to_one": ratio("encoder", "encoder_one"),
        "one_client_to_encoder": ratio("one_client", "encoder"),
    }


@contextmanager
def serving(app: Any) -> Iterator[int]:
    """Run a real server in a thread of this process; yields its port."""
    import uvicorn

    from ..service.server import listening

    with listening("127.0.0.1", 0) as ours:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [ours]})
        thread.start()
        try:
            yield int(ours.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


def ask(port: int, files: Sequence[bytes], at_once: int) -> float:
    """Seconds until all files are judged, with one file per request and a number of concurrent requests."""
    return asyncio.run(_ask(port, files, at_once))


async def _ask(port: int, files: Sequence[bytes], at_once: int) -> float:
    """Send requests with a minimal client, whose own cost is negligible."""
    waiting = iter(files)
    head = "POST /v1/query HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"

    async def one_client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for file in waiting:
            writer.write(head.format(len(file)).encode() + file)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if " 200 " not in answer.partition("\r\n")[0]:
                raise RuntimeError(f"the service answered {answer.partition(chr(13))[0]}")
            await reader.readexactly(int(answer.partition("content-length: ")[2].partition("\r\n")[0]))
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*(one_client() for _ in range(at_once)))
    return time.perf_counter() - begun


def main() -> None:
    from .common import command

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_encoder_options(parser)
    parser.add_argument("--images", type=int, default=128, help="a repeat")
    parser.add_argument("--concurrency", type=int, default=32, help="clients")
    parser.add_argument("--batch", type=int, default=16, help="images the encoder sees at once")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved; medians are printed")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    arguments = command.parse_options(parser)
    command.print_result(run(arguments.pop("encoder"), **arguments))


if __name__ == "__main__":
    main()
