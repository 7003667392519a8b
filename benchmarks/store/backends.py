"""Qdrant Edge, FAISS and exact search compared: recall@10 and latency by filter, and the rate of a push.

    python -m clipfake.benchmarks.store.backends --rows 100000 --threads 1

Uses synthetic vectors of 512 dimensions; needs the extra `qdrant`. Prints a table and writes
benchmarks/results/store_engine.json. "edge" is Qdrant Edge with its defaults; "planned" is
`clipfake.store.backends.remote_search`, with the search width that the push measured. All times are from one run on one
machine: compare the ratios to exact search.
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
from ...store.backends.qdrant_protocol import CollectionLayout, Quantised
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
    """The synthetic rows, with a column of random values, so that filters on it are independent of the vectors."""
    rng = np.random.default_rng(1)
    for block in synthetic(rows, DIM):
        drawn = names([f"{i:03d}" for i in rng.integers(0, 1000, len(block))])
        yield replace(block, rows=replace(block.rows, generators=drawn))


def filters() -> dict[str, Filter]:
    """Filters from all rows to 0.2%: random ones, and ones by columns whose rows lie close together."""
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
    """Latency of single queries, and their results."""
    search(queries[:1])
    took, rows, similarity = [], [], []
    for at in range(len(queries)):
        began = time.perf_counter()
        found = search(queries[at : at + 1])
        took.append(1000 * (time.perf_counter() - began))
        rows.append(found.rows)
        similarity.append(found.similarity)
    median, late = np.quantile(took, [0.5, 0.99])
    return {
        "found": Matches(np.concatenate(rows), np.concatenate(similarity)),
        "median_ms": round(float(median), 2),
        "p99_ms": round(float(late), 2),
    }


def plain(searcher: RemoteSearcher, which: Filter) -> Callable[[npt.NDArray[np.float32]], Matches]:
    """A search with the back end's defaults and its own similarities."""

    def search(queries: npt.NDArray[np.float32]) -> Matches:
        ids, similarity = searcher.remote.engine.search(queries, K, BackendFilter(which), 0)
        return Matches(positions_of(searcher.snapshot, ids), np.asarray(similarity, np.float32))

    return search


def name_of(quantised: str) -> str:
    return " ".join(["edge", *([quantised] if quantised else []), "planned"])


def engines(snapshot: Snapshot, edges: Mapping[Any, RemoteSearcher]) -> dict[str, Callable[[Filter], Any]]:
    """Searches by name: each value takes a filter and returns a search function."""
    exact = ExactSearch(snapshot, "cpu", kept_bytes=2**40)
    masks: dict[str, Any] = {}

    def mask(which: Filter) -> Any:
        if repr(which) not in masks:
            masks[repr(which)] = which.mask(snapshot)
        return masks[repr(which)]

    def places(which: Filter) -> Any:
        return None if which.selects_all else np.flatnonzero(mask(which))

    def planned(searcher: RemoteSearcher) -> Callable[[Filter], Any]:
        return lambda which: lambda queries: searcher.search(queries, K, which)

    made: dict[str, Callable[[Filter], Any]] = {
        "exact": lambda which: lambda queries: exact.search(snapshot, queries, K, places(which)),
        "faiss": lambda which: lambda queries: snapshot.search(queries, K, mask(which)),
        "edge": lambda which: plain(edges[""], which),
    }
    for name, query_rows in edges.items():
        made[name_of(name)] = planned(query_rows)
    return made


def run(folder: Path, rows: int, threads: int, layouts: list[Quantised]) -> dict[str, Any]:
    import faiss
    import torch

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    store = Store.create(folder / "store", space(DIM))
    with store.writer("made up") as writer:
        if not len(writer.snapshot):
            for block in blocks(rows):
                writer.append(block)
    snapshot = store.snapshot()
    halves = len(snapshot) * DIM * 2
    pushes: dict[str, Any] = {}
    edges: dict[Quantised, RemoteSearcher] = {}
    for quantised in layouts:
        place = folder / f"edge-{quantised}"
        engine = open_backend(place, layout=CollectionLayout(quantised=quantised))
        report = push(snapshot, engine)
        edges[quantised] = remote_searcher(snapshot, engine)
        size = sum(512 * path.stat().st_blocks for path in place.rglob("*"))  # its files are sparse
        pushes[quantised or "float16"] = {
            "rows_per_second": round(report.pushed / report.seconds["push"]),
            "seconds": report.seconds,
            "files_to_float16": round(size / halves, 2),
            "recall": report.recall,
            "recall_unplanned": report.recall_unplanned,
            "margin": report.margin,
        }
        print(f"{place.name}: {report.pushed} rows in {report.seconds}", flush=True)
    began = time.perf_counter()
    built = build_index(store, "plain")
    index = {"seconds": round(time.perf_counter() - began, 1), "files_to_float16": round(built.bytes / halves, 2)}
    rng = np.random.default_rng(8)
    queries = snapshot.vectors(np.sort(rng.choice(len(snapshot), QUERIES, replace=False)))
    queries += rng.normal(scale=0.01, size=queries.shape).astype(np.float32)  # not the rows themselves
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    table = []
    snapshot = store.snapshot()
    searches = engines(snapshot, {name: RemoteSearcher(snapshot, queries.remote) for name, queries in edges.items()})
    for name, which in filters().items():
        count = int(which.mask(snapshot).sum())
        row: dict[str, Any] = {"filter": name, "rows": count, "share": round(count / len(snapshot), 4)}
        for by, search in searches.items():
            row[by] = timed(queries, search(which))
        true = row["exact"].pop("found")
        for by in list(searches)[1:]:
            row[by]["recall"] = round(recall(row[by].pop("found"), true), 4)
            row[by]["to_exact"] = round(row[by]["median_ms"] / row["exact"]["median_ms"], 3)
        for quantised, query_rows in edges.items():
            row[name_of(quantised)]["candidates"] = query_rows.remote.width(count, fetched(K)) or "all"
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
    """Format for reading: a line per push, then one per filter with each back end's recall and median latency."""
    lines = [
        f"push {name:10}{push['rows_per_second']:>8} rows/s, {push['seconds']['index']} s to build the graph, files "
        f"{push['files_to_float16']} × the float16 vectors, recall from {min(push['recall_unplanned'].values())} to "
        f"{min(push['recall'].values())} by the plan"
        for name, push in fields["push"].items()
    ]
    by = [name for name in fields["filters"][0] if name not in ("filter", "rows", "share")]
    lines += ["", f"{'recall@10, median ms':24}{'rows':>8}" + "".join(f"{name:>22}" for name in by)]
    for row in fields["filters"]:
        cells = [f"{row[name].get('recall', 1.0):.3f} {row[name]['median_ms']:8.2f}" for name in by]
        lines.append(f"{row['filter']:24}{row['rows']:>8}" + "".join(f"{cell:>22}" for cell in cells))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1, help="of exact search and FAISS; Edge takes its own choice")
    parser.add_argument("--layouts", nargs="*", default=["", "int8", "binary"], choices=get_args(Quantised))
    parser.add_argument("--keep", type=Path, help="make store and engines in this empty folder and leave them there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        output = run(given.keep or Path(scratch), given.rows, given.threads, given.layouts)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "store_engine.json").write_text(json.dumps(output, indent=1) + "\n")
    print("\n".join(table(output)))


if __name__ == "__main__":
    main()
