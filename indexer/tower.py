"""CLIP's image tower for embeddings alone: the same weights and numbers, a fifteenth less work.

CLIP reads one vector off its last layer, the class token's; that layer need not be computed for any other token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention


class ClipTower(torch.nn.Module):
    """(n, 3, height, width) pixels to (n, dim) features, from a `CLIPModel`, which keeps its weights."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model  # not its parts: layers of it may be replaced by packed ones

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        vision = self.model.vision_model
        *layers, last = vision.encoder.layers
        hidden = vision.pre_layrnorm(vision.embeddings(pixels))
        for layer in layers:
            hidden = _through(layer, hidden, hidden)
        hidden = _through(last, hidden, hidden[:, :1])
        features: torch.Tensor = self.model.visual_projection(vision.post_layernorm(hidden[:, 0]))
        return features


def _through(layer: Any, hidden: torch.Tensor, asking: torch.Tensor) -> torch.Tensor:
    """A transformer layer for the tokens that ask, over all tokens."""
    attention = layer.self_attn
    known = layer.layer_norm1(hidden)
    wanted = known if asking is hidden else known[:, : asking.shape[1]]
    query, key, value = (
        projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for projected in (attention.q_proj(wanted), attention.k_proj(known), attention.v_proj(known))
    )
    mixed = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    asking = asking + attention.out_proj(mixed)
    through: torch.Tensor = asking + layer.mlp(layer.layer_norm2(asking))
    return through
