"""Read files at URLs with fsspec, with limits on the bytes and the time.

A table may come from a stranger, so that its URLs are limited to `PROTOCOLS`, and a chain such as
`zip://a.jpg::file:///b.zip` is never opened.
"""

from __future__ import annotations

import errno
import io
import re
from typing import Any, BinaryIO

from ...errors import ClipfakeError, ImageError, MissingExtra, SourceError
from . import web

# Protocols that a table may name beside that of its own URL. Others read this machine or run programs on it.
PROTOCOLS = frozenset(("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss", "hf", "memory"))
LOCAL = ("file://", "local://")
_IPV6 = re.compile(r"(?<=://)(?:[^/?#@:]*(?::[^/?#@:]*)?@)?\[[0-9A-Fa-f:.]*\]")
READ_WHOLE = 1 << 28  # bytes from which on no range is requested, as some servers do not know it


def is_url(path: str) -> bool:
    return "://" in path


def local_path(url: str) -> str:
    """Path of a `file://` URL, "" for any other; escapes such as %20 are not decoded, as in fsspec.

    >>> local_path("file:///data/a.jpg"), local_path("https://host/a.jpg")
    ('/data/a.jpg', '')
    """
    if "://" not in url or "::" in url or not url.lower().startswith(LOCAL):
        return ""
    return url.partition("://")[2]


def _is_chain(url: str) -> bool:
    """True for a chain of URLs, which only an IPv6 address resembles.

    >>> _is_chain("zip://a.jpg::http://host/b.zip"), _is_chain("http://[::1]:8000/a.jpg")
    (True, False)
    """
    return "::" in _IPV6.sub("", url, count=1)


def refusal_of(url: str, table: str = "") -> str:
    """Why a URL in a table is not read, "" if it is.

    >>> refusal_of("https://host/a.jpg"), refusal_of("sftp://host/a.jpg", "sftp://host/t.csv")
    ('', '')
    >>> refusal_of("dask://host/a.jpg")
    'cannot be read: a table may not name URLs of the protocol dask'
    """
    if _is_chain(url):
        return "cannot be read: a chain of URLs, of which only the last part may be named"
    protocol = url.partition("://")[0]
    if protocol in PROTOCOLS or (is_url(table) and protocol == table.partition("://")[0]):
        return ""
    return f"cannot be read: a table may not name URLs of the protocol {protocol[:20]}"


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it; raises MissingExtra or SourceError."""
    if _is_chain(url):
        raise SourceError(f"{url} is a chain of URLs, which is not read; name its last part, or mount it as a folder")
    if url.lower().startswith(LOCAL):
        raise SourceError(f"{url} is on this machine; name its path")
    try:
        import fsspec
    except ImportError as e:
        raise MissingExtra(f"reading {url}", "cloud") from e
    try:
        if web.is_http(url):
            return fsspec.filesystem(url.partition("://")[0], get_client=web.new_session), url
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as e:
        raise MissingExtra(f"reading {url}", "cloud") from e
    except Exception as e:  # of a library for one protocol, which can be anything
        raise SourceError(f"{url} cannot be opened: {e}") from e
    return system, str(path)


def read_url(url: str, limit: int, start: int = 0) -> bytes:
    """Read at most `limit` bytes at a URL, within `web.READ_SECONDS` where its file system can be stopped.

    Raises ImageError.
    """
    try:
        system, path = file_system(url)
        if web.is_http(url):
            return web.fetch(system, path, limit, start, ranged=start > 0 or limit < READ_WHOLE)
        if not getattr(system, "async_impl", False):
            return bytes(system.cat_file(path, start=start, end=start + limit))[:limit]
        from fsspec.asyn import sync

        return bytes(sync(system.loop, _cat, system, path, start, limit, timeout=web.READ_SECONDS))
    except ClipfakeError as e:
        raise ImageError(f"cannot be read: {e}") from e
    except Exception as e:  # of a library for one protocol, which can be anything
        if isinstance(e, TimeoutError) and not e.strerror:
            raise ImageError(f"cannot be read: not complete after {web.READ_SECONDS:,.0f} seconds") from e
        raise unreadable(e) from e


async def _cat(system: Any, path: str, start: int, limit: int) -> bytes:
    content: bytes = await system._cat_file(path, start=start, end=start + limit)
    return content[:limit]


def open_url(url: str) -> BinaryIO:
    """Open a file at a URL for reading; raises SourceError. Reading raises only OSError and ValueError."""
    system, path = file_system(url)
    try:
        stream = web.HttpStream(system, path) if web.is_http(url) else _UrlStream(system.open(path, "rb"))
        return io.BufferedReader(stream, web.PIECE)
    except Exception as e:  # of a library for one protocol, which can be anything
        raise SourceError(f"{url} cannot be opened: {reason_of(e)}") from e


class _UrlStream(io.RawIOBase):
    """Stream of a remote file, whose errors are OSError."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        piece = self._call("read", len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def seek(self, offset: int, whence: int = 0) -> int:
        position = self._call("seek", offset, whence)
        return int(self._file.tell() if position is None else position)  # some streams return nothing

    def close(self) -> None:
        if not self.closed:
            self._call("close")
        super().close()

    def _call(self, name: str, *arguments: int) -> Any:
        try:
            return getattr(self._file, name)(*arguments)
        except (OSError, ValueError):
            raise
        except Exception as e:  # of a library for one protocol, which can be anything
            raise OSError(errno.EIO, reason_of(e)) from e


def unreadable(e: Exception) -> ImageError:
    """Error of an image that cannot be read."""
    return ImageError(f"cannot be read: {reason_of(e)}")


def reason_of(e: Exception) -> str:
    """Text of an error for the user."""
    return str(getattr(e, "strerror", None) or e or type(e).__name__)[:500]
