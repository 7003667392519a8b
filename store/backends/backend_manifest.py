"""Manifest of a search back end: which snapshot it holds, of which encoder, and how wide to search."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ...core.sealed_json import checksum
from ...errors import NoStore, NotAStore
from ..manifest import ShardRef
from ..space import Space
from .base import SearchBackend
from .search_plan import SearchPlan

FORMAT = "clipfake-rows"
VERSION = 1
MANIFEST_ID = 0  # id of the manifest's note; note n is the receipt of shard n, and the ids of rows start at 2³²


@dataclass(frozen=True)
class BackendManifest:
    """Contents of a search back end, as recorded in it."""

    space: Space
    snapshot: int
    rows: int
    content: str  # digest of the shards and their deleted rows; equal for equal rows
    complete: bool = False  # False during a push, and after one that was interrupted
    plan: SearchPlan = field(default_factory=SearchPlan)
    recall: dict[str, float] = field(default_factory=dict)  # filter -> recall@10 measured by the push

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> BackendManifest:
        values = {f.name: content[f.name] for f in fields(cls)}
        space, plan = Space.from_dict(content["space"]), SearchPlan.from_dict(content["plan"])
        return cls(**{**values, "space": space, "plan": plan})


def content_of(shards: Sequence[ShardRef]) -> str:
    """Digest of the rows of these shards."""
    return checksum(json.dumps([(shard.name, shard.header, shard.deleted_digest) for shard in shards]).encode())


def read_backend_manifest(backend: SearchBackend) -> BackendManifest:
    """Read the manifest of a search back end.

    Raises
    ------
    NoStore
        The collection or folder does not exist.
    NotAStore
        It was not written by clipfake, or by another release.
    """
    if not backend.exists():
        raise NoStore(f"{backend.name} does not exist; fill it with `clipfake store push`")
    content = backend.payloads([MANIFEST_ID]).get(MANIFEST_ID)
    try:
        if content is None or (content["format"], content["version"]) != (FORMAT, VERSION):
            raise NotAStore(
                f"{backend.name} was not filled by this release of clipfake; name another collection or folder"
            )
        return BackendManifest.from_dict(content)
    except (KeyError, TypeError, ValueError) as e:
        raise NotAStore(
            f"{backend.name} has a manifest that this release cannot read ({e!r}); name another collection or folder, "
            f"or delete its contents with `clipfake store push --anew`"
        ) from e
