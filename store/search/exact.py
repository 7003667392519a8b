"""Exact search by matrix products over vectors on a GPU, in memory, or streamed from the shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...core.matrix_product import product
from ...core.threads import cores_for
from ..records import Vectors
from .matches import Matches, Positions, SearchableRows

if TYPE_CHECKING:
    import torch

KEPT_BYTES = 2**30  # smaller snapshots are kept as float32, as converting takes five times as long as searching
PIECE_ROWS = 16_384  # rows in one matrix product
PIECE_CELLS = 2**25  # maximum number of similarities computed at a time, 128 MiB
MANY = 64  # queries from which on the products dominate the cost of a search
GATHER_BELOW = 0.3  # share of a piece's rows; if fewer are allowed, gather them instead of computing all


class ExactSearch:
    """Exact search over one snapshot, with a torch matrix product for each piece of its rows.

    It does not reference the snapshot, which references it, so that there is no reference cycle.
    """

    def __init__(self, snapshot: SearchableRows, device: str | None = None, kept_bytes: int = KEPT_BYTES) -> None:
        import torch

        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        values = len(snapshot) * snapshot.space.dim
        self._kept: torch.Tensor | None = None  # (rows, dim): float32 in memory, float16 on a GPU
        if self.device.type == "cuda":
            if 2 * values < 0.7 * torch.cuda.mem_get_info(self.device)[0]:
                self._kept = torch.from_numpy(snapshot.vectors(dtype=np.float16)).to(self.device)
        elif 4 * values <= kept_bytes:
            self._kept = torch.from_numpy(snapshot.vectors(dtype=np.float16)).float()

    def search(self, snapshot: SearchableRows, queries: Vectors, k: int, where: Positions | None = None) -> Matches:
        """The k nearest rows of each query, of all rows or of those at the ascending positions `where`."""
        return self.search_each(snapshot, queries, k, [where])[0]

    def search_each(
        self, snapshot: SearchableRows, queries: Vectors, k: int, wheres: Sequence[Positions | None]
    ) -> list[Matches]:
        """Search several sets of rows in one pass: rows that they share are read and multiplied once."""
        most = max((len(snapshot) if where is None else len(where) for where in wheres), default=0)
        with cores_for(len(queries) * most * snapshot.space.dim):
            return self._search_each(snapshot, queries, k, wheres)

    def _search_each(
        self, snapshot: SearchableRows, queries: Vectors, k: int, wheres: Sequence[Positions | None]
    ) -> list[Matches]:
        import torch

        query_rows = torch.from_numpy(np.ascontiguousarray(queries, np.float32)).to(self.device)
        results = [Matches.none(len(queries), k) for _ in wheres]
        size = int(np.clip(PIECE_CELLS // max(len(queries), 1), 256, PIECE_ROWS))
        for start in range(0, len(snapshot), size):
            piece, all_similarities = np.arange(start, min(start + size, len(snapshot))), None
            allowed = [
                piece if where is None else where[slice(*np.searchsorted(where, [start, piece[-1] + 1]))]
                for where in wheres
            ]
            # With many queries, gathering rows costs next to nothing, unlike selecting columns of the similarities.
            separately = len(queries) >= MANY and sum(map(len, allowed)) <= len(piece)
            for i, positions in enumerate(allowed):
                if not len(positions):
                    continue
                if separately or len(positions) < GATHER_BELOW * len(piece):
                    similarity = product(query_rows, self._vectors(snapshot, positions))
                else:
                    if all_similarities is None:
                        all_similarities = product(query_rows, self._vectors(snapshot, piece))
                    similarity = all_similarities
                    if len(positions) < len(piece):
                        similarity = all_similarities[:, torch.from_numpy(positions - start).to(self.device)]
                best, rows = torch.topk(similarity, min(k, len(positions)), dim=1)
                results[i] = results[i].merge(Matches(positions[rows.cpu().numpy()], best.cpu().numpy()), k)
        return results

    def _vectors(self, snapshot: SearchableRows, positions: Positions) -> torch.Tensor:
        import torch

        consecutive = positions[-1] - positions[0] == len(positions) - 1
        if self._kept is not None:
            rows = slice(int(positions[0]), int(positions[-1]) + 1) if consecutive else torch.from_numpy(positions)
            return self._kept[rows].float()
        return torch.from_numpy(snapshot.vectors(positions, dtype=np.float16)).to(self.device).float()
