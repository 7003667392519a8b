"""Open Qdrant as a search back end: a server or cluster by its URL, or Qdrant Edge in a child process, in a folder."""

from __future__ import annotations

from pathlib import Path

from ...errors import StoreError
from .base import SearchBackend
from .edge_process import EdgeProcess
from .qdrant_base import CollectionLayout
from .qdrant_server import COLLECTION, TIMEOUT, QdrantServer


def open_backend(
    location: str | Path,
    collection: str = COLLECTION,
    layout: CollectionLayout = CollectionLayout(),
    timeout: float | None = None,
) -> SearchBackend:
    """Open a server for a URL (`http://host:6333`), Qdrant Edge for a folder. Close it after use.

    Parameters
    ----------
    location : URL of a server, or folder
    collection : name of the collection on a server
    layout : layout of a new collection
    timeout : seconds that one request to a server may take (default: 120)

    Raises
    ------
    MissingExtra
        The extra `qdrant` is not installed.
    StoreError
        The location is neither a URL of http or https nor a folder.
    """
    if str(location).startswith(("http://", "https://")):
        return QdrantServer(str(location), collection, layout, timeout=timeout or TIMEOUT)
    if "://" in str(location):
        raise StoreError(f"{location} is neither an http:// or https:// URL nor a folder")
    return EdgeProcess(Path(location), layout)
