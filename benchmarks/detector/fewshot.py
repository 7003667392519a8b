"""AUC on an unseen generator after a few of its images are added to the bank, without training.

Each generator in turn is left out of head, calibration and bank; then 0, 1, 5, 10 and 50 of its images are added to
the bank, as `clipfake bank add` does. The AUC is that of its test rows against the real ones, and of the other
generators' test rows against the real ones.

    python -m clipfake.benchmarks.detector.fewshot --store mystore
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ...detector.evidence import Bank, Evidence, EvidenceOptions
from ...detector.metrics import auc
from ...detector.split import PARTS
from ...detector.training.calibrate import FITTED_ON, SignalTable
from ...detector.training.examples import Examples, subsample
from ...detector.training.train import TrainingSet, TrainOptions, fit_head, make_split
from ...store.records import FAKE, REAL
from ...store.store import Store
from ..common import command

ADDED = (0, 1, 5, 10, 50)
DRAWS = 3  # random choices of the added images


def run(store: Store, *, seed: int = 0) -> dict[str, Any]:
    """AUC by number of added images: on each left-out generator, on the others, and means over generators."""
    snapshot = store.snapshot()
    options = TrainOptions(classifier="triplet-svm", seed=seed, baselines=())
    split, positions = make_split(snapshot, options)
    parts = split.parts_of(snapshot.column("keys"))
    labels, generators = snapshot.column("labels"), snapshot.column("generators")
    names = sorted(set(generators[labels == FAKE].tolist()))
    result: dict[str, Any] = {"store": store.folder.name, "rows": len(snapshot), "added": list(ADDED), "generators": {}}
    for name in names:
        from_generator = generators == name
        train, validation = (
            np.flatnonzero((parts == PARTS[part]) & ~from_generator) for part in ("train", "validation")
        )
        train = subsample(train, labels[train], FITTED_ON, seed)
        training_set = TrainingSet(
            snapshot, split, Examples.from_snapshot(snapshot, train), Examples.from_snapshot(snapshot, validation)
        )
        head, _ = fit_head(training_set, options)
        bank_rows = (parts == PARTS["train"]) & ~from_generator
        bank = Bank.from_snapshot(snapshot, EvidenceOptions(), where=bank_rows)
        calibration = SignalTable.read(head, bank, validation).calibrated()
        test = positions["test"]
        queries = {"own": test[from_generator[test] | (labels[test] == REAL)], "others": test[~from_generator[test]]}
        vectors = {query_set: snapshot.vectors(rows) for query_set, rows in queries.items()}
        margins = {query_set: head.decision_function(v) for query_set, v in vectors.items()}
        pool = np.flatnonzero((parts == PARTS["train"]) & from_generator)
        outcome: dict[str, list[float]] = {"own": [], "others": [], "own_neighbors_only": []}
        for count in ADDED:
            samples: dict[str, list[float]] = {key: [] for key in outcome}
            for draw in range(DRAWS if count else 1):
                chosen = np.random.default_rng([seed, draw, count]).permutation(pool)[:count]
                extended_rows = bank_rows.copy()
                extended_rows[chosen] = True
                extended_bank = Bank.from_snapshot(snapshot, EvidenceOptions(), where=extended_rows)
                for query_set, rows in queries.items():
                    evidence: Evidence = extended_bank.evidence(vectors[query_set], snapshot.column("digests")[rows])
                    samples[query_set].append(
                        _auc(labels[rows], calibration.decision_function(margins[query_set], evidence.signal))
                    )
                    if query_set == "own":
                        samples["own_neighbors_only"].append(_auc(labels[rows], evidence.signal))
            for key, values in samples.items():
                outcome[key].append(round(float(np.mean(values)), 4))
        result["generators"][name] = outcome
    result["mean"] = {
        key: [round(float(np.mean([g[key][i] for g in result["generators"].values()])), 4) for i in range(len(ADDED))]
        for key in ("own", "others", "own_neighbors_only")
    }
    return result


def _auc(labels: Any, scores: Any) -> float:
    value = auc(labels, scores)
    return float("nan") if value is None else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    result = run(Store.open(parser.parse_args().store))
    command.print_result(result)


if __name__ == "__main__":
    main()
