"""clip-retrieval's protocol, so that its `ClipClient` works unchanged: rows near to words, an image or a vector."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from ...detector.evidence import without_copies
from ...store.search.matches import Matches
from ...store.snapshot import Snapshot
from ..dependencies import At
from ..json_body import JsonRoute
from ..problems import HttpProblem
from ..schemas import KnnRowJson, refusals
from .search import Numbers, nearest, rows_json, vector_of

# Not strict: ClipClient does not say that what it sends is JSON.
router = APIRouter(tags=["search"], route_class=JsonRoute, strict_content_type=False)


class KnnAsked(BaseModel):
    """Request of clip-retrieval's ClipClient; its other fields (safety, aesthetics, mclip, index name) are ignored."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"image": "iVBORw0KGgo=", "num_images": 5}]})

    text: str | None = Field(None, max_length=10_000)
    image: str | None = Field(None, description="In base64.")
    image_url: str | None = Field(None, description="Refused: this service fetches nothing.")
    embedding_input: Numbers | None = None
    modality: Literal["image", "text"] = "image"
    num_images: int = Field(40, ge=1, description="Rows told in full.")
    num_result_ids: int | None = Field(None, ge=1, description="Rows; those beyond `num_images` by number alone.")
    deduplicate: bool = Field(False, description="Leave out copies of nearer rows.")


@router.post(
    "/knn-service",
    summary="The nearest rows, as clip-retrieval's ClipClient asks for them",
    response_model=list[KnnRowJson],
    response_model_exclude_unset=True,
    responses=refusals(400, 422),
)
async def knn_service(request: Request, request_json: KnnAsked, at: At) -> Any:
    """Rows have the `id` of their place in the store, the same in every snapshot that has them."""
    if request_json.image_url:
        raise HttpProblem("invalid", "this service fetches nothing; send the image itself, in base64")
    if request_json.modality == "text":
        raise HttpProblem("invalid", "images are stored here, no captions; ask with the modality image")
    if not (request_json.text or request_json.image or request_json.embedding_input):
        raise HttpProblem("invalid", "fill one of text, image and embedding_input")
    snapshot = (await at.run(at.loaded)).snapshot
    vector = await vector_of(
        at,
        snapshot,
        text=request_json.text or "",
        image=request_json.image or "",
        vector=request_json.embedding_input or (),
    )
    found = await nearest(at, snapshot, vector, request_json.num_result_ids or request_json.num_images)
    base = str(request.base_url)
    return JSONResponse(await at.run(knn_rows_json, snapshot, found, request_json, base, at.rules.duplicate))


def knn_rows_json(
    snapshot: Snapshot, found: Matches, request_json: KnnAsked, base: str, duplicate: float
) -> list[dict[str, Any]]:
    """The rows as clip-retrieval tells them, with where their pictures are and what is known of them."""
    if request_json.deduplicate and found.k:
        vectors = snapshot.vectors(found.rows[0])
        fresh = without_copies(found.rows[0] >= 0, vectors @ vectors.T > duplicate)
        found = Matches(found.rows[:, fresh], found.similarity[:, fresh])
    rows: list[dict[str, Any]] = []
    for row, number in zip(rows_json(snapshot, found), snapshot.ids[found.rows[0]].tolist(), strict=True):
        short = {"id": number, "similarity": row["similarity"]}
        words = filter(None, (row["label"], row["generator"] or row["source"], row["category"]))
        full = {**row, "caption": ", ".join(words), "url": f"{base}v1/thumbnails/{quote(row['key'])}"}
        rows.append({**full, **short} if len(rows) < request_json.num_images else short)
    return rows
