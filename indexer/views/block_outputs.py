"""Outputs of the blocks of a vision model, collected while it computes its features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.hooks import RemovableHandle

from ...errors import EncoderError
from ..encoders.clip_vision import ClipVision

PATCH_DEPTHS = (0.28, 0.84)  # depths of the blocks whose patches are kept; those of the last block see the whole image
GRID = 8  # patches a side, at most


@dataclass(frozen=True)
class EncoderBlock:
    """A block of a vision model, and the layout of its output."""

    module: nn.Module
    layout: str  # "tokens": (n, tokens, channels); "map": (n, channels, height, width); "map, channels last"


@dataclass(frozen=True)
class BlockOutputs:
    """The blocks of a vision model, found once by a forward pass of an image."""

    blocks: tuple[EncoderBlock, ...]
    prefix: int  # tokens before those of the patches: the class token and registers; 0 without a class token

    @classmethod
    def of(cls, model: nn.Module, image: torch.Tensor) -> BlockOutputs:
        """Find the blocks: the longest run of modules of one class, called one after another.

        Parameters
        ----------
        image : (1, 3, height, width) preprocessed pixels

        Raises
        ------
        EncoderError
            The model has no such run, or its blocks do not return tokens or feature maps.
        """
        runs = [children for children in _runs(model) if len(children) > 1]
        called: dict[int, torch.Tensor] = {}
        handles = [_hook(child, partial(called.__setitem__, id(child))) for children in runs for child in children]
        try:
            with torch.inference_mode():
                model(image)
        finally:
            for handle in handles:
                handle.remove()
        runs = [children for children in runs if all(id(child) in called for child in children)]
        if not runs:
            raise EncoderError(f"{type(model).__name__} has no blocks of one class, so it has no views of its layers")
        longest = max(runs, key=_parameters)
        blocks = tuple(EncoderBlock(child, _layout(called[id(child)], model)) for child in longest)
        return cls(blocks, prefix_tokens(model))

    def pooled(self, position: int, output: torch.Tensor) -> torch.Tensor:
        """(n, values) float32 statistics of the output of the block at a position.

        Of tokens: the class token and the mean of the patches. Without a class token, and of feature maps: mean and
        standard deviation over the positions, by channel.
        """
        layout, values = self.blocks[position].layout, output.float()
        if layout == "map":
            return _mean_and_deviation(values.flatten(2), 2)
        if layout != "tokens" or not self.prefix:
            return _mean_and_deviation(values.flatten(1, -2), 1)
        if values.shape[1] <= self.prefix:  # the last block of CLIP returns the class token only
            return values[:, 0]
        return torch.cat([values[:, 0], values[:, self.prefix :].mean(1)], 1)

    @property
    def patch_positions(self) -> tuple[int, ...]:
        """Positions of the two blocks whose patches are kept; never the last, which in CLIP returns none."""
        last = len(self.blocks) - 1
        return tuple(min(round(depth * last), last - 1) for depth in PATCH_DEPTHS)

    def patches(self, outputs: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
        """(n, channels, rows, columns) float32 features of patches, of an early and of a late block.

        `outputs` holds the outputs of the blocks at `patch_positions`.

        The grid is the late block's, averaged to at most `GRID` a side. Where the early block has a finer feature map,
        its channels are followed by their standard deviations within each patch.
        """
        early, late = (self._map(position, outputs[position]) for position in self.patch_positions)
        height, width = int(late.shape[2]), int(late.shape[3])  # tensors while OpenVINO traces the model
        grid = height // -(-height // GRID), width // -(-width // GRID)
        means = [adaptive_avg_pool2d(values, grid) for values in (early, late)]
        if int(early.shape[2]) >= 2 * grid[0] and int(early.shape[2]) > height:
            variance = adaptive_avg_pool2d(early.square(), grid) - means[0].square()
            means[0] = torch.cat([means[0], variance.clamp(min=0).sqrt()], 1)
        return means

    def _map(self, position: int, output: torch.Tensor) -> torch.Tensor:
        """(n, channels, rows, columns) float32 output of a block, without class token and registers."""
        output, layout = output.float(), self.blocks[position].layout
        if layout != "tokens":
            return output if layout == "map" else output.permute(0, 3, 1, 2)
        patches = output[:, self.prefix :].transpose(1, 2)
        number = int(patches.shape[2])
        side = round(number**0.5)
        if side < 1 or side * side != number:
            raise EncoderError(f"the encoder has {number} patches, no square grid; leave out the view tokens")
        return patches.reshape(*patches.shape[:2], side, side)

    def hook(self, keep: Callable[[int, torch.Tensor], None]) -> None:
        """Call `keep` with the position and the output of each block, in every forward pass from now on."""
        for position, block in enumerate(self.blocks):
            _hook(block.module, partial(keep, position))


def prefix_tokens(model: nn.Module) -> int:
    """Return the number of tokens before those of the patches: the class token and registers."""
    for module in model.modules():
        number = getattr(module, "num_prefix_tokens", None)  # of timm
        if isinstance(number, int):
            return number
    inner = getattr(model, "model", None)
    registers = getattr(getattr(inner, "config", None), "num_register_tokens", 0) or 0
    has_class_token = isinstance(model, ClipVision) or bool(getattr(model, "has_class_token", False))
    return int(registers) + 1 if has_class_token else 0


def _mean_and_deviation(values: torch.Tensor, positions: int) -> torch.Tensor:
    """(n, 2 channels) mean and standard deviation over one axis.

    From the sum of squares: `torch.var_mean` takes eight times as long on a CPU, as long as the model itself.
    """
    mean = values.mean(positions)
    mean_square = torch.linalg.vector_norm(values, dim=positions).square() / values.shape[positions]
    return torch.cat([mean, (mean_square - mean.square()).clamp(min=0).sqrt()], 1)


def _runs(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Yield the children of each outermost list of modules of one class."""
    for child in model.children():
        members = list(child.children())
        if isinstance(child, nn.ModuleList | nn.Sequential) and len({type(member) for member in members}) == 1:
            yield members
        else:
            yield from _runs(child)


def _parameters(modules: list[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _hook(module: nn.Module, keep: Callable[[torch.Tensor], None]) -> RemovableHandle:
    """Call `keep` with the output of a module whenever it is called."""
    return module.register_forward_hook(
        lambda module, inputs, output: keep(output[0] if isinstance(output, tuple | list) else output)
    )


def _layout(output: Any, model: nn.Module) -> str:
    """Return the layout of a block's output; raises EncoderError if it is neither tokens nor a feature map."""
    shape = tuple(getattr(output, "shape", ()))
    if len(shape) == 4 and shape[1] == shape[2] != shape[3]:
        return "map, channels last"
    if len(shape) not in (3, 4):
        raise EncoderError(f"the blocks of {type(model).__name__} return {shape or type(output).__name__}, no features")
    return "tokens" if len(shape) == 3 else "map"
