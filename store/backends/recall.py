"""Recall of a search back end, measured with the store's own vectors: the basis of its search plan."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...errors import Damaged
from ..filter import Filter
from ..records import distinct
from ..search.ann_index import rescore
from ..snapshot import Snapshot
from .base import BackendFilter, SearchBackend
from .remote_search import positions_of
from .search_plan import K, SearchPlan, exactly, fetched

WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)  # candidates that a search keeps


class RecallMeasurement:
    """An engine's answers beside exact ones: to make a plan with half of the queries and to check it with the others.

    A row counts as found if it is as near as the tenth of the exact answer, whichever of several copies it is.
    """

    def __init__(self, snapshot: Snapshot, engine: SearchBackend, count: int, seed: int) -> None:
        self.snapshot, self.engine = snapshot, engine
        rng = np.random.default_rng(seed)
        self.count = min(count, len(snapshot)) // 2 * 2
        self.queries = snapshot.vectors(np.sort(rng.permutation(len(snapshot))[: self.count]))
        self.filters = filters_of(snapshot, rng) if self.count else {}
        self._shares: dict[str, float] = {}
        self._tenth: dict[str, npt.NDArray[np.float32]] = {}  # (queries, 1) similarity of the tenth, or last, row
        self._reach: dict[str, int] = {}  # rows there are to find, at most ten
        for name, which in self.filters.items():
            mask = which.mask(snapshot)
            rows = int(np.count_nonzero(mask))
            if rows:
                true = snapshot.search(self.queries, K, mask, recall=1)
                self._reach[name] = min(rows, K)
                self._tenth[name] = true.similarity[:, self._reach[name] - 1 : self._reach[name]]
                self._shares[name] = rows / len(snapshot)
        self.unplanned: dict[str, float] = {}

    def planned(self, recall: float) -> tuple[SearchPlan, dict[str, float]]:
        """The narrowest plan that reaches the recall with every filter, and what it reached."""
        half, checking = slice(0, None, 2), slice(1, None, 2)
        wide = {name: share for name, share in self._shares.items() if not exactly(round(share * len(self.snapshot)))}
        recalls = []
        for name in wide:
            row: list[float] = []
            for width in WIDTHS:
                row.append(1.0 if row and row[-1] == 1 else self._recall(name, half, width))
            recalls.append(tuple(row))
        self.unplanned = {name: self._recall(name, checking, 0) for name in self._shares}
        for margin in range(len(WIDTHS) + 1):
            plan = SearchPlan(WIDTHS, tuple(wide.values()), tuple(recalls), margin)
            found = {
                name: self._recall(name, checking, plan.width(recall, share) if name in wide else None)
                for name, share in self._shares.items()
            }
            if min(found.values(), default=1.0) >= recall:
                return plan if self.count else SearchPlan(), found
        wrong = min(found, key=lambda name: found[name])
        raise Damaged(
            f"{self.engine.name} finds {found[wrong]:.3f} of the nearest rows ({wrong}) even where it searches "
            f"exactly; it does not hold these vectors. Run `clipfake store push --anew`"
        )

    def _recall(self, name: str, part: slice, width: int | None) -> float:
        queries, reach = self.queries[part], self._reach[name]
        k = reach if width == 0 else fetched(reach)  # as `Asked` does it; the engine alone gives what it is asked for
        ids, _ = self.engine.search(queries, k, BackendFilter(self.filters[name]), width)
        similarity = rescore(self.snapshot, queries, positions_of(self.snapshot, ids), reach).similarity
        # rounding differs between one product and many; two rows that differ by less are equally near
        right = similarity >= self._tenth[name][part] - 1e-5
        return round(float(right.sum() / right.size), 4)


def filters_of(snapshot: Snapshot, rng: np.random.Generator) -> dict[str, Filter]:
    """Filters to measure with, from all rows down to few.

    Many small values together are the dearest kind: a graph has edges for the rows of one value, none for their union.
    """
    made = {"all": Filter()}
    labels = np.unique(snapshot.column("labels")).tolist()
    for label in labels:
        made[f"label {label}"] = Filter(label=(label,))
    sources, shares = _values(snapshot, "sources", rng)
    if len(sources) > 1:
        made["all but one source"] = Filter(exclude_source=(sources[0],))
    for part in (2, 8):
        if 1 < len(some := sources[: np.searchsorted(np.cumsum(shares), 1 / part) + 1]) < len(sources):
            made[f"{len(some)} of {len(sources)} sources"] = Filter(source=tuple(some))
    categories, shares = _values(snapshot, "categories", rng)
    for part in (2, 6, 18, 54):
        if 1 < len(some := categories[: np.searchsorted(np.cumsum(shares), 1 / part) + 1]) < len(categories):
            made[f"{len(some)} of {len(categories)} categories"] = Filter(category=tuple(some))
            both = Filter(label=tuple(labels[:1]), category=tuple(some))
            made[f"label {labels[0]} in {len(some)} categories"] = both
    return made


def _values(snapshot: Snapshot, column: str, rng: np.random.Generator) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Return the values of a column with the share of the rows that each has, in random order."""
    values, _, counts = distinct(snapshot.column(column))
    mixed = rng.permutation(len(values))
    return values[mixed].tolist(), counts[mixed] / max(len(snapshot), 1)
