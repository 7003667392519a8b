"""Limits on threads: for a small product, waking threads costs more than it saves and delays other work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

SMALL = 2**24  # multiply-adds of a product, one or two milliseconds on one core
SMALL_SCAN = 2**27  # multiply-adds of a FAISS scan, about ten milliseconds on one core

_lock = threading.Lock()
_inside = 0  # number of threads of this process inside `one_core`
_limit: Any = None


@contextmanager
def one_core() -> Iterator[None]:
    """Limit numpy's products to one core; OpenBLAS can only do so for the whole process."""
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
    """Limit torch's products in this thread to one core if they are small."""
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
    """Limit FAISS's scans in this thread to one core if they are small.

    Split in two, a small scan waits for the slower half, which on a busy machine takes ten times as long as the whole.
    """
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
