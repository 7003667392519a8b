"""Small products on one core: threads that are woken for them cost more than they bring, and hold up who needs them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

SMALL = 2**24  # multiply-adds of a product that one core does in a millisecond or two
SMALL_SCAN = 2**27  # of a scan of FAISS, which one core does in some ten milliseconds

_lock = threading.Lock()
_inside = 0  # threads of this process that want numpy to keep to one core
_limit: Any = None


@contextmanager
def one_core() -> Iterator[None]:
    """numpy's products take one core in it; those of the whole process, as OpenBLAS knows no other way."""
    global _inside, _limit
    with _lock:
        _inside += 1
        if _inside == 1:
            _limit = _blas().limit(limits=1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limit.restore_original_limits()


@contextmanager
def cores_for(multiply_adds: float) -> Iterator[None]:
    """torch's products of this thread take one core in it if they are small."""
    import torch

    before = torch.get_num_threads()
    if multiply_adds > SMALL or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def faiss_cores_for(multiply_adds: float) -> Iterator[None]:
    """FAISS' scans of this thread take one core in it if they are small: two halves wait for the later one, which on a
    busy machine is ten times the whole."""
    import faiss

    before = faiss.omp_get_max_threads()
    if multiply_adds > SMALL_SCAN or before == 1:
        yield
        return
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")
