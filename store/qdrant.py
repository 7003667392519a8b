"""Qdrant as an engine: a server or cluster by its URL, or Qdrant Edge, the same engine in this process, in a folder."""

from __future__ import annotations

from pathlib import Path

from .engine import Engine
from .errors import StoreError
from .qdrant_edge import Edge
from .qdrant_server import COLLECTION, Server
from .qdrant_terms import Layout


def engine_at(place: str | Path, collection: str = COLLECTION, layout: Layout = Layout()) -> Engine:
    """A server for an URL (`http://host:6333`), Qdrant Edge for a folder. Close it when done.

    Raises
    ------
    MissingExtra
        The extra `qdrant` is not installed.
    StoreError
        The server does not answer.
    """
    if str(place).startswith(("http://", "https://")):
        return Server(str(place), collection, layout)
    if "://" in str(place):
        raise StoreError(f"{place} is neither http://, https:// nor a folder")
    return Edge(Path(place), layout)
