"""A vision model that returns its features and what views need of its blocks, in one forward pass."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ...errors import EncoderError
from ..encoders.clip_vision import ClipVision
from .block_outputs import BlockOutputs
from .kinds import LAYERS, POOLED, TOKENS
from .whitening import Whitening

FROM_BLOCKS = (LAYERS, TOKENS)  # views made of the outputs of blocks


@dataclass(frozen=True)
class PatchGrid:
    """Grid of the patches in the view `tokens`."""

    rows: int = 0
    columns: int = 0
    channels: tuple[int, ...] = ()  # of each block, before they are whitened


class ViewModel(nn.Module):
    """Maps (n, 3, height, width) preprocessed pixels to (n, width) values: features, then one part for each view.

    Parameters
    ----------
    model : vision model that maps the pixels to (n, dim) features
    views : kind of each view from within the model -> its whitening; without one, the values are what it is fitted to
    image : (1, 3, height, width) preprocessed pixels, to find the blocks
    """

    def __init__(self, model: nn.Module, views: Mapping[str, Whitening | None], image: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        self.grid = PatchGrid()  # of the view `tokens`, known after the first pass
        self._views = tuple(views)
        self._pass = threading.Lock()  # the outputs below are those of one pass
        self._active = False  # in a pass; the model may belong to other encoders too
        self._pooled: dict[int, torch.Tensor] = {}  # by position of the block
        self._patches: dict[int, torch.Tensor] = {}
        self._projected: torch.Tensor | None = None  # input of CLIP's projection
        self._blocks: BlockOutputs | None = None
        if set(views) & set(FROM_BLOCKS):
            self._blocks = BlockOutputs.of(model, image)
            self._blocks.hook(self._keep_block)
        if POOLED in views:
            if not isinstance(model, ClipVision):
                raise EncoderError(
                    "the view pooled needs a CLIP encoder, whose last step is a projection; leave it out"
                )
            model.visual_projection.register_forward_pre_hook(self._keep_projected)
        # plain attributes, not buffers: they stay in float32 if the model is converted to another type
        self._maps = {
            kind: tuple(torch.from_numpy(np.array(part)).to(image.device) for part in (fitted.mean, fitted.components))
            for kind, fitted in views.items()
            if fitted is not None
        }

    def _keep_block(self, position: int, output: torch.Tensor) -> None:
        """Keep what the views need of a block's output, while it is in the cache."""
        if not self._active or self._blocks is None:
            return
        if LAYERS in self._views:
            self._pooled[position] = self._blocks.pooled(position, output)
        if TOKENS in self._views and position in self._blocks.patch_positions:
            self._patches[position] = output

    def _keep_projected(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if self._active:
            self._projected = inputs[0]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.parts(pixels), 1)

    def parts(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """(n, values) float32 features, and those of each view."""
        with self._pass:
            self._active = True
            try:
                features = self.model(pixels).float()
                return [features, *(self._view(kind) for kind in self._views)]
            finally:
                self._active = False
                self._pooled.clear()
                self._patches.clear()
                self._projected = None

    def _view(self, kind: str) -> torch.Tensor:
        if kind == POOLED:
            assert self._projected is not None
            return self._projected.float()
        if kind == LAYERS:
            return self._whitened(kind, torch.cat([self._pooled[position] for position in sorted(self._pooled)], 1))
        assert self._blocks
        blocks = self._blocks.patches(self._patches)
        rows, columns = blocks[0].shape[2:]
        self.grid = PatchGrid(int(rows), int(columns), tuple(block.shape[1] for block in blocks))
        patches = torch.cat(blocks, 1).flatten(2).transpose(1, 2)  # (n, patches, channels)
        return self._whitened(kind, patches).flatten(1)

    def _whitened(self, kind: str, values: torch.Tensor) -> torch.Tensor:
        if kind not in self._maps:
            return values
        mean, components = self._maps[kind]
        return (values - mean) @ components
