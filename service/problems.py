"""Error responses: JSON problems (RFC 9457) that say what is wrong and what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ..core.escaping import escape_json
from ..errors import (
    BadBlock,
    ClipfakeError,
    Damaged,
    EncoderError,
    HeadError,
    ImageError,
    Locked,
    NoStore,
    NotAStore,
    NotEnoughRows,
    NothingToJudge,
    SpaceMismatch,
    Unreadable,
)

MEDIA_TYPE = "application/problem+json"

KINDS: dict[str, tuple[int, str]] = {
    "bad-request": (400, "The request cannot be read"),
    "token-required": (401, "A token is required"),
    "writes-off": (403, "Writing is switched off"),
    "wrong-origin": (403, "Sent by another web page"),
    "not-found": (404, "Not found"),
    "wrong-method": (405, "Method not allowed"),
    "slow-upload": (408, "The request took too long to arrive"),
    "cannot-judge": (409, "The store cannot answer yet"),
    "store-damaged": (409, "A file of the store is damaged"),
    "too-large": (413, "Too large"),
    "too-many": (413, "Too many images"),
    "wrong-media": (415, "Unsupported content type"),
    "wrong-host": (421, "Wrong host name"),
    "invalid": (422, "The request is not valid"),
    "no-image": (422, "There is no image in the request"),
    "bad-image": (422, "The image cannot be read"),
    "nothing-to-judge": (422, "The image cannot be judged"),
    "head-too-large": (431, "The head of the request is too large"),
    "failed": (500, "The service failed"),
    "engine-failed": (502, "The search back end failed"),
    "not-ready": (503, "Not ready"),
    "busy": (503, "Busy"),
    "locked": (503, "Another process is writing"),
    "store-unreadable": (503, "A file of the store cannot be read now"),
    "engine-down": (503, "The search back end cannot be reached"),
    "engine-slow": (504, "The search back end took too long"),
    "too-slow": (504, "The response took too long"),
}
MAX_ERRORS = 20  # validation errors listed in one response
_BY_STATUS = {400: "bad-request", 404: "not-found", 405: "wrong-method", 415: "wrong-media", 422: "invalid"}


class EscapedJSONResponse(JSONResponse):
    """A JSON response in which control characters are escaped, C1 and bidirectional ones too: terminals show it."""

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return escape_json(text).encode()


class HttpProblem(Exception):
    """An error response: one of `KINDS`, a detail for this request, and further members of the JSON."""

    def __init__(self, kind: str, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.more = kind, detail, more
        self.status, self.title = KINDS[kind]
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        fields = {"type": f"urn:clipfake:problem:{self.kind}", "title": self.title, "status": self.status}
        return {**fields, "detail": self.detail, **self.more}

    def response(self) -> EscapedJSONResponse:
        return EscapedJSONResponse(self.to_dict(), self.status, self.headers, MEDIA_TYPE)


def to_problem(error: Exception, folder: Path | None = None) -> HttpProblem:
    """Convert any error to a problem.

    An unexpected error reveals nothing of the server, and the path of the store's folder is shortened to its name.

    >>> to_problem(ImageError("empty file")).status
    422
    """
    if isinstance(error, HttpProblem):
        return error
    detail = str(error).replace(str(folder), folder.name) if folder else str(error)
    if isinstance(error, Locked):
        return HttpProblem("locked", detail, headers={"Retry-After": "5"})
    if isinstance(error, Unreadable):
        return HttpProblem("store-unreadable", detail, headers={"Retry-After": "5"})
    if isinstance(error, Damaged):
        return HttpProblem("store-damaged", detail)
    if isinstance(error, ImageError):
        return HttpProblem("nothing-to-judge" if isinstance(error, NothingToJudge) else "bad-image", detail)
    if isinstance(error, NoStore | NotAStore | NotEnoughRows | HeadError | SpaceMismatch):
        return HttpProblem("cannot-judge", detail)
    if isinstance(error, BadBlock | EncoderError):
        return HttpProblem("invalid", detail)
    if isinstance(error, ClipfakeError):
        return HttpProblem("failed", detail)
    if isinstance(error, HTTPException):
        if isinstance(error.__cause__, HttpProblem):  # json_body.py wraps them, because FastAPI lets no others through
            return error.__cause__
        kind = _BY_STATUS.get(error.status_code, "bad-request")
        return HttpProblem(kind, f"{error.detail}; see /openapi.json", headers=error.headers)
    return HttpProblem("failed", "internal error; the log of the service has the details")


def validation_problem(errors: Sequence[Any]) -> HttpProblem:
    """Convert pydantic's errors in the parameters or the body."""
    kind = "bad-request" if any(error["type"] == "json_invalid" for error in errors) else "invalid"
    listed = [
        {"where": ".".join(map(str, error["loc"])), "what": error["msg"].removeprefix("Value error, ")}
        for error in errors[:MAX_ERRORS]
    ]
    detail = "; ".join(f"{error['where']}: {error['what']}" for error in listed[:3])
    return HttpProblem(kind, detail or "see /openapi.json", errors=listed)
