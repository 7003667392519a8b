"""Judge images: real, fake or unsure, with the nearest known images."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from ...detector.detector import QueryOptions
from ..dependencies import StateDep, no_parameter_twice
from ..schemas import AnswersJson, refusals
from ..state import RefusedUpload, usable
from ..uploads import request_body, uploads

router = APIRouter(tags=["query"])


class QueryOptionsJson(BaseModel):
    """Options of a query. Unknown parameters are refused, since a misspelled one must not change the answer."""

    model_config = ConfigDict(extra="forbid")

    prior: float = Field(0.5, ge=0.0001, le=0.9999, description="Expected share of fakes.")
    error: float = Field(
        0.05, ge=0.0001, le=0.5, description="Accepted rate of ruling out the true class, for real and for fake images."
    )
    changes: bool = Field(True, description="Include what would change the verdict.")
    steady: bool = Field(
        False, description="Answer unsure if a recompressed, reduced or blurred copy gets another verdict."
    )
    on_map: bool = Field(False, alias="map", description="Include the coordinates of the images on /v1/map.")

    def to_options(self) -> QueryOptions:
        return QueryOptions(self.prior, self.error, self.changes)


@router.post(
    "/v1/query",
    summary="Real, fake or unsure, with the evidence",
    response_model=AnswersJson,
    responses=refusals(400, 409, 415, 422),
    openapi_extra=request_body(),
    dependencies=[Depends(no_parameter_twice)],
)
async def query(request: Request, state: StateDep, options: Annotated[QueryOptionsJson, Query()]) -> Any:
    """Send images as files of a multipart form, or one image as the body.

    An image that cannot be read, or that holds nothing to judge (below 32 pixels a side, or one colour), has an error
    in its position of the list, and the others are judged. If there is no other, the response is a problem.
    """
    with state.metrics.stage("read"):
        received = await uploads(request, state.limits)
    await state.run(lambda: state.loaded().detector)  # raises before any image is encoded for nothing
    results = await state.embed(request, received, thumbnails=True, views=options.steady, to_judge=True)
    embedded = usable(results)
    verdicts, number, coordinates = await state.run(
        lambda: state.judge(embedded, options.to_options(), on_map=options.on_map)
    )
    places = [None] * len(verdicts) if coordinates is None else coordinates.tolist()

    def answer() -> dict[str, Any]:
        judged = iter(zip(verdicts, places, strict=True))
        answers: list[dict[str, Any]] = []
        points: list[list[float] | None] = []
        for result in results:
            if isinstance(result, RefusedUpload):
                answers.append(result.to_dict())
                points.append(None)
            else:
                verdict, point = next(judged)
                answers.append(verdict.to_dict())
                points.append(point)
        return {"snapshot": number, "answers": answers, **({"places": points} if options.on_map else {})}

    return await state.respond(answer)
