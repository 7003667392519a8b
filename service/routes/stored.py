"""Describe the store: statistics, a map of the bank, and the thumbnail of a row."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from ...core.sealed_json import checksum
from ..dependencies import StateDep
from ..problems import HttpProblem
from ..schemas import MapJson, StoreJson, refusals

router = APIRouter(tags=["store"])


@router.get("/v1/store", summary="Statistics of the store", response_model=StoreJson, responses=refusals(409))
async def store(request: Request, state: StateDep) -> Any:
    """Return statistics of the store, whether images can be judged, and the limits of this service."""
    app_state = request.app.state

    def answer() -> dict[str, Any]:
        figures, loaded = state.figures(), state.loaded()
        fields = {
            "ready": not loaded.why,
            "why": loaded.why,
            "notice": " ".join(filter(None, (app_state.notice, "" if loaded.why else loaded.detector.notice))),
            "writes": bool(app_state.token),
        }
        return {**figures, **fields, "limits": state.limits.to_dict()}

    return await state.respond(answer)


@router.get("/v1/map", summary="Two-dimensional map of the bank", response_model=MapJson, responses=refusals(409))
async def bank_map(state: StateDep) -> Any:
    """Return up to 1,500 rows of the bank, half of each class, on two principal components of the projection."""
    return await state.respond(lambda: state.loaded().map.to_dict())


@router.get(
    "/v1/thumbnails/{key:path}",
    summary="Thumbnail of a stored row",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}, 304: {"description": "Not modified"}, **refusals(404, 409)},
)
async def thumbnail(
    request: Request, state: StateDep, key: Annotated[str, Path(description="Key of the row.")]
) -> Response:
    """Return the thumbnail that was stored with the row. A key names a row, never a file.

    A browser may keep it, but must ask with `If-None-Match` whether it is still the same.
    """

    def read_thumbnail() -> bytes:
        snapshot = state.loaded().snapshot
        position = int(snapshot.find([key])[0])
        return snapshot.thumbnail(position) if position >= 0 else b""

    if not (content := await state.run(read_thumbnail)):
        raise HttpProblem("not-found", f"the store has no row {key[:200]!r}, or the row has no thumbnail")
    headers = {"Cache-Control": "private, no-cache", "ETag": f'"{checksum(content)}"'}
    if headers["ETag"] in re.split(r"\s*,\s*", request.headers.get("if-none-match", "").replace("W/", "")):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="image/jpeg", headers=headers)
