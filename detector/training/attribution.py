"""How often the named generator of a fake is right, and how well unknown generators are told from stored ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import NotEnoughRows
from ...store.records import FAKE, REAL
from ...store.search.matches import Positions
from ...store.snapshot import Snapshot
from ..calibration import Calibration
from ..evidence import MAJORITY, UNKNOWN_BELOW, Bank, Evidence, vote
from ..head import Head
from ..split import TEST, TRAIN
from .examples import subsample

MEASURED = 2_000  # test rows, at most


@dataclass(frozen=True)
class AttributionReport:
    """Measured on fake test rows against the training rows, then again without the generator of each row."""

    n: int  # fake test rows with a named generator
    generators: int  # that are stored
    named: float  # share of the rows for which a generator is named
    right: float | None  # share of these for which it is the right one
    unknown_named: float  # share of the rows for which one is named although their generator is left out
    oscr: float  # open-set classification rate

    @property
    def sentence(self) -> str:
        """The figures in words."""
        right = "" if self.right is None else f", which was right for {self.right:.0%} of them"
        return (
            f"Generators: one of {self.generators} was named for {self.named:.0%} of {self.n:,} fake test rows{right}; "
            f"with their generator left out, another was named for {self.unknown_named:.0%} (OSCR {self.oscr:.3f})."
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_attribution(
    snapshot: Snapshot, head: Head, calibration: Calibration, seed: int = 0
) -> AttributionReport | None:
    """Measure the generators that verdicts name; None with fewer than two generators or without test rows.

    Every generator is left out of the bank in turn, so that its test rows are those of an unknown one.
    """
    parts = head.split.parts_of(snapshot.column("keys"))
    bank = Bank.from_snapshot(snapshot, where=parts == TRAIN)
    labels, generators = snapshot.column("labels"), snapshot.column("generators")
    stored = sorted(set(generators[(parts == TRAIN) & (labels == FAKE)].tolist()) - {""})
    test = np.flatnonzero((parts == TEST) & (labels == FAKE) & np.isin(generators.tolist(), stored))
    if len(stored) < 2 or not len(test):
        return None
    test = subsample(test, labels[test], MEASURED, seed)
    own = np.array(generators[test].tolist())
    names, known = _votes(bank, calibration, test)
    right = np.array(names) == own
    unknown = np.zeros(len(test))
    for name in sorted(set(own.tolist())):
        rows = own == name
        try:
            _, unknown[rows] = _votes(bank.where(generators != name), calibration, test[rows])
        except NotEnoughRows:  # it is the only fake source
            return None
    named = known >= MAJORITY
    return AttributionReport(
        len(test),
        len(stored),
        float(named.mean()),
        float(right[named].mean()) if named.any() else None,
        float((unknown >= MAJORITY).mean()),
        open_set_classification_rate(known, right, unknown),
    )


def open_set_classification_rate(
    known: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], unknown: npt.NDArray[np.float64]
) -> float:
    """Area under the share of known rows classified rightly over the share of unknown rows that are classified.

    Dhamija, Günther and Boult (2018). 1 is best; a threshold of confidence decides what is classified.

    Parameters
    ----------
    known, unknown : (n,) and (m,) confidences
    right : (n,) whether the class of a known row is right

    >>> open_set_classification_rate(np.array([0.9, 0.8]), np.array([True, False]), np.array([0.1]))
    0.5
    """
    thresholds = np.unique(np.concatenate([known, unknown]))[::-1]
    classified = [0.0, *((unknown >= t).mean() for t in thresholds)]
    rightly = [0.0, *((right & (known >= t)).mean() for t in thresholds)]
    return float(np.trapezoid(rightly, classified))


def _votes(bank: Bank, calibration: Calibration, rows: Positions) -> tuple[list[str], npt.NDArray[np.float64]]:
    """The generator with the most votes for each row, and its share; 0 where the row is unlike all stored ones."""
    snapshot = bank.snapshot
    candidates = bank.candidates(snapshot.vectors(rows), snapshot.column("digests")[rows])
    names, shares = vote(candidates[FAKE], snapshot.column("generators"))
    evidence = Evidence(*(candidates[label].select(bank.options) for label in (REAL, FAKE)))
    return names, np.where(calibration.percentile(evidence.nearest) >= UNKNOWN_BELOW, shares, 0.0)
