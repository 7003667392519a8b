"""Search by text, image or vector in clip-retrieval's protocol, so that its `ClipClient` works unchanged."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ...detector.evidence import without_copies
from ...store.search.matches import Matches
from ...store.snapshot import Snapshot
from ..dependencies import StateDep
from ..json_body import JsonRoute
from ..problems import HttpProblem
from ..schemas import KnnRowJson, refusals
from .search import Numbers, nearest, query_vector, rows_json

# not strict, because ClipClient sends JSON without its content type
router = APIRouter(tags=["search"], route_class=JsonRoute, strict_content_type=False)


class KnnRequestJson(BaseModel):
    """Request of clip-retrieval's ClipClient; its other fields (safety, aesthetics, mclip, index name) are ignored."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"image": "iVBORw0KGgo=", "num_images": 5}]})

    text: str | None = Field(None, max_length=10_000)
    image: str | None = Field(None, description="An image in base64.")
    image_url: str | None = Field(None, description="Refused, since this service fetches no URLs.")
    embedding_input: Numbers | None = None
    modality: Literal["image", "text"] = "image"
    num_images: int = Field(40, ge=1, description="Number of rows returned with metadata.")
    num_result_ids: int | None = Field(
        None, ge=1, description="Number of rows; those beyond `num_images` have only an id and a similarity."
    )
    deduplicate: bool = Field(False, description="Leave out copies of nearer rows.")


@router.post(
    "/knn-service",
    summary="Nearest rows, for clip-retrieval's ClipClient",
    response_model=list[KnnRowJson],
    response_model_exclude_unset=True,
    responses=refusals(400, 409, 422),
)
async def knn_service(request: Request, request_json: KnnRequestJson, state: StateDep) -> Any:
    """The `id` of a row is the same in every snapshot that contains it."""
    if request_json.image_url:
        raise HttpProblem("invalid", "this service fetches no URLs; send the image itself in base64")
    if request_json.modality == "text":
        raise HttpProblem("invalid", "the store has images but no captions; set modality to image")
    if not (request_json.text or request_json.image or request_json.embedding_input):
        raise HttpProblem("invalid", "the request has no query; set one of text, image and embedding_input")
    snapshot = (await state.run(state.loaded)).snapshot
    vector = await query_vector(
        request,
        state,
        snapshot,
        text=request_json.text or "",
        image=request_json.image or "",
        vector=request_json.embedding_input or (),
    )
    matches = await nearest(state, snapshot, vector, request_json.num_result_ids or request_json.num_images)
    base = str(request.base_url)
    return await state.respond(knn_rows_json, snapshot, matches, request_json, base, state.evidence.duplicate)


def knn_rows_json(
    snapshot: Snapshot, matches: Matches, request_json: KnnRequestJson, base: str, duplicate: float
) -> list[dict[str, Any]]:
    """Format matches for clip-retrieval, with thumbnail URLs, captions and metadata."""
    if request_json.deduplicate and matches.k:
        vectors = snapshot.vectors(matches.rows[0])
        kept = without_copies(matches.rows[0] >= 0, vectors @ vectors.T > duplicate)
        matches = Matches(matches.rows[:, kept], matches.similarity[:, kept])
    rows: list[dict[str, Any]] = []
    for row, number in zip(rows_json(snapshot, matches), snapshot.ids[matches.rows[0]].tolist(), strict=True):
        short = {"id": number, "similarity": row["similarity"]}
        caption = filter(None, (row["label"], row["generator"] or row["source"], row["category"]))
        full = {**row, "caption": ", ".join(caption), "url": f"{base}v1/thumbnails/{quote(row['key'])}"}
        rows.append({**full, **short} if len(rows) < request_json.num_images else short)
    return rows
