"""Linear layers for a CPU, their weights laid out once as oneDNN wants them: the same numbers, up to twice as fast.

torch hands float32 products to MKL, which uses half the width of an AMD CPU that has AVX-512; oneDNN, which torch
brings too, uses all of it. bf16 goes to oneDNN already, which then need not lay out the weights at every product.
"""

from __future__ import annotations

from typing import Any

import torch


class OneDnnLinear(torch.nn.Module):
    """A `torch.nn.Linear` for inference on this CPU. Its weights can be neither trained nor moved."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = linear.bias

    @property
    def weight(self) -> torch.Tensor:
        """(out, in) as they were; some models ask for them or for their type."""
        plain: torch.Tensor = self.packed.to_dense()
        return plain

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return product


def use_onednn_linear(model: Any) -> None:
    """Replace the model's linear layers by packed ones, where this CPU and this torch have them."""
    for name, layer in model.named_children():
        # a subclass may be there for its weights to be read, not for its product to be called
        if type(layer) is not torch.nn.Linear:
            use_onednn_linear(layer)
        elif packable(layer.weight):
            setattr(model, name, OneDnnLinear(layer))


def use_plain_linear(model: Any) -> None:
    """Put plain layers in the packed ones' places, for compilers that know only these."""
    for name, layer in model.named_children():
        if not isinstance(layer, OneDnnLinear):
            use_plain_linear(layer)
            continue
        weight = layer.weight
        plain = torch.nn.Linear(weight.shape[1], weight.shape[0], layer.bias is not None, dtype=weight.dtype)
        plain.weight = torch.nn.Parameter(weight, requires_grad=False)
        plain.bias = layer.bias
        setattr(model, name, plain)


def packable(weight: torch.Tensor) -> bool:
    """True if oneDNN can multiply with these weights here."""
    onednn, mkl = torch.backends.mkldnn.is_available(), torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if not (onednn and mkl):  # without MKL it is no x86 CPU, and products there go another way
        return False
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype is torch.float32
