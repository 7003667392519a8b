"""The app: what it is handed, put behind one gate."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from .. import __version__
from ..detector.evidence import EvidenceOptions
from ..store.store import Store
from .dependencies import BEARER
from .image_decoder import DecodedPixels, ImageDecoder, ImageEncoder, Pixels
from .limits import Limits
from .metrics import ServiceMetrics
from .middleware import Gate
from .problems import problem_of, problem_of_validation
from .routes import bank, embed, health, knn, page, query, search, stored
from .search_backend import Elsewhere
from .state import AppState


def app(
    store: Store,
    encoder: ImageEncoder,
    decode: Callable[[bytes], DecodedPixels],
    thumbnail: Callable[[Pixels], bytes],
    *,
    head: str = "default",
    rules: EvidenceOptions = EvidenceOptions(),
    limits: Limits = Limits(),
    token: str = "",
    public: bool = False,
    notice: str = "",
    degraded: Callable[[Pixels], dict[str, Pixels]] | None = None,
    elsewhere: Elsewhere | None = None,
) -> FastAPI:
    """The service over one store.

    Parameters
    ----------
    encoder, decode, thumbnail
        What it sees with: pixels to vectors, a file's bytes to an image (raises ImageError), pixels to a small JPEG.
    token : without one nothing can be written
    public
        Others than this machine may reach it: then everything but the page and its health takes the token, and any
        host name is answered to.
    notice : a sentence to be shown with every verdict
    elsewhere : gives who is asked for the nearest rows of a snapshot, if not the store itself
    degraded : pixels to what was done -> degraded copies, for those who ask whether a verdict is steady

    Raises
    ------
    SpaceMismatch
        The store is of another encoder. A store that cannot answer yet is no error: it says what is missing.
    """
    if public and not token:
        raise ValueError("a public service needs a token")
    metrics = ServiceMetrics()
    desk = AppState(
        store,
        ImageDecoder(encoder, decode, thumbnail, degraded),
        head=head,
        rules=rules,
        limits=limits,
        metrics=metrics,
        elsewhere=elsewhere,
    )

    @asynccontextmanager
    async def lifespan(made: FastAPI) -> AsyncIterator[None]:
        desk.start()
        try:
            yield
        finally:
            desk.stop()

    made = FastAPI(
        title="clipfake",
        summary="Is this one fake, and which known images say so?",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # both would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={RequestValidationError: refuse_invalid, HTTPException: refuse},
    )
    made.state.desk, made.state.notice, made.state.token = desk, notice, token
    for room in (query, embed, search, knn, bank, stored):
        made.include_router(room.router, dependencies=[Security(BEARER)] if public else [])
    for room in (health, page):
        made.include_router(room.router)
    made.add_middleware(Gate, limits=limits, metrics=metrics, token=token, public=public, folder=store.folder)
    return made


async def refuse(request: Request, error: Exception) -> Any:
    """The framework's refusals become ours; the gate answers them."""
    raise problem_of(error) from error


async def refuse_invalid(request: Request, error: Exception) -> Any:
    raise problem_of_validation(error.errors() if isinstance(error, RequestValidationError) else []) from error
