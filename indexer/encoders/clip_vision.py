"""CLIP's vision model, built from a checkpoint's weights without `transformers`.

Its features equal those of `transformers.CLIPModel` with a fifteenth less work: CLIP uses only the class token of the
last layer, so that layer is computed for no other token. Loading takes a fraction of the time and memory: the text
model stays on disk, and `transformers` takes longer to import than the weights take to load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention, silu

from ...errors import EncoderError
from .checkpoint_rules.weight_names import WeightNames

MAX_LAYERS, MAX_SIZE = 1000, 1 << 16  # limit the memory that an untrusted config.json can make us allocate
VISION_PREFIXES = ("vision_model.", "visual_projection.")  # of weight names; the others belong to the text model
TEXT_NAMES = ("text_model.", "text_projection.", "logit_scale")
MODULES = ("vision_model", "visual_projection", "text_model", "text_projection", "logit_scale")  # of a `CLIPModel`

QUICK_GELU = 1.702  # quick_gelu(x) = x * sigmoid(1.702 x), which is silu(1.702 x) / 1.702


def _silu_in_place(values: torch.Tensor) -> torch.Tensor:
    return silu(values, inplace=True)


# quick_gelu runs as one kernel instead of three: `fold_quick_gelu` moves its factor into the adjacent weights
ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {"quick_gelu": _silu_in_place, "gelu": gelu}


@dataclass(frozen=True)
class VisionConfig:
    """Dimensions of a CLIP vision model; the defaults are those of ViT-B/32."""

    width: int = 768
    hidden: int = 3072  # width of the MLPs' hidden layer
    layers: int = 12
    heads: int = 12
    side: int = 224  # pixels of a (square) image
    patch: int = 32  # pixels of a (square) patch
    channels: int = 3
    dim: int = 512  # of the embedding
    activation: str = "quick_gelu"
    epsilon: float = 1e-5  # of the layer norms

    def __post_init__(self) -> None:
        sizes = (self.width, self.hidden, self.heads, self.side, self.patch, self.channels, self.dim)
        valid = all(isinstance(size, int) and 1 <= size <= MAX_SIZE for size in (*sizes, self.layers))
        if not valid or self.layers > MAX_LAYERS or self.width % self.heads or not self.epsilon > 0:
            raise EncoderError(
                f"config.json has invalid sizes for a CLIP vision model: {self}; sizes must be integers from 1 to "
                f"{MAX_SIZE}, at most {MAX_LAYERS} layers, the width a multiple of the heads and epsilon positive"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VisionConfig:
        """Parse the `config.json` of a CLIP model, whole or vision model only, with CLIP's defaults for missing fields.

        Raises EncoderError if a size is invalid or the activation is not supported.

        >>> VisionConfig.from_config({"vision_config": {"patch_size": 16}}).patch
        16
        """
        fields = config
        if config.get("model_type") != "clip_vision_model":
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
        parsed = cls(
            **{name: fields[key] for name, key in names.items() if key in fields},
            dim=config.get("projection_dim", cls.dim),
        )
        if parsed.activation not in ACTIVATIONS:
            raise EncoderError(
                f"config.json has the activation {parsed.activation}; supported are {', '.join(ACTIVATIONS)}"
            )
        return parsed

    @property
    def patches(self) -> int:
        return (self.side // self.patch) ** 2


class ClipVision(nn.Module):
    """Maps (n, 3, side, side) preprocessed pixels to (n, dim) features, not normalised.

    The parameters are named as in a checkpoint of `CLIPModel`.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = _Vision(config)
        self.visual_projection = nn.Linear(config.width, config.dim, bias=False)

    @classmethod
    def from_weights(cls, config: VisionConfig, weights: Mapping[str, torch.Tensor], saved_as: str = "") -> ClipVision:
        """Build the model in float32 from a checkpoint's weights; raises EncoderError if they do not match `config`.

        `saved_as` is the class that the checkpoint was saved from, if that need not have all weights.
        """
        with torch.device("meta"):
            model = cls(config)
        state = {name: weight.float() for name, weight in weights.items() if name.startswith(VISION_PREFIXES)}
        state.pop("vision_model.embeddings.position_ids", None)  # in older checkpoints: 0, 1, 2, ...
        _require_match(model.state_dict(), weights, saved_as)
        if config.activation == "quick_gelu":
            fold_quick_gelu(state)
        model.load_state_dict(state, assign=True)
        return model.requires_grad_(False).eval()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.visual_projection(self.vision_model(pixels))
        return features


def _require_match(expected: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], saved_as: str) -> None:
    """Raise EncoderError if vision weights are missing, left over, of another shape or quantised."""
    shapes = {name: (tuple(weights[name].shape), tuple(expected[name].shape)) for name in expected if name in weights}
    names = WeightNames(
        missing=[name for name in expected if name not in weights],
        unexpected=[name for name in weights if name not in expected and not name.startswith(TEXT_NAMES)],
        mismatched={name: (found, wanted) for name, (found, wanted) in shapes.items() if found != wanted},
        saved_as=saved_as,
    )
    problem = names.problem(MODULES)
    quantised = [name for name in shapes if not weights[name].is_floating_point()]
    if quantised:
        problem = f"{quantised[0]} and {len(quantised) - 1} more are stored as {weights[quantised[0]].dtype}"
    if problem:
        raise EncoderError(f"the weights do not match the config.json next to them: {problem}")


def fold_quick_gelu(weights: dict[str, torch.Tensor]) -> None:
    """Scale the weights of each MLP so that `silu` between its layers computes quick_gelu. Replaces the tensors.

    In float32 the features agree with those of quick_gelu to a cosine of 1.000000, so the embedding space is the same.
    """
    for name, weight in weights.items():
        if name.endswith((".mlp.fc1.weight", ".mlp.fc1.bias")):
            weights[name] = weight * QUICK_GELU
        elif name.endswith(".mlp.fc2.weight"):
            weights[name] = weight / QUICK_GELU


class _Vision(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width, config.epsilon)  # the spelling of checkpoints
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.post_layernorm = nn.LayerNorm(config.width, config.epsilon)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the class token, (n, width)."""
        *layers, last = self.encoder.layers  # type: ignore[misc]
        tokens = self.pre_layrnorm(self.embeddings(pixels))
        for layer in layers:
            tokens = layer(tokens, tokens)
        class_token: torch.Tensor = self.post_layernorm(last(tokens, tokens[:, :1])[:, 0])
        return class_token


class _Embeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(config.width))
        self.patch_embedding = nn.Conv2d(config.channels, config.width, config.patch, config.patch, bias=False)
        self.position_embedding = _Weight(config.patches + 1, config.width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (n, 1 + patches, width) tokens, the class token first."""
        patches = self._patches(pixels)
        class_token = self.class_embedding.expand(pixels.shape[0], 1, -1)  # tracing would make len() a constant
        tokens: torch.Tensor = torch.cat([class_token, patches], 1) + self.position_embedding()
        return tokens

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed the patches, (n, patches, width), by one matrix product of the flattened patches.

        cuDNN's convolution of three channels took 8.4 of 36 ms per 1,024 images of ViT-B/32 on an H100, and rounds
        float32 to TF32. In float32 on a CPU, the convolution is kept: it is as fast there, and OpenVINO's int8 leaves
        it unquantised.
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
    """A single weight. Unlike `nn.Embedding`, it has no random initialisation, for which torch imports its compiler."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))

    def forward(self) -> torch.Tensor:
        return self.weight


class _Layer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.layer_norm1 = nn.LayerNorm(config.width, config.epsilon)
        self.mlp = _Mlp(config)
        self.layer_norm2 = nn.LayerNorm(config.width, config.epsilon)

    def forward(self, tokens: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """Update the query tokens, which are the first of `tokens`, by attention to all `tokens`."""
        normed = self.layer_norm1(tokens)
        normed_queries = normed if queries is tokens else normed[:, : queries.shape[1]]
        queries = queries + self.self_attn(normed_queries, normed)
        output: torch.Tensor = queries + self.mlp(self.layer_norm2(queries))
        return output


class _Attention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.q_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, queries: torch.Tensor, keys_values: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(queries), self.k_proj(keys_values), self.v_proj(keys_values))
        )
        attended = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        output: torch.Tensor = self.out_proj(attended)
        return output


class _Mlp(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.fc1 = nn.Linear(config.width, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.fc2(self.activation(self.fc1(tokens)))
        return output
