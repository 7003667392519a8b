"""The stored rows nearest to an image, a vector, a stored row or words, of all or of those a filter allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from ...store.filter import Filter
from ...store.records import LABELS
from ...store.search.matches import Matches
from ...store.snapshot import Snapshot
from ..batcher import Vector
from ..dependencies import JSON_ONLY, At
from ..json_body import JsonRoute
from ..problems import HttpProblem
from ..schemas import FoundJson, refusals
from ..state import AppState, usable
from ..uploads import image_of

router = APIRouter(tags=["search"], route_class=JsonRoute)

WAYS = ("vector", "image", "key", "text")
# Of a source, generator or category. With a length to count, half a character is refused too, which no store can hold.
Name = Annotated[str, Field(max_length=1000)]
Names = Annotated[list[Name], Field(max_length=100)]
# The first that is none is told; to tell of each would take longer than to read them all.
Numbers = Annotated[list[FiniteFloat], Field(fail_fast=True, max_length=100_000)]
Label = Literal["real", "fake", "unknown"]
EXAMPLES: list[Any] = [{"key": "sim_nearest/images/plain/img000046.jpg", "k": 5, "labels": ["real"]}]


class SearchRequestJson(BaseModel):
    """One of `vector`, `image`, `key` and `text`, and which rows may be found; a filter without values allows all."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"oneOf": [{"required": [way]} for way in WAYS], "examples": EXAMPLES}
    )

    vector: Numbers = Field([], min_length=1, description="Of any length but zero.")
    image: str = Field("", min_length=1, description="A data URL or base64; nothing is fetched.")
    key: str = Field("", min_length=1, description="Of a stored row, which then finds itself first.")
    text: str = Field("", min_length=1, max_length=10_000, description="Where the encoder has a text side.")
    k: int = Field(9, ge=1, description="Rows to find, at most the service's limit of matches.")
    labels: Annotated[list[Label], Field(max_length=100)] = []
    sources: Names = []
    generators: Names = []
    categories: Names = []
    but_sources: Names = Field([], description="Rows of these are left out.")

    @model_validator(mode="after")
    def one_way(self) -> SearchRequestJson:
        if len(given := [way for way in WAYS if getattr(self, way)]) != 1:
            raise ValueError(f"give one of {', '.join(WAYS)}; there are {len(given)}")
        return self

    @property
    def filter(self) -> Filter:
        return Filter(
            label=self.labels,
            source=self.sources,
            generator=self.generators,
            category=self.categories,
            exclude_source=self.but_sources,
        )


@router.post(
    "/v1/search",
    summary="The stored rows nearest to an image, a vector, a row or words",
    response_model=FoundJson,
    responses=refusals(400, 404, 415, 422),
    dependencies=JSON_ONLY,
)
async def search(request_json: SearchRequestJson, at: At) -> Any:
    """Nearest first, by cosine. It needs no head and no second class, only rows."""
    snapshot = (await at.run(at.loaded)).snapshot
    vector = await vector_of(
        at, snapshot, vector=request_json.vector, image=request_json.image, key=request_json.key, text=request_json.text
    )
    found = await nearest(at, snapshot, vector, request_json.k, request_json.filter)
    return JSONResponse({"snapshot": snapshot.number, "rows": await at.run(rows_json, snapshot, found)})


async def vector_of(
    at: AppState, snapshot: Snapshot, *, vector: Sequence[float] = (), image: str = "", key: str = "", text: str = ""
) -> Vector:
    """(dim,) unit length, of whichever is given; raises Problem or ImageError."""
    if text:
        return await at.run(at.text, text)
    if image:
        return usable(await at.see([await at.run(image_of, image)]))[0].vector
    if key:
        position = (await at.run(snapshot.find, [key]))[0]
        if position < 0:
            raise HttpProblem("not-found", f"there is no row {key[:200]!r}; /v1/search and /v1/query name keys")
        stored: Vector = (await at.run(snapshot.vectors, [position]))[0]
        return stored
    if len(vector) != snapshot.space.dim:
        raise HttpProblem(
            "invalid", f"a vector of {len(vector)} numbers; those of this store have {snapshot.space.dim}"
        )
    given = np.array(vector, np.float64)
    if not (largest := np.abs(given).max()):
        raise HttpProblem("invalid", "the vector is all zero, which is near to nothing; send another")
    given /= largest  # squares of the given numbers may be beyond a float
    return np.asarray(given / np.linalg.norm(given), np.float32)


async def nearest(at: AppState, snapshot: Snapshot, vector: Vector, k: int, which: Filter = Filter()) -> Matches:
    """The rows nearest to one vector, fewer than k where fewer are allowed; raises Problem."""
    if k > at.limits.matches:
        raise HttpProblem(
            "invalid", f"{k} rows are more than the {at.limits.matches} that one search gives; ask for fewer"
        )

    def found() -> Matches:
        with at.metrics.stage("search"):
            where = None if which.selects_all else which.mask(snapshot)
            matches = snapshot.search(vector[None], min(k, len(snapshot)), where)
            return matches.first(int((matches.rows[0] >= 0).sum()))

    return await at.run(found)


def rows_json(snapshot: Snapshot, found: Matches) -> list[dict[str, Any]]:
    """The rows of one query as its answer names them."""
    rows = found.rows[0]
    names = ("keys", "labels", "sources", "generators", "categories", "paths")
    columns = [snapshot.column(name)[rows].tolist() for name in names]
    return [
        {
            "key": key,
            "similarity": round(min(float(near), 1.0), 6),  # of halves, the product of equals may be a little more
            "label": LABELS[label],
            "source": source,
            "generator": generator,
            "category": category,
            "path": path,
        }
        for near, (key, label, source, generator, category, path) in zip(
            found.similarity[0], zip(*columns, strict=True), strict=True
        )
    ]
