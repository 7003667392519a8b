"""Embed images: this service's own operation, and one compatible with OpenAI's embeddings API."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ..dependencies import JSON_ONLY, StateDep
from ..json_body import JsonRoute
from ..problems import HttpProblem
from ..scheduling.batcher import Vector
from ..schemas import EmbeddingsJson, VectorsJson, refusals
from ..state import RefusedUpload, usable, without_folders
from ..uploads import check_count, request_body, upload_from_base64, uploads

router = APIRouter(tags=["vectors"], route_class=JsonRoute)


@router.post(
    "/v1/embed",
    summary="Embed images",
    response_model=VectorsJson,
    responses=refusals(400, 415, 422),
    openapi_extra=request_body(),
)
async def embed(request: Request, state: StateDep) -> Any:
    """Send images as for /v1/query. The vectors are the unit vectors that the store holds and searches."""
    results = await state.embed(request, await uploads(request, state.limits))
    usable(results)
    space = state.image_decoder.encoder.space.to_dict()

    def answer() -> dict[str, Any]:
        answers = [
            result.to_dict()
            if isinstance(result, RefusedUpload)
            else {"image": result.name, "vector": to_floats(result.vector)}
            for result in results
        ]
        return {"space": {**space, "encoder": without_folders(space["encoder"])}, "answers": answers}

    return await state.respond(answer)


class EmbeddingsRequestJson(BaseModel):
    """Request of OpenAI's embeddings API, with images in place of texts."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": ["data:image/png;base64,iVBORw0KGgo="]}]})

    input: str | Annotated[list[str], Field(fail_fast=True)] = Field(
        description="Images, each as a data URL or in base64."
    )
    model: str = Field("", description="Ignored; the response names the encoder.")
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: little-endian float32.")


@router.post(
    "/v1/embeddings",
    summary="Embed images, for OpenAI's clients",
    response_model=EmbeddingsJson,
    responses=refusals(400, 415, 422),
    dependencies=JSON_ONLY,
)
async def embeddings(request: Request, request_json: EmbeddingsRequestJson, state: StateDep) -> Any:
    """Alias of /v1/embed. One bad image fails the whole request, because OpenAI's format has no error per input."""
    texts = [request_json.input] if isinstance(request_json.input, str) else request_json.input
    check_count(texts, state.limits)
    images = [await state.run(upload_from_base64, text, f"input {i}") for i, text in enumerate(texts)]
    vectors = []
    for result in await state.embed(request, images):
        if isinstance(result, RefusedUpload):
            problem = result.problem
            raise HttpProblem(problem.kind, f"{result.name}: {problem.detail}", headers=problem.headers)
        vectors.append(result.vector)
    encode_values = to_base64 if request_json.encoding_format == "base64" else to_floats
    model = without_folders(state.image_decoder.encoder.space.encoder)
    usage = {"prompt_tokens": 0, "total_tokens": 0}

    def answer() -> dict[str, Any]:
        rows = [
            {"object": "embedding", "index": i, "embedding": encode_values(vector)} for i, vector in enumerate(vectors)
        ]
        return {"object": "list", "data": rows, "model": model, "usage": usage}

    return await state.respond(answer)


def to_floats(vector: Vector) -> list[float]:
    """Round to eight decimals, about the float32 precision of a unit vector's components."""
    return [round(value, 8) for value in vector.tolist()]


def to_base64(vector: Vector) -> str:
    """Encode as little-endian float32 in base64."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
