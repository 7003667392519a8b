"""Cost of training from stored vectors: time and memory of each step by number of rows, and accuracy with Nyström.

Each size is trained in a new process, on synthetic rows that no head can separate without errors. `mib` is the memory
of the process itself; `peak_mib` includes mapped pages of the store's files, which the system can reclaim. Above
`clipfake.detector.training.svm_training.EXACT` rows the SVM is trained with the Nyström approximation. It and the
triplet projection are trained on all training rows, baselines on at most
`clipfake.detector.training.train.BASELINE_ROWS` of them.

With `--nystroem ROWS` the exact and the approximate SVM are trained on the same projected rows: test accuracy of each,
and how often they agree.

    python -m clipfake.benchmarks.detector.training --rows 40000,200000,2500000 --nystroem 40000
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...store.records import FAKE, Block
from ...store.store import Store
from ..common import command
from ..common.synthetic_rows import space, synthetic
from ..throughput import machine

ROWS_PER_SHARD = 50_000
NOISE = 1.5  # length of the noise that is added to a synthetic unit vector
DIRECTIONS = 8  # directions that separate the classes, alone or in pairs
CLASS_SHIFT = 0.6  # shift of a class along a direction, in standard deviations
LANDMARKS = (500, 1000, 2000)
BASELINES = ("linear_probe",)


def noisy_blocks(rows: int, dim: int = 512, seed: int = 0) -> Iterator[Block]:
    """Noisy synthetic rows: a linear boundary separates the classes in part, a curved one better, none completely."""
    rng = np.random.default_rng([seed, 7])
    axes = np.linalg.qr(rng.standard_normal((dim, DIRECTIONS)))[0].T.astype(np.float32)
    for block in synthetic(rows, dim, seed):
        n = len(block)
        sign = np.where(block.rows.labels == FAKE, 1.0, -1.0).astype(np.float32)
        along = rng.standard_normal((n, DIRECTIONS)).astype(np.float32)
        along[:, 0] += CLASS_SHIFT * sign
        # the sign of one coordinate decides in which direction another is shifted, which no plane can separate
        along[:, 1::2][:, :3] += CLASS_SHIFT * sign[:, None] * np.sign(along[:, 2::2][:, :3])
        noise = NOISE * rng.standard_normal((n, dim), dtype=np.float32) / np.float32(np.sqrt(dim))
        vectors = 0.3 * block.vectors + noise + 0.35 * along @ axes
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        yield replace(block, vectors=np.asarray(vectors, np.float32))


def create_store(folder: Path, rows: int) -> Store:
    """A store of noisy rows."""
    store = Store.create(folder, space(512))
    with store.writer("synthetic", rows_per_shard=ROWS_PER_SHARD) as writer:
        for block in noisy_blocks(rows):
            writer.append(block)
    return store


def run(
    rows: Sequence[int] = (10_000,),
    *,
    epochs: int = 5,
    baselines: Sequence[str] = BASELINES,
    calibration: bool = True,
    nystroem: int = 0,
) -> dict[str, Any]:
    """For each number of rows: seconds and memory by step and in total, and test results."""
    result: dict[str, Any] = {"machine": machine(), "epochs": epochs}
    for count in rows:
        with tempfile.TemporaryDirectory() as folder:
            _in_new_process(_write_store, folder, count)
            result[str(count)] = _in_new_process(measure_training, folder, epochs, baselines, calibration)
    if nystroem:
        result["nystroem"] = _in_new_process(compare_with_exact, nystroem, epochs)
    return result


def _in_new_process(call: Any, *arguments: Any) -> dict[str, Any]:
    """Run a function in a new process, so that its memory can be measured."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result: dict[str, Any] = pool.apply(call, arguments)
    return result


def measure_training(folder: str, epochs: int, baselines: Sequence[str], calibration: bool) -> dict[str, Any]:
    """Train on a stored data set in this process, and measure it."""
    from ...detector.training.calibrate import calibrate
    from ...detector.training.train import TrainOptions, train
    from ...detector.training.triplet import TripletOptions

    snapshot = Store.open(Path(folder) / "s").snapshot()
    with StepMonitor() as monitor:
        began = time.perf_counter()
        monitor.start_step("split")
        options = TrainOptions(
            classifier="triplet-svm", triplet=TripletOptions(epochs=epochs), baselines=tuple(baselines)
        )
        trained = train(snapshot, options, monitor.start_step)
        if calibration:
            monitor.start_step("calibration")
            calibrate(snapshot, trained.head, options, on_progress=monitor.start_step)
        seconds = time.perf_counter() - began
    metrics = {name: baseline.metrics["test"] for name, baseline in trained.baselines.items()}
    metrics["head"] = trained.metrics["test"]
    return {
        "seconds": round(seconds, 2),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "mib": max(monitor.mib.values(), default=None),
        "store_mib": round(sum(p.stat().st_size for p in Path(folder).rglob("*.h5")) / 2**20),
        "parts": {name: {"seconds": round(s, 2), "mib": monitor.mib.get(name)} for name, s in monitor.seconds.items()},
        "machine_rows": len(trained.head.classifier.weights),
        "epochs": len(trained.log),
        "test": {name: {"accuracy": _round(m.accuracy), "auc": _round(m.auc), "n": m.n} for name, m in metrics.items()},
    }


def _write_store(folder: str, rows: int) -> dict[str, Any]:
    create_store(Path(folder) / "s", rows)
    return {}


def compare_with_exact(rows: int, epochs: int) -> dict[str, Any]:
    """Compare the exact and the approximate SVMs on the same projected training and test rows."""
    from ...detector.svm import Svm
    from ...detector.training.examples import StoredRows
    from ...detector.training.nystroem import fit_nystroem
    from ...detector.training.svm_training import scale_gamma
    from ...detector.training.train import TrainOptions, make_split
    from ...detector.training.triplet import TripletOptions, fit_projection, project

    with tempfile.TemporaryDirectory() as folder:
        snapshot = create_store(Path(folder) / "s", rows).snapshot()
        parts = {name: StoredRows(snapshot, p) for name, p in make_split(snapshot, TrainOptions())[1].items()}
        projection, _ = fit_projection("linear", parts["train"], parts["validation"], TripletOptions(epochs=epochs))
        points = {name: project(projection, part, None) for name, part in parts.items()}
    labels, test_labels = parts["train"].labels, parts["test"].labels
    gamma = scale_gamma(points["train"])

    def timed(fit: Any) -> tuple[Svm, float]:
        began = time.perf_counter()
        return fit(), round(time.perf_counter() - began, 2)

    svms = {"exact": timed(lambda: _fit_exact(points["train"], labels, gamma))}
    for count in LANDMARKS:

        def fit_approximate(count: int = count) -> Svm:
            return fit_nystroem(lambda: [(points["train"], labels)], gamma=gamma, landmarks=count)

        svms[str(count)] = timed(fit_approximate)
    predictions = {name: svm.decision_function(points["test"]) > 0 for name, (svm, _) in svms.items()}
    result: dict[str, Any] = {"rows": len(labels), "test_rows": len(test_labels)}
    for name, (svm, seconds) in svms.items():
        outcome: dict[str, Any] = {"seconds": seconds, "machine_rows": len(svm.vectors)}
        outcome |= {"accuracy": _round(float((predictions[name] == (test_labels == FAKE)).mean()))}
        result[name] = outcome | {"agreement": _round(float((predictions[name] == predictions["exact"]).mean()))}
    return result


def _fit_exact(points: Any, labels: Any, gamma: float) -> Any:
    """An exact SVM, whatever the number of rows."""
    from sklearn.svm import SVC

    from ...detector.svm import Svm

    svc = SVC(C=1.0, kernel="rbf", gamma=gamma, cache_size=1000).fit(points, labels)
    vectors = np.asarray(svc.support_vectors_, np.float32)
    return Svm(vectors, np.asarray(svc.dual_coef_[0], np.float64), float(svc.intercept_[0]), gamma)


class StepMonitor:
    """Seconds and peak memory of each step in this process, sampled every 20 ms (Linux)."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.mib: dict[str, int] = {}
        self._step, self.since = "", time.perf_counter()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> StepMonitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.start_step("")
        self._stopped.set()
        self._thread.join()

    def start_step(self, name: str) -> None:
        """Start timing a step; text after a comma is ignored."""
        now = time.perf_counter()
        if self._step:
            self.seconds[self._step] = self.seconds.get(self._step, 0.0) + now - self.since
        self._step, self.since = name.partition(",")[0], now

    def _sample(self) -> None:
        while not self._stopped.wait(0.02):
            with suppress(OSError, StopIteration):
                lines = Path("/proc/self/status").read_text().splitlines()
                mib = int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) // 1024
                if step := self._step:
                    self.mib[step] = max(mib, self.mib.get(step, 0))


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="40000", help="numbers of rows, separated by commas; 0 for none")
    parser.add_argument("--epochs", type=int, default=20, help="maximum number of epochs of the triplet projection")
    parser.add_argument("--baselines", default=",".join(BASELINES), help="names separated by commas, or `none`")
    parser.add_argument("--no-calibration", action="store_true", help="skip the calibration")
    parser.add_argument(
        "--nystroem",
        type=int,
        default=0,
        metavar="ROWS",
        help="compare the exact and the approximate SVM on this number of rows",
    )
    arguments = parser.parse_args()
    result = run(
        [int(count) for count in arguments.rows.split(",") if int(count)],
        epochs=arguments.epochs,
        baselines=[name for name in arguments.baselines.split(",") if name and name != "none"],
        calibration=not arguments.no_calibration,
        nystroem=arguments.nystroem,
    )
    command.print_result(result)


if __name__ == "__main__":
    main()
