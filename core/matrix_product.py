"""Large matrix products in float32, with oneDNN where it is faster than torch's default.

For float32 products torch calls MKL, which uses only half the vector width of an AMD CPU with AVX-512; oneDNN uses all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .threads import SMALL

if TYPE_CHECKING:
    import torch


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(n, m) inner products of (n, dim) and (m, dim) rows, float32, on any device."""
    import torch

    if len(left) * right.numel() <= SMALL or not _packable(left, right):
        return left @ right.T
    # Reordering the rows is one pass over them, which a large product makes up for many times.
    packed = torch.ops.mkldnn._reorder_linear_weight(right.contiguous(), None)
    inner_products: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, packed, None, "none", [], "")
    return inner_products


def _packable(*tensors: torch.Tensor) -> bool:
    """True if oneDNN can multiply these tensors, on an x86 CPU."""
    import torch

    onednn, mkl = torch.backends.mkldnn.is_available(), torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if not (onednn and mkl and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False  # without MKL it is not an x86 CPU, and torch uses another library
    return all(t.device.type == "cpu" and t.dtype is torch.float32 and not t.requires_grad for t in tensors)
