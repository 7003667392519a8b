"""A map of one image: how each patch leans, real or fake. A hint where to look; the verdict does not use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Area = tuple[float, float, float, float]  # left, top, right and bottom as shares of an image's width and height
WHOLE: Area = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class PatchMap:
    """Log-odds of the patches of one image; without values, the reason why none are shown."""

    rows: int
    columns: int
    values: tuple[tuple[float, ...], ...]  # rows of natural log-odds, above 0 leans fake; () if they are not shown
    auc: float | None  # of the planted test, see `PlantedTest`; None if it could not be made
    note: str  # that it is a hint and how good, or why there are no values
    area: Area = WHOLE  # the part of the image that the patches cover

    @property
    def shown(self) -> bool:
        return bool(self.values)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types: `map` of `query --json` and of the service."""
        return {
            "rows": self.rows,
            "columns": self.columns,
            "values": [[round(value, 3) for value in row] for row in self.values],
            "area": [round(edge, 4) for edge in self.area],
            "auc": None if self.auc is None else round(self.auc, 4),
            "note": self.note,
        }
