"""IVF index (FAISS) of the rows of one label: rows are grouped in cells around centres, and a search reads the nearest.

The effort of a search is given as a number of *rows to read*, not of probes: cells are read from the nearest on until
they contain that many allowed rows. A selective filter therefore reads more cells for the same effort, and a very
selective one reads every cell with allowed rows and is exact. How many rows a recall requires is measured when the
index is built (`ProbeBudget`).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ...core.atomic_files import can_map
from ...core.threads import faiss_cores_for
from ..records import Mask, Vectors
from .cell_file import CellFile

Ordinals = npt.NDArray[np.int64]  # numbers of rows in an index, in the order they were added

SAMPLE_PER_CELL = 40  # rows per cell for training the centres
ROUNDS = 8  # of k-means
PIECE_ROWS = 16_384
COMPACT_BITS = 2  # per dimension, in RaBitQ: 0.16 of the size of float16 vectors
RECALLS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
NEAREST_KEPT = 20_000  # per query, so that a filter for one row in a hundred leaves enough of them
MOST_ALLOWED = 0.25  # share of the rows; a filter that allows more is applied after reading a cell
WIDER = 3  # factor by which more rows are then taken than should be enough
MARGIN = 1.25  # factor by which more rows are read than interpolation predicts
SHARES = (1.0, 0.3, 0.1, 0.03, 0.01)  # shares of rows allowed by a filter for which the effort is measured


@dataclass(frozen=True)
class ProbeBudget:
    """Number of rows to read for a recall, as measured on the store's own vectors."""

    shares: tuple[float, ...]  # allowed share of the rows, descending
    recalls: tuple[float, ...]  # ascending
    rows: tuple[tuple[int, ...], ...]  # (shares, recalls) allowed rows to read

    def for_recall(self, recall: float, share: float) -> int:
        """Number of allowed rows to read for a filter that allows this share of the rows.

        Aims at half the permitted misses. Between two measured shares it interpolates linearly in logarithms, as the
        effort falls with a power of the share, and adds a quarter, as the measured queries and filters are samples.
        """
        aim = 1 - (1 - recall) / 2
        column = next((i for i, r in enumerate(self.recalls) if r >= aim - 1e-9), len(self.recalls) - 1)
        rows = [max(measured[column], 1) for measured in self.rows]
        if share >= self.shares[0]:
            return rows[0]
        read = np.interp(np.log(share), np.log(self.shares[::-1]), np.log(rows[::-1]))
        return int(np.ceil(MARGIN * np.exp(read)))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ProbeBudget:
        rows = tuple(tuple(int(n) for n in row) for row in fields["rows"])
        return cls(tuple(map(float, fields["shares"])), tuple(map(float, fields["recalls"])), rows)


def cells_for(rows: int) -> int:
    """Number of IVF lists for this many rows: about twice the square root, as a power of two."""
    return int(2 ** np.clip(np.round(np.log2(1.5 * np.sqrt(max(rows, 1)))), 2, 16))


def centres_of(sample: Vectors, cells: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """(cells, dim) centres of unit length by spherical k-means on a sample (Dhillon & Modha 2001)."""
    import torch

    rows = torch.from_numpy(np.asarray(sample, np.float32))
    centres = rows[torch.from_numpy(rng.choice(len(rows), cells, replace=len(rows) < cells))].clone()
    for _ in range(ROUNDS):
        nearest = (rows @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, rows)
        empty = torch.bincount(nearest, minlength=cells) == 0
        if count := int(empty.sum()):  # restart empty cells at random rows
            sums[empty] = rows[torch.from_numpy(rng.integers(0, len(rows), count))]
        centres = torch.nn.functional.normalize(sums)
    return np.asarray(centres.numpy(), np.float32)


def nearest_cell(vectors: Vectors, centres: Vectors) -> tuple[npt.NDArray[np.int64], float]:
    """(rows,) cell of each row, and the mean similarity of the rows to the centres of their cells."""
    import torch

    cells, fit = np.empty(len(vectors), np.int64), 0.0
    transposed = torch.from_numpy(np.asarray(centres, np.float32)).T
    for start in range(0, len(vectors), PIECE_ROWS):
        piece = torch.from_numpy(np.ascontiguousarray(vectors[start : start + PIECE_ROWS])).float()
        similarity, cell = (piece @ transposed).max(1)
        cells[start : start + PIECE_ROWS] = cell.numpy()
        fit += float(similarity.sum())
    return cells, fit / max(len(vectors), 1)


class IvfIndex:
    """IVF index of the rows of one label, which it knows by ordinal."""

    def __init__(
        self, ivf: Any, centres: Vectors, cell_of: npt.NDArray[np.int64], cell_file: CellFile | None = None
    ) -> None:
        self._ivf = ivf
        self._cell_file = cell_file  # None: all cells are in memory
        self.centres = centres  # (cells, dim)
        self.cell_of = cell_of  # (rows,)

    def __len__(self) -> int:
        return len(self.cell_of)

    @property
    def quantized(self) -> bool:
        """True if vectors are quantised, so that results must be rescored."""
        return isinstance(self._ivf, faiss.IndexIVFRaBitQ)

    @classmethod
    def empty(cls, centres: Vectors, sample: Vectors, *, quantized: bool) -> IvfIndex:
        """Make an index without rows in cells around these centres; the quantiser is trained on `sample`."""
        cells, dim = centres.shape
        quantiser: Any = faiss.IndexFlatIP(dim)
        quantiser.add(np.ascontiguousarray(centres, np.float32))
        ivf: Any
        if quantized:
            ivf = faiss.IndexIVFRaBitQ(quantiser, dim, cells, faiss.METRIC_INNER_PRODUCT, True, COMPACT_BITS)
            ivf.qb = 8
            ivf.train(np.ascontiguousarray(sample, np.float32))
        else:
            half = faiss.ScalarQuantizer.QT_fp16
            ivf = faiss.IndexIVFScalarQuantizer(quantiser, dim, cells, half, faiss.METRIC_INNER_PRODUCT, False)
            ivf.is_trained = True  # float16 needs no training, and the centres are known
        ivf.own_fields = True  # FAISS frees the quantiser, not Python
        quantiser.this.disown()
        return cls(ivf, centres, np.zeros(0, np.int64))

    def add(self, vectors: Vectors, cell_of: npt.NDArray[np.int64]) -> IvfIndex:
        """Return the index with more rows appended, without retraining."""
        for start in range(0, len(vectors), PIECE_ROWS):
            piece = np.ascontiguousarray(vectors[start : start + PIECE_ROWS], np.float32)
            cells = np.ascontiguousarray(cell_of[start : start + PIECE_ROWS], np.int64)
            ordinals = np.arange(len(piece), dtype=np.int64) + len(self) + start
            pointers = [faiss.swig_ptr(array) for array in (piece, ordinals, cells)]
            self._ivf.add_core(len(piece), *pointers)
        return IvfIndex(self._ivf, self.centres, np.concatenate([self.cell_of, cell_of]))

    def counts(self, allowed: Mask | None) -> npt.NDArray[np.int64]:
        """(cells,) number of allowed rows in each cell."""
        cells = self.cell_of if allowed is None else self.cell_of[allowed]
        return np.bincount(cells, minlength=len(self.centres))

    def search(self, queries: Vectors, k: int, rows: int, allowed: AllowedRows | None = None) -> Ordinals:
        """(queries, k) ordinals near each query after reading at least `rows` allowed rows; -1 where there are fewer.

        A quantised index returns candidates: request more than k and rescore them.
        """
        allowed = allowed or AllowedRows(self, None)
        if allowed.mask is None or self.quantized or allowed.count < MOST_ALLOWED * len(self):
            return self._search(queries, k, rows, allowed, allowed.selector)
        # Searching without a selector and filtering afterwards is faster than testing each row first, unless many
        # candidates are needed, as from a quantised index.
        more = min(int(WIDER * k * len(self) / allowed.count) + WIDER, len(self))
        ordinals = self._search(queries, more, rows, allowed, None)
        kept = (ordinals >= 0) & allowed.mask[np.maximum(ordinals, 0)]
        first = np.argsort(~kept, axis=1, kind="stable")[:, :k]
        result = np.where(np.take_along_axis(kept, first, 1), np.take_along_axis(ordinals, first, 1), -1)
        incomplete = np.flatnonzero(kept.sum(axis=1) < min(k, allowed.count))
        if len(incomplete):
            result[incomplete] = self._search(np.asarray(queries)[incomplete], k, rows, allowed, allowed.selector)
        return np.asarray(result)

    def _search(self, queries: Vectors, k: int, rows: int, allowed: AllowedRows, selector: Any) -> Ordinals:
        probed = probes(np.asarray(queries, np.float32) @ self.centres.T, allowed.counts, rows)
        if not probed.size:
            return np.full((len(queries), k), -1, np.int64)
        if self._cell_file is None:
            return self._search_cells(queries, k, rows, probed, selector)[0]
        ordinals = np.full((len(queries), 0), -1, np.int64)
        scores = np.zeros((len(queries), 0), np.float32)
        for part in self._cell_file.parts(probed):
            with self._cell_file.in_memory(part):
                found = self._search_cells(queries, k, rows, part, selector)
            ordinals = np.concatenate([ordinals, found[0]], axis=1)
            scores = np.concatenate([scores, found[1]], axis=1)
            best = np.argsort(-np.where(ordinals < 0, -np.inf, scores), axis=1, kind="stable")[:, :k]
            ordinals, scores = np.take_along_axis(ordinals, best, 1), np.take_along_axis(scores, best, 1)
        return ordinals

    def _search_cells(
        self, queries: Vectors, k: int, rows: int, probed: npt.NDArray[np.int64], selector: Any
    ) -> tuple[Ordinals, npt.NDArray[np.float32]]:
        """(queries, k) ordinals and their scores in these cells, best first."""
        options = faiss.SearchParametersIVF(sel=selector, nprobe=probed.shape[1])  # type: ignore[call-arg]
        self._ivf.parallel_mode = 1 if len(queries) < 4 else 0  # 1: over cells, 0: over queries
        queries = np.ascontiguousarray(queries, np.float32)
        near = np.zeros(probed.shape, np.float32)
        ordinals, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        arrays = [faiss.swig_ptr(array) for array in (probed, near, scores, ordinals)]
        # The C++ method, because the Python wrapper does not pass the selector on.
        with faiss_cores_for(len(queries) * rows * self.centres.shape[1]):
            self._ivf.search_preassigned_c(len(queries), faiss.swig_ptr(queries), k, *arrays, False, options)
        return np.where((ordinals < 0) | (ordinals >= len(self)), -1, ordinals), scores

    def save(self, path: Path) -> int:
        """Write a FAISS file; returns the size of the rows at its end. What precedes them are tables.

        Raises OSError or RuntimeError. FAISS does not notice by itself that the disk is full when it closes a file.
        """
        with path.open("wb") as file:
            faiss.write_index(self._ivf, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
        return len(self) * (int(self._ivf.code_size) + 8)

    @classmethod
    def load(cls, path: Path, cell_of: npt.NDArray[np.int64], *, mapped: bool = True) -> IvfIndex:
        """Load an index, its cells as they are searched if `mapped`. Raises ValueError, or what FAISS raises."""
        flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if mapped and can_map(path) else 0
        ivf: Any = faiss.read_index(str(path), flags)
        flat: Any = faiss.downcast_index(ivf.quantizer)
        if flat.d != ivf.d or flat.ntotal != ivf.nlist or cell_of.shape != (ivf.ntotal,):
            raise ValueError(
                f"{path} has {ivf.ntotal} rows of {ivf.d} dimensions in {ivf.nlist} cells, but {flat.ntotal} centres "
                f"of {flat.d} dimensions, and cells for {cell_of.shape} rows"
            )
        centres = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * ivf.d).reshape(flat.ntotal, ivf.d).copy()
        if len(cell_of) and not 0 <= cell_of.min() <= cell_of.max() < len(centres):
            raise ValueError(f"{path} has {len(centres)} cells, but rows in cells {cell_of.min()} to {cell_of.max()}")
        return cls(ivf, centres, cell_of, CellFile(path, ivf) if flags else None)


class AllowedRows:
    """Rows that a search of an index may return: a mask by ordinal and the FAISS selector for it."""

    def __init__(self, cells: IvfIndex, mask: Mask | None) -> None:
        """`mask` is (rows,) bool by ordinal, None for all rows."""
        self.mask = mask
        self.count = len(cells) if mask is None else int(np.count_nonzero(mask))
        self.counts = cells.counts(mask)  # (cells,) number of allowed rows in each cell
        self.selector: Any = None
        if mask is not None:
            self._bits = np.packbits(mask, bitorder="little")  # kept here because FAISS keeps only a pointer
            self.selector = faiss.IDSelectorBitmap(len(cells), faiss.swig_ptr(self._bits))


def probes(near: npt.NDArray[np.floating[Any]], counts: npt.NDArray[np.int64], rows: int) -> npt.NDArray[np.int64]:
    """Choose the cells to read for each query: the nearest ones, until they contain `rows` allowed rows.

    Parameters
    ----------
    near : (queries, cells) similarity of queries to centres
    counts : (cells,) number of allowed rows in each cell
    rows : minimum number of allowed rows to read

    Returns
    -------
    (queries, n) cell numbers, nearest first, -1 where a query needs fewer than n cells

    >>> probes(np.array([[0.9, 0.1, 0.5]]), np.array([3, 4, 0]), rows=4)
    array([[0, 1]])
    """
    nonempty = np.flatnonzero(counts)
    ranking = nonempty[np.argsort(-near[:, nonempty], axis=1, kind="stable")]
    contained = counts[ranking]
    before = np.cumsum(contained, axis=1) - contained  # allowed rows in nearer cells
    needed = before < rows
    most = int(needed.sum(axis=1).max(initial=0))
    return np.ascontiguousarray(np.where(needed, ranking, -1)[:, :most])


class GroundTruth:
    """True nearest neighbours of queries, with or without a filter, by comparison with all rows."""

    def __init__(self, similarity: npt.NDArray[np.float32], kept: int = NEAREST_KEPT) -> None:
        """`similarity` is the (queries, rows) similarity to every row by ordinal, -inf for a query's own row."""
        self._similarity = similarity
        self._nearest = _top(similarity, min(kept, similarity.shape[1]))

    def __getitem__(self, queries: slice) -> GroundTruth:
        """Select some of the queries."""
        selected = copy(self)
        selected._similarity, selected._nearest = self._similarity[queries], self._nearest[queries]
        return selected

    def nearest(self, k: int, allowed: Mask | None = None) -> Ordinals:
        """(queries, min(k, allowed rows)) ordinals, nearest first."""
        if allowed is None:
            return self._nearest[:, :k]
        k = min(k, int(np.count_nonzero(allowed)))
        inside = allowed[self._nearest]
        first = np.argsort(~inside, axis=1, kind="stable")[:, :k]
        result = np.take_along_axis(self._nearest, first, axis=1)
        incomplete = np.flatnonzero(inside.sum(axis=1) < k)
        if len(incomplete):  # too few of the kept neighbours are allowed: compare all allowed rows
            positions = np.flatnonzero(allowed)
            result[incomplete] = positions[_top(self._similarity[incomplete][:, positions], k)]
        return np.asarray(result)

    def similarity_of(self, ordinals: Ordinals) -> npt.NDArray[np.float32]:
        """(queries, n) similarity of each query to (queries, n) rows, -inf where an ordinal is negative."""
        similarity = np.take_along_axis(self._similarity, np.maximum(ordinals, 0), axis=1)
        return np.where(ordinals < 0, -np.inf, similarity)


def _top(similarity: npt.NDArray[np.float32], k: int) -> Ordinals:
    """(queries, k) indexes of the largest values in each row of (queries, rows), largest first."""
    import torch

    return np.asarray(torch.topk(torch.from_numpy(similarity), k, dim=1).indices.numpy())


def measure(
    cells: IvfIndex, queries: Vectors, truth: GroundTruth, rng: np.random.Generator, ks: Sequence[int]
) -> list[ProbeBudget]:
    """Measure how many allowed rows must be read for each recall and each share of allowed rows, for each k.

    There are two kinds of filter, and the more expensive one counts: scattered rows, and whole cells (more like a
    source or a category). A neighbour is found if and only if its cell is read, so the cells of the true neighbours
    give the effort for every recall.

    Parameters
    ----------
    queries : (queries, dim)
    """
    near = np.asarray(queries, np.float32) @ np.asarray(cells.centres, np.float32).T
    table: list[list[tuple[int, ...]]] = [[] for _ in ks]
    for share in SHARES:
        filters = [None] if share == 1.0 else [rng.random(len(cells)) < share, _whole_cells(cells, share, rng)]
        efforts = [_efforts(cells, near, truth, allowed, ks) for allowed in filters]
        for rows, of_k in zip(table, zip(*efforts, strict=True), strict=True):
            rows.append(tuple(int(n) for n in np.max([_quantiles(e) for e in of_k], axis=0)))
    return [ProbeBudget(SHARES, RECALLS, tuple(rows)) for rows in table]


def _whole_cells(cells: IvfIndex, share: float, rng: np.random.Generator) -> Mask:
    """Random filter of whole cells that together contain at least this share of the rows."""
    order = rng.permutation(len(cells.centres))
    contained = np.cumsum(cells.counts(None)[order])
    return np.isin(cells.cell_of, order[: int(np.searchsorted(contained, share * len(cells))) + 1])


def _efforts(
    cells: IvfIndex, near: npt.NDArray[Any], truth: GroundTruth, allowed: Mask | None, ks: Sequence[int]
) -> list[npt.NDArray[np.int64]]:
    """Number of allowed rows to read until each true neighbour is found, an array for each k."""
    if allowed is not None and not allowed.any():
        return [np.zeros(1, np.int64) for _ in ks]
    counts = cells.counts(allowed)
    ranking = np.argsort(-np.where(counts > 0, near, -np.inf), axis=1, kind="stable")
    upto = np.cumsum(counts[ranking], axis=1)
    before = np.empty_like(upto)
    np.put_along_axis(before, ranking, upto - counts[ranking], axis=1)
    true = truth.nearest(max(ks), allowed)
    reach = np.take_along_axis(before, cells.cell_of[true], axis=1) + 1
    return [reach[:, :k].ravel() for k in ks]


def _quantiles(efforts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(recalls,) number of rows to read to find this share of the neighbours."""
    return np.quantile(efforts, RECALLS, method="higher").astype(np.int64)
