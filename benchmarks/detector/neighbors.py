"""AUC of the neighbours' signal on sources that the bank holds and on sources it does not.

The neighbours of every row are selected twice: among all other files, and among those of other sources. Each real
source is compared with each generator; the AUC is the mean over the pairs, and the interval of a difference is
that of 2,000 resamples of the sources (95 %). No head and no calibration is involved.

    python -m clipfake.benchmarks.detector.neighbors --store mystore
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...detector.evidence import WINDOW, Bank, Candidates, Evidence, EvidenceOptions
from ...detector.metrics import auc
from ...store.records import FAKE, REAL
from ...store.store import Store
from ..common import command

RESAMPLES = 2000
Signal = npt.NDArray[np.float64]  # (rows,)


def run(store: Store) -> dict[str, Any]:
    """Mean AUC of each rule where real sources, generators or both are stored or left out."""
    snapshot = store.snapshot()
    bank, labels, sources = Bank.from_snapshot(snapshot), snapshot.column("labels"), snapshot.column("sources")
    vectors, digests = snapshot.vectors(), snapshot.column("digests")
    rules: dict[str, dict[str, Signal]] = {}
    for name, candidates in {"stored": [bank.candidates(vectors, digests)], "left_out": []}.items():
        positions = [np.arange(len(snapshot))]
        if name == "left_out":
            positions = [np.flatnonzero(sources == source) for source in bank.source_names]
            reduced = zip(bank.source_names, positions, strict=True)
            candidates = [bank.without(s).candidates(vectors[rows], digests[rows]) for s, rows in reduced]
        for rows, of_rows in zip(positions, candidates, strict=True):
            for rule, signal in signals(of_rows, bank.options).items():
                rules.setdefault(rule, {}).setdefault(name, np.zeros(len(snapshot)))[rows] = signal
    classes = [sorted(set(sources[labels == label].tolist())) for label in (REAL, FAKE)]
    result: dict[str, Any] = {"store": store.folder.name, "rows": len(snapshot), "rules": {}}
    first: dict[tuple[str, str], npt.NDArray[np.float64]] = {}
    for rule, by_name in rules.items():
        result["rules"][rule] = {}
        for real, fake in product(("stored", "left_out"), repeat=2):
            pairs = np.array(
                [
                    [
                        auc(
                            np.repeat([REAL, FAKE], [(sources == r).sum(), (sources == f).sum()]),
                            np.concatenate([by_name[real][sources == r], by_name[fake][sources == f]]),
                        )
                        for r in classes[REAL]
                    ]
                    for f in classes[FAKE]
                ]
            )
            difference = pairs - first.setdefault((real, fake), pairs)
            result["rules"][rule][f"real {real}, fake {fake}"] = {
                "auc": round(float(pairs.mean()), 4),
                "difference": round(float(difference.mean()), 4),
                "interval": resampled(difference),
            }
    return result


def signals(candidates: dict[int, Candidates], options: EvidenceOptions) -> dict[str, Signal]:
    """The signal by rule; the first compares the plain means of as many neighbours as the cap leaves."""
    nearest = {label: of_class.select(options) for label, of_class in candidates.items()}
    capped = {}
    for label, of_class in candidates.items():
        rows, cut = of_class.matches.rows, of_class.unique
        near = cut & (np.cumsum(cut, axis=1) <= WINDOW * options.k)
        earlier = np.tri(rows.shape[1], k=-1, dtype=bool) & near[:, None, :]
        same = of_class.sources[:, :, None] == of_class.sources[:, None, :]
        kept = near & ((same & earlier).sum(2) < options.per_source)
        kept &= np.cumsum(kept, axis=1) <= options.k
        capped[label] = of_class.matches.mean_similarity(kept)
    return {
        "capped, plain mean": capped[FAKE] - capped[REAL],
        "nine each, plain mean": nearest[FAKE].mean_similarity() - nearest[REAL].mean_similarity(),
        "nine each, weights 1/n": Evidence(nearest[REAL], nearest[FAKE]).signal,
    }


def resampled(difference: npt.NDArray[np.float64]) -> list[float]:
    """95 % interval of the mean of a (generators, real sources) table, by resampling both."""
    rng = np.random.default_rng(0)
    fakes, reals = difference.shape
    draws = [
        difference[np.ix_(rng.integers(0, fakes, fakes), rng.integers(0, reals, reals))].mean()
        for _ in range(RESAMPLES)
    ]
    return [round(float(edge), 4) for edge in np.quantile(draws, [0.025, 0.975])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    command.print_result(run(Store.open(parser.parse_args().store)))


if __name__ == "__main__":
    main()
