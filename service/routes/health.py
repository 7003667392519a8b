"""Health checks, for operators."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from ..dependencies import At
from ..problems import HttpProblem
from ..schemas import HealthJson, refusals

router = APIRouter(tags=["operation"])


@router.get("/healthz", summary="Whether the service is up", response_model=HealthJson, responses=refusals())
async def healthz() -> Any:
    return JSONResponse({"status": "ok"})


@router.get("/readyz", summary="Whether images can be judged", response_model=HealthJson, responses=refusals())
async def readyz(at: At) -> Any:
    loaded = await at.run(at.loaded)
    if loaded.refused:
        raise HttpProblem("not-ready", loaded.why, headers=loaded.refused.headers)
    return JSONResponse({"status": "ready"})


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **refusals()},
)
async def metrics(at: At) -> Response:
    return Response(at.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
