"""Cost of leave-one-out: time and memory of both heads, with some pairs refitted for comparison.

python -m clipfake.benchmarks.detector.leave_one_out --rows 200000 --reals 8 --fakes 25
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ...detector.evaluation import leave_one_out as rules
from ...detector.evaluation.ridge import RidgeSums, by_source, ridge, with_constant
from ...detector.metrics import auc
from ...detector.training.baselines import neighbors
from ...detector.training.examples import subsample
from ...store.records import FAKE, REAL, Block, Rows
from ...store.snapshot import Snapshot
from ...store.store import Store
from ..common import command
from ..common.synthetic_rows import space
from ..throughput import machine
from .training import ROWS_PER_SHARD, StepMonitor

DIM = 512
REFITTED_PAIRS = 3  # pairs that are refitted for comparison


def write_store(folder: str, rows: int, reals: int, fakes: int) -> None:
    """Write a store of noisy rows: fakes share one direction, and each source has a direction of its own."""
    rng = np.random.default_rng(0)
    source_directions = rng.standard_normal((reals + fakes, DIM), dtype=np.float32) / np.float32(np.sqrt(DIM))
    fake_direction = rng.standard_normal(DIM, dtype=np.float32) / np.float32(np.sqrt(DIM))
    store = Store.create(Path(folder) / "s", space(DIM))
    with store.writer("synthetic", rows_per_shard=ROWS_PER_SHARD) as writer:
        for start in range(0, rows, 16_384):
            n = min(16_384, rows - start)
            source = rng.integers(0, reals + fakes, n)
            vectors = 0.6 + 3 * rng.standard_normal((n, DIM), dtype=np.float32) / np.sqrt(DIM)
            vectors += source_directions[source] + 0.3 * fake_direction * (source >= reals)[:, None]
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            names = [f"real-{s:02d}" if s < reals else f"generator-{s - reals:02d}" for s in source.tolist()]
            keys = [f"{name}/{i:09d}" for i, name in enumerate(names, start)]
            labels = np.where(source < reals, REAL, FAKE)
            writer.append(Block(space(DIM), Rows.make(keys, labels, sources=names), np.asarray(vectors, np.float32)))


def run(rows: int = 20_000, *, reals: int = 8, fakes: int = 25) -> dict[str, Any]:
    """Seconds, memory and mean AUC of each head, and the largest difference from refitted pairs."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(write_store, (folder, rows, reals, fakes))
        snapshot = Store.open(Path(folder) / "s").snapshot()
        result: dict[str, Any] = {"machine": machine(), "rows": rows, "reals": reals, "fakes": fakes}
        with StepMonitor() as monitor:
            for head in ("ridge", "knn"):
                monitor.start_step(head)
                evaluation = rules.leave_one_out(snapshot, head)
                seconds = time.perf_counter() - monitor.since
                monitor.start_step("refitted")
                difference = max(
                    abs(cell.auc - _refitted_auc(snapshot, head, cell))
                    for cell in evaluation.cells[:: -(-len(evaluation.cells) // REFITTED_PAIRS)]
                )
                result[head] = {
                    "seconds": round(seconds, 2),
                    "mib": monitor.mib.get(head),
                    "cells": len(evaluation.cells),
                    "mean_auc": round(evaluation.mean_auc, 4),
                    "optimism": round(evaluation.optimism, 4),
                    "largest_difference": float(f"{difference:.2g}"),
                }
        return result


def _refitted_auc(snapshot: Snapshot, head: rules.Kind, cell: rules.PairResult) -> float:
    """AUC of a pair after refitting the head, or rebuilding the bank, without its two sources."""
    labels, sources = snapshot.column("labels"), snapshot.column("sources")
    fitted_rows = np.ones(len(snapshot), bool)
    groups, names = by_source(snapshot)
    fitted_rows[rules.held_out(groups, 0)] = False
    classes = ((sources == cell.real) & (labels == REAL), (sources == cell.generator) & (labels == FAKE))
    fitted_rows &= ~(classes[0] | classes[1])
    scores = []
    if head == "ridge":
        sums = [RidgeSums.from_vectors(snapshot.vectors(fitted_rows & (labels == label))) for label in (REAL, FAKE)]
        weights = ridge(*sums)
        scores = [with_constant(snapshot.vectors(mask)) @ weights for mask in classes]
    else:
        banks = [snapshot.vectors(fitted_rows & (labels == label)) for label in (REAL, FAKE)]
        for mask in classes:
            members = np.flatnonzero(mask)
            queries = snapshot.vectors(subsample(members, labels[members], max(rules.QUERIES // len(names), 1), 0))
            real, fake = (neighbors(queries, bank, rules.K).mean_similarity() for bank in banks)
            scores.append(fake - real)
    truth = np.repeat([REAL, FAKE], [len(part) for part in scores])
    return auc(truth, np.concatenate(scores).astype(np.float32)) or 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--reals", type=int, default=8)
    parser.add_argument("--fakes", type=int, default=25)
    arguments = parser.parse_args()
    command.print_result(run(arguments.rows, reals=arguments.reals, fakes=arguments.fakes))


if __name__ == "__main__":
    main()
