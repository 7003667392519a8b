"""Large products of float32 rows by the quickest library at hand: oneDNN on a CPU that MKL uses half of, else torch's.

MKL, which torch hands float32 products to, uses half the width of an AMD CPU that has AVX-512; oneDNN uses all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .threads import SMALL

if TYPE_CHECKING:
    import torch


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(n, m) inner products of (n, dim) with (m, dim) rows, float32, wherever they are."""
    import torch

    if len(left) * right.numel() <= SMALL or not _packable(left, right):
        return left @ right.T
    # Laying out the rows anew is a pass over them, which a large product makes up for many times.
    packed = torch.ops.mkldnn._reorder_linear_weight(right.contiguous(), None)
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, packed, None, "none", [], "")
    return found


def _packable(*rows: torch.Tensor) -> bool:
    import torch

    onednn, mkl = torch.backends.mkldnn.is_available(), torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if not (onednn and mkl and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False  # without MKL it is no x86 CPU, and products there go another way
    return all(some.device.type == "cpu" and some.dtype is torch.float32 and not some.requires_grad for some in rows)
