"""Qdrant Edge against FAISS against exact search: recall@10 and latency by filter, and the rate of a push.

    python -m clipfake.benchmarks.store.backends --rows 100000 --threads 1

Uses synthetic vectors of 512 dimensions; needs the extra `qdrant`. Prints a table and writes
benchmarks/results/store_engine.json. "edge" is Qdrant Edge with its own defaults, as other programs use it; "planned"
is `clipfake.store.backends.remote_search`, which searches with the width measured by the push. All times are from one
run on one machine: compare the ratios to exact search.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from ...store.backends.base import BackendFilter
from ...store.backends.push import push
from ...store.backends.qdrant import open_backend
from ...store.backends.qdrant_base import CollectionLayout, QuantizationKind
from ...store.backends.remote_search import RemoteSearcher, positions_of, remote_searcher
from ...store.backends.search_plan import fetched
from ...store.filter import Filter
from ...store.maintenance.build_index import build_index
from ...store.records import Block, names
from ...store.search.exact import ExactSearch
from ...store.search.matches import Matches
from ...store.snapshot import Snapshot
from ...store.store import Store
from ..common.synthetic_rows import space, synthetic
from .search import recall

DIM = 512
QUERIES = 100
K = 10
RESULTS = Path(__file__).parent.parent / "results"


def blocks(rows: int) -> Iterator[Block]:
    """Synthetic rows with random values in one column, so that filters on it are independent of the vectors."""
    rng = np.random.default_rng(1)
    for block in synthetic(rows, DIM):
        categories = names([f"{i:03d}" for i in rng.integers(0, 1000, len(block))])
        yield replace(block, rows=replace(block.rows, generators=categories))


def filters() -> dict[str, Filter]:
    """Filters that select from 100 % to 0.2 % of the rows: random ones, and columns whose rows lie close together."""
    scattered = {
        f"{share / 10:g} % scattered": Filter(generator=tuple(f"{i:03d}" for i in range(share)))
        for share in (500, 100, 50, 10, 2)
    }
    sources = tuple(f"source-{i:02d}" for i in range(6))
    return {
        "all rows": Filter(),
        **scattered,
        "one label": Filter(label=(0,)),
        "6 of 25 sources": Filter(source=sources),
        "all but one source": Filter(exclude_source=("source-12",)),
        "one source": Filter(source=("source-12",)),
        "100 of 400 categories": Filter(category=tuple(f"category-{i:03d}" for i in range(100, 200))),
        "one category": Filter(category=("category-050",)),
    }


def timed(queries: npt.NDArray[np.float32], search: Callable[[npt.NDArray[np.float32]], Matches]) -> dict[str, Any]:
    """Latency of single queries, with their matches."""
    search(queries[:1])
    milliseconds, rows, similarity = [], [], []
    for position in range(len(queries)):
        began = time.perf_counter()
        matches = search(queries[position : position + 1])
        milliseconds.append(1000 * (time.perf_counter() - began))
        rows.append(matches.rows)
        similarity.append(matches.similarity)
    median, p99 = np.quantile(milliseconds, [0.5, 0.99])
    return {
        "found": Matches(np.concatenate(rows), np.concatenate(similarity)),
        "median_ms": round(float(median), 2),
        "p99_ms": round(float(p99), 2),
    }


def search_with_defaults(searcher: RemoteSearcher, row_filter: Filter) -> Callable[[npt.NDArray[np.float32]], Matches]:
    """Search with the back end's own defaults and similarities."""

    def search(queries: npt.NDArray[np.float32]) -> Matches:
        ids, similarity = searcher.remote.backend.search(queries, K, BackendFilter(row_filter), 0)
        return Matches(positions_of(searcher.snapshot, ids), np.asarray(similarity, np.float32))

    return search


def name_of(quantization: str) -> str:
    return " ".join(["edge", *([quantization] if quantization else []), "planned"])


def searches_of(snapshot: Snapshot, edges: Mapping[Any, RemoteSearcher]) -> dict[str, Callable[[Filter], Any]]:
    """For each name, a function from a filter to a search."""
    exact = ExactSearch(snapshot, "cpu", kept_bytes=2**40)
    masks: dict[str, Any] = {}

    def mask(row_filter: Filter) -> Any:
        if repr(row_filter) not in masks:
            masks[repr(row_filter)] = row_filter.mask(snapshot)
        return masks[repr(row_filter)]

    def positions(row_filter: Filter) -> Any:
        return None if row_filter.selects_all else np.flatnonzero(mask(row_filter))

    def planned(searcher: RemoteSearcher) -> Callable[[Filter], Any]:
        return lambda row_filter: lambda queries: searcher.search(queries, K, row_filter)

    searches: dict[str, Callable[[Filter], Any]] = {
        "exact": lambda row_filter: lambda queries: exact.search(snapshot, queries, K, positions(row_filter)),
        "faiss": lambda row_filter: lambda queries: snapshot.search(queries, K, mask(row_filter)),
        "edge": lambda row_filter: search_with_defaults(edges[""], row_filter),
    }
    for name, searcher in edges.items():
        searches[name_of(name)] = planned(searcher)
    return searches


def run(folder: Path, rows: int, threads: int, layouts: list[QuantizationKind]) -> dict[str, Any]:
    import faiss
    import torch

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    store = Store.create(folder / "store", space(DIM))
    with store.writer("synthetic") as writer:
        if not len(writer.snapshot):
            for block in blocks(rows):
                writer.append(block)
    snapshot = store.snapshot()
    float16_bytes = len(snapshot) * DIM * 2
    pushes: dict[str, Any] = {}
    edges: dict[QuantizationKind, RemoteSearcher] = {}
    for quantization in layouts:
        folder_of_edge = folder / f"edge-{quantization}"
        backend = open_backend(folder_of_edge, layout=CollectionLayout(quantization=quantization))
        report = push(snapshot, backend)
        edges[quantization] = remote_searcher(snapshot, backend)
        size = sum(512 * path.stat().st_blocks for path in folder_of_edge.rglob("*"))  # the files are sparse
        pushes[quantization or "float16"] = {
            "rows_per_second": round(report.pushed / report.seconds["push"]),
            "seconds": report.seconds,
            "files_to_float16": round(size / float16_bytes, 2),
            "recall": report.recall,
            "recall_unplanned": report.recall_unplanned,
            "margin": report.margin,
        }
        print(f"{folder_of_edge.name}: {report.pushed} rows in {report.seconds}", flush=True)
    began = time.perf_counter()
    built = build_index(store, "plain")
    index = {
        "seconds": round(time.perf_counter() - began, 1),
        "files_to_float16": round(built.bytes / float16_bytes, 2),
    }
    rng = np.random.default_rng(8)
    queries = snapshot.vectors(np.sort(rng.choice(len(snapshot), QUERIES, replace=False)))
    queries += rng.normal(scale=0.01, size=queries.shape).astype(np.float32)  # queries are not stored rows
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    table = []
    snapshot = store.snapshot()
    searches = searches_of(
        snapshot, {name: RemoteSearcher(snapshot, queries.remote) for name, queries in edges.items()}
    )
    for name, row_filter in filters().items():
        count = int(row_filter.mask(snapshot).sum())
        row: dict[str, Any] = {"filter": name, "rows": count, "share": round(count / len(snapshot), 4)}
        for search_name, search in searches.items():
            row[search_name] = timed(queries, search(row_filter))
        true = row["exact"].pop("found")
        for search_name in list(searches)[1:]:
            row[search_name]["recall"] = round(recall(row[search_name].pop("found"), true), 4)
            row[search_name]["to_exact"] = round(row[search_name]["median_ms"] / row["exact"]["median_ms"], 3)
        for quantization, searcher in edges.items():
            row[name_of(quantization)]["candidates"] = searcher.remote.width(count, fetched(K)) or "all"
        table.append(row)
    return {
        "rows": rows,
        "dim": DIM,
        "threads": threads,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "push": pushes,
        "faiss": index,
        "filters": table,
    }


def table(fields: dict[str, Any]) -> list[str]:
    """Lines of a table: one per push, then one per filter with each back end's recall and median latency."""
    lines = [
        f"push {name:10}{push['rows_per_second']:>8} rows/s, {push['seconds']['index']} s to build the graph, files "
        f"{push['files_to_float16']} × the float16 vectors, recall from {min(push['recall_unplanned'].values())} to "
        f"{min(push['recall'].values())} by the plan"
        for name, push in fields["push"].items()
    ]
    search_names = [name for name in fields["filters"][0] if name not in ("filter", "rows", "share")]
    lines += ["", f"{'recall@10, median ms':24}{'rows':>8}" + "".join(f"{name:>22}" for name in search_names)]
    for row in fields["filters"]:
        cells = [f"{row[name].get('recall', 1.0):.3f} {row[name]['median_ms']:8.2f}" for name in search_names]
        lines.append(f"{row['filter']:24}{row['rows']:>8}" + "".join(f"{cell:>22}" for cell in cells))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of exact search and FAISS; Qdrant Edge chooses its own"
    )
    parser.add_argument("--layouts", nargs="*", default=["", "int8", "binary"], choices=get_args(QuantizationKind))
    parser.add_argument(
        "--keep", type=Path, help="create the store and the back ends in this empty folder and keep them"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = run(options.keep or Path(scratch), options.rows, options.threads, options.layouts)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "store_engine.json").write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(table(result)))


if __name__ == "__main__":
    main()
