"""Dependencies of the routes: the state, a token, a JSON body."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from .middleware import allow_writing
from .problems import HttpProblem
from .state import AppState
from .uploads import FORM, media_type

BEARER = HTTPBearer(auto_error=False, description="The service's CLIPFAKE_TOKEN.")  # for the documentation alone


def desk(request: Request) -> AppState:
    found: AppState = request.app.state.desk
    return found


async def writing(request: Request) -> None:
    """Raises Problem unless the token came with the request; before its body is read."""
    allow_writing(request.headers, request.app.state.token)


async def json_only(request: Request) -> None:
    """Raises Problem for a body that does not say it is JSON: a page elsewhere cannot say so of a form it sends."""
    kind = media_type(request)
    if not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        raise HttpProblem("wrong-media", f"{kind[:80]} is not application/json; send a JSON object and say so")


async def form_only(request: Request) -> None:
    if (kind := media_type(request)) != FORM:
        raise HttpProblem("wrong-media", f"{kind[:80]} is not {FORM}; send a form with the images as files")


At = Annotated[AppState, Depends(desk)]
WRITES = [Security(BEARER), Depends(writing)]
JSON_ONLY = [Depends(json_only)]
