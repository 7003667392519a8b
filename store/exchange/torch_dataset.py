"""PyTorch data sets of a snapshot: single rows by index, or blocks in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..concatenated import concatenated_snapshot
from ..snapshot import open_snapshot

if TYPE_CHECKING:
    from ..snapshot import Snapshot

Pair = tuple[torch.Tensor, torch.Tensor]


class _RowSelection:
    """Selected rows of a snapshot; when pickled for another process, it opens the same snapshot there."""

    def __init__(self, snapshot: Snapshot, where: Any = None) -> None:
        """`where` is a mask over the rows, or positions (default: all rows)."""
        self.snapshot = snapshot
        self.positions = np.arange(len(snapshot))[slice(None) if where is None else where]
        self.labels = snapshot.column("labels")[self.positions].astype(np.int64)

    def __len__(self) -> int:
        return len(self.positions)

    def __getstate__(self) -> dict[str, Any]:
        snapshot = self.snapshot
        return {**vars(self), "snapshot": (snapshot.folder, snapshot.number, snapshot.vector_names)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        folder, number, names = state.pop("snapshot")
        vars(self).update(state, snapshot=concatenated_snapshot(open_snapshot(folder, number), names))

    def pair(self, rows: Any) -> Pair:
        """Vectors and labels of rows of the selection."""
        vectors = self.snapshot.vectors(self.positions[rows])
        return torch.from_numpy(vectors), torch.from_numpy(self.labels[rows])


class VectorDataset(_RowSelection, Dataset[Pair]):
    """Row i as ((dim,) float32 vector, () int64 label: 0 real, 1 fake, -1 unknown)."""

    def __getitem__(self, row: int) -> Pair:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} is out of range for {len(self)} rows")
        vectors, labels = self.pair(np.array([row]))
        return vectors[0], labels[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Pair]:
        """Read several rows at once, for torch's DataLoader."""
        return list(zip(*self.pair(np.asarray(rows)), strict=True))


class BlockDataset(_RowSelection, IterableDataset[Pair]):
    """Blocks of ((n, dim) float32 vectors, (n,) int64 labels) in the order of the rows, divided among the workers."""

    def __init__(self, snapshot: Snapshot, where: Any = None, *, size: int = 8192) -> None:
        """`size` is the number of rows in a block."""
        super().__init__(snapshot, where)
        self.size = size

    def __iter__(self) -> Iterator[Pair]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for start in range(first * self.size, len(self), step * self.size):
            yield self.pair(np.arange(start, min(start + self.size, len(self))))
