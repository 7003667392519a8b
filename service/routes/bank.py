"""Add images of known origin to the bank, or remove a source. It applies to the next query; nothing is trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, Field, ValidationError

from ...store.filter import Filter
from ...store.records import FAKE, REAL, Block, Rows
from ...store.space import Space
from ..dependencies import WRITES, StateDep, form_only
from ..problems import HttpProblem, validation_problem
from ..schemas import AddedJson, RemovedJson, refusals
from ..state import EmbeddedUpload, RefusedUpload, usable
from ..uploads import Upload, check_count, form, request_body

router = APIRouter(tags=["bank"], dependencies=WRITES)

LABELS = {"real": REAL, "fake": FAKE}
NAME = r"^[^/\x00-\x1f\x7f]+$"  # name of a new source


class BankSourceJson(BaseModel):
    """Metadata of the images to add."""

    source: str = Field(min_length=1, max_length=100, pattern=NAME)
    label: Literal["real", "fake"]


FIELDS = BankSourceJson.model_json_schema()["properties"]


@router.post(
    "/v1/bank",
    summary="Add images of a known origin",
    response_model=AddedJson,
    responses=refusals(400, 403, 409, 415, 422),
    openapi_extra=request_body(**FIELDS),
    dependencies=[Depends(form_only)],
)
async def add(request: Request, state: StateDep) -> Any:
    """Send a form of images with a `source`, the name of their origin, and a `label`, real or fake.

    An image's key is its source and its file name. An image with an existing key replaces the stored one; if it is the
    same image, the label of the stored one is corrected.
    """
    body = await form(request, state.limits, FIELDS)
    try:
        metadata = BankSourceJson.model_validate(body.fields)
    except ValidationError as e:
        raise validation_problem([{**error, "loc": ("form", *error["loc"])} for error in e.errors()]) from e
    await state.run(state.loaded)  # raises before any image is encoded for nothing
    uploads = await state.embed(request, distinct(check_count(body.uploads, state.limits)), thumbnails=True)
    block = make_block(state.image_decoder.encoder.space, metadata, usable(uploads))

    def store() -> dict[str, Any]:
        with state.writing, state.store.writer(f"bank add {metadata.source}") as writer:
            before = writer.snapshot.number
            outcome = writer.append(block)
        state.loaded(wait=True)  # the next query uses the new rows
        return {
            "source": metadata.source,
            "label": metadata.label,
            "added": outcome.added,
            "known": outcome.known,
            "replaced": outcome.replaced,
            "relabelled": outcome.relabelled,
            "refused": [upload.to_dict() for upload in uploads if isinstance(upload, RefusedUpload)],
            "snapshot": writer.snapshot.number,
            "before": before,
        }

    return await state.respond(store)


@router.delete(
    "/v1/bank/{source:path}",
    summary="Remove a source",
    response_model=RemovedJson,
    responses=refusals(403, 404, 409, 422),
)
async def remove(source: Annotated[str, Path(min_length=1)], state: StateDep) -> Any:
    """Remove all rows of a source. `clipfake store undo` with the number `before` restores them."""

    def drop() -> dict[str, Any]:
        state.loaded()  # raises if the store is gone
        with state.writing:
            deleted = state.store.delete(Filter(source=[source]), f"bank remove {source}")
        if not deleted.rows:
            raise HttpProblem("not-found", f"there is no source {source[:100]!r}; /v1/store lists them")
        state.loaded(wait=True)
        return {"source": source, "removed": deleted.rows, "snapshot": deleted.snapshot, "before": deleted.before}

    return await state.respond(drop)


def distinct(uploads: Sequence[Upload]) -> list[Upload]:
    """Return the uploads without duplicates; raises HttpProblem if two different images have the same name."""
    contents: dict[str, bytes] = {}
    for upload in uploads:
        if contents.setdefault(upload.name, upload.content) != upload.content:
            raise HttpProblem("invalid", f"two different images are named {upload.name!r}; rename one of them")
    return [Upload(name, content) for name, content in contents.items()]


def make_block(space: Space, metadata: BankSourceJson, uploads: Sequence[EmbeddedUpload]) -> Block:
    """Convert embedded images to rows of the store."""
    images, count = [upload.image for upload in uploads], len(uploads)
    rows = Rows.make(
        keys=[f"{metadata.source}/{upload.name}" for upload in uploads],
        labels=[LABELS[metadata.label]] * count,
        sources=[metadata.source] * count,
        generators=[metadata.source if metadata.label == "fake" else ""] * count,
        paths=[upload.name for upload in uploads],
        digests=np.frombuffer(b"".join(image.digest for image in images), "V16"),
        bytes=[image.size for image in images],
        widths=[image.width for image in images],
        heights=[image.height for image in images],
        formats=[image.format for image in images],
        qualities=[image.quality for image in images],
        mtimes=[time.time_ns()] * count,
    )
    vectors = np.stack([upload.vector for upload in uploads])
    return Block(space, rows, vectors, tuple(image.thumbnail for image in images))
