"""AUC on an unseen generator after a few of its images are added to the bank, without training.

Each generator in turn is left out of head, calibration and bank; then 1, 5, 10, 20 and 50 of its images are added
to the bank, as `clipfake bank add` does. Printed are the AUC of its test rows against the real ones (*own*) with and
without the added examples' own signal, that of the other generators' test rows against the real ones (*others*), and
the shares of its own and of the other generators' test rows that are attributed to it. Intervals (95 %) are over
generators, which are resampled. Published beside it: 20.4 to 73.1 % accuracy with ten images (Fleet, 2026), 91.3 % with
150 (supervised contrastive learning and k-NN); both on other data.

    python -m clipfake.benchmarks.detector.fewshot --store mystore
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...detector.added_sources import AddedSources
from ...detector.evidence import Bank, EvidenceOptions
from ...detector.metrics import auc
from ...detector.split import PARTS, Split
from ...detector.training.calibrate import FITTED_ON, SignalTable
from ...detector.training.examples import Examples, subsample
from ...detector.training.train import TrainingSet, TrainOptions, fit_head, make_split
from ...store.records import FAKE, REAL
from ...store.store import Store
from ..common import command

ADDED = (0, 1, 5, 10, 20, 50)
DRAWS = 2  # random choices of the added images
ERROR = 0.05  # nominal error rate
RESAMPLES = 2000


def run(store: Store, *, seed: int = 0, draws: int = DRAWS, only: Sequence[str] = ()) -> dict[str, Any]:
    """Figures by number of added images: for each left-out generator (or `only` some), and means over them."""
    snapshot = store.snapshot()
    options = TrainOptions(seed=seed, baselines=(), recipe="grouped", classifier="rbf-svm")
    split, positions = make_split(snapshot, options)
    parts = split.parts_of(snapshot.column("keys"))
    labels, generators = snapshot.column("labels"), snapshot.column("generators")
    names = list(only) or sorted(set(generators[labels == FAKE].tolist()))
    result: dict[str, Any] = {"store": store.folder.name, "rows": len(snapshot), "added": list(ADDED), "generators": {}}
    for name in names:
        own = generators == name
        train, validation = (np.flatnonzero((parts == PARTS[part]) & ~own) for part in ("train", "validation"))
        train = subsample(train, labels[train], FITTED_ON, seed)
        training_set = TrainingSet(
            snapshot, split, Examples.from_snapshot(snapshot, train), Examples.from_snapshot(snapshot, validation)
        )
        head, _ = fit_head(training_set, options)
        bank_rows = (parts == PARTS["train"]) & ~own
        keys = snapshot.column("keys")[(parts >= 0) & ~own]
        head = replace(head, split=Split.make(keys, labels[(parts >= 0) & ~own], seed=seed))  # without the generator
        bank = Bank.from_snapshot(snapshot, EvidenceOptions(), where=bank_rows)
        calibration = SignalTable.read(head, bank, validation).calibrated()
        test = positions["test"]
        vectors, digests = snapshot.vectors(test), snapshot.column("digests")[test]
        margins = head.decision_function(vectors)
        real, of_own, of_others = labels[test] == REAL, own[test], (labels[test] == FAKE) & ~own[test]
        pool = np.flatnonzero((parts == PARTS["train"]) & own)
        outcome: dict[str, list[float]] = {}
        for count in ADDED:
            samples: dict[str, list[float]] = {}
            for draw in range(draws if count else 1):
                chosen = np.random.default_rng([seed, draw, count]).permutation(pool)[:count]
                extended_rows = bank_rows.copy()
                extended_rows[chosen] = True
                extended = Bank.from_snapshot(snapshot, EvidenceOptions(), where=extended_rows)
                added = AddedSources.from_bank(extended, head)
                scores = calibration.decision_function(margins, extended.evidence(vectors, digests).signal)
                adjusted, _ = added.adjust(scores, vectors, digests)
                sets = added.prediction_sets(calibration, scores, adjusted, vectors, digests, ERROR)
                attributed = np.array(added.generators(vectors, digests)) == name
                for key, value in {
                    "own": _auc(adjusted[real], adjusted[of_own]),
                    "others": _auc(adjusted[real], adjusted[of_others]),
                    "own_by_evidence_only": _auc(scores[real], scores[of_own]),
                    "others_by_evidence_only": _auc(scores[real], scores[of_others]),
                    "attributed": float(attributed[of_own].mean()),
                    "falsely_attributed": float(attributed[of_others].mean()),
                    "real_moved": float((adjusted[real] - scores[real] > 0.5).mean()),
                    "real_excluded": float((~sets[real, REAL]).mean()),
                    "own_called_fake": float((sets[of_own] == [False, True]).all(1).mean()),
                }.items():
                    samples.setdefault(key, []).append(value)
            for key, values in samples.items():
                outcome.setdefault(key, []).append(round(float(np.mean(values)), 4))
        result["generators"][name] = outcome
    return result | summarize(result["generators"], seed)


def summarize(generators: dict[str, dict[str, list[float]]], seed: int = 0) -> dict[str, Any]:
    """Means over generators, gains over no added image, and their 95 % intervals, by number of added images."""
    figures = {key: np.array([of[key] for of in generators.values()]) for key in next(iter(generators.values()))}
    gains = {key: figures[key] - figures[key][:, :1] for key in ("own", "others")}
    drawn = np.random.default_rng(seed).integers(0, len(generators), (RESAMPLES, len(generators)))
    return {
        "mean": {key: np.round(values.mean(0), 4).tolist() for key, values in figures.items()},
        "gain": {key: np.round(values.mean(0), 4).tolist() for key, values in gains.items()},
        "gain_interval": {
            key: np.round(np.quantile(values[drawn].mean(1), [0.025, 0.975], axis=0).T, 4).tolist()
            for key, values in gains.items()
        },
    }


def _auc(real: Any, fake: Any) -> float:
    value = auc(np.repeat([REAL, FAKE], [len(real), len(fake)]), np.concatenate([real, fake]))
    return float("nan") if value is None else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    result = run(Store.open(parser.parse_args().store))
    command.print_result(result)


if __name__ == "__main__":
    main()
