"""A body of JSON, read so that nobody else waits for it and no more memory is taken than it is long.

Python's parser lets nobody else run until it is done, in whatever thread it is, and makes twenty bytes of one. But what
is large in an honest body is the text of images: such texts are lifted out first, and of the rest only so much is taken
as is soon parsed.
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

SOON = 64 * 2**10  # bytes that are parsed where they are: it takes a millisecond
LONG = 64 * 2**10  # bytes from which on a text is lifted out
FIELDS = 100  # of one object; what is not known of them is told one by one


class JsonRoute(APIRoute):
    """A route whose JSON is read by `parsed`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def answered(request: Request) -> Response:
            return await answer(JsonRequest(request.scope, request.receive))

        return answered


class JsonRequest(Request):
    """A request as `JsonRoute` hands it on."""

    async def body(self) -> Any:
        if not hasattr(self, "_body"):
            whole = bytearray()  # grows where it lies; the pieces joined at the end would all be copied at once
            async for piece in self.stream():
                whole += piece
            self._body: Any = whole
        return self._body

    async def json(self) -> Any:
        content, desk = await self.body(), self.app.state.desk
        try:
            if len(content) <= SOON:
                return parsed(content, desk.limits)
            return await desk.run(parsed, content, desk.limits)
        except HttpProblem as e:  # FastAPI passes on nothing else
            raise HTTPException(e.status) from e


def parsed(content: bytes | bytearray, limits: Limits) -> Any:
    """Parse JSON as `json.loads` does; raises HttpProblem for more than `json_bytes` beside long strings.

    Long texts are put back where our operations have them, as a field or in a field's list; elsewhere a word stands
    for them.

    >>> parsed(b'{"k": [1, "two"]}', Limits())
    {'k': [1, 'two']}
    """
    if len(content) <= SOON:
        found = json.loads(content)
    else:
        rest, lifted = without_long_texts(content, limits)
        found = put_back(json.loads(rest.decode()), lifted)
    if isinstance(found, dict) and len(found) > FIELDS:
        raise HttpProblem("invalid", f"an object of {len(found):,} fields; /openapi.json names those there are")
    return found


def without_long_texts(content: bytes | bytearray, limits: Limits) -> tuple[bytearray, dict[str, str]]:
    """The JSON with a word in place of each long text, and word -> text; raises Problem for too large a rest."""
    mark = secrets.token_hex(16)  # which nobody can have written
    rest, lifted = bytearray(), dict[str, str]()
    done = 0
    for begin, end in texts(content, limits.json_bytes):
        if end - begin >= LONG:
            if (end - begin) * 3 // 4 > limits.image_bytes + LONG:  # a data URL has a few words before it
                message = f"a text of {end - begin:,} bytes; an image may have {limits.image_bytes:,}"
                raise HttpProblem("too-large", f"{message}; send a smaller file")
            rest += content[done:begin]
            word, done = f"{mark}-{len(lifted)}", end
            rest += word.encode()
            lifted[word] = unescaped(content[begin:end])
        if len(rest) + end - done > limits.json_bytes:
            raise too_much(limits.json_bytes)
    if len(rest) + len(content) - done > limits.json_bytes:
        raise too_much(limits.json_bytes)
    return rest + content[done:], lifted


def texts(content: bytes | bytearray, most: int) -> Iterator[tuple[int, int]]:
    """Find where each string of some JSON begins and ends, without quotes; an unterminated one is left out.

    Raises Problem for more than `most` quotes, which is when it would begin to take long.
    """
    at, quotes = 0, 0
    while (begin := content.find(b'"', at) + 1) > 0:
        end = content.find(b'"', begin)
        while end > 0 and backslashes(content, begin, end) % 2:  # this quote is part of the text
            end, quotes = content.find(b'"', end + 1), quotes + 1
            if quotes > most:
                raise too_much(most)
        if end < 0:
            return
        yield begin, end
        at = end + 1


def backslashes(content: bytes | bytearray, begin: int, end: int) -> int:
    """Count the backslashes at the end of this part."""
    wide = 16
    while True:
        last = content[max(begin, end - wide) : end]
        count = len(last) - len(last.rstrip(b"\\"))
        if count < wide or end - wide <= begin:
            return count
        wide *= 2


def unescaped(text: bytes | bytearray) -> str:
    """Unescape a JSON string; in an image's, only the slash is ever escaped."""
    plain = text.replace(b"\\/", b"/") if b"\\" in text else text
    if b"\\" not in plain and plain.isascii():
        return plain.decode("ascii")
    content: str = json.loads(b'"' + text + b'"', strict=False)
    return content


def put_back(found: Any, lifted: dict[str, str]) -> Any:
    """Return the object with its long strings put back, in fields and in lists."""
    if not lifted or not isinstance(found, dict):
        return found
    for name, value in found.items():
        if isinstance(value, str):
            found[name] = lifted.get(value, value)
        elif isinstance(value, list):
            found[name] = [lifted.get(one, one) if isinstance(one, str) else one for one in value]
    return found


def too_much(most: int) -> HttpProblem:
    message = f"more than {most:,} bytes of JSON beside the images in it"
    return HttpProblem("too-large", f"{message}; ask for less at once, or send images as a form")
