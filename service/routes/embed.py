"""The vectors of images, in this service's words and in those of OpenAI's clients."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from ..batcher import Vector
from ..dependencies import JSON_ONLY, At
from ..json_body import JsonRoute
from ..problems import HttpProblem
from ..schemas import EmbeddingsJson, VectorsJson, refusals
from ..state import RefusedUpload, usable, without_folders
from ..uploads import counted, image_of, request_body, uploads

router = APIRouter(tags=["vectors"], route_class=JsonRoute)


@router.post(
    "/v1/embed",
    summary="The vectors of images",
    response_model=VectorsJson,
    responses=refusals(400, 415, 422),
    openapi_extra=request_body(),
)
async def embed(request: Request, at: At) -> Any:
    """Send images as for /v1/query. The vectors have unit length and are those that are stored and searched."""
    seen = await at.see(await uploads(request, at.limits))
    usable(seen)
    answers = [
        one.to_dict() if isinstance(one, RefusedUpload) else {"image": one.name, "vector": numbers(one.vector)}
        for one in seen
    ]
    space = at.eyes.encoder.space.to_dict()
    return JSONResponse({"space": {**space, "encoder": without_folders(space["encoder"])}, "answers": answers})


class EmbeddingsAsked(BaseModel):
    """OpenAI's request, with images where it has texts."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": ["data:image/png;base64,iVBORw0KGgo="]}]})

    input: str | Annotated[list[str], Field(fail_fast=True)] = Field(
        description="Images, each as a data URL or in base64."
    )
    model: str = Field("", description="Not looked at: the answer names the encoder.")
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: little-endian float32.")


@router.post(
    "/v1/embeddings",
    summary="The vectors of images, as OpenAI's clients ask for them",
    response_model=EmbeddingsJson,
    responses=refusals(400, 415, 422),
    dependencies=JSON_ONLY,
)
async def embeddings(request_json: EmbeddingsAsked, at: At) -> Any:
    """An alias of /v1/embed. One bad image and the whole request is refused: this form has no place to say so."""
    texts = [request_json.input] if isinstance(request_json.input, str) else request_json.input
    counted(texts, at.limits)
    given = [await at.run(image_of, text, f"input {i}") for i, text in enumerate(texts)]
    vectors = []
    for one in await at.see(given):
        if isinstance(one, RefusedUpload):
            raise HttpProblem(one.problem.kind, f"{one.name}: {one.problem.detail}", headers=one.problem.headers)
        vectors.append(one.vector)
    encode_values = packed if request_json.encoding_format == "base64" else numbers
    rows = [{"object": "embedding", "index": i, "embedding": encode_values(vector)} for i, vector in enumerate(vectors)]
    model = without_folders(at.eyes.encoder.space.encoder)
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return JSONResponse({"object": "list", "data": rows, "model": model, "usage": usage})


def numbers(vector: Vector) -> list[float]:
    """Round to eight decimals, about the precision of a float32 of a unit vector."""
    return [round(value, 8) for value in vector.tolist()]


def packed(vector: Vector) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
