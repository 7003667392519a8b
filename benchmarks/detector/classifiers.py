"""The classifiers of `clipfake train` on sources left out of the training rows, with the time of the comparison.

The SVMs on stored vectors and on principal components are compared at C = 1 and at C = 10, the default.

    python -m clipfake.benchmarks.detector.classifiers --store mystore
    python -m clipfake.benchmarks.detector.classifiers --rows 100000
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ...detector.training.classifier_choice import CANDIDATES, CandidateResult
from ...detector.training.train import TrainOptions, compare_classifiers, make_split
from ...store.store import Store
from ..common import command
from ..throughput import machine
from .leave_one_out import write_store

WITH_C = ("pca-svm", "rbf-svm")  # classifiers that are compared at several C
C = (1.0, 10.0)


def run(store: Store, *, seed: int = 0) -> dict[str, Any]:
    """Mean AUC of each classifier with its interval over sources, and its CPU time; the gain of C = 10 over C = 1."""
    snapshot = store.snapshot()
    parts = make_split(snapshot, TrainOptions(seed=seed))[1]
    result: dict[str, Any] = {"machine": machine(), "store": store.folder.name, "rows": len(snapshot), "seed": seed}
    rows, by_c = [], {}
    for c in (*C, None):
        candidates = WITH_C if c else tuple(name for name in CANDIDATES if name not in WITH_C)
        seconds: dict[str, float] = defaultdict(float)
        since = [("", time.process_time())]

        def note(step: str, seconds: dict[str, float] = seconds, since: list[Any] = since) -> None:
            name, began = since.pop()
            seconds[name] += time.process_time() - began
            since.append((step.split(", ")[1] if step else "", time.process_time()))

        choice = compare_classifiers(snapshot, parts, TrainOptions(seed=seed, c=c), note, candidates)
        note("")
        if choice is None:
            continue
        result["compared_on"], result["left_out"] = choice.rows, list(choice.left_out)
        for compared in choice.results:
            by_c[compared.name, c] = compared
            rows.append(_row(compared, c) | {"cpu_seconds": round(seconds[compared.name], 1)})
    result["classifiers"] = sorted(rows, key=lambda row: (CANDIDATES.index(row["classifier"]), row["c"] or 0))
    for name in WITH_C:
        gains = np.subtract(by_c[name, C[1]].aucs, by_c[name, C[0]].aucs)
        error = float(gains.std(ddof=1) / np.sqrt(len(gains)))
        result[f"gain of C = 10, {name}"] = {"auc": round(float(gains.mean()), 4), "standard_error": round(error, 4)}
    return result


def _row(compared: CandidateResult, c: float | None) -> dict[str, Any]:
    interval = compared.interval
    return {
        "classifier": compared.name,
        "c": c,
        "auc": round(compared.mean, 4),
        "interval": interval and [round(end, 4) for end in interval],
        "aucs": [round(value, 4) for value in compared.aucs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--rows", type=int, default=100_000, help="number of synthetic rows, without --store")
    arguments = parser.parse_args()
    if arguments.store:
        command.print_result(run(Store.open(arguments.store)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_store(folder, arguments.rows, 4, 8)
        command.print_result(run(Store.open(Path(folder) / "s")))


if __name__ == "__main__":
    main()
