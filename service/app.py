"""The FastAPI application: state, routes and middleware."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from .. import __version__
from ..detector.evidence import EvidenceOptions
from ..detector.patches.patch_map import WHOLE, Area
from ..store.store import Store
from .dependencies import BEARER
from .http.access import Origin
from .image_decoder import DecodedPixels, ImageDecoder, ImageEncoder, Pixels
from .limits import Limits
from .metrics import ServiceMetrics
from .middleware import ServiceMiddleware
from .problems import to_problem, validation_problem
from .routes import bank, embed, health, knn, page, query, search, stored
from .search_backend import SearcherFactory
from .state import AppState


def app(
    store: Store,
    encoder: ImageEncoder,
    decode: Callable[[bytes], DecodedPixels],
    thumbnail: Callable[[Pixels], bytes],
    *,
    head: str = "default",
    evidence: EvidenceOptions = EvidenceOptions(),
    limits: Limits = Limits(),
    token: str = "",
    public: bool = False,
    origin: str = "",
    notice: str = "",
    degraded: Callable[[Pixels], dict[str, Pixels]] | None = None,
    covered: Callable[[int, int], Area] = lambda height, width: WHOLE,
    searcher_for: SearcherFactory | None = None,
) -> FastAPI:
    """Return the application that serves one store.

    Parameters
    ----------
    encoder : maps pixels to vectors
    decode : maps the bytes of a file to an image; raises ImageError
    thumbnail : maps pixels to a small JPEG
    head : name of the trained head
    evidence : how many stored neighbours are evidence, and which
    token : secret that clients send; without one, writing is disabled
    public
        Whether other machines may reach the service. If so, everything except the page and the health checks requires
        the token, and any host name is accepted.
    origin
        Origin of the page as browsers see it, for a public service behind a proxy that changes the Host header.
    notice : sentence shown with every verdict
    degraded : maps pixels to degraded copies by name, for clients that ask for a stability check
    covered : maps height and width of an image to the part of it that the encoder sees, for maps of its patches
    searcher_for : makes a searcher for a snapshot (default: the store's own index)

    Raises
    ------
    SpaceMismatch
        The store was written by another encoder. A store without a detector is not an error: the service starts, and
        its responses say what is missing.
    """
    if public and not token:
        raise ValueError("a public service needs a token")
    page_origin = Origin.parse(origin)
    if origin and not (public and page_origin):
        raise ValueError(f"origin is {origin!r}; it must be like https://name, of a public service")
    metrics = ServiceMetrics()
    state = AppState(
        store,
        ImageDecoder(encoder, decode, thumbnail, degraded, covered),
        head=head,
        evidence=evidence,
        limits=limits,
        metrics=metrics,
        searcher_for=searcher_for,
    )

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[None]:
        state.start()
        try:
            yield
        finally:
            state.stop()

    application = FastAPI(
        title="clipfake",
        summary="Find AI-generated images, with the nearest known images as evidence.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # both would load scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={RequestValidationError: refuse_invalid, HTTPException: refuse},
    )
    application.state.service, application.state.notice, application.state.token = state, notice, token
    guarded, free = (query, embed, search, knn, bank, stored), (health, page)
    for routes in guarded:
        application.include_router(routes.router, dependencies=[Security(BEARER)] if public else [])
    for routes in free:
        application.include_router(routes.router)
    paths = {getattr(route, "path", "") for routes in (*guarded, *free) for route in routes.router.routes}
    application.add_middleware(
        ServiceMiddleware,
        limits=limits,
        metrics=metrics,
        token=token,
        public=public,
        folder=store.folder,
        origin=page_origin,
        paths={path for path in paths if "{" not in path},
    )
    return application


async def refuse(request: Request, error: Exception) -> Any:
    """Convert an HTTPException to an HttpProblem, which the middleware turns into a response."""
    raise to_problem(error) from error


async def refuse_invalid(request: Request, error: Exception) -> Any:
    """Convert a validation error to an HttpProblem."""
    raise validation_problem(error.errors() if isinstance(error, RequestValidationError) else []) from error
