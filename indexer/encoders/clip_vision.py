"""CLIP's image tower for embeddings alone, made from a checkpoint's weights without `transformers`.

The numbers are those of `transformers.CLIPModel`, for a fifteenth less work: CLIP reads one vector off its last layer,
the class token's, so that layer is not computed for any other token. It is there in a fraction of the time and memory:
the text tower stays on disk, and `transformers` takes longer to import than the weights take to load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention, silu

from ...errors import EncoderError

LAYERS, LARGEST = 1000, 1 << 16  # of a tower: sizes of a config.json are what memory is taken by
PARTS = ("vision_model.", "visual_projection.")  # of a checkpoint's names; its others are the text tower's


QUICK_GELU = 1.702  # quick_gelu(x) = x * sigmoid(1.702 x), which is silu(1.702 x) / 1.702


def _silu_in_place(values: torch.Tensor) -> torch.Tensor:
    return silu(values, inplace=True)


# quick_gelu is one kernel instead of three: `fold_quick_gelu` moves its factor into the weights on either side
ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {"quick_gelu": _silu_in_place, "gelu": gelu}


@dataclass(frozen=True)
class VisionConfig:
    """An image tower's dimensions, by default those of ViT-B/32."""

    width: int = 768
    hidden: int = 3072  # of the two-layer perceptrons
    layers: int = 12
    heads: int = 12
    side: int = 224  # of the images, pixels
    patch: int = 32
    channels: int = 3
    dim: int = 512  # of the embedding
    activation: str = "quick_gelu"
    epsilon: float = 1e-5  # of the layer norms

    def __post_init__(self) -> None:
        sizes = (self.width, self.hidden, self.heads, self.side, self.patch, self.channels, self.dim)
        whole = all(isinstance(size, int) and 1 <= size <= LARGEST for size in (*sizes, self.layers))
        if not whole or self.layers > LAYERS or self.width % self.heads or not self.epsilon > 0:
            raise EncoderError(f"no CLIP is of these sizes: {self}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VisionConfig:
        """Parse the `config.json` of a `CLIPModel`, with CLIP's defaults for missing fields; raises EncoderError.

        >>> VisionConfig.from_config({"vision_config": {"patch_size": 16}}).patch
        16
        """
        fields = {**(config.get("vision_config") or {}), **(config.get("vision_config_dict") or {})}
        names = {
            "width": "hidden_size",
            "hidden": "intermediate_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "side": "image_size",
            "patch": "patch_size",
            "channels": "num_channels",
            "activation": "hidden_act",
            "epsilon": "layer_norm_eps",
        }
        shape = cls(
            **{name: fields[key] for name, key in names.items() if key in fields},
            dim=config.get("projection_dim", cls.dim),
        )
        if shape.activation not in ACTIVATIONS:
            raise EncoderError(f"this CLIP's activation is {shape.activation}; known are {', '.join(ACTIVATIONS)}")
        return shape

    @property
    def patches(self) -> int:
        return (self.side // self.patch) ** 2


class ClipVision(nn.Module):
    """(n, 3, side, side) preprocessed pixels to (n, dim) features, not of unit length.

    Its parameters have the names of a checkpoint of `CLIPModel`.
    """

    def __init__(self, shape: VisionConfig) -> None:
        super().__init__()
        self.shape = shape
        self.vision_model = _Vision(shape)
        self.visual_projection = nn.Linear(shape.width, shape.dim, bias=False)

    @classmethod
    def of(cls, shape: VisionConfig, weights: Mapping[str, torch.Tensor]) -> ClipVision:
        """Build the model with these weights, in float32; raises EncoderError where they do not fit."""
        with torch.device("meta"):
            tower = cls(shape)
        own = {name: weight.float() for name, weight in weights.items() if name.startswith(PARTS)}
        own.pop("vision_model.embeddings.position_ids", None)  # older checkpoints number their places
        if shape.activation == "quick_gelu":
            fold_quick_gelu(own)
        try:
            tower.load_state_dict(own, assign=True)
        except RuntimeError as e:
            raise EncoderError(f"the weights are not those of the config.json beside them: {e}") from e
        return tower.requires_grad_(False).eval()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.visual_projection(self.vision_model(pixels))
        return features


def fold_quick_gelu(weights: dict[str, torch.Tensor]) -> None:
    """Scale the weights of each MLP so that `silu` between its layers computes quick_gelu. Tensors are replaced.

    Float32 weights and the result agree with quick_gelu to a cosine of 1.000000; no vector in a store changes space.
    """
    for name, weight in weights.items():
        if name.endswith((".mlp.fc1.weight", ".mlp.fc1.bias")):
            weights[name] = weight * QUICK_GELU
        elif name.endswith(".mlp.fc2.weight"):
            weights[name] = weight / QUICK_GELU


class _Vision(nn.Module):
    def __init__(self, shape: VisionConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(shape)
        self.pre_layrnorm = nn.LayerNorm(shape.width, shape.epsilon)  # spelt as in checkpoints
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.post_layernorm = nn.LayerNorm(shape.width, shape.epsilon)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, width): the class token."""
        *layers, last = self.encoder.layers  # type: ignore[misc]
        tokens = self.pre_layrnorm(self.embeddings(pixels))
        for layer in layers:
            tokens = layer(tokens, tokens)
        found: torch.Tensor = self.post_layernorm(last(tokens, tokens[:, :1])[:, 0])
        return found


class _Embeddings(nn.Module):
    def __init__(self, shape: VisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(shape.width))
        self.patch_embedding = nn.Conv2d(shape.channels, shape.width, shape.patch, shape.patch, bias=False)
        self.position_embedding = _Weight(shape.patches + 1, shape.width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 1 + patches, width): the class token first."""
        patches = self._patches(pixels)
        first = self.class_embedding.expand(pixels.shape[0], 1, -1)  # not len(): a tracer takes that for a constant
        tokens: torch.Tensor = torch.cat([first, patches], 1) + self.position_embedding()
        return tokens

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, patches, width).

        A product of flattened patches: cuDNN's convolution of three channels took 8.4 of 36 ms per 1,024 images of
        ViT-B/32 on an H100, and rounds float32 to TF32. Float32 on a CPU keeps the convolution, which is as fast there
        and which OpenVINO's int8 leaves unrounded.
        """
        convolution = self.patch_embedding
        if pixels.device.type == "cpu" and pixels.dtype is torch.float32:
            return convolution(pixels).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]
        n, channels, height, width = pixels.shape
        side = convolution.kernel_size[0]
        down, across = height // side, width // side
        pixels = pixels[:, :, : down * side, : across * side]
        rows = pixels.reshape(n, channels, down, side, across, side).permute(0, 2, 4, 1, 3, 5)
        return linear(rows.reshape(n, -1, channels * side * side), convolution.weight.flatten(1))


class _Weight(nn.Module):
    """One weight as it is. (An `nn.Embedding` draws its own, for which torch imports its compiler.)"""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))

    def forward(self) -> torch.Tensor:
        return self.weight


class _Layer(nn.Module):
    def __init__(self, shape: VisionConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(shape)
        self.layer_norm1 = nn.LayerNorm(shape.width, shape.epsilon)
        self.mlp = _Mlp(shape)
        self.layer_norm2 = nn.LayerNorm(shape.width, shape.epsilon)

    def forward(self, tokens: torch.Tensor, asking: torch.Tensor) -> torch.Tensor:
        """Attend from the query tokens, the first of all `tokens`, to all tokens."""
        known = self.layer_norm1(tokens)
        asking = asking + self.self_attn(known, known if asking is tokens else known[:, : asking.shape[1]])
        through: torch.Tensor = asking + self.mlp(self.layer_norm2(asking))
        return through


class _Attention(nn.Module):
    def __init__(self, shape: VisionConfig) -> None:
        super().__init__()
        self.heads = shape.heads
        self.k_proj = nn.Linear(shape.width, shape.width)
        self.v_proj = nn.Linear(shape.width, shape.width)
        self.q_proj = nn.Linear(shape.width, shape.width)
        self.out_proj = nn.Linear(shape.width, shape.width)

    def forward(self, known: torch.Tensor, asking: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(asking), self.k_proj(known), self.v_proj(known))
        )
        mixed = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        found: torch.Tensor = self.out_proj(mixed)
        return found


class _Mlp(nn.Module):
    def __init__(self, shape: VisionConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[shape.activation]
        self.fc1 = nn.Linear(shape.width, shape.hidden)
        self.fc2 = nn.Linear(shape.hidden, shape.width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc2(self.activation(self.fc1(tokens)))
        return found
