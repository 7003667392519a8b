"""Every refusal is a JSON problem (RFC 9457): what was found, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ..errors import (
    BadBlock,
    ClipfakeError,
    EncoderError,
    HeadError,
    ImageError,
    Locked,
    NoStore,
    NotEnoughRows,
    SpaceMismatch,
)

MEDIA_TYPE = "application/problem+json"

KINDS: dict[str, tuple[int, str]] = {
    "bad-request": (400, "The request cannot be read"),
    "token-required": (401, "A token is required"),
    "writes-off": (403, "Writing is switched off"),
    "not-found": (404, "There is no such thing here"),
    "wrong-method": (405, "This cannot be done here"),
    "slow-upload": (408, "The request took too long to arrive"),
    "cannot-judge": (409, "The store cannot answer yet"),
    "too-large": (413, "Too large"),
    "too-many": (413, "Too many images"),
    "wrong-media": (415, "Not a kind of content that is understood"),
    "wrong-host": (421, "Not a name of this service"),
    "invalid": (422, "The request is not valid"),
    "no-image": (422, "There is no image in the request"),
    "bad-image": (422, "The image cannot be read"),
    "failed": (500, "The service failed"),
    "engine-failed": (502, "The search engine refuses"),
    "not-ready": (503, "Not ready"),
    "busy": (503, "Busy"),
    "locked": (503, "Another process is writing"),
    "engine-down": (503, "The search engine cannot be reached"),
    "engine-slow": (504, "The search engine took too long"),
    "too-slow": (504, "The answer took too long"),
}
TOLD = 20  # mistakes in one request, at most
_BY_STATUS = {400: "bad-request", 404: "not-found", 405: "wrong-method", 415: "wrong-media", 422: "invalid"}


class HttpProblem(Exception):
    """A refusal: one of `KINDS`, in words for this case, with whatever else helps as members of the JSON."""

    def __init__(self, kind: str, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.more = kind, detail, more
        self.status, self.title = KINDS[kind]
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        fields = {"type": f"urn:clipfake:problem:{self.kind}", "title": self.title, "status": self.status}
        return {**fields, "detail": self.detail, **self.more}

    def response(self) -> JSONResponse:
        return JSONResponse(self.to_dict(), self.status, self.headers, MEDIA_TYPE)


def problem_of(error: Exception, folder: Path | None = None) -> HttpProblem:
    """An error of ours, or of the framework, as a problem.

    What is nobody's fault but ours says nothing of our insides, and where the store's folder lies is nobody's business.

    >>> problem_of(ImageError("empty file")).status
    422
    """
    if isinstance(error, HttpProblem):
        return error
    detail = str(error).replace(str(folder), folder.name) if folder else str(error)
    if isinstance(error, Locked):
        return HttpProblem("locked", detail, headers={"Retry-After": "5"})
    if isinstance(error, ImageError):
        return HttpProblem("bad-image", detail)
    if isinstance(error, NoStore | NotEnoughRows | HeadError | SpaceMismatch):
        return HttpProblem("cannot-judge", detail)
    if isinstance(error, BadBlock | EncoderError):
        return HttpProblem("invalid", detail)
    if isinstance(error, ClipfakeError):
        return HttpProblem("failed", detail)
    if isinstance(error, HTTPException):
        if isinstance(error.__cause__, HttpProblem):  # of body.py, which FastAPI lets through in this form alone
            return error.__cause__
        kind = _BY_STATUS.get(error.status_code, "bad-request")
        return HttpProblem(kind, f"{error.detail}; see /openapi.json", headers=error.headers)
    return HttpProblem("failed", "an error in the service itself; its log says more")


def problem_of_validation(found: Sequence[Any]) -> HttpProblem:
    """Convert the framework's validation errors in parameters or body."""
    kind = "bad-request" if any(one["type"] == "json_invalid" for one in found) else "invalid"
    places = [{"where": ".".join(map(str, one["loc"])), "what": one["msg"]} for one in found[:TOLD]]
    detail = "; ".join(f"{one['where']}: {one['what']}" for one in places[:3])
    return HttpProblem(kind, detail or "see /openapi.json", errors=places)
