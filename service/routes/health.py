"""Health checks and metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from ...errors import StoreError
from ..dependencies import StateDep
from ..problems import EscapedJSONResponse, HttpProblem, to_problem
from ..schemas import HealthJson, refusals

router = APIRouter(tags=["operation"])


@router.get("/healthz", summary="Whether the service is up", response_model=HealthJson, responses=refusals())
async def healthz() -> Any:
    return EscapedJSONResponse({"status": "ok"})


@router.get("/readyz", summary="Whether images can be judged", response_model=HealthJson, responses=refusals())
async def readyz(state: StateDep) -> Any:
    try:
        loaded = await state.run(state.loaded)
    except StoreError as e:
        raise HttpProblem("not-ready", to_problem(e, state.store.folder).detail) from e
    if loaded.problem:
        raise HttpProblem("not-ready", loaded.why, headers=loaded.problem.headers)
    return EscapedJSONResponse({"status": "ready"})


@router.get(
    "/metrics",
    summary="Metrics in Prometheus' text format",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **refusals()},
)
async def metrics(state: StateDep) -> Response:
    return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
