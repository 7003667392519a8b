"""Images of a known origin into the bank, and a source out of it. The next query knows; nothing is trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError

from ...store.filter import Filter, delete
from ...store.records import FAKE, REAL, Block, Rows
from ...store.space import Space
from ..dependencies import WRITES, At, form_only
from ..problems import HttpProblem, problem_of_validation
from ..schemas import AddedJson, RemovedJson, refusals
from ..state import EmbeddedUpload, RefusedUpload, usable
from ..uploads import Upload, counted, form, request_body

router = APIRouter(tags=["bank"], dependencies=WRITES)

LABELS = {"real": REAL, "fake": FAKE}
NAME = r"^[^/\x00-\x1f\x7f]+$"  # of a source that is added


class BankSourceJson(BaseModel):
    """Metadata that the client gives for the images to add."""

    source: str = Field(min_length=1, max_length=100, pattern=NAME)
    label: Literal["real", "fake"]


FIELDS = BankSourceJson.model_json_schema()["properties"]


@router.post(
    "/v1/bank",
    summary="Add images of a known origin",
    response_model=AddedJson,
    responses=refusals(400, 403, 415, 422),
    openapi_extra=request_body(**FIELDS),
    dependencies=[Depends(form_only)],
)
async def add(request: Request, at: At) -> Any:
    """Send a form of images with a `source`, what to call their origin, and a `label`, real or fake.

    An image's key is its source and its file's name: one of the same name takes the place of the one before.
    """
    given = await form(request, at.limits)
    try:
        named = BankSourceJson.model_validate(given.fields)
    except ValidationError as e:
        raise problem_of_validation([{**one, "loc": ("form", *one["loc"])} for one in e.errors()]) from e
    seen = await at.see(distinct(counted(given.uploads, at.limits)), thumbnails=True)
    block = block_of(at.eyes.encoder.space, named, usable(seen))

    def store() -> dict[str, Any]:
        with at.writing, at.store.writer(f"bank add {named.source}") as writer:
            before = writer.snapshot.number
            became = writer.append(block)
        at.loaded(wait=True)  # the next query knows them
        return {
            "source": named.source,
            "label": named.label,
            "added": became.added,
            "known": became.known,
            "replaced": became.replaced,
            "refused": [one.to_dict() for one in seen if isinstance(one, RefusedUpload)],
            "snapshot": writer.snapshot.number,
            "before": before,
        }

    return JSONResponse(await at.run(store))


@router.delete(
    "/v1/bank/{source:path}", summary="Take a source out", response_model=RemovedJson, responses=refusals(403, 404, 422)
)
async def remove(source: Annotated[str, Path(min_length=1)], at: At) -> Any:
    """Remove all rows of a source. `clipfake store undo` with the number `before` restores them."""

    def drop() -> dict[str, Any]:
        with at.writing:
            deleted = delete(at.store, Filter(source=[source]), f"bank remove {source}")
        if not deleted.rows:
            raise HttpProblem("not-found", f"there is no source {source[:100]!r}; /v1/store lists them")
        at.loaded(wait=True)
        return {"source": source, "removed": deleted.rows, "snapshot": deleted.snapshot, "before": deleted.before}

    return JSONResponse(await at.run(drop))


def distinct(uploads: Sequence[Upload]) -> list[Upload]:
    """The images without those sent twice; raises Problem where one name stands for two images."""
    contents: dict[str, bytes] = {}
    for one in uploads:
        if contents.setdefault(one.name, one.content) != one.content:
            raise HttpProblem("invalid", f"two images are called {one.name!r}; give every file a name of its own")
    return [Upload(name, content) for name, content in contents.items()]


def block_of(space: Space, named: BankSourceJson, seen: Sequence[EmbeddedUpload]) -> Block:
    """The rows that these images become."""
    pictures, count = [one.picture for one in seen], len(seen)
    rows = Rows.make(
        keys=[f"{named.source}/{one.name}" for one in seen],
        labels=[LABELS[named.label]] * count,
        sources=[named.source] * count,
        generators=[named.source if named.label == "fake" else ""] * count,
        paths=[one.name for one in seen],
        digests=np.frombuffer(b"".join(picture.digest for picture in pictures), "V16"),
        bytes=[picture.size for picture in pictures],
        widths=[picture.width for picture in pictures],
        heights=[picture.height for picture in pictures],
        formats=[picture.format for picture in pictures],
        qualities=[picture.quality for picture in pictures],
        mtimes=[time.time_ns()] * count,
    )
    vectors = np.stack([one.vector for one in seen])
    return Block(space, rows, vectors, tuple(picture.thumbnail for picture in pictures))
