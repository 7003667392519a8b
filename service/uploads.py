"""The images of a request: several as a form, one as the body itself, or as text. They stay in memory, none is kept."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from .limits import Limits
from .problems import HttpProblem

T = TypeVar("T")
PIECE = 2**20  # letters of base64 that are read at once, a multiple of four
NAME_MOST = 200  # letters of a file's name
FORM = "multipart/form-data"
DATA_URL = re.compile(r"data:(?:[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)


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
    """Describe the body of an operation that parses the request itself, for OpenAPI: images and these fields."""
    binary = {"type": "string", "format": "binary"}
    schema = {
        "type": "object",
        "required": ["images", *fields],
        "properties": {"images": {"type": "array", "minItems": 1, "items": binary}, **fields},
    }
    alone = {} if fields else {"application/octet-stream": {"schema": binary}, "image/*": {"schema": binary}}
    return {"requestBody": {"required": True, "content": {FORM: {"schema": schema}, **alone}}}


async def uploads(request: Request, limits: Limits) -> list[Upload]:
    """The images of a request; raises Problem for none, too many, or a body that is neither form nor image."""
    kind = media_type(request)
    if kind == FORM:
        found = (await form(request, limits)).uploads
    elif kind == "application/octet-stream" or kind.startswith("image/"):
        content = await request.body()
        found = [Upload("image", content)] if content else []
    else:
        raise HttpProblem("wrong-media", f"{kind[:80]} is neither multipart/form-data nor an image; send one of these")
    return counted(found, limits)


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()


def counted(found: list[T], limits: Limits) -> list[T]:
    """The images, if there are some and not too many; raises Problem."""
    if not found:
        raise HttpProblem("no-image", "send images as files of a multipart form, or one image as the body")
    if len(found) > limits.images:
        raise HttpProblem(
            "too-many", f"{len(found)} images are more than the {limits.images} allowed; send fewer at once"
        )
    return found


async def form(request: Request, limits: Limits) -> Form:
    """The files and fields of a multipart form; raises Problem."""
    parser = MultiPartParser(request.headers, request.stream(), max_files=10_000, max_fields=100)
    parser.spool_max_size = limits.request_bytes  # never to a disk
    found = Form()
    try:
        for name, value in (await parser.parse()).multi_items():
            if isinstance(value, UploadFile):
                found.uploads.append(Upload(clean(value.filename or "image"), await value.read()))
            else:
                found.fields[name] = clean(value)
    except MultiPartException as e:
        raise HttpProblem("bad-request", f"the form cannot be read: {e.message}") from e
    finally:
        for file in parser._files_to_close_on_error:  # also of a part that never ended, which nobody else closes
            file.close()
    return found


def clean(name: str) -> str:
    """A name that can be written as UTF-8 wherever it goes, whatever the form said its letters are."""
    return name[-NAME_MOST:].encode("utf-8", "replace").decode()


def image_of(text: str, name: str = "image") -> Upload:
    """The image of a data URL or of bare base64; raises Problem. Nothing is fetched."""
    found = DATA_URL.match(text[:200])
    if found is None and re.match(r"[a-z][a-z0-9+.-]*:", text[:40], re.IGNORECASE):
        raise HttpProblem("invalid", "this service fetches nothing; send the image itself, as a data URL in base64")
    try:
        return Upload(name, decoded(text[found.end() :] if found else text))
    except (binascii.Error, ValueError) as e:
        raise HttpProblem("invalid", f"not an image in base64 ({e})") from e


def decoded(text: str) -> bytes:
    """Decode base64 piece by piece, so that other requests run in between; raises ValueError."""
    pieces = [base64.b64decode(text[i : i + PIECE], validate=True) for i in range(0, len(text), PIECE)]
    if any(len(piece) < PIECE // 4 * 3 for piece in pieces[:-1]):
        raise binascii.Error("Excess data after padding")
    return b"".join(pieces)
