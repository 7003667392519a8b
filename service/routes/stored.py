"""Public view of the store: figures, a map, and the thumbnail of a row."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse

from ..dependencies import At
from ..problems import HttpProblem
from ..schemas import MapJson, StoreJson, refusals

router = APIRouter(tags=["store"])


@router.get("/v1/store", summary="What is stored", response_model=StoreJson, responses=refusals())
async def store(request: Request, at: At) -> Any:
    """The store in figures, whether images can be judged, and the limits of this service."""
    figures, loaded = await at.run(lambda: (at.figures(), at.loaded()))
    state = request.app.state
    fields = {"ready": not loaded.why, "why": loaded.why, "notice": state.notice, "writes": bool(state.token)}
    return JSONResponse({**figures, **fields, "limits": at.limits.to_dict()})


@router.get("/v1/map", summary="The bank as a flat picture", response_model=MapJson, responses=refusals(409))
async def bank_map(at: At) -> Any:
    """Up to 1,500 rows of the bank, as many of each class, on the two main axes of the head's projection."""
    return JSONResponse(await at.run(lambda: at.loaded().map.to_dict()))


@router.get(
    "/v1/thumbnails/{key:path}",
    summary="The small picture of a stored row",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}, **refusals(404)},
)
async def thumbnail(at: At, key: Annotated[str, Path(description="Key of the row.")]) -> Response:
    """The JPEG that was kept when the row was indexed; a key names a row, never a file."""

    def find() -> bytes:
        snapshot = at.loaded().snapshot
        position = int(snapshot.find([key])[0])
        return snapshot.thumbnail(position) if position >= 0 else b""

    if not (content := await at.run(find)):
        raise HttpProblem("not-found", f"there is no row {key[:200]!r}, or no picture of it was kept")
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})
