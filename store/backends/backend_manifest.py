"""Manifest of a search back end: whose vectors it holds, of which snapshot, and how wide to search."""

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
CARD = 0  # id of the note that says what the engine holds; note n is the receipt of shard n, rows have ids from 2³² on


@dataclass(frozen=True)
class BackendManifest:
    """Contents of a search back end, as recorded in it."""

    space: Space
    snapshot: int
    rows: int
    content: str  # digest over the shards and their deleted rows; equal for equal rows
    complete: bool = False  # False while a push is under way, or after it was killed
    plan: SearchPlan = field(default_factory=SearchPlan)
    recall: dict[str, float] = field(default_factory=dict)  # filter -> recall@10 when it was pushed

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> BackendManifest:
        given = {f.name: content[f.name] for f in fields(cls)}
        return cls(
            **{**given, "space": Space.from_dict(content["space"]), "plan": SearchPlan.from_dict(content["plan"])}
        )


def content_of(parts: Sequence[ShardRef]) -> str:
    """The digest of which rows these are."""
    return checksum(json.dumps([(p.name, p.header, p.deleted_digest) for p in parts]).encode())


def read_backend_manifest(engine: SearchBackend) -> BackendManifest:
    """Read the manifest of a search back end.

    Raises
    ------
    NoStore
        There is nothing.
    NotAStore
        There is something that clipfake did not put there, or another release did.
    """
    if not engine.there():
        raise NoStore(f"there is nothing at {engine.name}; fill it with `clipfake store push`")
    content = engine.rows([CARD]).get(CARD)
    try:
        if content is None or (content["format"], content["version"]) != (FORMAT, VERSION):
            raise NotAStore(f"{engine.name} was not filled by this release of clipfake; name another place")
        return BackendManifest.from_dict(content)
    except (KeyError, TypeError, ValueError) as e:
        raise NotAStore(f"{engine.name} says what it holds in a way this release cannot read ({e!r})") from e
