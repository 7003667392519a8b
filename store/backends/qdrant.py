"""Qdrant as an engine: a server or cluster by its URL, or Qdrant Edge, the same engine in this process, in a folder."""

from __future__ import annotations

from pathlib import Path

from ...errors import StoreError
from .base import SearchBackend
from .qdrant_edge import QdrantEdge
from .qdrant_protocol import CollectionLayout
from .qdrant_server import COLLECTION, TIMEOUT, QdrantServer


def open_backend(
    place: str | Path,
    collection: str = COLLECTION,
    layout: CollectionLayout = CollectionLayout(),
    timeout: float | None = None,
) -> SearchBackend:
    """A server for an URL (`http://host:6333`), Qdrant Edge for a folder. Close it when done.

    Parameters
    ----------
    timeout : seconds that one request to a server may take, two minutes for None

    Raises
    ------
    MissingExtra
        The extra `qdrant` is not installed.
    StoreError
        The place is neither.
    """
    if str(place).startswith(("http://", "https://")):
        return QdrantServer(str(place), collection, layout, timeout=timeout or TIMEOUT)
    if "://" in str(place):
        raise StoreError(f"{place} is neither http://, https:// nor a folder")
    return QdrantEdge(Path(place), layout)
