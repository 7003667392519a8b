"""Is this one fake, and which known images say so? The questions that only read."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from ..detector.detector import Question
from .answers import Answers, Health, MapJson, StoreJson, refusals
from .desk import Desk, Refused, Seen
from .problem import Problem
from .uploads import REQUEST_BODY, uploads

router = APIRouter()


def desk(request: Request) -> Desk:
    found: Desk = request.app.state.desk
    return found


At = Annotated[Desk, Depends(desk)]
Prior = Annotated[float, Query(ge=0.0001, le=0.9999, description="Share of fakes you expect.")]
Error = Annotated[float, Query(ge=0.0001, le=0.5, description="Rate of wrong answers you accept; else unsure.")]
Changes = Annotated[bool, Query(description="Also say what would change the verdict.")]
OnMap = Annotated[bool, Query(alias="map", description="Also say where the images lie on /v1/map.")]


@router.post(
    "/v1/query",
    summary="Real, fake or unsure, with the evidence",
    response_model=Answers,
    responses=refusals(400, 409, 415, 422),
    openapi_extra=REQUEST_BODY,
    tags=["query"],
)
async def query(
    request: Request, at: At, prior: Prior = 0.5, error: Error = 0.05, changes: Changes = True, on_map: OnMap = False
) -> Any:
    """Send images as files of a multipart form, or one image as the body.

    An image that cannot be read is told in its place and does not hold up the others; if none can be read, the answer
    is a problem.
    """
    with at.metrics.stage("read"):
        asked = await uploads(request, at.limits)
    await at.run(at.loaded)  # a store that cannot answer says so before any work is done
    seen = await at.see(asked)
    good = usable(seen)
    verdicts, number, where = await at.run(lambda: at.judge(good, Question(prior, error, changes), places=on_map))
    told = iter(zip(verdicts, where.tolist() if where is not None else [None] * len(verdicts), strict=True))
    answers: list[dict[str, Any]] = []
    places: list[list[float] | None] = []
    for one in seen:
        if isinstance(one, Refused):
            answers.append(one.as_json())
            places.append(None)
        else:
            verdict, place = next(told)
            answers.append(verdict.as_json())
            places.append(place)
    return JSONResponse({"snapshot": number, "answers": answers, **({"places": places} if on_map else {})})


def usable(seen: list[Seen | Refused]) -> list[Seen]:
    """Those with a vector; raises the first one's Problem if there are none."""
    good = [one for one in seen if isinstance(one, Seen)]
    bad = [one for one in seen if isinstance(one, Refused)]
    if not good:
        first = bad[0].problem
        more = {"images": [one.as_json() for one in bad]} if len(bad) > 1 else {}
        raise Problem(first.kind, first.detail, headers=first.headers, **more)
    return good


@router.get("/v1/store", summary="What is stored", response_model=StoreJson, responses=refusals(), tags=["store"])
async def store(request: Request, at: At) -> Any:
    """The store in figures, whether images can be judged, and the limits of this service."""
    figures, why = await at.run(lambda: (at.figures(), at.unready()))
    state = request.app.state
    told = {"ready": not why, "why": why, "notice": state.notice, "writes": state.writes}
    return JSONResponse({**figures, **told, "limits": at.limits.as_json()})


@router.get(
    "/v1/map", summary="The bank as a flat picture", response_model=MapJson, responses=refusals(409), tags=["store"]
)
async def bank_map(at: At) -> Any:
    """Up to 1,500 rows of the bank, as many of each class, on the two main axes of the head's projection."""
    return JSONResponse(await at.run(lambda: at.loaded().map.as_json()))


@router.get(
    "/v1/thumbnails/{key:path}",
    summary="The small picture of a stored row",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}, **refusals(404)},
    tags=["store"],
)
async def thumbnail(at: At, key: Annotated[str, Path(description="Key of the row.")]) -> Response:
    """The JPEG that was kept when the row was indexed; a key names a row, never a file."""

    def find() -> bytes:
        snapshot = at.snapshot()
        position = int(snapshot.find([key])[0])
        return snapshot.thumbnail(position) if position >= 0 else b""

    if not (content := await at.run(find)):
        raise Problem("not-found", f"there is no row {key[:200]!r}, or no picture of it was kept")
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


@router.get("/healthz", summary="Whether the service is up", response_model=Health, tags=["operation"])
async def healthz() -> Any:
    return JSONResponse({"status": "ok"})


@router.get(
    "/readyz", summary="Whether images can be judged", response_model=Health, responses=refusals(), tags=["operation"]
)
async def readyz(at: At) -> Any:
    if why := await at.run(at.unready):
        raise Problem("not-ready", why)
    return JSONResponse({"status": "ready"})


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **refusals()},
    tags=["operation"],
)
async def metrics(at: At) -> Response:
    return Response(at.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
