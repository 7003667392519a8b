"""Cost of a verdict beside the encoder: search, evidence, calibration and JSON against one forward pass.

    python -m clipfake.benchmarks.detector.query --rows 100000 \\
        --encoder ../shared/encoders/clip-vit-base-patch32-untrained --untrained
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...detector.detector import QueryOptions, VectorDetector
from ...detector.evidence import Bank
from ...detector.training.calibrate import calibrate
from ...detector.training.train import TrainOptions, train
from ...detector.training.triplet import TripletOptions
from ...indexer.encoders.load import load_encoder
from ...store.maintenance.build_index import build_index
from ...store.records import Vectors
from ...store.store import Store
from ..common import command
from ..common.synthetic_rows import space, synthetic
from ..throughput import machine

ROWS_PER_SHARD = 50_000
K = 10  # neighbours of recall@10


def create_store(folder: Path, rows: int) -> Store:
    """A store of synthetic rows."""
    blocks = synthetic(rows)
    store = Store.create(folder, space(512))
    with store.writer("synthetic", rows_per_shard=ROWS_PER_SHARD) as writer:
        for block in blocks:
            writer.append(block)
    return store


def run(
    encoder: str, *, rows: int = 100_000, queries: int = 50, threads: int | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Medians and 99th percentiles of a verdict and of a forward pass of one image in milliseconds, and their ratio.

    The bank is indexed as by `clipfake store index`; `recall_at_10` compares the evidence's searches within each class
    with exact search.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    model = load_encoder(encoder, device=device)
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    forward = _times(lambda i: model.encode([pixels]), 10)
    with tempfile.TemporaryDirectory() as folder:
        small = create_store(Path(folder) / "small", 6_000).snapshot()
        options = TrainOptions(classifier="triplet-svm", triplet=TripletOptions(epochs=3), baselines=())
        head = train(small, options).head
        calibration = calibrate(small, head, options).calibration
        store = create_store(Path(folder) / "bank", rows)
        report = build_index(store)
        snapshot = store.snapshot()
        query_rows = snapshot.vectors(np.random.default_rng(1).choice(rows, queries, replace=False))
        detector = VectorDetector(head, Bank.from_snapshot(snapshot), calibration)
        plain, full = QueryOptions(changes=False), QueryOptions()
        detector.judge(["warm"], query_rows[:1])
        verdict = _times(lambda i: detector.judge(["x"], query_rows[i : i + 1], options=plain)[0].to_dict(), queries)
        with_changes = _times(
            lambda i: detector.judge(["x"], query_rows[i : i + 1], options=full)[0].to_dict(), queries
        )
        parts = {
            "classifier": _times(lambda i: head.decision_function(query_rows[i : i + 1]), queries),
            "evidence": _times(lambda i: detector.bank.evidence(query_rows[i : i + 1]), queries),
        }
        recall = _recall(detector.bank, query_rows)
    return {
        "machine": machine(),
        "encoder": encoder,
        "rows": rows,
        "index": {"labels": [f"{index.kind}, {index.cells} cells" for index in report.labels], "bytes": report.bytes},
        "recall_at_10": recall,
        "forward": forward,
        "verdict": verdict,
        "verdict_with_changes": with_changes,
        "parts": parts,
        "verdict_over_forward": round(verdict["median_ms"] / forward["median_ms"], 4),
    }


def _recall(bank: Bank, queries: Vectors) -> float:
    """Mean share of the K nearest rows of each class that are among the evidence's candidates."""
    shares = []
    for label, candidates in bank.candidates(queries).items():
        approximate = candidates.matches.rows
        exact = bank.snapshot.search(queries, K, bank.labels == label, recall=1.0).rows
        shares += [len(set(a) & set(b)) / K for a, b in zip(approximate.tolist(), exact.tolist(), strict=True)]
    return round(float(np.mean(shares)), 4)


def _times(call: Callable[[int], object], repeats: int) -> dict[str, float]:
    call(0)
    seconds = []
    for i in range(repeats):
        began = time.perf_counter()
        call(i)
        seconds.append(time.perf_counter() - began)
    median, p99 = np.quantile(seconds, [0.5, 0.99]) * 1000
    return {"median_ms": round(float(median), 3), "p99_ms": round(float(p99), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    command.add_encoder_options(parser)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--threads", type=int)
    arguments = command.parse_options(parser)
    command.print_result(run(arguments.pop("encoder"), **arguments))


if __name__ == "__main__":
    main()
