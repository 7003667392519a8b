"""Judge images: real, fake or unsure, with the nearest known images."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from ...detector.detector import QueryOptions
from ..dependencies import At
from ..schemas import AnswersJson, refusals
from ..state import RefusedUpload, usable
from ..uploads import request_body, uploads

router = APIRouter(tags=["query"])


class QueryOptionsJson(BaseModel):
    """Options of a query. Unknown parameters are refused, since a misspelled one must not change the answer."""

    model_config = ConfigDict(extra="forbid")

    prior: float = Field(0.5, ge=0.0001, le=0.9999, description="Share of fakes you expect.")
    error: float = Field(
        0.05, ge=0.0001, le=0.5, description="How often the truth may be ruled out, of real and of fake images alike."
    )
    changes: bool = Field(True, description="Also say what would change the verdict.")
    steady: bool = Field(False, description="Unsure if a JPEG of quality 60 or half the size changes the verdict.")
    on_map: bool = Field(False, alias="map", description="Also say where the images lie on /v1/map.")

    @property
    def question(self) -> QueryOptions:
        return QueryOptions(self.prior, self.error, self.changes)


@router.post(
    "/v1/query",
    summary="Real, fake or unsure, with the evidence",
    response_model=AnswersJson,
    responses=refusals(400, 409, 415, 422),
    openapi_extra=request_body(),
)
async def query(request: Request, at: At, how: Annotated[QueryOptionsJson, Query()]) -> Any:
    """Send images as files of a multipart form, or one image as the body.

    An image that cannot be read is told in its place and does not hold up the others; if none can be read, the answer
    is a problem.
    """
    with at.metrics.stage("read"):
        received = await uploads(request, at.limits)
    await at.run(lambda: at.loaded().detector)  # a store that cannot answer says so before any work is done
    seen = await at.see(received, views=how.steady)
    good = usable(seen)
    verdicts, number, where = await at.run(lambda: at.judge(good, how.question, places=how.on_map))
    judged = iter(zip(verdicts, where.tolist() if where is not None else [None] * len(verdicts), strict=True))
    answers: list[dict[str, Any]] = []
    places: list[list[float] | None] = []
    for one in seen:
        if isinstance(one, RefusedUpload):
            answers.append(one.to_dict())
            places.append(None)
        else:
            verdict, place = next(judged)
            answers.append(verdict.to_dict())
            places.append(place)
    return JSONResponse({"snapshot": number, "answers": answers, **({"places": places} if how.on_map else {})})
