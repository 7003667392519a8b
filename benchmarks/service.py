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

if TYPE_CHECKING:  # the clients' process does not import these
    from ..store.space import Space
    from ..store.store import Store

ROWS = 6_000  # rows of the bank
Rate = tuple[float, float]  # images per second, images per core-second


def create_bank(folder: Path, space: Space) -> Store:
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
    fit_detector(
        store, options=TrainOptions(classifier="triplet-svm", triplet=TripletOptions(epochs=3), baselines=())
    ).save()
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
    model = load_encoder(encoder, device=device, precision=precision)
    files = [simulated(i % len(SOURCES), i // len(SOURCES), seed=9) for i in range(images)]
    pixels = [decode(file).pixels for file in files]
    limits = {"together": Limits(batch=batch), "one_by_one": Limits(batch=1)}
    embed = load_naive(encoder, device)
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as clients:
        store = create_bank(Path(folder) / "bank", model.space)
        paths = [Path(folder) / f"{i}.jpg" for i in range(len(files))]
        for path, content in zip(paths, files, strict=True):
            path.write_bytes(content)
        embed(paths[:2])
        apps = {name: app(store, model, decode, thumbnail, limits=metrics) for name, metrics in limits.items()}
        metrics = apps["together"].state.service.metrics.registry
        rates: dict[str, list[Rate]] = {
            name: [] for name in ("encoder", "encoder_one", *limits, "one_client", "naive_one")
        }
        batch_sizes: list[float] = []
        with (
            running_server(apps["together"]) as together,
            running_server(apps["one_by_one"]) as one_by_one,
        ):

            def service_rate(port: int, clients_at_once: int, count: int = images) -> Rate:
                cpu = time.process_time()
                wall = float(clients.apply(send_requests, (port, files[:count], clients_at_once)))
                return count / wall, count / (time.process_time() - cpu)

            def encoder_rate(size: int, count: int) -> Rate:
                wall, cpu = time.perf_counter(), time.process_time()
                for i in range(0, count, size):
                    model.encode(pixels[i : min(i + size, count)])
                return count / (time.perf_counter() - wall), count / (time.process_time() - cpu)

            def naive_rate(count: int) -> Rate:
                wall, cpu = time.perf_counter(), time.process_time()
                for path in paths[:count]:
                    embed([path])
                return count / (time.perf_counter() - wall), count / (time.process_time() - cpu)

            def batch_count() -> float:
                return float(metrics.get_sample_value("clipfake_batch_images_count") or 0)

            for port in (together, one_by_one):  # warm-up: load and compile everything
                service_rate(port, concurrency, max(images // 4, 1))
            for _ in range(repeats):
                rates["encoder"].append(encoder_rate(batch, images))
                rates["encoder_one"].append(encoder_rate(1, max(images // 4, 1)))
                before = batch_count()
                rates["together"].append(service_rate(together, concurrency))
                batch_sizes.append(images / (batch_count() - before))
                rates["one_by_one"].append(service_rate(one_by_one, concurrency, max(images // 2, 1)))
                rates["naive_one"].append(naive_rate(max(images // 4, 1)))
                rates["one_client"].append(service_rate(together, 1, max(images // 8, 1)))
    samples = {name: np.array(values) for name, values in rates.items()}  # (repeats, 2)

    def ratio(numerator: str, denominator: str) -> dict[str, float]:
        wall, core = np.median(samples[numerator] / samples[denominator], axis=0)
        return {"wall": round(float(wall), 3), "cpu": round(float(core), 3)}

    return {
        "machine": machine(),
        "encoder": encoder,
        "images": images,
        "concurrency": concurrency,
        "batch": batch,
        "repeats": repeats,
        "images_per_second": {name: round(float(np.median(values[:, 0])), 2) for name, values in samples.items()},
        "per_cpu_second": {name: round(float(np.median(values[:, 1])), 2) for name, values in samples.items()},
        "images_at_once": round(float(np.median(batch_sizes)), 2),
        "service_to_encoder": ratio("together", "encoder"),
        "together_to_one_by_one": ratio("together", "one_by_one"),
        "together_to_naive_one": ratio("together", "naive_one"),
        "encoder_together_to_one": ratio("encoder", "encoder_one"),
        "one_client_to_encoder": ratio("one_client", "encoder"),
    }


@contextmanager
def running_server(app: Any) -> Iterator[int]:
    """Run a real server in a thread of this process; yields its port."""
    import uvicorn

    from ..service.server import listening

    with listening("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


def send_requests(port: int, files: Sequence[bytes], concurrency: int) -> float:
    """Seconds until all files are judged, with one file per request and a number of concurrent requests."""
    return asyncio.run(_send_requests(port, files, concurrency))


async def _send_requests(port: int, files: Sequence[bytes], concurrency: int) -> float:
    """Send requests with a minimal client, whose own cost is negligible."""
    remaining = iter(files)
    head = "POST /v1/query HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"

    async def one_client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for file in remaining:
            writer.write(head.format(len(file)).encode() + file)
            response = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if " 200 " not in response.partition("\r\n")[0]:
                raise RuntimeError(f"expected status 200 from the service, found {response.partition(chr(13))[0]}")
            await reader.readexactly(int(response.partition("content-length: ")[2].partition("\r\n")[0]))
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(one_client() for _ in range(concurrency)))
    return time.perf_counter() - began


def main() -> None:
    from .common import command

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_encoder_options(parser)
    parser.add_argument("--images", type=int, default=128, help="number of images per repeat")
    parser.add_argument("--concurrency", type=int, default=32, help="number of concurrent clients")
    parser.add_argument("--batch", type=int, default=16, help="maximum batch size of the service")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats; medians are printed")
    parser.add_argument("--threads", type=int, help="torch threads (default: chosen by torch)")
    parser.add_argument("--device", default="auto", help="device of the encoder")
    parser.add_argument("--precision", default="auto", help="precision of the encoder")
    arguments = command.parse_options(parser)
    command.print_result(run(arguments.pop("encoder"), **arguments))


if __name__ == "__main__":
    main()
