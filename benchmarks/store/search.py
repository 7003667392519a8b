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
    """Masks of 100% to 0.1% of the rows, random ones and ones of rows that lie close together."""
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


def seconds_each(snapshot: Snapshot, queries: npt.NDArray[np.float32], mask: Any, **options: Any) -> list[float]:
    took = []
    for query in queries:
        began = time.perf_counter()
        snapshot.search(query, 10, mask, **options)
        took.append(time.perf_counter() - began)
    return took


def recall(found: Matches, true: Matches) -> float:
    there = [np.isin(t[t >= 0], f).sum() for t, f in zip(true.rows, found.rows, strict=True)]
    return float(sum(there) / (true.rows >= 0).sum())


def read_and_kmeans(snapshot: Snapshot) -> float:
    """Seconds to read all vectors and to run FAISS's k-means on a sample, as before filling an IVF index."""
    import faiss

    began = time.perf_counter()
    vectors = snapshot.vectors(dtype=np.float16)
    cells = cells_for(len(snapshot))
    kmeans = faiss.Kmeans(vectors.shape[1], cells, spherical=True, seed=1)  # 25 rounds over 256 rows a cell
    sample = np.random.default_rng(0).permutation(len(vectors))[: cells * kmeans.cp.max_points_per_centroid]
    kmeans.train(vectors[np.sort(sample)].astype(np.float32))
    return time.perf_counter() - began


def measured(store: Store, kind: Kind, anew: bool) -> dict[str, Any]:
    """Cost of building one kind of index, and recall and time of every filter relative to exact search."""
    built: BuildReport = build_index(store, kind, anew=anew)
    snapshot = store.snapshot()
    rng = np.random.default_rng(8)
    queries = snapshot.vectors(np.sort(rng.choice(len(snapshot), QUERIES, replace=False)))
    queries += rng.normal(scale=0.01, size=queries.shape).astype(np.float32)  # not the rows themselves
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    kept = ExactSearch(snapshot, "cpu", kept_bytes=2**40)
    table = []
    streamed = seconds_each(snapshot, queries[:10], None, recall=1)[2:]
    snapshot.search(queries[0], 10)  # opens the index
    in_memory = []
    for query in queries[:10]:
        began = time.perf_counter()
        kept.search(snapshot, query[None], 10)
        in_memory.append(time.perf_counter() - began)
    for name, mask in filters(snapshot).items():
        true = kept.search(snapshot, queries, 10, np.flatnonzero(mask))
        found = recall(snapshot.search(queries, 10, mask), true)
        seconds_each(snapshot, queries, mask)  # what they read is mapped by then
        took = seconds_each(snapshot, queries, mask)
        ready = seconds_each(snapshot, queries, snapshot.prepare_filter(mask))[1:]  # the first makes it ready
        table.append(
            {
                "filter": name,
                "rows": int(mask.sum()),
                "recall": round(found, 4),
                "median_ms": round(1000 * float(np.median(took)), 2),
                "p99_ms": round(1000 * float(np.quantile(took, 0.99)), 2),
                "ready_ms": round(1000 * float(np.median(ready)), 2),
                "ready_to_exact": round(float(np.median(ready) / np.median(in_memory)), 4),
                "median_to_exact": round(float(np.median(took) / np.median(in_memory)), 4),
                "p99_to_exact": round(float(np.quantile(took, 0.99) / np.median(in_memory)), 4),
                "median_to_streamed": round(float(np.median(took) / np.median(streamed)), 4),
            }
        )
    halves = sum(part.rows for part in snapshot.manifest.parts) * DIM * 2
    return {
        "kind": kind,
        "seconds": built.seconds,
        "seconds_in_all": round(sum(built.seconds.values()), 2),
        "bytes_to_float16": round(built.bytes / halves, 4),
        "exact_in_memory_ms": round(1000 * float(np.median(in_memory)), 1),
        "exact_streamed_ms": round(1000 * float(np.median(streamed)), 1),
        "filters": table,
        "measured_when_built": {str(one.label): one.recall for one in built.labels},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--store", type=Path, help="keep the made-up store here and use it again")
    given = parser.parse_args()
    import faiss
    import torch

    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        store = Store.create(given.store or Path(scratch) / "store", space(DIM))
        with store.writer("made up") as writer:
            if not len(writer.snapshot):
                for block in synthetic(given.rows, DIM):
                    writer.append(block)
        peer = read_and_kmeans(store.snapshot())
        result = {
            "rows": given.rows,
            "read_and_kmeans_seconds": round(peer, 2),
            "dim": DIM,
            "threads": given.threads,
            "load": os.getloadavg()[0],
            "kinds": [measured(store, kind, anew=True) for kind in ("plain", "quantized")],
        }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "store_search.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"reading the same vectors and one k-means of FAISS over a sample: {peer:.1f} s")
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
