"""Parse JSON bodies without blocking other requests and without using much more memory than the body.

Python's JSON parser holds the GIL until it is done, in any thread, and can turn one byte into twenty. In a legitimate
body only the strings of images are large: these are cut out before parsing, and the size of the rest is limited.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from .limits import Limits
from .problems import HttpProblem

INLINE_BYTES = 64 * 2**10  # a body up to this size is parsed in the event loop, which takes a millisecond
LONG_STRING = 64 * 2**10  # bytes from which on a string is cut out before parsing
MAX_FIELDS = 100  # of one object; validation reports each unknown field


class JsonRoute(APIRoute):
    """A route whose JSON is read by `parse_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(JsonRequest(request.scope, request.receive))

        return handle


class JsonRequest(Request):
    """A request whose `json` method calls `parse_json`, in a thread if the body is large."""

    async def body(self) -> Any:
        if not hasattr(self, "_body"):
            buffer = bytearray()  # grows in place; joining the chunks at the end would double the memory
            async for chunk in self.stream():
                buffer += chunk
            self._body: Any = buffer
        return self._body

    async def json(self) -> Any:
        content, state = await self.body(), self.app.state.service
        try:
            if len(content) <= INLINE_BYTES:
                return parse_json(content, state.limits)
            value = await state.run(parse_json, content, state.limits)
            content.clear()  # it would stay in memory until the response is sent
            return value
        except HttpProblem as e:  # FastAPI lets only HTTPException through
            raise HTTPException(e.status) from e


def parse_json(content: bytes | bytearray, limits: Limits) -> Any:
    """Parse JSON as `json.loads` does; raises HttpProblem for more than `json_bytes` beside long strings.

    Strings may have raw line breaks, which `base64` writes and which a shell script pastes into JSON as they are.
    Long strings are restored as a field of the outermost object or in the list of such a field, which is where the
    operations of this service accept them; anywhere else a placeholder remains.

    >>> parse_json(b'{"k": [1, "two"]}', Limits())
    {'k': [1, 'two']}
    """
    if len(content) <= INLINE_BYTES:
        value = json.loads(content, strict=False)
    else:
        rest, strings = cut_long_strings(content, limits)
        value = restore_strings(json.loads(rest.decode("utf-8-sig"), strict=False), strings)
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        message = f"the JSON object has {len(value):,} fields, at most {MAX_FIELDS} are allowed"
        raise HttpProblem("invalid", f"{message}; see /openapi.json for the known ones")
    return value


def cut_long_strings(content: bytes | bytearray, limits: Limits) -> tuple[bytearray, dict[str, str]]:
    """Replace each long string by a placeholder; returns the shorter JSON and the strings by placeholder.

    Raises HttpProblem if the JSON without these strings is too large.
    """
    prefix = secrets.token_hex(16)  # cannot occur in the body
    rest, strings = bytearray(), dict[str, str]()
    copied = 0
    for begin, end in find_strings(content, limits.json_bytes):
        if end - begin >= LONG_STRING:
            # base64 in lines of 76 characters, each line break as up to four; a data URL has a short prefix
            if (end - begin) * 3 // 4 * 76 // 80 > limits.image_bytes + LONG_STRING:
                message = f"a string of {end - begin:,} bytes is too long for an image of {limits.image_bytes:,} bytes"
                raise HttpProblem("too-large", f"{message}, the most that is allowed; send a smaller file")
            rest += content[copied:begin]
            placeholder, copied = f"{prefix}-{len(strings)}", end
            rest += placeholder.encode()
            strings[placeholder] = unescape(content[begin:end])
        if len(rest) + end - copied > limits.json_bytes:
            raise too_much_json(limits.json_bytes)
    if len(rest) + len(content) - copied > limits.json_bytes:
        raise too_much_json(limits.json_bytes)
    return rest + content[copied:], strings


def find_strings(content: bytes | bytearray, max_quotes: int) -> Iterator[tuple[int, int]]:
    """Yield where each JSON string begins and ends, without its quotes; an unterminated one is left out.

    Raises HttpProblem for more than `max_quotes` escaped quotes, each of which costs a search.
    """
    position, quotes = 0, 0
    while (begin := content.find(b'"', position) + 1) > 0:
        end = content.find(b'"', begin)
        while end > 0 and count_backslashes(content, begin, end) % 2:  # an escaped quote
            end, quotes = content.find(b'"', end + 1), quotes + 1
            if quotes > max_quotes:
                raise too_much_json(max_quotes)
        if end < 0:
            return
        yield begin, end
        position = end + 1


def count_backslashes(content: bytes | bytearray, begin: int, end: int) -> int:
    """Count the backslashes at the end of `content[begin:end]`."""
    width = 16
    while True:
        tail = content[max(begin, end - width) : end]
        count = len(tail) - len(tail.rstrip(b"\\"))
        if count < width or end - width <= begin:
            return count
        width *= 2


def unescape(text: bytes | bytearray) -> str:
    """Unescape the inside of a JSON string; fast for base64, in which only the slash may be escaped."""
    plain = text.replace(b"\\/", b"/") if b"\\" in text else text
    if b"\\" not in plain and plain.isascii():
        return plain.decode("ascii")
    content: str = json.loads(b'"' + text + b'"', strict=False)
    return content


def restore_strings(value: Any, strings: dict[str, str]) -> Any:
    """Replace the placeholders in the fields of an object, and in the lists in them, by their strings."""
    if not strings or not isinstance(value, dict):
        return value
    for name, field in value.items():
        if isinstance(field, str):
            value[name] = strings.get(field, field)
        elif isinstance(field, list):
            value[name] = [strings.get(element, element) if isinstance(element, str) else element for element in field]
    return value


def too_much_json(max_bytes: int) -> HttpProblem:
    """The problem of a body with too much JSON beside its images."""
    message = f"the body has more than {max_bytes:,} bytes of JSON beside its images"
    return HttpProblem("too-large", f"{message}; send less at once, or send the images as a form")
