"""What the named vectors of a store gain over its main vectors on left-out sources, with paired intervals.

The 95 % intervals are Student's t over the differences of the left-out sources. The next image comes from a new source,
and sources differ far more than the rows of one do: a bootstrap over rows would give the interval for these sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ...store.concatenated import concatenate
from ...store.named_vectors import open_named_vectors, vector_names
from ...store.search.matches import Positions
from ...store.snapshot import Snapshot
from ...store.space import MAIN
from ..metrics import Interval
from ..training.baselines import BASELINES
from ..training.classifier_choice import Scorer, left_out_aucs, mean_interval
from ..training.examples import Examples, subsample
from ..training.train import file_groups
from .ridge import by_source

ROWS = 3_000  # rows that classifiers are fitted to and measured on, at most; as many of each source where possible
HEADS = {"nearest_9": "nearest-neighbour rule", "rbf_svm": "RBF SVM"}  # baselines to compare, by name


@dataclass(frozen=True)
class ViewGain:
    """AUCs of one classifier on left-out sources, with some vectors and with the main ones alone."""

    vectors: tuple[str, ...]  # names, concatenated
    head: str  # one of HEADS
    rows: int
    left_out: tuple[str, ...]  # names of the left-out sources, "real NAME" or "fake NAME"
    aucs: tuple[float, ...]  # by left-out source
    main_aucs: tuple[float, ...]  # the same with the main vectors alone

    @cached_property
    def differences(self) -> npt.NDArray[np.float64]:
        """(sources,) gain in AUC of each left-out source."""
        return np.subtract(self.aucs, self.main_aucs)

    @property
    def gain(self) -> float:
        """Mean gain in AUC over the left-out sources."""
        return float(self.differences.mean())

    @cached_property
    def interval(self) -> Interval | None:
        """95 % confidence interval of the gain; None for a single source."""
        return mean_interval(self.differences.tolist())

    @property
    def verdict(self) -> str:
        """Whether it gains, loses, or neither can be told from chance."""
        low, high = self.interval or (-1.0, 1.0)
        return "a gain" if low > 0 else "a loss" if high < 0 else "no gain that can be told from chance"

    @property
    def sentence(self) -> str:
        """Summary in one sentence."""
        auc, main_auc = np.mean(self.aucs), np.mean(self.main_aucs)
        interval = f" (95 % interval {self.interval[0]:+.3f} to {self.interval[1]:+.3f})" if self.interval else ""
        return (
            f"{'+'.join(self.vectors)}, {HEADS[self.head]}: mean AUC on {len(self.left_out)} left-out sources "
            f"{auc:.3f} against {main_auc:.3f} for main alone, {self.gain:+.3f}{interval}: {self.verdict}."
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "vectors": list(self.vectors),
            "head": self.head,
            "rows": self.rows,
            "auc": round(float(np.mean(self.aucs)), 4),
            "main_auc": round(float(np.mean(self.main_aucs)), 4),
            "gain": round(self.gain, 4),
            "interval": self.interval and [round(end, 4) for end in self.interval],
            "verdict": self.verdict,
            "sources": {
                name: [round(main, 4), round(with_view, 4)]
                for name, main, with_view in zip(self.left_out, self.main_aucs, self.aucs, strict=True)
            },
            "sentence": self.sentence,
        }


def view_gains(
    snapshot: Snapshot, *, seed: int = 0, on_progress: Callable[[str], None] | None = None
) -> list[ViewGain]:
    """Compare the named vectors of a store, alone and concatenated with the main ones, with the main ones alone.

    Sources are left out as in the choice of a classifier, a few at a time. Each comparison uses a sample of the rows
    that have a vector of the name. Vectors whose rows are of too few sources to leave one out are passed over.

    Parameters
    ----------
    on_progress : called with the name of each step
    """
    return [gain for name in vector_names(snapshot.folder) for gain in _gains(snapshot, name, seed, on_progress)]


def _gains(snapshot: Snapshot, name: str, seed: int, on_progress: Callable[[str], None] | None) -> list[ViewGain]:
    """The gains of the vectors of one name."""
    column = open_named_vectors(snapshot.folder, name)
    positions = _sample(snapshot, ~column.missing(snapshot), seed)
    main = snapshot.main.vectors(positions)
    view = column.vectors(snapshot, positions)
    vectors = {(MAIN,): concatenate([main]), (name,): concatenate([view]), (MAIN, name): concatenate([main, view])}
    # the rows are told by their number, so that every candidate can look up vectors of its own
    rows = Examples.from_arrays(
        np.arange(len(positions), dtype=np.float32)[:, None],
        snapshot.column("labels")[positions],
        sources=snapshot.column("sources")[positions],
    )
    candidates = {f"{'+'.join(names)}, {HEADS[head]}": (names, head) for head in HEADS for names in vectors}

    def fit(candidate: str, train: Examples, validation: Examples) -> Scorer:
        names, head = candidates[candidate]

        def with_vectors(of: Examples) -> Examples:
            return replace(of, vectors=vectors[names][of.vectors[:, 0].astype(np.int64)])

        scorer = BASELINES[head](with_vectors(train), with_vectors(validation), seed)
        return lambda queries: scorer(with_vectors(queries))

    files = file_groups(snapshot.column("digests")[positions])
    results, left_out = left_out_aucs(
        fit, rows, rows.take(slice(0)), files, list(candidates), seed=seed, on_progress=on_progress
    )
    if not all(left_out):
        return []
    aucs = {candidates[result.name]: result.aucs for result in results}
    return [
        ViewGain(names, head, len(positions), tuple(left_out), aucs[names, head], aucs[(MAIN,), head])
        for names in ((name,), (MAIN, name))
        for head in HEADS
        if (names, head) in aucs and ((MAIN,), head) in aucs
    ]


def _sample(snapshot: Snapshot, where: npt.NDArray[np.bool_], seed: int) -> Positions:
    """Positions of at most `ROWS` labelled rows of a mask, as many of each source where it has them."""
    groups, names = by_source(snapshot)
    parts = [np.zeros(0, np.int64)]
    for group in range(len(names)):
        members = np.flatnonzero(where & (groups == group))
        parts.append(subsample(members, groups[members], max(ROWS // len(names), 1), seed))
    return np.sort(np.concatenate(parts))
