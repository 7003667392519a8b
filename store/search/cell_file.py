"""Cells of an IVF index in a FAISS file, read into memory when they are first searched.

FAISS maps its files, and a file that is cut short while it is mapped ends the process by SIGBUS; see core/row_file.py.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Condition
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ...core.row_file import RowFile
from ...errors import Damaged

Cells = npt.NDArray[np.int64]  # numbers of cells

KEPT_SHARE = 8  # cells are kept in an eighth of the machine's memory
LEAST_KEPT = 2**30  # bytes
MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # mmap has it from Python 3.12 on
ID_BYTES = 8


class CellFile:
    """The cells of an index that FAISS has mapped: replaces the map by memory, into which cells are read."""

    def __init__(self, path: Path, ivf: Any, kept_bytes: int | None = None) -> None:
        """`ivf` is an index from `faiss.read_index` with IO_FLAG_MMAP. Raises ValueError or Damaged."""
        self._ivf = ivf  # destroyed after self, so that FAISS unmaps its map and not the memory
        lists: Any = faiss.downcast_InvertedLists(ivf.invlists)
        self._lists = lists
        size, cells = int(self._lists.totsize), int(ivf.nlist)
        address = int(self._lists.lists.data().this)
        table = np.ctypeslib.as_array((ctypes.c_uint64 * (3 * cells)).from_address(address)).reshape(cells, 3)
        self._starts = table[:, 2].astype(np.int64)
        self._sizes = table[:, 1].astype(np.int64) * (int(ivf.code_size) + ID_BYTES)
        if not (self._starts >= 0).all() or not (self._starts + self._sizes <= size).all():
            raise ValueError(f"{path} has cells beyond its end")
        self._file = RowFile(path, np.uint8, (size,), error=Damaged)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        self._memory = mmap.mmap(-1, size, flags=flags)
        if sys.platform == "linux":  # searches take a fifth less time than with small pages
            with suppress(OSError):  # a kernel without them
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._map, self._lists.ptr = self._lists.ptr, faiss.swig_ptr(self._bytes)
        self._lists.prefetch_nthread = 0  # its threads would read cells that are not in memory
        self._kept_bytes = kept_bytes if kept_bytes is not None else most_kept()
        self._in_memory = np.zeros(cells, bool)
        self._searches = 0  # under way
        self._changed = Condition()

    def __del__(self) -> None:
        if hasattr(self, "_map"):
            self._lists.ptr = self._map

    def parts(self, probed: Cells) -> Iterator[Cells]:
        """Split the cells to be searched for each query into parts that fit in memory; -1 stands for no cell."""
        cells = _distinct(probed)
        part_of = (np.cumsum(self._sizes[cells]) - self._sizes[cells]) // max(self._kept_bytes, 1)
        for part in np.unique(part_of):
            yield probed if part_of[-1] == 0 else np.where(np.isin(probed, cells[part_of == part]), probed, -1)

    @contextmanager
    def in_memory(self, probed: Cells) -> Iterator[None]:
        """Keep these cells in memory during the block; raises Damaged or Unreadable."""
        cells = _distinct(probed)
        with self._changed:
            while self._searches and self._kept() > self._kept_bytes:
                self._changed.wait()
            if self._kept() > self._kept_bytes:
                self._drop()
            self._read(cells[~self._in_memory[cells]])
            self._searches += 1
        try:
            yield
        finally:
            with self._changed:
                self._searches -= 1
                self._changed.notify_all()

    def _kept(self) -> int:
        return int(self._sizes[self._in_memory].sum())

    def _read(self, cells: Cells) -> None:
        starts, ends = self._starts[cells], self._starts[cells] + self._sizes[cells]
        is_gap = starts[1:] != ends[:-1]
        firsts = starts[np.concatenate([[True], is_gap])[: len(cells)]]
        lasts = ends[np.concatenate([is_gap, [True]])[: len(cells)]]
        for start, end in zip(firsts.tolist(), lasts.tolist(), strict=True):
            self._file.copy_to(self._bytes, slice(start, end), slice(start, end))
        self._in_memory[cells] = True

    def _drop(self) -> None:
        self._memory.madvise(mmap.MADV_DONTNEED)
        self._in_memory[:] = False


def most_kept() -> int:
    """Bytes of one index to keep in memory."""
    return max(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // KEPT_SHARE, LEAST_KEPT)


def _distinct(probed: Cells) -> Cells:
    cells = np.unique(probed)
    return cells[cells >= 0]
