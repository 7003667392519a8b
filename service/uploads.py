"""Read the images of a request: several in a form, one as the body, or base64 strings. They stay in memory only."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from .limits import Limits
from .problems import HttpProblem

T = TypeVar("T")
PIECE = 2**20  # base64 characters that are decoded at once
STANDARD, WHITESPACE = bytes.maketrans(b"-_", b"+/"), b" \t\r\n\f\v"
PERCENT_ENCODED = (("%2B", "+"), ("%2F", "/"), ("%3D", "="), ("%0D", ""), ("%0A", ""), ("%20", ""))  # in a data URL
MAX_NAME = 200  # characters of a file's name
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
        raise HttpProblem(
            "too-many", f"{len(images)} images are more than the {limits.images} allowed; send fewer at once"
        )
    return images


class CompleteFormParser(MultiPartParser):
    """Form parser that knows whether the last boundary arrived: starlette drops a part that was cut off."""

    complete = False

    def on_end(self) -> None:
        self.complete = True


async def form(request: Request, limits: Limits, fields: Collection[str] = ()) -> Form:
    """Parse a multipart form of images and these text fields; raises HttpProblem for any other field, or one twice."""
    parser = CompleteFormParser(request.headers, request.stream(), max_files=10_000, max_fields=100)
    parser.spool_max_size = limits.request_bytes  # never spool to disk
    result = Form()
    try:
        for name, value in (await parser.parse()).multi_items():
            if isinstance(value, UploadFile):
                result.uploads.append(Upload(clean_name(value.filename or "image"), await value.read()))
            else:
                _require_new(name, fields, result.fields)
                result.fields[name] = clean_name(value)
        if not parser.complete:
            raise HttpProblem("bad-request", "the form ends before its last boundary; send all of it again")
    except MultiPartException as e:
        raise HttpProblem("bad-request", f"the form cannot be read: {e.message}") from e
    finally:
        for file in parser._files_to_close_on_error:  # includes a part that never ended, which the parser leaves open
            file.close()
    return result


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
