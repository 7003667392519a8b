"""Describe the store: statistics, a map of the bank, and the thumbnail of a row."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from ..dependencies import StateDep
from ..problems import EscapedJSONResponse, HttpProblem
from ..schemas import MapJson, StoreJson, refusals

router = APIRouter(tags=["store"])


@router.get("/v1/store", summary="Statistics of the store", response_model=StoreJson, responses=refusals())
async def store(request: Request, state: StateDep) -> Any:
    """Return statistics of the store, whether images can be judged, and the limits of this service."""
    figures, loaded = await state.run(lambda: (state.figures(), state.loaded()))
    app_state = request.app.state
    fields = {
        "ready": not loaded.why,
        "why": loaded.why,
        "notice": app_state.notice,
        "writes": bool(app_state.token),
    }
    return EscapedJSONResponse({**figures, **fields, "limits": state.limits.to_dict()})


@router.get("/v1/map", summary="Two-dimensional map of the bank", response_model=MapJson, responses=refusals(409))
async def bank_map(state: StateDep) -> Any:
    """Return up to 1,500 rows of the bank, half of each class, on two principal components of the projection."""
    return EscapedJSONResponse(await state.run(lambda: state.loaded().map.to_dict()))


@router.get(
    "/v1/thumbnails/{key:path}",
    summary="Thumbnail of a stored row",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}, **refusals(404)},
)
async def thumbnail(state: StateDep, key: Annotated[str, Path(description="Key of the row.")]) -> Response:
    """Return the thumbnail that was stored with the row. A key names a row, never a file."""

    def read_thumbnail() -> bytes:
        snapshot = state.loaded().snapshot
        position = int(snapshot.find([key])[0])
        return snapshot.thumbnail(position) if position >= 0 else b""

    if not (content := await state.run(read_thumbnail)):
        raise HttpProblem("not-found", f"the store has no row {key[:200]!r}, or the row has no thumbnail")
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})
