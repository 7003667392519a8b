"""Read the images of a request: several in a form, one as the body, or base64 strings. They stay in memory only."""

from __future__ import annotations

import asyncio
import base64
import binascii
import codecs
import re
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from .limits import Limits
from .problems import HttpProblem

T = TypeVar("T")
PIECE = 2**20  # base64 characters that are decoded at once
STANDARD, WHITESPACE = bytes.maketrans(b"-_", b"+/"), b" \t\r\n\f\v"
PERCENT_ENCODED = (("%2B", "+"), ("%2F", "/"), ("%3D", "="), ("%0D", ""), ("%0A", ""), ("%20", ""))  # in a data URL
MAX_NAME = 200  # characters of a file's name
MAX_FIELD_BYTES = 64 * 2**10  # of a text field of a form
CHUNK = 2**20  # bytes of a form that are parsed at once, in a thread
FORM = "multipart/form-data"
DATA_URL = re.compile(r"data:\s*(?:[\w.+-]+/[\w.+-]+)?(?:;\s*[\w.+-]+=[^;,]*)*;\s*base64\s*,", re.IGNORECASE)


@dataclass(frozen=True)
class Upload:
    """One file of a request."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Form:
    """Parsed multipart form."""

    uploads: list[Upload] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)


def request_body(**fields: Any) -> dict[str, Any]:
    """Describe a request body of images and these form fields for OpenAPI."""
    binary = {"type": "string", "format": "binary"}
    schema = {
        "type": "object",
        "required": ["images", *fields],
        "properties": {"images": {"type": "array", "minItems": 1, "items": binary}, **fields},
    }
    alone = {} if fields else {"application/octet-stream": {"schema": binary}, "image/*": {"schema": binary}}
    return {"requestBody": {"required": True, "content": {FORM: {"schema": schema}, **alone}}}


async def uploads(request: Request, limits: Limits) -> list[Upload]:
    """Return the images of a request; raises HttpProblem for none, too many, or another kind of body."""
    kind = media_type(request)
    if kind == FORM:
        images = (await form(request, limits)).uploads
    elif kind == "application/octet-stream" or kind.startswith("image/"):
        content = await request.body()
        images = [Upload("image", content)] if content else []
    else:
        message = f"the content type {kind[:80]} is neither {FORM} nor an image; send one of these"
        raise HttpProblem("wrong-media", message)
    return check_count(images, limits)


def media_type(request: Request) -> str:
    """Return the media type of the body in lower case, without parameters."""
    return request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()


def check_count(images: list[T], limits: Limits) -> list[T]:
    """Return the images; raises HttpProblem if there are none or too many."""
    if not images:
        message = "the request has no image; send images as files of a multipart form, or one image as the body"
        raise HttpProblem("no-image", message)
    if len(images) > limits.images:
        raise too_many_images(limits)
    return images


def too_many_images(limits: Limits) -> HttpProblem:
    """The problem of a request with too many images."""
    return HttpProblem("too-many", f"more than the {limits.images} images allowed in one request; send fewer at once")


async def form(request: Request, limits: Limits, fields: Collection[str] = ()) -> Form:
    """Parse a multipart form of images and these text fields, in threads, as it arrives.

    Raises HttpProblem for any other field, a field that is given twice, and as soon as there are too many parts. The
    rest of such a form is received, so that the client reads the response, but not parsed.
    """
    reader = FormReader(request.headers.get("content-type", ""), limits, fields)
    refused: HttpProblem | None = None
    async for chunk in _chunks(request):
        try:
            if refused is None:
                await asyncio.to_thread(reader.parse, chunk)
        except HttpProblem as e:
            refused = e
    if refused:
        raise refused
    return reader.form()


async def _chunks(request: Request) -> AsyncIterator[bytearray]:
    """The body in chunks that are worth a thread."""
    chunk = bytearray()
    async for received in request.stream():
        chunk += received
        if len(chunk) >= CHUNK:
            yield chunk
            chunk = bytearray()
    yield chunk


class FormReader:
    """Parser of one multipart form, which collects its images and fields."""

    def __init__(self, content_type: str, limits: Limits, fields: Collection[str]) -> None:
        """Raise HttpProblem unless the content type has a usable boundary."""
        options = parse_options_header(content_type)[1]
        if b"boundary" not in options:
            raise HttpProblem("bad-request", "the form cannot be read: its content type has no boundary")
        self._charset = _known_charset(options.get(b"charset", b"utf-8").decode("latin-1"))
        self._limits, self._allowed = limits, fields
        self._form, self._complete = Form(), False
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._name: str = ""
        self._file_name: str | None = None  # None in a text field
        self._content = bytearray()
        self._parser = self._parsing(lambda: MultipartParser(options[b"boundary"], self._callbacks()))

    def parse(self, chunk: bytes | bytearray) -> None:
        """Parse the next bytes of the form; raises HttpProblem."""
        self._parsing(lambda: self._parser.write(bytes(chunk)))

    def form(self) -> Form:
        """Return the form after its last bytes; raises HttpProblem if it was cut off."""
        if not self._complete:
            raise HttpProblem("bad-request", "the form ends before its last boundary; send all of it again")
        return self._form

    def _parsing(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except FormParserError as e:
            raise HttpProblem("bad-request", f"the form cannot be read: {e}") from e

    def _callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_to_header,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_content,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        self._disposition, self._content = b"", bytearray()

    def _add_to_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        options = parse_options_header(self._disposition)[1]
        if b"name" not in options:
            raise HttpProblem(
                "bad-request", "the form cannot be read: a part has no name in its Content-Disposition header"
            )
        self._name = self._text(options[b"name"])
        self._file_name = self._text(options[b"filename"]) if b"filename" in options else None
        if self._file_name is None:
            _require_new(self._name, self._allowed, self._form.fields)
        elif len(self._form.uploads) >= self._limits.images:
            raise too_many_images(self._limits)

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        self._content += memoryview(data)[start:end]
        if self._file_name is None and len(self._content) > MAX_FIELD_BYTES:
            message = f"the field {clean_name(self._name)!r} has more than {MAX_FIELD_BYTES:,} bytes"
            raise HttpProblem("bad-request", f"{message}; send a shorter one")

    def _end_part(self) -> None:
        if self._file_name is None:
            self._form.fields[self._name] = clean_name(self._text(self._content))
        else:
            self._form.uploads.append(Upload(clean_name(self._file_name or "image"), bytes(self._content)))
        self._content = bytearray()

    def _end(self) -> None:
        self._complete = True

    def _text(self, content: bytes | bytearray) -> str:
        """Decode a name or a field by the charset of the form."""
        try:
            return content.decode(self._charset)
        except (UnicodeDecodeError, LookupError):
            return content.decode("latin-1")


def _known_charset(name: str) -> str:
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "latin-1"


def _require_new(name: str, allowed: Collection[str], present: Collection[str]) -> None:
    """Raise HttpProblem unless a part without a file name is an allowed field that occurs for the first time."""
    shown = clean_name(name)
    if name not in allowed:
        raise HttpProblem(
            "bad-request",
            f"the form has a part {shown!r} without a file name, which is not a field of this operation; send images "
            f"with a file name, and options as query parameters",
        )
    if name in present:
        raise HttpProblem("bad-request", f"the form has the field {shown!r} twice; send it once")


def clean_name(name: str) -> str:
    """Return the end of a name as valid UTF-8, whatever charset the form declared."""
    return name[-MAX_NAME:].encode("utf-8", "replace").decode()


def upload_from_base64(text: str, name: str = "image") -> Upload:
    """Decode an image from a data URL or plain base64; raises HttpProblem. No URL is fetched."""
    if text[:1].isspace():
        text = text.lstrip()
    prefix = DATA_URL.match(text[:200])
    if prefix is None and re.match(r"[a-z][a-z0-9+.-]*:", text[:40], re.IGNORECASE):
        raise HttpProblem("invalid", "this service fetches no URLs; send the image itself as a data URL in base64")
    content = text[prefix.end() :] if prefix else text
    if prefix and "%" in content:
        for encoded, character in PERCENT_ENCODED:
            content = content.replace(encoded, character).replace(encoded.lower(), character)
    try:
        return Upload(name, decode_base64(content))
    except (binascii.Error, ValueError) as e:
        raise HttpProblem("invalid", f"not an image in base64 ({e}); send its bytes in base64") from e


def decode_base64(text: str) -> bytes:
    r"""Decode base64 as programs write it: with line breaks (MIME), in the URL-safe alphabet, without padding.

    It is decoded in pieces, so that other threads run in between. Raises ValueError.

    >>> decode_base64("/+8=\r\n"), decode_base64("_-8")
    (b'\xff\xef', b'\xff\xef')
    """
    if not text.isascii():
        raise ValueError("it has characters outside ASCII")
    decoded, rest, padded = bytearray(), b"", False  # rest: an incomplete group of four characters
    for start in range(0, len(text), PIECE):
        rest += text[start : start + PIECE].encode("ascii").translate(STANDARD, WHITESPACE)
        if padded and rest:
            raise ValueError("it continues after its padding")
        whole = len(rest) // 4 * 4
        decoded += base64.b64decode(rest[:whole], validate=True)
        padded, rest = rest[:whole].endswith(b"="), rest[whole:]
    if last := rest.rstrip(b"="):
        decoded += base64.b64decode(last + b"=" * (4 - len(last)), validate=True)
    elif rest:
        raise ValueError("it has more padding than it needs")
    return bytes(decoded)
