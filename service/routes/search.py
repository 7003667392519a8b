"""Search the stored rows nearest to an image, a vector, a stored row or a text, optionally with a filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from ...store.filter import Filter
from ...store.records import LABELS
from ...store.search.matches import Matches
from ...store.snapshot import Snapshot
from ..dependencies import JSON_ONLY, StateDep
from ..json_body import JsonRoute
from ..problems import HttpProblem
from ..scheduling.batcher import Vector
from ..schemas import SearchResponseJson, refusals
from ..state import AppState, usable
from ..uploads import upload_from_base64

router = APIRouter(tags=["search"], route_class=JsonRoute)

QUERY_FIELDS = ("vector", "image", "key", "text")
# Source, generator or category. With a maximum length pydantic also refuses lone surrogates, which no store can hold.
Name = Annotated[str, Field(max_length=1000)]
Names = Annotated[list[Name], Field(max_length=100)]
# only the first invalid number is reported: reporting each would take longer than reading the list
Numbers = Annotated[list[FiniteFloat], Field(fail_fast=True, max_length=100_000)]
Label = Literal["real", "fake", "unknown"]
EXAMPLES: list[Any] = [{"key": "sim_nearest/images/plain/img000046.jpg", "k": 5, "labels": ["real"]}]


class SearchRequestJson(BaseModel):
    """One of `vector`, `image`, `key` and `text`, and a filter; an empty filter list allows all values."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"oneOf": [{"required": [name]} for name in QUERY_FIELDS], "examples": EXAMPLES},
    )

    vector: Numbers = Field([], min_length=1, description="Query vector; it is scaled to unit length.")
    image: str = Field("", min_length=1, description="Query image as a data URL or in base64; no URL is fetched.")
    key: str = Field("", min_length=1, description="Key of a stored row, which will be the first match itself.")
    text: str = Field(
        "", min_length=1, max_length=10_000, description="Query text, for a store whose encoder can embed text."
    )
    k: int = Field(9, ge=1, description="Number of rows to return, at most the limit `matches`.")
    labels: Annotated[list[Label], Field(max_length=100)] = []
    sources: Names = []
    generators: Names = []
    categories: Names = []
    but_sources: Names = Field([], description="Sources whose rows are left out.")

    @model_validator(mode="after")
    def has_one_query(self) -> SearchRequestJson:
        if len(names := [name for name in QUERY_FIELDS if getattr(self, name)]) != 1:
            raise ValueError(f"set exactly one of {', '.join(QUERY_FIELDS)}; {len(names)} are set")
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
    summary="Nearest stored rows of an image, a vector, a row or a text",
    response_model=SearchResponseJson,
    responses=refusals(400, 404, 409, 415, 422),
    dependencies=JSON_ONLY,
)
async def search(request: Request, request_json: SearchRequestJson, state: StateDep) -> Any:
    """Return the nearest rows by cosine similarity. The store needs no trained head and no second class."""
    snapshot = (await state.run(state.loaded)).snapshot
    vector = await query_vector(
        request,
        state,
        snapshot,
        vector=request_json.vector,
        image=request_json.image,
        key=request_json.key,
        text=request_json.text,
    )
    matches = await nearest(state, snapshot, vector, request_json.k, request_json.filter)
    return await state.respond(lambda: {"snapshot": snapshot.number, "rows": rows_json(snapshot, matches)})


async def query_vector(
    request: Request,
    state: AppState,
    snapshot: Snapshot,
    *,
    vector: Sequence[float] = (),
    image: str = "",
    key: str = "",
    text: str = "",
) -> Vector:
    """(dim,) unit vector of whichever query is set; raises HttpProblem or ImageError."""
    if text:
        return await state.run(state.embed_text, text)
    if image:
        return usable(await state.embed(request, [await state.run(upload_from_base64, image)]))[0].vector
    if key:
        position = (await state.run(snapshot.find, [key]))[0]
        if position < 0:
            message = f"the store has no row {key[:200]!r}; take a key from the results of /v1/search or /v1/query"
            raise HttpProblem("not-found", message)
        stored: Vector = (await state.run(snapshot.vectors, [position]))[0]
        return stored
    if len(vector) != snapshot.space.dim:
        message = f"the vector has {len(vector)} numbers; the vectors of this store have {snapshot.space.dim}"
        raise HttpProblem("invalid", message)
    unscaled = np.array(vector, np.float64)
    if not (largest := np.abs(unscaled).max()):
        raise HttpProblem("invalid", "the vector is all zeros and has no direction; send another one")
    unscaled /= largest  # the squares of large numbers would overflow
    return np.asarray(unscaled / np.linalg.norm(unscaled), np.float32)


async def nearest(state: AppState, snapshot: Snapshot, vector: Vector, k: int, filter_by: Filter = Filter()) -> Matches:
    """Return the k rows nearest to one vector, fewer if the filter allows fewer; raises HttpProblem."""
    if k > state.limits.matches:
        message = f"{k} rows are more than the {state.limits.matches} that one search may return; request fewer"
        raise HttpProblem("invalid", message)

    def search_snapshot() -> Matches:
        with state.metrics.stage("search"):
            where = None if filter_by.selects_all else filter_by.mask(snapshot)
            matches = snapshot.search(vector[None], min(k, len(snapshot)), where)
            return matches.first(int((matches.rows[0] >= 0).sum()))

    return await state.run(search_snapshot)


def rows_json(snapshot: Snapshot, matches: Matches) -> list[dict[str, Any]]:
    """Format the matches of one query for the response."""
    rows = matches.rows[0]
    names = ("keys", "labels", "sources", "generators", "categories", "paths")
    columns = [snapshot.column(name)[rows].tolist() for name in names]
    return [
        {
            "key": key,
            "similarity": round(min(float(similarity), 1.0), 6),  # float16 vectors can be slightly longer than 1
            "label": LABELS[label],
            "source": source,
            "generator": generator,
            "category": category,
            "path": path,
        }
        for similarity, (key, label, source, generator, category, path) in zip(
            matches.similarity[0], zip(*columns, strict=True), strict=True
        )
    ]
