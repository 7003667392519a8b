"""Requests take turns, the memory of images under way is bounded, and nothing is parsed in the event loop."""

import asyncio
import gc
import io
import json
import struct
import subprocess
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
import httpx
from clipfake.errors import NothingToJudge
from clipfake.service.app import app
from clipfake.service.image_decoder import BYTES_PER_PIXEL, BYTES_PER_PIXEL_OF, pixels_of
from clipfake.service.limits import Limits
from clipfake.service.problems import HttpProblem
from clipfake.service.scheduling.decode_lanes import DecodeLanes, Lane, Turns
from clipfake.service.scheduling.fair_queue import FairQueue, Share
from clipfake.service.uploads import FormReader
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

SMALL, LARGE = 64, 200  # sides of images, on either side of the limit below
LIMITS = Limits(decoding_bytes=16 * SMALL * SMALL * BYTES_PER_PIXEL)
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


def picture(side: int, number: int = 0) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def files(contents: Sequence[bytes]) -> list[Any]:
    return [("images", (f"{i}.png", content)) for i, content in enumerate(contents)]


def many_parts(count: int) -> bytes:
    return count * b'--x\r\nContent-Disposition: form-data; name="a"; filename="a.png"\r\n\r\n\r\n' + b"--x--\r\n"


class Decoder:
    """Decodes as the toy does, but large images only when `go_on` is set; records how many at a time."""

    def __init__(self, toy: Any) -> None:
        self.decode_toy, self.lock = toy.decode, threading.Lock()
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.now = self.most = self.large = 0

    def decode(self, content: bytes) -> Any:
        image = self.decode_toy(content)
        if image.width >= LARGE:
            with self.lock:
                self.now, self.large = self.now + 1, self.large + 1
                self.most = max(self.most, self.now)
            self.begun.set()
            assert self.go_on.wait(30)
            with self.lock:
                self.now -= 1
        return image


@contextmanager
def answered(
    toy: Any, decoder: Decoder, scenario: Callable[[httpx.AsyncClient], Any], limits: Limits = LIMITS
) -> Iterator[Any]:
    """Run a scenario against the app, within its life; yields what it returns."""
    application = app(toy.store, toy.encoder, decoder.decode, toy.thumbnail, limits=limits)

    async def run() -> Any:
        async with (
            application.router.lifespan_context(application),
            httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://127.0.0.1") as client,
        ):
            try:
                return await scenario(client)
            finally:
                decoder.go_on.set()

    yield asyncio.run(run())


def test_small_image_is_not_behind_large_ones(toy: Any) -> None:
    decoder = Decoder(toy)

    async def scenario(client: httpx.AsyncClient) -> Any:
        large = [asyncio.create_task(client.post("/v1/embed", files=files([picture(LARGE)] * 8))) for _ in range(3)]
        assert await asyncio.to_thread(decoder.begun.wait, 30)
        small = await client.post("/v1/query", content=toy.draw_image("gan_a", 1, seed=2))
        ready = await client.get("/readyz")
        waited = [not task.done() for task in large]
        decoder.go_on.set()
        return small, ready, waited, await asyncio.gather(*large)

    with answered(toy, decoder, scenario) as (small, ready, waited, large):
        assert (small.status_code, ready.status_code, waited) == (200, 200, [True] * 3)
        assert [len(response.json()["answers"]) for response in large] == [8, 8, 8]
        assert decoder.large == 24
        assert decoder.most == 1  # three quarters of the memory have room for one


@pytest.mark.parametrize("how", ["disconnect", "timeout"])
def test_remaining_images_of_a_lost_request_are_not_decoded(toy: Any, how: str) -> None:
    decoder = Decoder(toy)
    limits = Limits(**{**LIMITS.to_dict(), "seconds": 0.5 if how == "timeout" else 60})

    async def scenario(client: httpx.AsyncClient) -> Any:
        request = client.build_request("POST", "/v1/embed", files=files([picture(LARGE, i) for i in range(10)]))
        body = await request.aread()
        received = iter([{"type": "http.request", "body": body, "more_body": False}])
        sent: list[Any] = []

        async def receive() -> Any:
            for message in received:
                return message
            if how == "disconnect":
                assert await asyncio.to_thread(decoder.begun.wait, 30)
                return {"type": "http.disconnect"}
            await asyncio.Event().wait()
            return None

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(name.lower().encode(), value.encode()) for name, value in request.headers.items()]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/embed",
            "raw_path": b"/v1/embed",
            "query_string": b"",
            "headers": headers,
            "scheme": "http",
            "http_version": "1.1",
            "root_path": "",
        }
        with suppress(Exception):
            await client._transport.app(scope, receive, send)  # type: ignore[attr-defined]
        decoder.go_on.set()
        after = await client.post("/v1/embed", files=files([picture(LARGE)]))
        return sent, after

    with answered(toy, decoder, scenario, limits) as (sent, after):
        assert [message["status"] for message in sent if "status" in message] == ([504] if how == "timeout" else [])
        assert after.status_code == 200  # memory and threads were given back
        assert decoder.large <= 3


# --- the queue and the lanes


def test_costly_item_is_overtaken_only_by_its_own_cost() -> None:
    queue = FairQueue[str]()
    queue.put(Share(), 10, "large")
    order = []
    while "large" not in order:  # a stream of small ones, each of another user
        queue.put(Share(), 1, "small")
        order.append(queue.get())
    assert len(order) <= 11


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 100)), max_size=60))
def test_queue_keeps_all_items_and_the_order_of_each_user(items: list[tuple[int, int]]) -> None:
    queue, shares = FairQueue[tuple[int, int]](), [Share() for _ in range(5)]
    for number, (user, cost) in enumerate(items):
        queue.put(shares[user], cost, (user, number))
    order = [queue.get() for _ in range(len(queue))]
    assert sorted(order, key=lambda item: item[1]) == [(user, number) for number, (user, _) in enumerate(items)]
    for user in range(5):
        numbers = [number for owner, number in order if owner == user]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("cores", [1, 2, 64])
def test_memory_is_bounded_whatever_the_number_of_cores(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    sizes = [10, 40, 60, 99, 250, 1] * 5
    held, most, alone = [0], [0], []
    lock = threading.Lock()

    def work(size: int) -> None:
        with lock:
            held[0] += size
            most[0] = max(most[0], held[0]) if size <= 100 else most[0]
            alone.append(size <= 100 or held[0] == size)
        time.sleep(0.001)
        with lock:
            held[0] -= size

    async def all_of_them() -> None:
        lane = Lane("test", 100)

        async def one(size: int) -> None:
            async with lane.admit(Share(), size) as admission:
                await admission.run(work, size)

        await asyncio.gather(*map(one, sizes))
        assert (lane._held, len(lane._queue)) == (0, 0)
        lane.close()

    asyncio.run(all_of_them())
    assert most[0] <= 100
    assert all(alone)


def test_memory_of_a_cancelled_image_is_held_until_its_thread_ends() -> None:
    go_on = threading.Event()

    async def cancelled() -> None:
        lanes = DecodeLanes(160)

        async def one() -> None:
            async with lanes.admit(Turns(), 100) as admission:
                await admission.run(go_on.wait, 30)

        first = asyncio.create_task(one())
        queued = [asyncio.create_task(one()) for _ in range(3)]
        await asyncio.sleep(0.05)
        first.cancel()
        queued[0].cancel()
        await asyncio.sleep(0.05)
        assert (first.cancelled(), queued[0].cancelled()) == (True, True)
        assert lanes.large._held == 100
        go_on.set()
        await asyncio.gather(*queued[1:])
        assert lanes.large._held == 0
        lanes.close()

    asyncio.run(cancelled())


# --- what decoding takes


def tiled_tiff() -> bytes:
    """A TIFF of 8 x 8 grey pixels in one tile of 16,000 x 16,000, which a decoder would unpack whole."""
    content = zlib.compress(bytes(1000))
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: 16_000, 323: 16_000, 324: 134, 325: len(content)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + content


def test_memory_needed_is_known_from_the_header() -> None:
    def saved(format_: str) -> bytes:
        out = io.BytesIO()
        Image.new("RGB", (300, 200)).save(out, format_)
        return out.getvalue()

    for format_ in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "AVIF", "JPEG2000", "TIFF"):
        assert pixels_of(saved(format_), 10**6) == (60_000, BYTES_PER_PIXEL_OF.get(format_, BYTES_PER_PIXEL))
    assert pixels_of(b"unreadable", 10**6) == (10**6, max(BYTES_PER_PIXEL_OF.values()))
    with pytest.raises(HttpProblem, match="16000 x 16000"):
        pixels_of(tiled_tiff(), 10**6)


MEASURE = """
import ctypes, sys
from pathlib import Path
from clipfake.indexer.decoding.image import decode, thumbnail

def megabytes(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1000

for path in sys.argv[1:]:
    content = Path(path).read_bytes()
    decode(content)  # what is loaded once
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = megabytes("VmRSS")
    thumbnail(decode(content).pixels)
    print(megabytes("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory is read from /proc")
def test_decoding_takes_no_more_memory_than_is_counted(tmp_path: Path) -> None:
    side = 2000
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 4), np.uint8)).resize((side, side))
    integers = Image.fromarray(np.arange(side * side, dtype=np.int32).reshape(side, side) * 500)
    images: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("PNG", colours, {"compress_level": 1}),
        ("JPEG", colours.convert("CMYK"), {"progressive": True}),
        ("WEBP", colours, {}),
        ("AVIF", colours, {"speed": 10}),
        ("JPEG2000", colours, {}),
        ("TIFF", integers, {}),
    ]
    for format_, image, options in images:
        image.save(tmp_path / format_, format_, **options)
    program = [sys.executable, "-c", MEASURE, *(str(tmp_path / format_) for format_, _, _ in images)]
    output = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    peaks = dict(zip((format_ for format_, _, _ in images), map(float, output.split()), strict=True))
    counted = {format_: side**2 / 1e6 * BYTES_PER_PIXEL_OF.get(format_, BYTES_PER_PIXEL) for format_ in peaks}
    assert {format_: peak for format_, peak in peaks.items() if peak > counted[format_] + 4} == {}


# --- parsing


def test_form_is_parsed_up_to_the_limit_of_images(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    readers, threads, parse = set[FormReader](), set[int](), FormReader.parse

    def recorded(self: FormReader, chunk: bytes) -> None:
        readers.add(self)
        threads.add(threading.get_ident())
        parse(self, chunk)

    monkeypatch.setattr(FormReader, "parse", recorded)

    async def scenario(client: httpx.AsyncClient) -> Any:
        return await client.post("/v1/query", content=many_parts(9_999), headers=FORM)

    with answered(toy, Decoder(toy), scenario) as refused:
        assert refused.status_code == 413
        assert "more than the 64 images" in refused.json()["detail"]
    assert [len(reader._form.uploads) for reader in readers] == [64]
    assert threading.get_ident() not in threads


def test_event_loop_does_not_parse_or_write(toy: Any) -> None:
    """CPU time of the event loop's thread between two turns, which other processes do not change."""
    numbers = json.dumps({"vector": [0.5] * 99_000}).encode()
    hollow = b'{"a":[' + b"[]," * 900_000 + b"[]]}"

    async def scenario(client: httpx.AsyncClient) -> Any:
        longest, ended = 0.0, False

        async def heartbeat() -> None:
            nonlocal longest
            before = time.thread_time()
            while not ended:
                await asyncio.sleep(0.001)
                longest, before = max(longest, time.thread_time() - before), time.thread_time()

        await client.get("/readyz")
        gc.disable()
        beating = asyncio.create_task(heartbeat())
        as_json = {"Content-Type": "application/json"}
        responses = await asyncio.gather(
            *(client.post("/v1/query", content=many_parts(9_999), headers=FORM) for _ in range(20)),
            *(client.post("/v1/search", content=body, headers=as_json) for body in (numbers, hollow)),
            client.post("/v1/embed", files=files([picture(32, i) for i in range(64)])),
        )
        ended = True
        await beating
        gc.enable()
        return longest, [response.status_code for response in responses]

    with answered(toy, Decoder(toy), scenario, Limits()) as (longest, statuses):
        assert statuses == [413] * 20 + [422, 422, 200]
        assert longest < 0.5


def test_refused_image_keeps_no_pixels() -> None:
    """Its error is kept until the whole form is answered."""
    kept = []

    def refuse() -> None:
        pixels = np.zeros(10)
        kept.append(weakref.ref(pixels))
        raise NothingToJudge("one colour only")

    lane = Lane("decode", 1)
    error = lane.submit(refuse).exception()
    lane.close()
    assert isinstance(error, NothingToJudge) and kept[0]() is None
