"""The images of a request: several as a form, or one as the body itself. They stay in memory and are never kept."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from .desk import Upload
from .limits import Limits
from .problem import Problem

NAME_MOST = 200  # letters of a file's name
DATA_URL = re.compile(r"data:(?:[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)

BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
# What FastAPI cannot see of an operation that reads the request itself.
REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {"images": {"type": "array", "minItems": 1, "items": BINARY}},
                }
            },
            "application/octet-stream": {"schema": BINARY},
            "image/*": {"schema": BINARY},
        },
    }
}


async def uploads(request: Request, limits: Limits) -> list[Upload]:
    """The images of a request; raises Problem for none, too many, or a body that is neither form nor image."""
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        found = await _of_form(request, limits)
    elif kind == "application/octet-stream" or kind.startswith("image/"):
        content = b"".join([chunk async for chunk in request.stream()])
        found = [Upload("image", content)] if content else []
    else:
        raise Problem("wrong-media", f"{kind[:80]} is neither multipart/form-data nor an image; send one of these")
    if not found:
        raise Problem("no-image", "send images as files of a multipart form, or one image as the body")
    if len(found) > limits.images:
        raise Problem("too-many", f"{len(found)} images are more than the {limits.images} allowed; send fewer at once")
    return found


async def _of_form(request: Request, limits: Limits) -> list[Upload]:
    parser = MultiPartParser(request.headers, request.stream(), max_files=10_000, max_fields=100)
    parser.spool_max_size = limits.request_bytes  # never to a disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as e:
        said = getattr(e, "message", "") or "it has no boundary, or ends too early"
        raise Problem("bad-request", f"the form cannot be read: {said}") from e
    found = []
    for _, value in form.multi_items():
        if isinstance(value, UploadFile):
            found.append(Upload((value.filename or "image")[-NAME_MOST:], await value.read()))
            await value.close()
    return found


def image_of(text: str, name: str = "image") -> Upload:
    """The image of a data URL or of bare base64; raises Problem. Nothing is fetched."""
    found = DATA_URL.match(text[:200])
    if found is None and re.match(r"[a-z][a-z0-9+.-]*:", text[:40], re.IGNORECASE):
        raise Problem("invalid", "this service fetches nothing; send the image itself, as a data URL in base64")
    try:
        content = base64.b64decode(text[found.end() :] if found else text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise Problem("invalid", f"not an image in base64 ({e})") from e
    return Upload(name, content)
