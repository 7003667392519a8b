"""A snapshot's vectors where matrix products over them are quick: on a GPU, in memory, or streamed from the shards."""

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

KEPT_BYTES = 2**30  # vectors of no more than this are kept as float32; converting them takes five times a search
PIECE_ROWS = 16_384  # rows in one matrix product
PIECE_CELLS = 2**25  # at most this many similarities at a time, 128 MiB
MANY = 64  # queries; from here on the products are what a search costs
GATHER_BELOW = 0.3  # of a piece's rows: with fewer wanted, take them out instead of computing all


class ExactSearch:
    """Exact search over a snapshot: one matrix product a piece, through torch.

    It belongs to one snapshot but does not hold it, so that neither keeps the other alive.
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
        """The k rows nearest to each query, of all or of those at the positions `where` (ascending)."""
        return self.search_each(snapshot, queries, k, [where])[0]

    def search_each(
        self, snapshot: SearchableRows, queries: Vectors, k: int, wheres: Sequence[Positions | None]
    ) -> list[Matches]:
        """Search several sets of rows in one pass: what they share is read and multiplied once."""
        wanted = max((len(snapshot) if where is None else len(where) for where in wheres), default=0)
        with cores_for(len(queries) * wanted * snapshot.space.dim):
            return self._search_each(snapshot, queries, k, wheres)

    def _search_each(
        self, snapshot: SearchableRows, queries: Vectors, k: int, wheres: Sequence[Positions | None]
    ) -> list[Matches]:
        import torch

        wanted = torch.from_numpy(np.ascontiguousarray(queries, np.float32)).to(self.device)
        results = [Matches.none(len(queries), k) for _ in wheres]
        size = int(np.clip(PIECE_CELLS // max(len(queries), 1), 256, PIECE_ROWS))
        for start in range(0, len(snapshot), size):
            piece, every = np.arange(start, min(start + size, len(snapshot))), None
            ours = [
                piece if where is None else where[slice(*np.searchsorted(where, [start, piece[-1] + 1]))]
                for where in wheres
            ]
            # Of many queries, rows are taken out for next to nothing, and columns of the similarities are not.
            apart = len(queries) >= MANY and sum(map(len, ours)) <= len(piece)
            for i, positions in enumerate(ours):
                if not len(positions):
                    continue
                if apart or len(positions) < GATHER_BELOW * len(piece):
                    similarity = product(wanted, self._vectors(snapshot, positions))
                else:
                    every = product(wanted, self._vectors(snapshot, piece)) if every is None else every
                    similarity = every
                    if len(positions) < len(piece):
                        similarity = every[:, torch.from_numpy(positions - start).to(self.device)]
                best, rows = torch.topk(similarity, min(k, len(positions)), dim=1)
                results[i] = results[i].merge(Matches(positions[rows.cpu().numpy()], best.cpu().numpy()), k)
        return results

    def _vectors(self, snapshot: SearchableRows, positions: Positions) -> torch.Tensor:
        import torch

        whole = positions[-1] - positions[0] == len(positions) - 1
        if self._kept is not None:
            rows = slice(int(positions[0]), int(positions[-1]) + 1) if whole else torch.from_numpy(positions)
            return self._kept[rows].float()
        return torch.from_numpy(snapshot.vectors(positions, dtype=np.float16)).to(self.device).float()
