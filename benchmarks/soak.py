"""Memory, latency and stalls of the service under 20,000 mixed requests: good, hostile, large and broken off.

A real server process (`clipfake serve`) is sent all requests in one run, in a random but repeatable order, by a number
of concurrent clients of another process. Its memory is recorded every so many requests, and once more after it had time
to return what is free. Meanwhile /healthz, which needs no thread of the service, is asked ten times a second: its
longest answer is the longest stall of the event loop.

    python -m clipfake.benchmarks.soak --encoder ../shared/encoders/mobilenet --requests 20000
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

PROBE_SECONDS = 0.1  # between two probes of /healthz
SETTLE_SECONDS = 5.0  # after the last request, before the memory that is kept is read
TIMEOUT = 90.0  # seconds; more than the service allows for a request
SMALL = (
    "query",
    "embed",
    "search_key",
    "search_image",
    "knn",
    "store",
    "thumbnail",
)  # requests of one small image or none


@dataclass(frozen=True)
class HttpRequest:
    """One request, and how much of it is sent before the client disconnects."""

    kind: str
    path: str
    body: bytes = b""
    media: str = "image/jpeg"
    host: str = "127.0.0.1"
    share_sent: float = 1.0  # of the body
    hangs_up: bool = False  # without reading the response

    def content(self) -> bytes:
        method = "POST" if self.body else "GET"
        head = f"{method} {self.path} HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\n"
        if self.body:
            head += f"Content-Type: {self.media}\r\nContent-Length: {len(self.body)}\r\n"
        return f"{head}\r\n".encode() + self.body[: int(len(self.body) * self.share_sent)]


@dataclass
class Outcome:
    """What was measured."""

    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # by kind of request
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    rss: list[tuple[int, float]] = field(default_factory=list)  # requests done, MiB
    stalls: list[float] = field(default_factory=list)  # seconds of each probe


def kinds_of_requests(keys: Sequence[str]) -> dict[str, tuple[int, list[HttpRequest]]]:
    """The requests of each kind, and how many of 1000 are of that kind; `keys` are of stored rows."""
    import numpy as np
    from PIL import Image

    from ..simulated.images import SOURCES, simulated

    images = [simulated(i % len(SOURCES), i // len(SOURCES), seed=9) for i in range(40)]

    def png(mode: str, width: int, height: int) -> bytes:
        out = io.BytesIO()
        image = Image.linear_gradient("L").resize((width, height)).convert(mode)
        image.save(out, "PNG", compress_level=1)
        return out.getvalue()

    def form(contents: list[bytes]) -> bytes:
        part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="%d.jpg"\r\n\r\n%s\r\n'
        return b"".join(part % (i, content) for i, content in enumerate(contents)) + b"--x--\r\n"

    def of(kind: str, path: str, bodies: list[bytes], **options: Any) -> list[HttpRequest]:
        return [HttpRequest(kind, path, body, **options) for body in bodies]

    def as_json(*values: Any) -> list[bytes]:
        return [json.dumps(value).encode() for value in values]

    photo = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(noise).resize((4000, 3000)).save(photo, "JPEG")
    giant = png("RGBA", 7990, 7990)
    texts = [base64.b64encode(image).decode() for image in images[:10]]
    multipart, as_text = "multipart/form-data; boundary=x", "application/json"
    bomb = giant[:16] + (100_000).to_bytes(4, "big") * 2 + giant[24:2000]
    hostile = [
        *of("hostile", "/v1/query", [b"no image", images[0][:900], bomb, b"\xff\xd8" + b"\xff\xfe\0\2" * 50_000]),
        *of("hostile", "/v1/query", [b"\xff\xd8" + b"\xff\0" * 4_000_000]),
        *of("hostile", "/v1/query", [form([b""] * 9_999), form(images[:2])[:-9], b"--x"], media=multipart),
        *of("hostile", "/v1/search", [b"[" * 100_000, b'{"a":' + b"[]," * 500_000, b'{"k": 1}'], media=as_text),
        *of("hostile", "/v1/search", as_json({"vector": [1.0] * 90_000}, {"key": "none"}), media=as_text),
        *of("hostile", "/v1/query", images[:1], media="text/plain"),
        *of("hostile", "/v1/query", images[:1], host="evil.example"),
        *of("hostile", "/v1/query?prior=9", images[:1]),
    ]
    searches = [{"key": key, "k": 5, "labels": ["real"]} for key in keys]
    gone = [0.0, 0.3, 0.9]
    return {
        "query": (120, of("query", "/v1/query", images)),
        "embed": (60, of("embed", "/v1/embed", images)),
        "search_key": (280, of("search_key", "/v1/search", as_json(*searches), media=as_text)),
        "search_image": (
            20,
            of("search_image", "/v1/search", as_json(*({"image": text} for text in texts)), media=as_text),
        ),
        "knn": (20, of("knn", "/knn-service", as_json(*({"image": text} for text in texts)), media=as_text)),
        "store": (140, [HttpRequest("store", path) for path in ("/v1/store", "/readyz", "/metrics", "/v1/map")]),
        "thumbnail": (150, [HttpRequest("thumbnail", f"/v1/thumbnails/{quote(key)}") for key in keys]),
        "form": (15, of("form", "/v1/query", [form(images[:8]), form(images[8:12])], media=multipart)),
        "photo": (3, of("photo", "/v1/query", [photo.getvalue()])),
        "giant": (
            1,
            of("giant", "/v1/query", [giant]),
        ),
        "hostile": (120, hostile),
        "disconnecting": (
            60,
            [
                HttpRequest("disconnecting", "/v1/query", form(images[:8]), multipart, share_sent=share, hangs_up=True)
                for share in 16 * [*gone, 1.0]
            ]
            + [HttpRequest("disconnecting", "/v1/query", form([giant] * 4), multipart, hangs_up=True)],
        ),
    }


def mixed(count: int, seed: int, keys: Sequence[str]) -> Iterator[HttpRequest]:
    """Requests of all kinds in a random order."""
    import numpy as np

    kinds = kinds_of_requests(keys)
    rng = np.random.default_rng(seed)
    shares = np.array([share for share, _ in kinds.values()], float)
    for kind in rng.choice(list(kinds), count, p=shares / shares.sum()):
        requests = kinds[kind][1]
        yield requests[rng.integers(len(requests))]


def resident(process: int, name: str = "VmRSS") -> float:
    """MiB of memory of a process; VmHWM is the peak."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


async def exchange(port: int, request: HttpRequest) -> str:
    """Send one request; returns its status, or how the connection ended."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request.content())
        await writer.drain()
        if request.hangs_up:
            return "hung up"
        line = await reader.readline()
        await reader.read(-1)
        return line.split()[1].decode() if line else "closed"
    except ConnectionError:
        return "reset"
    finally:
        writer.close()


async def send_all(port: int, process: int, requests: Iterator[HttpRequest], concurrency: int, every: int) -> Outcome:
    """Send all requests, `concurrency` at a time, and record the memory after each `every` of them."""
    outcome, done = Outcome(), 0

    async def client() -> None:
        nonlocal done
        for request in requests:
            began = time.perf_counter()
            try:
                status = await asyncio.wait_for(exchange(port, request), TIMEOUT)
            except (TimeoutError, OSError) as e:
                status = type(e).__name__
            outcome.statuses[request.kind][status] += 1
            outcome.seconds[request.kind].append(time.perf_counter() - began)
            done += 1
            if done % every == 0:
                outcome.rss.append((done, resident(process)))
                print(f"{done} requests, {outcome.rss[-1][1]:.0f} MiB", file=sys.stderr, flush=True)

    async def probe() -> None:
        while True:
            began = time.perf_counter()
            await exchange(port, HttpRequest("probe", "/healthz"))
            outcome.stalls.append(time.perf_counter() - began)
            await asyncio.sleep(PROBE_SECONDS)

    probing = asyncio.create_task(probe())
    await asyncio.gather(*(client() for _ in range(concurrency)))
    probing.cancel()
    await asyncio.sleep(SETTLE_SECONDS)
    return outcome


@contextmanager
def served(store: Path, encoder: str) -> Iterator[tuple[int, int]]:
    """Serve a store by the command line in a process of its own; yields its port and its process number."""
    command = [sys.executable, "-m", "clipfake", "serve", "--store", str(store), "--encoder", encoder, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        for line in server.stderr:
            if "serving on http://" in line:
                break
        else:
            raise RuntimeError("the service did not start")
        try:
            yield int(line.split("http://")[1].split()[0].rpartition(":")[2]), server.pid
        finally:
            server.terminate()
            server.stderr.read()


def run(
    encoder: str, *, requests: int = 20_000, concurrency: int = 16, every: int = 1_000, seed: int = 0, store: str = ""
) -> dict[str, Any]:
    """Memory in MiB, seconds of small requests, the longest stall, and the number of answers by kind and status.

    `store` is a trained store of the encoder (default: a synthetic one).
    """
    import numpy as np

    from ..indexer.encoders.load import load_encoder
    from ..store.store import Store
    from .service import create_bank
    from .throughput import machine

    with tempfile.TemporaryDirectory() as folder:
        bank = Store.open(store) if store else create_bank(Path(folder) / "bank", load_encoder(encoder).space)
        keys = bank.snapshot().column("keys")[:40].tolist()
        with served(bank.folder, encoder) as (port, process):
            idle = resident(process)
            began = time.perf_counter()
            outcome = asyncio.run(send_all(port, process, mixed(requests, seed, keys), concurrency, every))
            seconds = time.perf_counter() - began - SETTLE_SECONDS
            kept, peak = resident(process), resident(process, "VmHWM")
    small = np.array([value for kind in SMALL for value in outcome.seconds[kind]])
    return {
        "machine": machine(),
        "encoder": encoder,
        "requests": requests,
        "concurrency": concurrency,
        "seconds": round(seconds, 1),
        "memory_mib": {"idle": round(idle), "peak": round(peak), "kept": round(kept)},
        "memory_curve": {str(done): round(size) for done, size in outcome.rss},
        "small_seconds": {
            "p50": round(float(np.quantile(small, 0.5)), 3),
            "p99": round(float(np.quantile(small, 0.99)), 3),
            "longest": round(float(small.max()), 3),
        },
        "stall_seconds": {
            "p99": round(float(np.quantile(outcome.stalls, 0.99)), 3),
            "longest": round(max(outcome.stalls), 3),
        },
        "statuses": {kind: dict(sorted(counts.items())) for kind, counts in sorted(outcome.statuses.items())},
    }


def main() -> None:
    from .common import command

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_encoder_options(parser)
    parser.add_argument("--requests", type=int, default=20_000, help="number of requests")
    parser.add_argument("--concurrency", type=int, default=16, help="number of concurrent clients")
    parser.add_argument("--every", type=int, default=1_000, help="requests between two readings of the memory")
    parser.add_argument("--store", default="", help="trained store of the encoder (default: a synthetic one)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the order")
    arguments = command.parse_options(parser)
    command.print_result(run(arguments.pop("encoder"), **arguments))


if __name__ == "__main__":
    main()
