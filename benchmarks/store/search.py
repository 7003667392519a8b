"""Filtered nearest-neighbour search compared with exact search, and the cost of the index, on synthetic vectors.

    python -m clipfake.benchmarks.store.search --rows 1000000 --threads 2

Prints a table and writes benchmarks/results/store_search.json. All times are from one run on one machine: compare the
ratios, as milliseconds depend on the machine. Every query passes its filter as a mask; the column `ready` has the times
with a `PreparedFilter`, which a service reuses for repeated filters.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...store.maintenance.build_index import BuildReport, build_index
from ...store.search.ann_index import Kind
from ...store.search.exact import ExactSearch
from ...store.search.ivf import cells_for
from ...store.search.matches import Matches
from ...store.snapshot import Snapshot
from ...store.store import Store
from ..common.synthetic_rows import space, synthetic

DIM = 512
QUERIES = 100
RESULTS = Path(__file__).parent.parent / "results"


def filters(snapshot: Snapshot) -> dict[str, npt.NDArray[np.bool_]]:
    """Masks that select from 100 % to 0.1 % of the rows: random ones, and rows that lie close together."""
    rng = np.random.default_rng(7)
    scattered = {
        f"{100 * s:g} % scattered": rng.random(len(snapshot)) < s for s in (1, 0.5, 0.1, 0.05, 0.01, 0.002, 0.001)
    }
    labels, sources, categories = (snapshot.column(name) for name in ("labels", "sources", "categories"))
    return {
        **scattered,
        "real": labels == 0,
        "fake": labels == 1,
        "one source (4 %)": sources == "source-12",
        "all but one source": sources != "source-12",
        "one category (0.3 %)": categories == "category-050",
    }


def seconds_per_query(snapshot: Snapshot, queries: npt.NDArray[np.float32], mask: Any, **options: Any) -> list[float]:
    seconds = []
    for query in queries:
        began = time.perf_counter()
        snapshot.search(query, 10, mask, **options)
        seconds.append(time.perf_counter() - began)
    return seconds


def recall(approximate: Matches, exact: Matches) -> float:
    hits = [np.isin(e[e >= 0], a).sum() for e, a in zip(exact.rows, approximate.rows, strict=True)]
    return float(sum(hits) / (exact.rows >= 0).sum())


def read_and_kmeans(snapshot: Snapshot) -> float:
    """Seconds to read all vectors and to run FAISS's k-means on a sample, as before filling an IVF index."""
    import faiss

    began = time.perf_counter()
    vectors = snapshot.vectors(dtype=np.float16)
    cells = cells_for(len(snapshot))
    kmeans = faiss.Kmeans(vectors.shape[1], cells, spherical=True, seed=1)  # 25 rounds over 256 rows per cell
    sample = np.random.default_rng(0).permutation(len(vectors))[: cells * kmeans.cp.max_points_per_centroid]
    kmeans.train(vectors[np.sort(sample)].astype(np.float32))
    return time.perf_counter() - began


def measure_index(store: Store, kind: Kind, anew: bool) -> dict[str, Any]:
    """Cost of building one kind of index, and recall and time of every filter relative to exact search."""
    report: BuildReport = build_index(store, kind, anew=anew)
    snapshot = store.snapshot()
    rng = np.random.default_rng(8)
    queries = snapshot.vectors(np.sort(rng.choice(len(snapshot), QUERIES, replace=False)))
    queries += rng.normal(scale=0.01, size=queries.shape).astype(np.float32)  # queries are not stored rows
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    exact = ExactSearch(snapshot, "cpu", kept_bytes=2**40)
    table = []
    streamed = seconds_per_query(snapshot, queries[:10], None, recall=1)[2:]
    snapshot.search(queries[0], 10)  # open the index
    in_memory = []
    for query in queries[:10]:
        began = time.perf_counter()
        exact.search(snapshot, query[None], 10)
        in_memory.append(time.perf_counter() - began)
    for name, mask in filters(snapshot).items():
        expected = exact.search(snapshot, queries, 10, np.flatnonzero(mask))
        share_found = recall(snapshot.search(queries, 10, mask), expected)
        seconds_per_query(snapshot, queries, mask)  # warm-up: map the pages that are read
        seconds = seconds_per_query(snapshot, queries, mask)
        prepared = seconds_per_query(snapshot, queries, snapshot.prepare_filter(mask))[1:]  # the first one prepares it
        table.append(
            {
                "filter": name,
                "rows": int(mask.sum()),
                "recall": round(share_found, 4),
                "median_ms": round(1000 * float(np.median(seconds)), 2),
                "p99_ms": round(1000 * float(np.quantile(seconds, 0.99)), 2),
                "ready_ms": round(1000 * float(np.median(prepared)), 2),
                "ready_to_exact": round(float(np.median(prepared) / np.median(in_memory)), 4),
                "median_to_exact": round(float(np.median(seconds) / np.median(in_memory)), 4),
                "p99_to_exact": round(float(np.quantile(seconds, 0.99) / np.median(in_memory)), 4),
                "median_to_streamed": round(float(np.median(seconds) / np.median(streamed)), 4),
            }
        )
    float16_bytes = sum(part.rows for part in snapshot.manifest.parts) * DIM * 2
    return {
        "kind": kind,
        "seconds": report.seconds,
        "seconds_in_all": round(sum(report.seconds.values()), 2),
        "bytes_to_float16": round(report.bytes / float16_bytes, 4),
        "exact_in_memory_ms": round(1000 * float(np.median(in_memory)), 1),
        "exact_streamed_ms": round(1000 * float(np.median(streamed)), 1),
        "filters": table,
        "measured_when_built": {str(index.label): index.recall for index in report.labels},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--store", type=Path, help="folder in which to keep and reuse the synthetic store")
    options = parser.parse_args()
    import faiss
    import torch

    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        store = Store.create(options.store or Path(scratch) / "store", space(DIM))
        with store.writer("synthetic") as writer:
            if not len(writer.snapshot):
                for block in synthetic(options.rows, DIM):
                    writer.append(block)
        baseline = read_and_kmeans(store.snapshot())
        result = {
            "rows": options.rows,
            "read_and_kmeans_seconds": round(baseline, 2),
            "dim": DIM,
            "threads": options.threads,
            "load": os.getloadavg()[0],
            "kinds": [measure_index(store, kind, anew=True) for kind in ("plain", "quantized")],
        }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "store_search.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"reading the same vectors and one k-means of FAISS over a sample: {baseline:.1f} s")
    for kind in result["kinds"]:
        print(f"\n{kind['kind']}: built in {kind['seconds_in_all']} s {kind['seconds']}")
        print(f"{kind['bytes_to_float16']} × the float16 vectors")
        print(f"exact: {kind['exact_in_memory_ms']} ms from memory, {kind['exact_streamed_ms']} ms from the shards")
        print(
            f"{'filter':24}{'rows':>9}{'recall@10':>11}{'median ms':>11}{'p99 ms':>9}{'× exact':>9}{'ready':>9}"
            f"{'× streamed':>12}"
        )
        for row in kind["filters"]:
            print(
                f"{row['filter']:24}{row['rows']:>9}{row['recall']:>11}{row['median_ms']:>11}{row['p99_ms']:>9}"
                f"{row['median_to_exact']:>9}{row['ready_to_exact']:>9}{row['median_to_streamed']:>12}"
            )


if __name__ == "__main__":
    main()
