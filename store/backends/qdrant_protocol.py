"""Requests to Qdrant, in a folder or at a server, and its answers: layout, filters, parameters, points.

Both get the same collection: float16 vectors under the name `image`, compared by inner product as the store does it;
a point's id is the row's id; `label`, `source`, `generator`, `category` and `shard` are indexed before the first vector
comes, or the graph would be built without the edges that filters need. Needs the extra `qdrant`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..records import Ids, Vectors
from .base import BackendFilter

VECTOR = "image"
WORDS = ("source", "generator", "category")  # indexed as keywords
NUMBERS = ("label", "shard")  # indexed as integers
QUERIES_AT_ONCE = 64
SCROLLED = 10_000  # ids fetched at a time
SHARDS = 1_000_000  # of the store, counted at once; it takes memory in the engine

Quantised = Literal["", "int8", "binary"]


@dataclass(frozen=True)
class CollectionLayout:
    """Layout of a new collection; an existing one stays as it is."""

    shards: int | None = None  # a server's own parts, spread over its machines; None is its default
    replicas: int | None = None  # copies of each
    quantised: Quantised = ""  # kept in memory for searching; the float16 vectors then stay on disk and rank the answer
    edges: int = 16  # of a row in the graph (m)
    care: int = 100  # candidates while it is built (ef_construct)
    plain_kb: int = 10_000  # fewer vectors than fill this are not worth a graph


def conditions(models: Any, allowed: BackendFilter) -> Any:
    """A filter in Qdrant's terms, None for all rows; `models` is either package, they name things alike."""
    which, must, must_not = allowed.which, [], []
    for name, wanted in (
        ("label", [int(label) for label in which.label_numbers]),
        ("source", list(which.source)),
        ("generator", list(which.generator)),
        ("category", list(which.category)),
    ):
        if wanted:
            must.append(models.FieldCondition(key=name, match=models.MatchAny(any=wanted)))
    if which.exclude_source:
        must_not.append(models.FieldCondition(key="source", match=models.MatchAny(any=list(which.exclude_source))))
    if allowed.ids is not None:
        try:
            must.append(models.HasIdCondition(has_id=list(allowed.ids)))
        except TypeError:  # Edge has a word of its own for it
            must.append(models.HasIdCondition(set(allowed.ids)))
    return models.Filter(must=must or None, must_not=must_not or None) if must or must_not else None


def of_shard(models: Any, number: int) -> Any:
    """A filter for the rows of one of the store's shards."""
    return models.Filter(must=[models.FieldCondition(key="shard", match=models.MatchValue(value=number))])


def parameters(models: Any, width: int | None, k: int, layout: CollectionLayout) -> Any:
    """Search parameters for `width` candidates; 0 is the back end's own number, None searches exactly."""
    quantisation = None
    if layout.quantised:  # all candidates are ranked again by the float16 vectors; a wider search would not help else
        further = width / k if width and width > k else None
        quantisation = models.QuantizationSearchParams(ignore=width is None, rescore=True, oversampling=further)
    return models.SearchParams(hnsw_ef=width or None, exact=width is None, quantization=quantisation)


def as_arrays(answers: Sequence[Sequence[Any]], k: int) -> tuple[Ids, Vectors]:
    """(queries, k) ids, -1 for none, and similarities, NaN for none."""
    ids = np.full((len(answers), k), -1, np.int64)
    similarity = np.full((len(answers), k), np.nan, np.float32)
    for row, points in enumerate(answers):
        ids[row, : len(points)] = [int(point.id) for point in points]
        similarity[row, : len(points)] = [point.score for point in points]
    return ids, similarity


def every_id(page: Callable[[Any], tuple[Sequence[Any], Any]]) -> Ids:
    """(n,) the ids on all pages, ascending; `page` is told where to go on, and says where the next one begins."""
    ids: list[int] = []
    at: Any = None
    while True:
        found, at = page(at)
        ids += [int(point.id) for point in found]
        if at is None:
            return np.sort(np.array(ids, np.int64))


def counted(hits: Sequence[Any]) -> dict[int, int]:
    """shard number -> rows."""
    return {int(hit.value): int(hit.count) for hit in hits}


def payloads(points: Sequence[Any]) -> dict[int, dict[str, Any]]:
    """id -> what is told of the point."""
    return {int(point.id): dict(point.payload or {}) for point in points}
