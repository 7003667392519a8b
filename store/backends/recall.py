"""Measure the recall of a search back end with the store's own vectors, and derive its search plan."""

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

WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)  # numbers of candidates that are measured


class RecallMeasurement:
    """Recall of a back end against exact search: half of the queries make a search plan, the other half check it.

    A row counts as found if it is as near as the tenth row of the exact result, whichever of several copies it is.

    Attributes
    ----------
    count : number of queries
    unplanned : filter -> recall@10 with the back end's default width; set by `planned`
    """

    def __init__(self, snapshot: Snapshot, backend: SearchBackend, count: int, seed: int) -> None:
        self.snapshot, self.backend = snapshot, backend
        rng = np.random.default_rng(seed)
        self.count = min(count, len(snapshot)) // 2 * 2
        self.queries = snapshot.vectors(np.sort(rng.permutation(len(snapshot))[: self.count]))
        self.filters = filters_of(snapshot, rng) if self.count else {}
        self._shares: dict[str, float] = {}
        self._tenth: dict[str, npt.NDArray[np.float32]] = {}  # (queries, 1) similarity of the tenth, or last, row
        self._reach: dict[str, int] = {}  # number of rows to find, at most ten
        for name, which in self.filters.items():
            mask = which.mask(snapshot)
            rows = int(np.count_nonzero(mask))
            if rows:
                exact = snapshot.search(self.queries, K, mask, recall=1)
                self._reach[name] = min(rows, K)
                self._tenth[name] = exact.similarity[:, self._reach[name] - 1 : self._reach[name]]
                self._shares[name] = rows / len(snapshot)
        self.unplanned: dict[str, float] = {}

    def planned(self, target: float) -> tuple[SearchPlan, dict[str, float]]:
        """Return the narrowest plan that reaches a recall with every filter, and the recall measured with it.

        Raises
        ------
        Damaged
            Even exact searches of the back end miss the target: it holds other vectors.
        """
        planning, checking = slice(0, None, 2), slice(1, None, 2)
        total = len(self.snapshot)
        planned_shares = {name: share for name, share in self._shares.items() if not exactly(round(share * total))}
        recalls = []
        for name in planned_shares:
            by_width: list[float] = []
            for width in WIDTHS:
                by_width.append(1.0 if by_width and by_width[-1] == 1 else self._recall(name, planning, width))
            recalls.append(tuple(by_width))
        self.unplanned = {name: self._recall(name, checking, 0) for name in self._shares}
        for margin in range(len(WIDTHS) + 1):
            plan = SearchPlan(WIDTHS, tuple(planned_shares.values()), tuple(recalls), margin)
            measured = {
                name: self._recall(name, checking, plan.width(target, share) if name in planned_shares else None)
                for name, share in self._shares.items()
            }
            if min(measured.values(), default=1.0) >= target:
                return plan if self.count else SearchPlan(), measured
        worst = min(measured, key=lambda name: measured[name])
        raise Damaged(
            f"{self.backend.name} finds {measured[worst]:.3f} of the nearest rows (filter: {worst}) even with exact "
            f"search, so it does not hold these vectors; run `clipfake store push --anew`"
        )

    def _recall(self, name: str, part: slice, width: int | None) -> float:
        queries, reach = self.queries[part], self._reach[name]
        # as RemoteSearcher does; the default width is measured with just the rows wanted, as other programs search
        k = reach if width == 0 else fetched(reach)
        ids, _ = self.backend.search(queries, k, BackendFilter(self.filters[name]), width)
        similarity = rescore(self.snapshot, queries, positions_of(self.snapshot, ids), reach).similarity
        # rounding differs between one matrix product and many: closer similarities count as equal
        hits = similarity >= self._tenth[name][part] - 1e-5
        return round(float(hits.sum() / hits.size), 4)


def filters_of(snapshot: Snapshot, rng: np.random.Generator) -> dict[str, Filter]:
    """Filters to measure recall with, from all rows down to few.

    Many small values together are the hardest kind: the graph has edges among the rows of one value, but none for a
    union of values.
    """
    filters = {"all": Filter()}
    labels = np.unique(snapshot.column("labels")).tolist()
    for label in labels:
        filters[f"label {label}"] = Filter(label=(label,))
    sources, shares = _shuffled_values(snapshot, "sources", rng)
    if len(sources) > 1:
        filters["all but one source"] = Filter(exclude_source=(sources[0],))
    for divisor in (2, 8):
        chosen = sources[: np.searchsorted(np.cumsum(shares), 1 / divisor) + 1]
        if 1 < len(chosen) < len(sources):
            filters[f"{len(chosen)} of {len(sources)} sources"] = Filter(source=chosen)
    categories, shares = _shuffled_values(snapshot, "categories", rng)
    for divisor in (2, 6, 18, 54):
        chosen = categories[: np.searchsorted(np.cumsum(shares), 1 / divisor) + 1]
        if 1 < len(chosen) < len(categories):
            filters[f"{len(chosen)} of {len(categories)} categories"] = Filter(category=chosen)
            with_label = Filter(label=labels[:1], category=chosen)
            filters[f"label {labels[0]} in {len(chosen)} categories"] = with_label
    return filters


def _shuffled_values(
    snapshot: Snapshot, column: str, rng: np.random.Generator
) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Values of a column and the share of the rows that has each, in random order."""
    values, _, counts = distinct(snapshot.column(column))
    order = rng.permutation(len(values))
    return values[order].tolist(), counts[order] / max(len(snapshot), 1)
