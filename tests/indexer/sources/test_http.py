"""Reading at URLs from web servers that send too much, too little, too late, something else, or nothing.

Each fault costs one image one refused row, or ends the run where a whole source is concerned, within limits of time
and memory, and no reason quotes what the server sent.
"""

import gzip
import io
import itertools
import re
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from clipfake.errors import ImageError, SourceError
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.index import index
from clipfake.indexer.sources import cloud, image_ref, urls, web
from clipfake.indexer.sources.folders import images_in
from clipfake.indexer.sources.image_ref import RemoteFile
from clipfake.indexer.sources.urls import open_url, read_url
from conftest import draw_image
from indexed import store_at
from web_server import RESET, Answer, Request, WebServer, content, head, status

pytest.importorskip("aiohttp", reason="the extra `cloud` is not installed: http needs fsspec and aiohttp")

SECRET = "TOP-SECRET-CONTENT"  # what a server sends and no reason may quote
PNG = draw_image("camera_a", 0)
SECONDS = 1.0  # in place of `READ_SECONDS`, where it is to be reached
LIMIT = 1 << 20  # in place of `BYTES_LIMIT`
LONG = 120.0  # seconds after which a case counts as endless, on a slow machine


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(web, "READ_SECONDS", LONG / 2)
    monkeypatch.setattr(web, "LISTING_BYTES", LIMIT)
    monkeypatch.setattr(web, "UNSTATED_BYTES", LIMIT)
    monkeypatch.setattr(urls, "READ_WHOLE", LIMIT)
    monkeypatch.setattr(image_ref, "BYTES_LIMIT", LIMIT)
    monkeypatch.setattr(web, "_seconds", {})
    before = time.monotonic()
    yield
    assert time.monotonic() - before < LONG


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as running:
        yield running


def endless(piece: bytes) -> Iterator[bytes]:
    return itertools.repeat(piece)


def framed(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)


def stated(length: object, body: bytes = PNG) -> Answer:
    return lambda request: [head(200, f"Content-Length: {length}"), body]


def packed(kind: str, body: bytes) -> Answer:
    return lambda request: [head(200, f"Content-Encoding: {kind}", f"Content-Length: {len(body)}"), body]


def bomb(unpacked: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(unpacked >> 20)) + packer.flush()


CHUNKED = head(200, "Transfer-Encoding: chunked")
TEXT = SECRET.encode() * 1000

# Case -> what the server sends, and a pattern of the reason for which the image is refused
FAULTS: dict[str, tuple[Answer, str]] = {
    "endless body": (lambda r: itertools.chain([head()], endless(TEXT)), "too large for an image"),
    "endless headers": (lambda r: itertools.chain([b"HTTP/1.1 200 OK\r\n"], endless(b"X: y\r\n")), "not valid HTTP"),
    "endless header": (lambda r: itertools.chain([b"HTTP/1.1 200 OK\r\nX: "], endless(TEXT)), "not valid HTTP"),
    "endless status line": (lambda r: itertools.chain([b"HTTP/1.1 200 "], endless(TEXT)), "not valid HTTP"),
    "endless interim answers": (lambda r: endless(b"HTTP/1.1 100 Continue\r\n\r\n"), "not "),
    "trickle": (lambda r: itertools.chain([head()], r.slowly(endless(b"x"))), "not complete after"),
    "trickling header": (lambda r: r.slowly(bytes([b]) for b in head(200, "X: " + "y" * 9999)), "not complete"),
    "silence after connect": (lambda r: r.silence(), "not complete"),
    "silence after headers": (lambda r: itertools.chain([head(200, "Content-Length: 9")], r.silence()), "not complete"),
    "silence in the body": (lambda r: itertools.chain([head(), PNG[:99]], r.silence()), "not complete"),
    "closed without an answer": (lambda r: [], "closed the connection"),
    "stated too long": (stated(len(PNG) + 1), "cut short"),
    "stated too short": (stated(9), "damaged PNG|not valid HTTP"),
    "stated negative": (stated(-5), "not valid HTTP"),
    "stated as a text": (stated(SECRET), "not valid HTTP"),
    "stated huge": (stated(10**18), "cut short"),
    "stated larger than any number": (stated(10**30), "not valid HTTP"),
    "stated twice": (stated(f"{len(PNG)}\r\nContent-Length: 7"), "not valid HTTP"),
    "stated huge and sent": (lambda r: itertools.chain(stated(1 << 60)(r), endless(TEXT)), "too large for an image"),
    "chunks without end": (lambda r: itertools.chain([CHUNKED], endless(framed(TEXT))), "too large for an image"),
    "tiny chunks": (lambda r: itertools.chain([CHUNKED], endless(framed(b"x") * 1000)), ""),
    "chunks that stop": (lambda r: [CHUNKED, framed(PNG)], "cut short"),
    "chunk of no number": (lambda r: [CHUNKED, TEXT], "not "),
    "chunk of a negative number": (lambda r: [CHUNKED + b"-5\r\nabcde\r\n"], "not valid HTTP"),
    # aiohttp 3 waits for the time limit if such a chunk does not arrive together with the head
    "negative chunk alone": (lambda r: itertools.chain([CHUNKED], r.slowly([b"-5\r\nabcde\r\n"])), "not "),
    "huge chunk": (lambda r: [CHUNKED + b"f" * 40 + b"\r\nabcde\r\n"], "not valid HTTP"),
    "endless chunk extension": (lambda r: itertools.chain([CHUNKED, b"5;"], endless(TEXT)), "not "),
    "endless trailers": (lambda r: itertools.chain([CHUNKED, framed(PNG), b"0\r\n"], endless(b"X: y\r\n")), "not "),
    "gzip bomb": (packed("gzip", bomb(200 << 20)), "too large for an image"),
    "gzip of no gzip": (packed("gzip", TEXT), "cannot be unpacked"),
    "gzip that is cut short": (packed("gzip", gzip.compress(PNG)[:-20]), "cut short"),
    "unknown packing": (packed(SECRET, TEXT), "not asked for"),
    "two packings": (packed("gzip, gzip", gzip.compress(gzip.compress(PNG))), "not asked for"),
    "redirects in a circle": (status(302, "Location: ?"), "redirects without an end"),
    "redirect to a file": (status(302, "Location: file:///etc/passwd"), "no URL of http"),
    "redirect to a scheme": (status(302, f"Location: ftp://h/{SECRET}"), "no URL of http"),
    "redirect to data": (status(302, f"Location: data:image/png;base64,{SECRET}"), "no URL of http"),
    "redirect to no host": (status(302, "Location: http://"), "no URL"),
    "redirect to a broken host": (status(302, f"Location: http://[{SECRET}/"), "URL"),
    "redirect to nowhere": (status(302), "answers 302"),
    "204": (status(204), "No Content"),
    "206 without a request": (status(206, "Content-Range: bytes 0-8/99", body=b"x" * 9), "answers 206"),
    "300": (status(300), "answers 300"),
    "304": (status(304), "Not Modified"),
    "401": (status(401, f"WWW-Authenticate: Basic realm={SECRET}"), "answers 401"),
    "404": (status(404, body=TEXT), "no such file at the server"),
    "416": (status(416), "answers 416"),
    "429": (status(429, "Retry-After: 99999999"), "Too Many Requests"),
    "500": (status(500, body=TEXT), "Internal Server Error"),
    "599": (status(599), "answers 599"),
    "999": (status(999), "answers 999"),
    "reset in the body": (lambda r: [head(200, "Content-Length: 9999"), PNG, RESET], "cut short"),
    "reset at once": (lambda r: [RESET], "closed the connection"),
    "no HTTP": (lambda r: [TEXT], "not valid HTTP"),
    "HTTP/0.9": (lambda r: [PNG], "not valid HTTP"),
    "HTTP/9": (lambda r: [b"HTTP/9.9 200 OK\r\n\r\n", PNG], "not "),
    "upgrade": (status(101, "Upgrade: websocket", "Connection: upgrade"), "answers 101"),
    "a web page": (content(b"<html>" + TEXT, "text/html"), "not an image"),
    "nothing": (content(b""), "empty file"),
}


LATE = ("", "not ", "not complete", "not complete after")  # reasons of a server that may reach the time limit


def list_at(folder: Path, urls: Iterable[str]) -> Path:
    table = folder / "list.csv"
    table.write_text("path,label\n" + "".join(f'"{url}",real\n' for url in urls))
    return table


@pytest.mark.parametrize("late", [False, True])
def test_each_fault_of_a_server_is_one_refused_row(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    if late:
        monkeypatch.setattr(web, "READ_SECONDS", SECONDS)
        monkeypatch.setattr(web, "LEAST_SECONDS", SECONDS)
    faults = [name for name, (_, reason) in FAULTS.items() if (reason in LATE) == late]
    targets = {f"/{i}.png": name for i, name in enumerate(faults)}
    server.answers |= {target: FAULTS[name][0] for target, name in targets.items()}
    good = [tmp_path / "first.png", tmp_path / "last.png"]
    for i, path in enumerate(good):
        path.write_bytes(draw_image("gan_a", i))
    urls = [str(good[0]), *(f"{server.url}{target}" for target in targets), str(good[1])]
    report = index([list_at(tmp_path, urls)], store_at(tmp_path / "store"), PlainEncoder())
    assert report.added == 2
    reasons = {key.removeprefix(f"list/{server.url}"): reason for key, reason in report.skipped}
    assert reasons.keys() == targets.keys()
    wrong = {
        name: reasons[target] for target, name in targets.items() if not re.search(FAULTS[name][1], reasons[target])
    }
    assert wrong == {}
    assert SECRET not in str(reasons)


def test_a_redirect_to_another_host_is_followed(server: WebServer) -> None:
    with WebServer({"/a.png": content(PNG)}, "127.0.0.2") as other:
        server.answers["/a.png"] = status(302, f"Location: {other.url}/a.png", "Set-Cookie: a=b")
        url = server.url.replace("//", "//user:password@")
        assert RemoteFile(f"{url}/a.png").read()[0] == PNG
        assert b"Authorization: Basic" in server.heads[0]
        assert b"Authorization" not in other.heads[0]
        assert b"Cookie" not in other.heads[0]


def test_no_cookie_is_sent_back(server: WebServer) -> None:
    server.answers["/a.png"] = content(PNG, "image/png", "Set-Cookie: a=b; Path=/")
    for _ in range(2):
        RemoteFile(f"{server.url}/a.png").read()
    assert b"Cookie" not in server.heads[1]


def test_images_at_odd_urls(server: WebServer) -> None:
    for target in ("/a%20b.png", "/%C3%BC.png", "/a?x=%C3%BC&y=1", "/a%0D%0AX-Evil:%201.png", "/%00.png"):
        server.answers[target] = content(PNG)
    for path in ("a b.png", "a%20b.png", "ü.png", "%C3%BC.png", "a?x=ü&y=1", "a?x=%C3%BC&y=1#part"):
        assert RemoteFile(f"{server.url}/{path}").read()[0] == PNG, path
    for path in ("a\r\nX-Evil: 1.png", "\0.png"):
        with suppress(ImageError):
            assert RemoteFile(f"{server.url}/{path}").read()[0] == PNG
    assert not any(line.lower().startswith(b"x-evil") for head in server.heads for line in head.split(b"\r\n"))


@pytest.mark.parametrize(
    "url",
    [
        *("http://", "http:///a.png", "http://[::1/a.png", "http://[x]/a.png", "http://[fe80::1%25lo]:1/a.png"),
        *("http://127.0.0.1:99999/a.png", "http://127.0.0.1:x/a.png", "http://127.0.0.1:1/a.png", "http://.:1/"),
        *("http://a b.invalid/a.png", "http://a\nb.invalid/", "http://\0.invalid/", "http://no.invalid/a.png"),
        *("http://\ud800.invalid/", f"http://{'a' * 300}.invalid/", f"http://{'a.' * 9999}invalid/", "http://xn--/"),
        *("http://\u202e.invalid/", "http://user:pass:word@@127.0.0.1:1/", "http://127.0.0.1:1/\ud800", "http://%/"),
    ],
)
def test_urls_without_a_server_are_refused(url: str) -> None:
    with pytest.raises(ImageError):
        RemoteFile(url).read()
    with pytest.raises(SourceError):
        open_url(url)


def test_a_host_may_be_an_ipv6_address() -> None:
    try:
        running = WebServer({"/a.png": content(PNG)}, "::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    with running:
        assert RemoteFile(f"{running.url}/a.png").read()[0] == PNG
        assert RemoteFile(f"{running.url.replace('//', '//user:password@')}/a.png").read()[0] == PNG


def test_a_packed_answer_is_unpacked(server: WebServer) -> None:
    server.answers = {
        "/gzip": packed("gzip", gzip.compress(PNG)),
        "/deflate": packed("deflate", zlib.compress(PNG)),
        "/a.csv": packed("gzip", gzip.compress(b"path,label\na.png,real\n" * 20_000)),
    }
    assert RemoteFile(f"{server.url}/gzip").read()[0] == RemoteFile(f"{server.url}/deflate").read()[0] == PNG
    with open_url(f"{server.url}/a.csv") as file:
        assert file.read() == b"path,label\na.png,real\n" * 20_000
    assert all(b"Accept-Encoding: identity" in head for head in server.heads)


# Ranges


def ranged(body: bytes, **changed: str) -> Answer:
    """A part of a file with changed headers, where a part is requested."""

    def answer(request: Request) -> Iterable[bytes]:
        start, end = request.range_of(body)
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(body)}"} | changed
        return [head(206, *(f"{name}: {value}" for name, value in headers.items() if value)), body[start:end]]

    return answer


BODY = bytes(range(256)) * 40


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda r: content(BODY)(r._replace(headers={})), "does not answer requests for a part"),
        (ranged(BODY, **{"Content-Range": "bytes 0-9/10240"}), "another part"),
        (ranged(BODY, **{"Content-Range": "bytes 101-9/10240"}), "another part"),
        (ranged(BODY, **{"Content-Range": ""}), "another part"),
        (ranged(BODY, **{"Content-Range": f"bytes {SECRET}"}), "another part"),
        (ranged(BODY, **{"Content-Range": f"bytes 100-{'9' * 30}/*"}), "another part"),
        (ranged(BODY, **{"Content-Range": "bytes 100-150/10240"}), "another number of bytes"),
        (lambda r: [head(206, "Content-Range: bytes 100-299/10240"), BODY[100:250]], "another number of bytes"),
        (ranged(BODY, **{"Content-Encoding": "gzip"}), "not asked for"),
        (status(416), "answers 416"),
        (status(204), "answers 204"),
        (lambda r: itertools.chain([head(206, "Content-Range: bytes 100-299/*")], r.silence()), "not complete"),
    ],
)
def test_a_wrong_part_of_a_file_is_refused(
    server: WebServer, monkeypatch: pytest.MonkeyPatch, answer: Answer, reason: str
) -> None:
    if reason in LATE:
        monkeypatch.setattr(web, "READ_SECONDS", SECONDS)
    server.answers["/f"] = answer
    with pytest.raises(ImageError, match=reason) as caught:
        read_url(f"{server.url}/f", 200, 100)
    assert SECRET not in str(caught.value)


def test_parts_of_a_file_are_read(server: WebServer) -> None:
    server.answers["/f"] = content(BODY)
    server.answers["/endless"] = lambda r: itertools.chain(
        [head(206, "Content-Range: bytes 7-99999999999/*")], endless(BODY)
    )
    assert read_url(f"{server.url}/f", 200, 100) == BODY[100:300]
    assert read_url(f"{server.url}/f", 200, len(BODY) - 5) == BODY[-5:]
    assert read_url(f"{server.url}/endless", 5, 7) == BODY[:5]
    with open_url(f"{server.url}/f") as file:
        assert file.read(5) == BODY[:5]
        assert file.seek(-9, 2) == len(BODY) - 9
        assert file.read() == BODY[-9:]
        assert file.seek(3) == 3
        assert file.read() == BODY[3:]


def zip_of(*images: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for i, image in enumerate(images):
            archive.writestr(f"real/{i}.png", image)
    return out.getvalue()


def tar_of(*images: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for i, image in enumerate(images):
            member = tarfile.TarInfo(f"real/{i}.png")
            member.size = len(image)
            archive.addfile(member, io.BytesIO(image))
    return out.getvalue()


def test_archives_at_urls(server: WebServer, tmp_path: Path) -> None:
    images = [draw_image("camera_a", i) for i in range(5)]
    server.answers = {
        "/a.zip": content(zip_of(*images)),
        "/b.tar": content(tar_of(*images)),
        "/c.tar": lambda r: content(tar_of(*images))(r._replace(headers={})),
    }
    for name in ("a.zip", "b.tar", "c.tar"):
        report = index([f"{server.url}/{name}"], store_at(tmp_path / name), PlainEncoder())
        assert (report.added, report.skipped) == (5, [])


def test_a_zip_needs_parts(server: WebServer) -> None:
    server.answers["/a.zip"] = lambda r: content(zip_of(PNG))(r._replace(headers={}))
    with pytest.raises(SourceError, match="does not answer requests for a part of a file"):
        list(images_in([f"{server.url}/a.zip"]))


def test_a_file_that_changes_between_two_parts_is_refused(server: WebServer) -> None:
    versions = [zip_of(PNG), zip_of(draw_image("gan_a", 1), draw_image("gan_b", 1))]
    server.answers["/a.zip"] = lambda r: content(versions[min(r.number, 1)])(r)
    with pytest.raises(SourceError, match="changed while it was read"):
        list(images_in([f"{server.url}/a.zip"]))
    same = bytes(BODY)
    server.answers["/f"] = lambda r: content(same, "x/y", f'ETag: "{r.number}"')(r)
    with open_url(f"{server.url}/f") as file, pytest.raises(OSError, match="changed while it was read"):
        file.seek(100)
        file.read(1)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_that_changes_later_gives_refused_rows(server: WebServer, tmp_path: Path, method: int) -> None:
    changed = False

    def answer(request: Request) -> Iterable[bytes | None]:
        return content(zip_of(*[draw_image("gan_a" if changed else "camera_a", i) for i in range(4)], method=method))(
            request
        )

    server.answers["/a.zip"] = answer
    images = list(images_in([f"{server.url}/a.zip"]))
    changed = True
    for image in images:
        with pytest.raises(ImageError, match=r"changed|damaged|unpacked"):
            image.byte_source.read()


# Tables

LINE = b"a.png,real\n"


@pytest.mark.parametrize(
    ("name", "answer", "reason"),
    [
        (
            "endless.csv",
            lambda r: itertools.chain([head(), b"path,label\n"], endless(LINE * 999)),
            "more than 1,048,576",
        ),
        (
            "blank.csv",
            lambda r: itertools.chain([head(), b"path,label\n"], endless(b"\n" * 9999)),
            "more than 1,048,576",
        ),
        (
            "line.csv",
            lambda r: itertools.chain([head(), b"path,label\n"], endless(b"x" * 9999)),
            "line|field|more than",
        ),
        (
            "quoted.csv",
            lambda r: itertools.chain([head(), b'path,label\n"'], endless(b"x\n" * 999)),
            "field larger|more than",
        ),
        ("heading.csv", lambda r: itertools.chain([head()], endless(TEXT)), "line|more than"),
        ("endless.jsonl", lambda r: itertools.chain([head()], endless(b'{"path": "a.png"}\n')), "more than 1,048,576"),
        ("line.jsonl", lambda r: itertools.chain([head()], endless(TEXT)), "line|more than"),
        ("deep.jsonl", lambda r: itertools.chain([head()], endless(b"[" * 9999)), "line|more than"),
        ("trickle.csv", lambda r: itertools.chain([head(), b"path,label\n"], r.slowly(endless(LINE))), "not complete"),
        ("silent.csv", lambda r: itertools.chain([head(), b"path,label\n"], r.silence()), "not complete"),
        ("silent.jsonl", lambda r: r.silence(), "not complete"),
        ("short.csv", stated(99, b"path,label\n" + LINE), "cut short"),
        ("reset.csv", lambda r: [head(200, "Content-Length: 9999"), b"path,label\n" + LINE, RESET], "cut short"),
        ("huge.csv", stated(1 << 60, b"path,label\n"), "more than 1,099,511,627,776"),
        ("huge.tar", stated(1 << 60), "more than 1,099,511,627,776"),
        ("bomb.csv", packed("gzip", bomb(64 << 20)), "line|NUL|more than"),
        ("missing.csv", status(404), "no such file"),
        ("page.csv", content(b"<html>\n" + TEXT, "text/html"), "no column image_path"),
        ("page.parquet", content(b"<html>\n" + TEXT, "text/html"), "parquet|table"),
        ("silent.parquet", lambda r: r.silence(), "not complete"),
        ("page.tar", content(b"<html>\n" + TEXT, "text/html"), "tar"),
        ("page.zip", content(b"<html>\n" + TEXT, "text/html"), "zip"),
        ("endless.zip", lambda r: itertools.chain([head()], endless(TEXT)), "does not state its size"),
        (
            "endless.tar",
            lambda r: itertools.chain([head(), b""], endless(tar_of(PNG)[: 512 + len(PNG) // 512 * 512 + 512])),
            "more than 1,048,576",
        ),
        ("endless.tar.gz", lambda r: itertools.chain([head()], endless(bomb(1 << 20))), "more than|tar"),
        ("silent.tar", lambda r: itertools.chain([head(), tar_of(PNG)[:700]], r.silence()), "not complete"),
        ("silent.zip", lambda r: r.silence(), "not complete"),
        ("loop.zip", status(302, "Location: ?"), "redirects without an end"),
    ],
)
def test_each_fault_of_a_source_ends_the_run(
    server: WebServer, monkeypatch: pytest.MonkeyPatch, name: str, answer: Answer, reason: str
) -> None:
    if reason in LATE:
        monkeypatch.setattr(web, "READ_SECONDS", SECONDS)
    server.answers[f"/{name}"] = answer
    with pytest.raises(SourceError, match=reason) as caught:
        for _ in images_in([f"{server.url}/{name}"]):
            pass
    assert SECRET not in str(caught.value)


def test_tables_at_urls(server: WebServer, tmp_path: Path) -> None:
    images = [draw_image("gan_a", i) for i in range(3)]
    server.answers |= {f"/d/{i}.png": content(image) for i, image in enumerate(images)}
    server.answers["/d/t.csv"] = content(b"path,label\n0.png,fake\n1.png,fake\nfile:///etc/passwd,real\n")
    server.answers["/d/u.jsonl"] = content(b'{"path": "%s/d/2.png", "label": "fake"}\n' % server.url.encode())
    report = index([f"{server.url}/d/t.csv", f"{server.url}/d/u.jsonl"], store_at(tmp_path / "store"), PlainEncoder())
    assert (report.added, len(report.skipped)) == (3, 1)


# Folders


def page(links: Iterable[str]) -> Answer:
    return content("".join(f'<a href="{link}">x</a>\n' for link in links).encode(), "text/html; charset=utf-8")


HOSTILE = [
    *("../", "..", "../../", "./", ".", "/", "//", "//other/", "//other/x.png", "http://other/x.png", "?C=N;O=D", "#x"),
    *(
        "file:///etc/passwd",
        "file:///",
        "ftp://h/x.png",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "%2e%2e/",
    ),
    *(
        "..%2f..%2fx.png",
        "%2Fetc%2Fpasswd",
        "a%00.png",
        "a%0a.png",
        "/other/x.png",
        "sub/x.png",
        "http://[x/",
        "x" * 5000,
    ),
    *("a.png?x=1", "a.png#x", "&#46;&#46;/", "..\\x.png", "mailto:a@b", "zip://a.png::file:///b.zip", "a%1b[2J.png"),
]


def test_a_listing_leads_nowhere_else(server: WebServer) -> None:
    server.answers = {
        "/d/": page([*HOSTILE, "a.png", "./b.png", f"{server.url}/d/c%20c.png", "/d/d.png", "sub/", "a.png"]),
        "/d/sub/": page(["e.png", "../"]),
    }
    listed = [image.path.removeprefix(server.url) for image in images_in([f"{server.url}/d"])]
    assert listed == [f"/d/{name}" for name in ("a.png", "b.png", "c%20c.png", "d.png", "sub/e.png")]
    assert set(server.requests) == {"/d/", "/d/sub/"}


def test_a_folder_at_a_url_is_indexed(server: WebServer, tmp_path: Path) -> None:
    server.answers = {"/d": status(301, "Location: /d/"), "/d/": page(["real/", "1_fake/"])}
    server.answers |= {"/d/real/": page(["a b.png", "a%20b.png", "gone.png"]), "/d/1_fake/": page(["x.png"])}
    server.answers |= {"/d/real/a%20b.png": content(PNG), "/d/1_fake/x.png": content(draw_image("gan_a", 0))}
    report = index([f"{server.url}/d"], store_at(tmp_path / "store"), PlainEncoder())
    assert (report.added, [key for key, _ in report.skipped]) == (2, ["d/real/gone.png"])


def test_a_table_in_a_folder_costs_no_request_for_each_image(server: WebServer) -> None:
    server.answers = {"/d/": page(["metadata.csv", "0.png", "1.png"])}
    server.answers["/d/metadata.csv"] = content(b"file_name,label\n0.png,real\n1.png,fake\n2.png,fake\n")
    images = list(images_in([f"{server.url}/d"]))
    assert [(image.label, bool(image.refused)) for image in images][:2] == [(0, False), (1, False)]
    assert not {"/d/0.png", "/d/1.png"} & set(server.requests)


def test_a_long_listing_is_read(server: WebServer) -> None:
    server.answers["/d/"] = page(f"{i}.png" for i in range(20_000))
    assert len(list(images_in([f"{server.url}/d/"]))) == 20_000


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda r: itertools.chain([head(200, "Content-Type: text/html")], endless(b'<a href="a.png">')), "1,048,576"),
        (lambda r: itertools.chain([head(200, "Content-Type: text/html")], endless(b"<a " * 999)), "1,048,576"),
        (lambda r: itertools.chain([head(200, "Content-Type: text/html")], r.slowly(endless(b"<a>"))), "not complete"),
        (packed("gzip", bomb(64 << 20)), "no listing"),
        (content(TEXT), "no listing"),
        (content(b"<a href=" + b" " * 900_000, "text/html"), "no images"),
        (content(b'<a href="' * 100_000, "text/html"), "no images"),
        (status(404), "no such file"),
        (status(403, body=TEXT), "answers 403"),
        (lambda r: r.silence(), "not complete"),
    ],
)
def test_a_folder_without_a_listing_ends_the_run(
    server: WebServer, monkeypatch: pytest.MonkeyPatch, answer: Answer, reason: str
) -> None:
    if reason in LATE:
        monkeypatch.setattr(web, "READ_SECONDS", SECONDS)
    server.answers["/d/"] = answer
    with pytest.raises(SourceError, match=reason) as caught:
        list(images_in([f"{server.url}/d"]))
    assert SECRET not in str(caught.value)


def test_folders_without_end_end_the_run(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "MOST_FOLDERS", 1000)
    server.answers |= {"/deep/" + "a/" * depth: page(["a/", "x.png"]) for depth in range(100)}
    server.answers |= {"/wide/": page(f"{i}/" for i in range(600))}
    server.answers |= {f"/wide/{i}/": page(f"{j}/" for j in range(600)) for i in range(600)}
    for name in ("deep", "wide"):
        with pytest.raises(SourceError, match="more than 1,000 folders, or folders in each other more than 64 deep"):
            list(images_in([f"{server.url}/{name}"]))


# Time and memory


def test_a_server_that_lets_files_time_out_gets_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "READ_SECONDS", 300.0)
    limits = []

    def run(system: object, seconds: float, *arguments: object) -> bytes:
        limits.append(seconds)
        if "slow" in str(arguments):
            raise TimeoutError
        return b""

    monkeypatch.setattr(web, "_run", run)
    for path in ["slow"] * 7 + ["good"] * 6:
        with suppress(TimeoutError):
            web.fetch(None, f"http://user@HOST:80/{path}", 1)
    web.fetch(None, "http://other/good", 1)
    halved = [300, 150, 75, 37.5, 18.75, 9.375, 9.375]
    assert limits == [*halved, 9.375, 18.75, 37.5, 75, 150, 300, 300]
    assert web._seconds == {}


def test_trickling_urls_do_not_hold_the_run(server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "READ_SECONDS", 4.0)  # 64 times this is more than LONG
    monkeypatch.setattr(web, "LEAST_SECONDS", 0.1)
    server.answers |= {f"/{i}.png": lambda r: itertools.chain([head()], r.slowly(endless(b"x"))) for i in range(64)}
    urls = [f"{server.url}/{i}.png" for i in range(64)]
    report = index([list_at(tmp_path, urls)], store_at(tmp_path / "store"), PlainEncoder())
    assert len(report.skipped) == 64


LIMITED = """
import resource, sys
from clipfake.indexer.sources import web
from clipfake.indexer.sources.folders import images_in
from clipfake.indexer.sources.image_ref import RemoteFile
from clipfake.errors import ClipfakeError

RemoteFile(sys.argv[1] + "/good").read()  # everything is imported and started
before = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (before + (int(sys.argv[2]) << 20),) * 2)
web.LISTING_BYTES = 1 << 20
for target in sys.argv[3:]:
    try:
        if target.endswith((".csv", "/d")):
            list(images_in([sys.argv[1] + target]))
        else:
            RemoteFile(sys.argv[1] + target).read()
    except ClipfakeError as e:
        print(target, e)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_memory_is_bounded_under_any_answer(server: WebServer) -> None:
    bombs = bomb(1 << 30)
    server.answers = {
        "/good": content(PNG),
        "/bomb": packed("gzip", bombs),
        "/endless": lambda r: itertools.chain([head()], endless(bytes(1 << 20))),
        "/chunks": lambda r: itertools.chain([CHUNKED], endless(framed(bytes(1 << 20)))),
        "/b.csv": packed("gzip", bombs),
        "/d/": lambda r: [head(200, "Content-Type: text/html", "Content-Encoding: gzip"), bombs],
    }
    limit = 3 * (256 + 1)  # MiB: an image of 256 MiB grows in a buffer, and is copied
    targets = ["/bomb", "/endless", "/chunks", "/b.csv", "/d"]
    command = [sys.executable, "-c", LIMITED, server.url, str(limit), *targets]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == targets[:3]
    assert all("too large for an image" in line for line in lines[:3])
    assert "memory" not in ended.stdout
