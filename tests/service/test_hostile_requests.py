"""The service under hostile files, overload and shutdown: every refusal is a problem, and the service stays up."""

import asyncio
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
import httpx
from clipfake.errors import ClipfakeError
from clipfake.indexer.encoders.base import Encoder
from clipfake.service.image_decoder import PNG
from clipfake.service.limits import Limits
from clipfake.service.metrics import ServiceMetrics
from clipfake.service.problems import KINDS, HttpProblem
from clipfake.service.scheduling.batcher import Batcher
from clipfake.service.server import listening, serve
from clipfake.service.uploads import form, upload_from_base64
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.requests import Request
from starlette.testclient import TestClient


def kind(response: Any) -> str:
    """The kind of a problem response, after checking that it is one."""
    answer = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    name: str = answer["type"].removeprefix("urn:clipfake:problem:")
    assert KINDS[name] == (response.status_code, answer["title"])
    return name


def saved(mode: str, format_: str, **options: Any) -> bytes:
    rng = np.random.default_rng(0)
    shape = {"L": (40, 60), "RGB": (40, 60, 3), "RGBA": (40, 60, 4), "CMYK": (40, 60, 4)}[mode]
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode).save(out, format_, **options)
    return out.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG whose header claims this size, without pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def grey16() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 2400).astype(np.uint16).reshape(40, 60)).save(out, "PNG")
    return out.getvalue()


def animated() -> bytes:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].paste("white", (0, 0, 20, 20))
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def scanned_again(times: int) -> bytes:
    """A progressive JPEG whose last scan is repeated this many times."""
    content = saved("RGB", "JPEG", progressive=True)
    return content[:-2] + times * content[content.rindex(b"\xff\xda") : -2] + content[-2:]


def with_film() -> bytes:
    """A JPEG as phones save it, with a video of arbitrary bytes after the end of the image."""
    return saved("RGB", "JPEG") + b"ftypmp42" + 200 * b"\xff\xda\x12" + b"\xff\xd8\xff\xe0"


def with_preview() -> bytes:
    """A maker note segment that contains JPEG images."""
    content, note = saved("RGB", "JPEG"), 300 * b"\xff\xda\x00\x02"
    return content[:2] + b"\xff\xef" + (len(note) + 2).to_bytes(2) + note + content[2:]


def with_workflow() -> bytes:
    """A PNG with more compressed text than Pillow reads."""
    content, text = saved("RGB", "PNG"), b"zTXtworkflow\0\0" + zlib.compress(bytes(2_000_000))
    return content[:33] + struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text)) + content[33:]


def with_damaged_exif() -> bytes:
    """An AVIF whose EXIF Pillow cannot open."""
    exif = Image.Exif()
    exif[0x010F] = "maker"
    content = saved("RGB", "AVIF", exif=exif)
    start = content.index(b"maker") - 30
    return content[:start] + content[start : start + 60].replace(b"MM\0*", b"????") + content[start + 60 :]


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees
    return saved("RGB", "JPEG", exif=exif)


@pytest.fixture(scope="module")
def client(toy: Any) -> Iterator[TestClient]:
    with TestClient(toy.app(), base_url="http://127.0.0.1") as client:
        yield client


# --- files


@pytest.mark.parametrize(
    "content",
    [
        saved("CMYK", "JPEG"),
        saved("L", "JPEG"),
        saved("RGBA", "PNG"),
        saved("RGB", "JPEG", progressive=True),
        saved("RGB", "WEBP"),
        saved("RGB", "TIFF"),
        grey16(),
        animated(),
        turned(),
        with_film(),
        with_preview(),
        scanned_again(20),
        with_workflow(),
        with_damaged_exif(),
    ],
    ids=[
        *("cmyk", "grey", "alpha", "progressive", "webp", "tiff", "16-bit", "animated", "turned"),
        *("film", "preview", "scans", "workflow", "exif"),
    ],
)
def test_odd_image_has_the_vector_of_indexing(toy: Any, client: TestClient, content: bytes) -> None:
    [answer] = client.post("/v1/embed", content=content).json()["answers"]
    indexed = toy.encoder.encode([toy.decode(content).pixels])[0]
    np.testing.assert_allclose(answer["vector"], indexed, atol=1e-7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"just text", "not an image"),
        (saved("RGB", "JPEG")[:300], "damaged"),
        (saved("RGB", "PNG")[:-2000], "damaged"),
        (png(100, 100), "damaged"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>" + b"<g>" * 50_000, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS images are not supported"),
        (scanned_again(101), "or more scans"),
        (b"\xff\xd8" + b"\xff\xfe\x00\x02" * 100_000, "or more scans"),
    ],
    ids=["text", "truncated-jpeg", "truncated-png", "hollow-png", "svg", "eps", "scans", "comments"],
)
def test_unreadable_image_is_a_problem_with_its_reason(client: TestClient, content: bytes, message: str) -> None:
    refused = client.post("/v1/query", content=content, headers={"content-type": "image/png"})
    assert kind(refused) == "bad-image"
    assert message in refused.json()["detail"]


def test_decompression_bomb_is_refused_by_its_header(toy: Any, client: TestClient) -> None:
    for bomb in (png(50_000, 50_000), png(2_000_000_000, 2), png(8_001, 8_000)):
        refused = client.post("/v1/query", content=bomb)
        assert kind(refused) == "too-large"
        assert "pixels" in refused.json()["detail"]
    response = client.post(
        "/v1/query", files=[("a", ("bomb.png", bomb)), ("b", ("good.png", toy.draw_image("gan_a", 1)))]
    )
    assert ["error" in one for one in response.json()["answers"]] == [True, False]


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def header_of(side: int) -> bytes:
    return chunk(b"IHDR", side.to_bytes(4) * 2 + bytes([8, 6, 0, 0, 0]))


@pytest.mark.parametrize(
    "chunks",
    [chunk(b"prVt", bytes(8)) + header_of(9800), header_of(32) + header_of(9800), header_of(9800) + header_of(32)],
    ids=["late header", "two headers", "two headers, the small one last"],
)
def test_png_is_measured_by_its_only_header(client: TestClient, chunks: bytes) -> None:
    pixels = zlib.compress(bytes((1 + 4 * 9800) * 64))
    answer = client.post("/v1/query", content=PNG + chunks + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    assert answer.status_code in (413, 422)
    assert "header" in answer.text or "9800" in answer.text


def test_formats_decoded_in_python_are_refused(client: TestClient) -> None:
    plain = b"P3 40 40 255 " + b"9 " * 4800
    rle = io.BytesIO()
    Image.new("P", (40, 40)).save(rle, "BMP")
    packed = bytearray(rle.getvalue())
    packed[30] = 1  # compression: RLE8
    for content in (plain, bytes(packed)):
        answer = client.post("/v1/query", content=content)
        assert (answer.status_code, "take too long to decode" in answer.text) == (422, True)


def test_photo_of_a_phone_has_the_same_answer_each_time(toy: Any, client: TestClient) -> None:
    heif = pytest.importorskip("pillow_heif", reason="the extra `heic` is not installed")
    content = io.BytesIO()
    heif.from_pillow(Image.open(io.BytesIO(toy.draw_image("gan_a", 7)))).save(content, quality=95)
    answers = [client.post("/v1/query", content=content.getvalue()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 200]


def test_request_without_image_is_a_problem(client: TestClient) -> None:
    assert kind(client.post("/v1/query")) == "no-image"
    assert kind(client.post("/v1/query", content=b"", headers={"content-type": "image/png"})) == "no-image"
    boundary = {"content-type": "multipart/form-data; boundary=x"}
    assert kind(client.post("/v1/query", content=b"--x--\r\n", headers=boundary)) == "no-image"


IN_FORM = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
FORM_X = {"content-type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize("cut", [2, 4, 8, 9, 50])
@pytest.mark.parametrize("path", ["/v1/query", "/v1/embed", "/v1/bank"])
def test_form_that_was_cut_off_is_refused(toy: Any, cut: int, path: str) -> None:
    part = IN_FORM % (b"images", b'; filename="%d.png"')
    body = b"".join(part % i + toy.draw_image("gan_a", i) + b"\r\n" for i in range(2)) + b"--x--"
    fields = IN_FORM % (b"source", b"") + b"new\r\n" + IN_FORM % (b"label", b"") + b"fake\r\n"
    headers = FORM_X | {"Authorization": "Bearer secret"}
    with TestClient(toy.app(token="secret"), base_url="http://127.0.0.1") as client:
        content = ((fields if path == "/v1/bank" else b"") + body)[:-cut]
        refused = client.post(path, content=content, headers=headers)
    assert kind(refused) == "bad-request"
    assert "the form ends before its last boundary" in refused.json()["detail"]


@pytest.mark.parametrize("field", ["b", "images", "prior"])
def test_form_part_without_file_name_is_refused(toy: Any, client: TestClient, field: str) -> None:
    image = toy.draw_image("gan_a", 1)
    first = IN_FORM % (b"images", b'; filename="a.png"') + image + b"\r\n"
    for value in (image, b"0.0001"):
        body = first + IN_FORM % (field.encode(), b"") + value + b"\r\n--x--\r\n"
        refused = client.post("/v1/query", content=body, headers=FORM_X)
        assert kind(refused) == "bad-request"
        assert f"part {field!r} without a file name" in refused.json()["detail"]


def test_repeated_values_are_refused(toy: Any, client: TestClient) -> None:
    image = toy.draw_image("gan_a", 1)
    refused = client.post("/v1/query?prior=0.1&prior=0.9", content=image)
    assert kind(refused) == "invalid"
    assert "'prior' is given more than once" in refused.json()["detail"]
    parts = [("source", b"", b"new"), ("label", b"", b"fake"), ("label", b"", b"real")]
    parts.append(("images", b'; filename="a.png"', image))
    body = b"".join(IN_FORM % (name.encode(), more) + value + b"\r\n" for name, more, value in parts) + b"--x--\r\n"
    with TestClient(toy.app(token="secret"), base_url="http://127.0.0.1") as writing:
        headers = FORM_X | {"Authorization": "Bearer secret"}
        twice = writing.post("/v1/bank", content=body, headers=headers)
    assert kind(twice) == "bad-request"
    assert "the field 'label' twice" in twice.json()["detail"]


@pytest.mark.parametrize("media", ["text/plain", "application/json", "multipart/mixed; boundary=x", "video/mp4"])
def test_body_of_another_type_is_refused(client: TestClient, media: str) -> None:
    for path in ("/v1/query", "/v1/embed"):
        assert kind(client.post(path, content=b"{}", headers={"content-type": media})) == "wrong-media"


def test_json_needs_its_content_type(client: TestClient) -> None:
    for path in ("/v1/search", "/v1/embeddings"):
        for media in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
            assert kind(client.post(path, content=b"{}", headers={"content-type": media})) == "wrong-media"
        fields = {"content-type": "application/json"}
        assert kind(client.post(path, content=b"{", headers=fields)) == "bad-request"
        assert kind(client.post(path, content=b"[" * 200_000, headers=fields)) == "bad-request"
        assert kind(client.post(path, content=b"\xff\xfe\x00", headers=fields)) == "bad-request"
        assert kind(client.post(path, content=b"[]", headers=fields)) == "invalid"
        assert kind(client.post(path, content=b"", headers=fields)) == "invalid"
    lone = b'{"key": "\\ud800", "k": 1}'  # a lone surrogate, which is not valid text
    assert kind(client.post("/v1/search", content=lone, headers=fields)) == "invalid"
    for number in (b"NaN", b"Infinity", b"1e999", b"1" * 400):
        body = b'{"vector": [' + number + b"]}"
        assert kind(client.post("/v1/search", content=body, headers=fields)) in ("invalid", "bad-request")


def test_file_names_are_returned_unchanged(toy: Any, client: TestClient) -> None:
    content = toy.draw_image("gan_a", 1, seed=4)
    for name in ("../../etc/passwd", "ä/ö ü.png", "<script>alert(1)</script>.png", "x" * 1000):
        [answer] = client.post("/v1/query", files=[("images", (name, content))], params={"changes": False}).json()[
            "answers"
        ]
        assert answer["image"] == name[-200:]
    body = b'--x\r\nContent-Disposition: form-data; name="a"; filename="\\ud800\\udfff"\r\n\r\n' + content
    for charset in ("utf-16", "unicode_escape", "rot13", "zip", "nonsense"):
        media = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
        assert client.post("/v1/query", content=body + b"\r\n--x--\r\n", headers=media).status_code == 200


# --- parsing any body ends in images or in a problem


def parse(body: bytes, media: str, pieces: int = 1) -> Any:
    size = -(-len(body) // pieces) or 1
    chunks = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    result = iter(messages)

    async def receive() -> Any:
        return next(result)

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", media.encode("latin-1", "replace"))]}
    return asyncio.run(form(Request(scope, receive), Limits()))


PART = st.tuples(
    st.sampled_from(
        [b'name="images"; filename="a.png"', b'name="images"', b"filename=a", b'name=";"; filename=""', b""]
    ),
    st.sampled_from([b"\r\n\r\n", b"\r\n", b"\n\n", b"\r\nContent-Type: image/png\r\n\r\n", b": \x00\r\n\r\n"]),
    st.binary(max_size=60),
    st.sampled_from([b"\r\n--x", b"\r\n--x--", b"--x", b"\r\n--xx", b""]),
)


MEDIA = (
    "multipart/form-data; boundary=x",
    "multipart/form-data; boundary=x; charset=unicode_escape",
    "multipart/form-data",
    'multipart/form-data; boundary=""',
    f"multipart/form-data; boundary={'y' * 300}",
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    parts=st.lists(PART, max_size=4),
    start=st.sampled_from([b"--x\r\n", b"--x", b"", b"\r\n--x\r\n", b"junk"]),
    media=st.sampled_from(MEDIA),
    pieces=st.integers(1, 7),
    cut=st.integers(0, 40),
)
def test_any_form_is_parsed_or_refused(
    parts: list[tuple[bytes, ...]], start: bytes, media: str, pieces: int, cut: int
) -> None:
    body = start + b"".join(b"\r\nContent-Disposition: form-data; " + a + b + c + d for a, b, c, d in parts)
    try:
        form = parse(body[: len(body) - cut], media, pieces)
    except HttpProblem as e:
        assert e.kind == "bad-request"
        return
    for upload in form.uploads:
        upload.name.encode()
        assert isinstance(upload.content, bytes)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    contents=st.lists(st.binary(max_size=200).filter(lambda c: b"--x" not in c), max_size=5), pieces=st.integers(1, 9)
)
def test_form_round_trip(contents: list[bytes], pieces: int) -> None:
    head = '--x\r\nContent-Disposition: form-data; name="images"; filename="{}"\r\n\r\n'
    body = b"".join(head.format(i).encode() + content + b"\r\n" for i, content in enumerate(contents)) + b"--x--\r\n"
    form = parse(body, "multipart/form-data; boundary=x", pieces)
    assert [(upload.name, upload.content) for upload in form.uploads] == [(str(i), c) for i, c in enumerate(contents)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.one_of(st.text(), st.from_regex(r"(data:[a-z/;=,]*(base64)?,?)?[A-Za-z0-9+/=]*", fullmatch=True)))
def test_any_text_is_decoded_or_refused(text: str) -> None:
    try:
        assert isinstance(upload_from_base64(text).content, bytes)
    except HttpProblem as e:
        assert e.kind == "invalid"


IMAGES = (
    saved("RGB", "JPEG"),
    saved("CMYK", "JPEG"),
    saved("RGBA", "PNG"),
    saved("RGB", "TIFF"),
    saved("RGB", "WEBP"),
    saved("L", "BMP"),
    animated(),
    turned(),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_image_is_judged_or_refused(client: TestClient, data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(IMAGES))
    broken = bytearray(whole[: data.draw(st.integers(1, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        broken[data.draw(st.integers(0, min(len(broken), 400) - 1))] = data.draw(st.integers(0, 255))
    response = client.post("/v1/embed", content=bytes(broken))
    assert response.status_code == 200 or kind(response) in ("bad-image", "too-large")


# --- limits and overload


def test_exceeded_limit_is_named(toy: Any) -> None:
    content = toy.draw_image("gan_a", 1)
    limits = Limits(image_bytes=len(content), request_bytes=3 * len(content), images=2, pixels=64 * 64, matches=5)
    with TestClient(toy.app(limits=limits), base_url="http://127.0.0.1") as client:
        assert client.post("/v1/query", content=content).status_code == 200
        assert kind(client.post("/v1/query", content=content + b"x")) == "too-large"
        assert kind(client.post("/v1/query", content=saved("RGB", "JPEG").ljust(4 * len(content)))) == "too-large"
        unannounced = (content[i : i + 500] for _ in range(4) for i in range(0, len(content), 500))
        refused = client.post("/v1/query", content=unannounced)
        assert (kind(refused), refused.headers["connection"]) == ("too-large", "close")
        images = [("images", (f"{i}.png", content[:100])) for i in range(3)]
        assert kind(client.post("/v1/query", files=images)) == "too-many"
        assert kind(client.post("/v1/embeddings", json={"input": ["AAAA"] * 3})) == "too-many"
        assert kind(client.post("/v1/search", json={"key": "gan_a/img 7.png", "k": 6})) == "invalid"
        wide = io.BytesIO()
        Image.new("RGB", (65, 64)).save(wide, "PNG")
        assert kind(client.post("/v1/query", content=wide.getvalue())) == "too-large"
        assert client.get("/healthz").status_code == 200


def test_limits_must_be_positive() -> None:
    for wrong in ({"batch": 0}, {"seconds": -1.0}, {"images": 300, "waiting": 200}):
        with pytest.raises(ValueError, match=r"image|must be positive"):
            Limits(**wrong)


class Counting(Encoder):
    """An encoder that records its batch sizes and can be blocked."""

    def __init__(self, inner: Any) -> None:
        self.inner, self._space = inner, inner.space
        self.batches: list[int] = []
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def shrink(self, pixels: Any) -> Any:
        return pixels

    def encode(self, images: Sequence[Any]) -> Any:
        self.batches.append(len(images))
        self.begun.set()
        assert self.go_on.wait(20)
        return self.inner.encode(images)

    def encode_texts(self, texts: Sequence[str]) -> Any:
        raise AssertionError


@asynccontextmanager
async def asking(app: Any) -> Any:
    """Send requests to an app concurrently."""
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client,
    ):
        yield client


def test_concurrent_requests_share_a_batch(toy: Any) -> None:
    counting = Counting(toy.encoder)
    contents = [toy.draw_image("gan_a", n, seed=5) for n in range(16)]

    async def all_at_once() -> Any:
        async with asking(toy.app(encoder=counting, limits=Limits(batch=8, linger=20))) as client:
            return await asyncio.gather(*(client.post("/v1/embed", content=content) for content in contents))

    body = [answer.json()["answers"][0]["vector"] for answer in asyncio.run(all_at_once())]
    assert counting.batches == [8, 8]
    alone = toy.encoder.encode([toy.decode(content).pixels for content in contents])
    np.testing.assert_allclose(body, alone, atol=1e-6)  # each request got its own vector


def test_single_image_does_not_wait_for_a_full_batch(toy: Any) -> None:
    counting = Counting(toy.encoder)
    with TestClient(toy.app(encoder=counting), base_url="http://127.0.0.1") as client:
        assert client.post("/v1/embed", content=toy.draw_image("gan_a", 1)).status_code == 200
    assert counting.batches == [1]


def test_full_queue_sends_retry_after(toy: Any) -> None:
    counting = Counting(toy.encoder)
    counting.go_on.clear()
    two_images = [("images", (f"{n}.png", toy.draw_image("gan_a", n, seed=5))) for n in range(2)]

    async def send_requests() -> Any:
        async with asking(toy.app(encoder=counting, limits=Limits(waiting=3, images=3))) as client:
            first = asyncio.create_task(client.post("/v1/query", files=two_images))
            assert await asyncio.to_thread(counting.begun.wait, 20)
            refused = await client.post("/v1/query", files=two_images)
            health = await client.get("/healthz")
            counting.go_on.set()
            answered = await first
            return refused, health, answered, await client.post("/v1/query", files=two_images)

    refused, health, answered, after = asyncio.run(send_requests())
    assert kind(refused) == "busy"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert (health.status_code, answered.status_code, after.status_code) == (200, 200, 200)


def test_too_many_requests_are_refused_except_health_checks(toy: Any) -> None:
    counting = Counting(toy.encoder)
    counting.go_on.clear()

    async def crowd() -> Any:
        content = toy.draw_image("gan_a", 1)
        limits = Limits(requests=1, held_bytes=len(content) + 10)
        async with asking(toy.app(encoder=counting, limits=limits)) as client:
            first = asyncio.create_task(client.post("/v1/query", content=content))
            assert await asyncio.to_thread(counting.begun.wait, 20)
            many = await client.get("/v1/store"), await client.get("/healthz")
            counting.go_on.set()
            return many, await first, await client.post("/v1/query", content=content)

    (refused, health), first, after = asyncio.run(crowd())
    assert kind(refused) == "busy"
    assert (health.status_code, first.status_code, after.status_code) == (200, 200, 200)


def test_bodies_too_large_together_are_refused(toy: Any) -> None:
    counting = Counting(toy.encoder)
    counting.go_on.clear()

    async def crowd() -> Any:
        content = toy.draw_image("gan_a", 1)
        async with asking(toy.app(encoder=counting, limits=Limits(held_bytes=2 * len(content) - 1))) as client:
            first = asyncio.create_task(client.post("/v1/embed", content=content))
            assert await asyncio.to_thread(counting.begun.wait, 20)
            refused = await client.post("/v1/embed", content=content)
            counting.go_on.set()
            return refused, await first, await client.post("/v1/embed", content=content)

    refused, first, after = asyncio.run(crowd())
    assert (kind(refused), refused.headers["retry-after"]) == ("busy", "1")
    assert (first.status_code, after.status_code) == (200, 200)


def test_slow_request_times_out(toy: Any) -> None:
    counting = Counting(toy.encoder)
    counting.go_on.clear()

    async def slow() -> Any:
        async with asking(toy.app(encoder=counting, limits=Limits(seconds=0.3))) as client:
            answer = await client.post("/v1/embed", content=toy.draw_image("gan_a", 1))
            counting.go_on.set()

            async def dripping() -> Any:
                yield b"\x89PNG"
                await asyncio.Event().wait()

            return answer, await client.post("/v1/embed", content=dripping())

    assert [kind(answer) for answer in asyncio.run(slow())] == ["too-slow", "slow-upload"]


def test_encoder_failure_affects_one_image_only(toy: Any) -> None:
    class Fails(Counting):
        def shrink(self, pixels: Any) -> Any:
            return pixels

        def encode(self, images: Sequence[Any]) -> Any:
            if any(image.shape[0] == 40 for image in images):
                raise RuntimeError("secret insides")
            return super().encode(images)

    files = [("images", ("good.png", toy.draw_image("gan_a", 1))), ("images", ("bad.png", saved("RGB", "PNG")))]
    with TestClient(toy.app(encoder=Fails(toy.encoder)), base_url="http://127.0.0.1") as client:
        answer = client.post("/v1/query", files=files).json()["answers"]
        refused = client.post("/v1/query", files=files[1:])
        assert client.post("/v1/query", files=files[:1]).status_code == 200
    assert (answer[0]["verdict"], answer[1].keys()) == ("fake", {"image", "error"})
    assert kind(refused) == "failed"
    assert "secret" not in refused.text + json.dumps(answer)


def test_missing_vector_makes_the_batch_encode_one_by_one(toy: Any) -> None:
    """No request may wait for a vector that never comes."""

    class Loses(Counting):
        def shrink(self, pixels: Any) -> Any:
            return pixels

        def encode(self, images: Sequence[Any]) -> Any:
            return super().encode(images)[: 1 if len(images) > 1 else None]

    files = [("images", (f"{i}.png", toy.draw_image("gan_a", i))) for i in range(3)]
    limits = Limits(seconds=5.0, linger=0.2)
    with TestClient(toy.app(encoder=Loses(toy.encoder), limits=limits), base_url="http://127.0.0.1") as client:
        response = client.post("/v1/query", files=files)
    assert [one["verdict"] for one in response.json()["answers"]] == ["fake"] * 3


def test_image_with_unusable_vector_is_refused(toy: Any) -> None:
    class Blind(Counting):
        def shrink(self, pixels: Any) -> Any:
            return pixels

        def encode(self, images: Sequence[Any]) -> Any:
            return np.full((len(images), 192), np.nan, np.float32)

    with TestClient(toy.app(encoder=Blind(toy.encoder)), base_url="http://127.0.0.1") as client:
        assert kind(client.post("/v1/query", content=toy.draw_image("gan_a", 1))) == "bad-image"


# --- shutdown


def test_close_encodes_queued_images() -> None:
    counting = Counting(
        type("Sums", (), {"space": None, "encode": staticmethod(lambda images: np.ones((len(images), 2)))})
    )
    counting.go_on.clear()

    async def end() -> Any:
        batcher = Batcher(counting.encode, Limits(batch=2, linger=0), ServiceMetrics())
        waiting = [asyncio.create_task(batcher.vector(n)) for n in range(5)]
        assert await asyncio.to_thread(counting.begun.wait, 20)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        counting.go_on.set()
        await closing
        return await asyncio.gather(*waiting)

    assert len(asyncio.run(end())) == 5
    assert sum(counting.batches) == 5


SERVER = """
import sys
from pathlib import Path
import numpy as np
from clipfake.indexer.decoding.image import decode, thumbnail
from clipfake.indexer.encoders.base import Encoder
from clipfake.service.server import serve
from clipfake.store.space import Space
from clipfake.store.store import Store

class Held(Encoder):
    _space = Space("held", "0" * 64, 2)

    def encode(self, images):
        print("encoding", flush=True)
        sys.stdin.readline()
        return np.full((len(images), 2), 0.5 ** 0.5, np.float32)

store = Store.create(Path(sys.argv[1]), Held._space)
serve(store, Held(), decode, thumbnail, port=0, on_ready=lambda url: print(url, flush=True))
"""


def test_request_is_answered_during_shutdown(toy: Any, tmp_path: Path) -> None:
    program = [sys.executable, "-c", SERVER, str(tmp_path / "store")]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin and server.stdout
        url = server.stdout.readline().strip()
        answers: list[Any] = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/embed", content=toy.draw_image("gan_a", 1), timeout=30))
        )
        asking.start()
        assert server.stdout.readline() == "encoding\n"
        server.send_signal(signal.SIGTERM)
        at = ("127.0.0.1", int(url.rpartition(":")[2]))
        with pytest.raises(ConnectionRefusedError):
            while True:  # until the server accepts no more connections
                with suppress(ConnectionResetError):
                    socket.create_connection(at, timeout=30).close()
        server.stdin.write("go on\n")
        server.stdin.flush()
        asking.join()
        assert server.wait(30) in (0, -signal.SIGTERM)
    assert answers[0].status_code == 200
    assert len(answers[0].json()["answers"][0]["vector"]) == 2


def test_response_is_sent_without_delay() -> None:
    async def connected() -> bool:
        result: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            option = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            result.set_result(bool(option))
            writer.close()

        with listening("127.0.0.1", 0) as ours:
            async with await asyncio.start_server(accepted, sock=ours):
                _, writer = await asyncio.open_connection(*ours.getsockname())
                writer.close()
                return await result

    assert asyncio.run(connected())  # with Nagle's algorithm each response takes 40 ms longer


def test_public_server_needs_a_token(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLIPFAKE_TOKEN", raising=False)
    for open_to_others in ({"host": "0.0.0.0"}, {"proxy": True}):
        with pytest.raises(ClipfakeError, match="CLIPFAKE_TOKEN"):
            serve(toy.store, toy.encoder, toy.decode, toy.thumbnail, **open_to_others)
    with listening("127.0.0.1", 0) as taken, pytest.raises(ClipfakeError, match="choose another --port"):
        serve(toy.store, toy.encoder, toy.decode, toy.thumbnail, port=taken.getsockname()[1])
