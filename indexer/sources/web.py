"""Read files and listings of folders at http(s) URLs, from servers that may send anything, and without an end.

Bytes, time and memory are limited, whatever length the server states. Errors quote nothing that a server sent. Nothing
that it sets is kept (no cookies).
"""

from __future__ import annotations

import errno
import html
import io
import re
import zlib
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

PIECE = 1 << 20  # bytes
READ_SECONDS = 300.0  # in which a file, or a piece of a stream, must have been read
LEAST_SECONDS = READ_SECONDS / 32  # for a file of a server that let others time out
LISTING_BYTES = 1 << 26  # 64 MiB: limit of a listing, several 100,000 files
STREAM_BYTES = 1 << 40  # 1 TiB: limit of a table or archive
UNSTATED_BYTES = 1 << 32  # 4 GiB: limit if the server does not state the size, which need not have an end
HTML = ("text/html", "application/xhtml+xml")
PACKED = ("gzip", "x-gzip", "deflate")  # values of Content-Encoding that are unpacked

_LINK = re.compile(r"""\bhref\s*=\s*["']([^"'<>\s]{1,4096})["']""", re.IGNORECASE)
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_seconds: dict[str, float] = {}  # host -> time limit of the next file, for hosts that let others time out


def is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


async def new_session(**options: Any) -> Any:
    """Session for fsspec that keeps no cookies, of which a server can set any number, and unpacks nothing itself."""
    import aiohttp

    return aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, **options)


def fetch(system: Any, url: str, limit: int, start: int = 0, *, ranged: bool = True) -> bytes:
    """Read at most `limit` bytes at a URL from `start` on; raises OSError.

    Each file that times out halves the time limit of the next one of the same host, and each other one doubles it.
    """
    host = _host_of(url)
    seconds = min(_seconds.get(host, READ_SECONDS), READ_SECONDS)
    try:
        content: bytes = _run(system, seconds, _fetch, system, url, limit, start, ranged)
    except TimeoutError:
        _seconds[host] = max(seconds / 2, min(LEAST_SECONDS, READ_SECONDS))
        raise
    if seconds >= READ_SECONDS / 2:
        _seconds.pop(host, None)
    else:
        _seconds[host] = seconds * 2
    return content


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


async def _fetch(system: Any, url: str, limit: int, start: int, ranged: bool) -> bytes:
    body = await _request(system, url, start, start + limit - 1 if ranged else None)
    content = bytearray()
    try:
        while len(content) < limit and (piece := await body.read()):
            content += piece[: limit - len(content)]
    finally:
        body.close()
    return bytes(content)


def list_links(system: Any, url: str) -> tuple[list[str], list[str]]:
    """Names of the folders and files in the folder at a URL, by the links of its page; raises OSError."""
    folder = url.rstrip("/") + "/"
    page, final_url = _run(system, READ_SECONDS, _page, system, folder)
    return names_in_page(page.decode("utf-8", "replace"), final_url)


async def _page(system: Any, url: str) -> tuple[bytes, str]:
    body = await _request(system, url, 0, None)
    content = bytearray()
    try:
        if body.answer.content_type not in HTML:
            raise OSError(errno.EINVAL, "the server sends no listing of a folder")
        while piece := await body.read():
            content += piece
            if len(content) > LISTING_BYTES:
                raise OSError(errno.EFBIG, f"its listing has more than {LISTING_BYTES:,} bytes")
        return bytes(content), str(body.answer.url)
    finally:
        body.close()


def names_in_page(page: str, url: str) -> tuple[list[str], list[str]]:
    """Names of folders and files that a page links to directly below its URL, as they stand in the links; sorted.

    >>> names_in_page('<a href="a.jpg"> <a href="b/"> <a href="../c.jpg"> <a href="//host/d.jpg"> <a href="?C=N">', "http://h/x/")
    (['b'], ['a.jpg'])
    """
    parts = urlsplit(url)
    folder = f"{parts.scheme}://{parts.netloc}{parts.path.rpartition('/')[0]}/"
    folders: set[str] = set()
    files: set[str] = set()
    for match in _LINK.finditer(page):
        try:
            link = urljoin(folder, html.unescape(match[1]))
        except ValueError:  # such as a host in brackets that is no IPv6 address
            continue
        name = link.removeprefix(folder)
        if link.startswith(folder) and _is_name(name.removesuffix("/")):
            (folders if name.endswith("/") else files).add(name.removesuffix("/"))
    return sorted(folders), sorted(files)


def _is_name(name: str) -> bool:
    plain = unquote(name)
    return not ({*plain} & {*"/\\?#"} or {*name} & {*"?#"} or plain in ("", ".", "..")) and plain.isprintable()


class HttpStream(io.RawIOBase):
    """Stream of a file at a URL, read with one request per seek; raises only OSError."""

    def __init__(self, system: Any, url: str) -> None:
        self._system, self._url, self._position = system, url, 0
        self._body: _Body | None = None
        self._rest = b""
        self._first = self._open()
        self._size = self._first.size
        if self._size > STREAM_BYTES:
            self.close()
            raise OSError(errno.EFBIG, f"it has {self._size:,} bytes, more than {STREAM_BYTES:,}")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True  # so that `seek` says why it cannot

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 2 and self._size < 0:
            raise OSError(errno.ESPIPE, "the server does not state its size")
        position = offset + (0, self._position, self._size)[whence]
        if position < 0:
            raise OSError(errno.EINVAL, "a position before its start")
        if position != self._position:
            if not self._first.ranges:
                raise OSError(errno.ESPIPE, "the server does not answer requests for a part of a file")
            self._drop()
            self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[:PIECE]
        if self._body is None:
            if 0 <= self._size <= self._position:
                return 0
            self._check_same(self._open())
        count: int = _run(self._system, READ_SECONDS, self._fill, view)
        self._position += count
        if self._size < 0 and self._position > UNSTATED_BYTES:
            raise OSError(errno.EFBIG, f"more than {UNSTATED_BYTES:,} bytes of a size that the server does not state")
        return count

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()

    def _open(self) -> _Body:
        self._body = _run(self._system, READ_SECONDS, _request, self._system, self._url, self._position, -1)
        return self._body

    def _check_same(self, body: _Body) -> None:
        if (body.size, body.version) != (self._first.size, self._first.version):
            raise OSError(errno.EINVAL, "it changed while it was read; try again when it is complete")

    async def _fill(self, view: memoryview) -> int:
        assert self._body is not None
        count = 0
        while count < len(view) and (piece := self._rest or await self._body.read()):
            taken = piece[: len(view) - count]
            view[count : count + len(taken)] = taken
            count += len(taken)
            self._rest = piece[len(taken) :]
        return count

    def _drop(self) -> None:
        body, self._body, self._rest = self._body, None, b""
        if body is not None:
            self._system.loop.call_soon_threadsafe(body.close)


class _Body:
    """Body of an answer."""

    def __init__(self, answer: Any, start: int) -> None:
        """Check the headers of an answer to a request for the bytes from `start` on; raises OSError."""
        self.answer = answer
        self.version = answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", "")
        self.ranges = answer.status == HTTPStatus.PARTIAL_CONTENT
        self.size = -1  # bytes of the file, -1: unknown
        self._missing: int | None = None  # bytes that have not come yet, None: unknown
        encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
        if self.ranges:
            match = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
            if not match or int(match[1]) != start:
                raise OSError(errno.EINVAL, "the server sends another part of the file than the requested one")
            self._missing = int(match[2]) + 1 - start
            self.size = -1 if match[3] == "*" else int(match[3])
        elif answer.content_length is not None:
            self.size = answer.content_length
        self._unpacker = None
        if encoding not in ("identity", ""):
            is_whole = not self.ranges or (start == 0 and self._missing == self.size)
            if encoding not in PACKED or not is_whole:
                raise OSError(errno.EINVAL, "the server packs its answer in a way that was not asked for")
            self.size, self.ranges, self._unpacker = -1, False, zlib.decompressobj(47)  # gzip or zlib

    async def read(self) -> bytes:
        """The next piece, b"" at the end."""
        if self._unpacker is None:
            return await self._read_packed()
        while True:
            packed = self._unpacker.unconsumed_tail or await self._read_packed()
            try:
                piece = self._unpacker.decompress(packed, PIECE)
            except zlib.error as e:
                raise OSError(errno.EIO, "the answer of the server cannot be unpacked") from e
            if piece or self._unpacker.eof:
                return piece
            if not packed:
                raise OSError(errno.EIO, "the answer of the server is cut short")

    async def _read_packed(self) -> bytes:
        piece: bytes = await self.answer.content.read(PIECE)
        if self._missing is not None:
            self._missing -= len(piece)
            if self._missing < 0 or (not piece and self._missing):
                raise OSError(errno.EIO, "the server sends another number of bytes than it states")
        return piece

    def close(self) -> None:
        self.answer.close()


class _Nothing(_Body):
    """Body of an answer that there is no byte to send."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.version, self.ranges, self.size = answer, ("", ""), False, 0

    async def read(self) -> bytes:
        return b""


async def _request(system: Any, url: str, start: int, end: int | None) -> _Body:
    """Request the bytes of a file from `start` to `end` (-1: to the last one, None: the whole file); raises OSError."""
    import aiohttp

    headers = {**system.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    if end is not None:
        headers["Range"] = f"bytes={start}-{'' if end < 0 else end}"
    options = {**system.kwargs, "headers": headers, "timeout": aiohttp.ClientTimeout()}  # `_run` has the time limit
    session = await system.set_session()
    answer = await session.get(system.encode_url(url), **options)
    try:
        status = answer.status
        if status in (HTTPStatus.OK, HTTPStatus.NON_AUTHORITATIVE_INFORMATION):
            if start:
                raise OSError(errno.ESPIPE, "the server does not answer requests for a part of a file")
            return _Body(answer, start)
        if status == HTTPStatus.PARTIAL_CONTENT and end is not None:
            return _Body(answer, start)
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and end is not None and start == 0:
            answer.close()
            return _Nothing(answer)
        raise _refusal(status)
    except BaseException:
        answer.close()
        raise


def _refusal(status: int) -> OSError:
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return FileNotFoundError(errno.ENOENT, "no such file at the server")
    known = {known.value: known.phrase for known in HTTPStatus}
    return OSError(errno.EIO, f"the server answers {status}" + (f" ({known[status]})" if status in known else ""))


def _run(system: Any, seconds: float, read: Any, *arguments: Any) -> Any:
    """Run a coroutine function in fsspec's thread; raises OSError, of which TimeoutError is one."""
    from fsspec.asyn import sync

    try:
        return sync(system.loop, read, *arguments, timeout=seconds)
    except TimeoutError as e:
        raise TimeoutError(errno.ETIMEDOUT, f"not complete after {seconds:,.3g} seconds") from e
    except Exception as e:  # of aiohttp and yarl, which can be anything
        if isinstance(e, OSError) and type(e).__module__ == "builtins" and e.strerror:
            raise
        raise OSError(getattr(e, "errno", None) or errno.EIO, _in_our_words(e)) from e


def _in_our_words(e: Exception) -> str:
    """Say why a request failed: aiohttp's own messages quote what the server sent."""
    import aiohttp

    words = {
        aiohttp.TooManyRedirects: "the server redirects without an end",
        aiohttp.RedirectClientError: "the server redirects to what is no URL of http or https",
        aiohttp.ClientResponseError: "the answer of the server is not valid HTTP",
        aiohttp.ClientPayloadError: "the answer of the server is cut short or not valid HTTP",
        aiohttp.ClientSSLError: "the server has no certificate that this machine trusts, or no TLS",
        aiohttp.ClientConnectorDNSError: "its host is not found",
        aiohttp.ClientConnectorError: "there is no connection to its server",
        aiohttp.ClientConnectionError: "the server closed the connection",
        ValueError: "no valid URL",  # also aiohttp.InvalidURL
    }
    why = next((text for kind, text in words.items() if isinstance(e, kind)), None)
    return why or f"the server cannot be read ({type(e).__name__})"
