"""Linear layers with weights prepacked for oneDNN on a CPU: the same results, up to twice as fast.

torch computes float32 products with MKL, which uses half the vector width of an AMD CPU with AVX-512; oneDNN, which is
also part of torch, uses all of it. bf16 products run in oneDNN anyway, and prepacking saves reordering at every call.
"""

from __future__ import annotations

from typing import Any

import torch


class OneDnnLinear(torch.nn.Module):
    """A `torch.nn.Linear` for inference on this CPU. Its weights cannot be trained or moved to another device."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = linear.bias

    @property
    def weight(self) -> torch.Tensor:
        """(out, in) weights in their plain layout, for models that read them or their dtype."""
        weight: torch.Tensor = self.packed.to_dense()
        return weight

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return output


def use_onednn_linear(model: Any) -> None:
    """Replace the model's linear layers with packed ones if this CPU and this torch support them."""
    for name, layer in model.named_children():
        # a subclass may exist so that its weights are read by another module, and its `forward` never called
        if type(layer) is not torch.nn.Linear:
            use_onednn_linear(layer)
        elif packable(layer.weight):
            setattr(model, name, OneDnnLinear(layer))


def use_plain_linear(model: Any) -> None:
    """Replace packed layers with plain ones, for compilers that support only those."""
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
    """True if these weights can be packed for oneDNN on this machine."""
    onednn, mkl = torch.backends.mkldnn.is_available(), torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if not (onednn and mkl):  # without MKL, this is no x86 CPU and torch uses another library
        return False
    if weight.device.type != "cpu" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype is torch.float32
