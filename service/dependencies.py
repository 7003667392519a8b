"""Dependencies of the routes: the shared state, the token, the media type of the body."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from .http.access import allow_writing
from .problems import HttpProblem
from .state import AppState
from .uploads import FORM, media_type

BEARER = HTTPBearer(auto_error=False, description="The service's CLIPFAKE_TOKEN.")  # for OpenAPI only


def app_state(request: Request) -> AppState:
    """Return the state that all requests share."""
    state: AppState = request.app.state.service
    return state


async def require_write_token(request: Request) -> None:
    """Raise HttpProblem unless the request has the token, before its body is read."""
    allow_writing(request.headers, request.app.state.token)


async def json_only(request: Request) -> None:
    """Raise HttpProblem unless the media type is JSON; a form on another site cannot set that media type."""
    kind = media_type(request)
    if not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        message = f"the content type {kind[:80]} is not application/json; send a JSON object with that content type"
        raise HttpProblem("wrong-media", message)


async def no_parameter_twice(request: Request) -> None:
    """Raise HttpProblem if a query parameter is repeated, since only one of its values would be used."""
    names = [name for name, _ in request.query_params.multi_items()]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise HttpProblem("invalid", f"the query parameter {repeated[0][:80]!r} is given more than once; give it once")


async def form_only(request: Request) -> None:
    """Raise HttpProblem unless the body is a multipart form."""
    if (kind := media_type(request)) != FORM:
        message = f"the content type {kind[:80]} is not {FORM}; send a form with the images as files"
        raise HttpProblem("wrong-media", message)


StateDep = Annotated[AppState, Depends(app_state)]
WRITES = [Security(BEARER), Depends(require_write_token)]
JSON_ONLY = [Depends(json_only)]
