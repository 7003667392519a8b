"""What training costs from stored vectors: seconds of each part and the process's peak memory, at several sizes.

Each size is trained in a process of its own. Above `clipfake.detector.fitting.EXACT` rows the machine is Nyström's, and
at most 200,000 of the rows are learned from; the head's figures on the test rows stand beside the linear probe's.

    python -m clipfake.benchmarks.training --rows 40000,200000
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import command
from .throughput import machine


def run(rows: Sequence[int] = (10_000,), *, epochs: int = 5) -> dict[str, Any]:
    """`machine`, and for each number of rows: seconds by part, `seconds` in all, `peak_mib`, test figures."""
    result: dict[str, Any] = {"machine": machine(), "epochs": epochs}
    for count in rows:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result[str(count)] = pool.apply(measured, (count, epochs))
    return result


def measured(rows: int, epochs: int) -> dict[str, Any]:
    """One size, in this process."""
    from ..detector.train import TrainOptions, train
    from ..detector.triplet import TripletOptions
    from .query import stored

    with tempfile.TemporaryDirectory() as folder:
        snapshot = stored(Path(folder) / "s", rows).snapshot()
        parts: dict[str, float] = {}
        doing, since = "split and read", time.perf_counter()

        def tell(what: str) -> None:
            nonlocal doing, since
            now = time.perf_counter()
            parts[doing] = round(parts.get(doing, 0.0) + now - since, 2)
            doing, since = what.partition(",")[0], now

        began = time.perf_counter()
        options = TrainOptions(triplet=TripletOptions(epochs=epochs), baselines=("linear_probe",))
        trained = train(snapshot, options, tell)
        tell("end")
        head, probe = trained.metrics["test"], trained.baselines["linear_probe"].metrics["test"]
        return {
            "seconds": round(time.perf_counter() - began, 2),
            "parts": parts,
            "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "machine_rows": len(trained.head.classifier.vectors),
            "test": {"accuracy": head.accuracy, "auc": head.auc},
            "linear_probe": {"accuracy": probe.accuracy, "auc": probe.auc},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="40000", help="one or several, separated by commas")
    parser.add_argument("--epochs", type=int, default=20, help="of the triplet projection, at most")
    told = parser.parse_args()
    result = run([int(count) for count in told.rows.split(",")], epochs=told.epochs)
    command.tell(result)


if __name__ == "__main__":
    main()
