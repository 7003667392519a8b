"""Depth as a vector: the depth map of a monocular depth model, small and of zero mean.

Liang et al. (2023), cited by the source paper, guide a triplet head by depth: generated scenes have implausible ones.
A column of these vectors beside CLIP's, with triplets matched by content, is that idea from stored vectors alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import EncoderError
from ...store.space import Space
from ..decoding.image import Pixels
from .base import Embeddings, Encoder, unit
from .checkpoint import fingerprint_of, open_checkpoint
from .encoder_name import DEPTH, cannot_load
from .onednn_linear import use_onednn_linear
from .preprocess import Preprocess
from .torch_encoder import choose_device
from .vision_backbone import load_model

SIDE = 16  # of the map that becomes the vector
IMAGES = 8  # that the model sees at once


class DepthEncoder(Encoder):
    """A depth model of `transformers` whose map, averaged to 16 x 16 and standardised, is the vector (256-d)."""

    def __init__(self, name: str, model: Any, preprocess: Preprocess, device: torch.device) -> None:
        self._space = Space(name, fingerprint_of(model.state_dict(), preprocess), SIDE * SIDE)
        self.preprocess: Preprocess = preprocess
        self.device: torch.device = device
        self.model = model.to(device).eval()
        if device.type == "cpu":
            use_onednn_linear(self.model)

    def shrink(self, pixels: Pixels) -> Pixels:
        return self.preprocess.shrink(pixels)

    @torch.inference_mode()
    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        maps = [np.zeros((0, SIDE * SIDE), np.float32)]
        for start in range(0, len(images), IMAGES):
            pixels = self.preprocess(images[start : start + IMAGES], self.device, torch.float32, None)
            depth = self.model(pixel_values=pixels).predicted_depth  # (n, height, width)
            small = torch.nn.functional.adaptive_avg_pool2d(depth[:, None].float(), SIDE).flatten(1)
            maps.append((small - small.mean(1, keepdim=True)).cpu().numpy())
        found = np.concatenate(maps)
        flat = np.abs(found).max(axis=1, initial=0) < 1e-6
        found[flat, 0] = 1e-3  # a flat map says nothing, and a zero vector cannot be stored
        return unit(found)


def load_depth_encoder(name: str, *, device: str = "auto") -> DepthEncoder:
    """ "depth:NAME" for a hub id or directory that AutoModelForDepthEstimation loads; raises EncoderError."""
    place = name.removeprefix(DEPTH)
    try:
        checkpoint = open_checkpoint(place)
        model = load_model(checkpoint.folder, "AutoModelForDepthEstimation")
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, EncoderError) as e:
        raise cannot_load(f"the depth model {place}", e) from e
    if Path(place).is_dir():
        place = str(checkpoint.folder)
    return DepthEncoder(f"{DEPTH}{place}", model, checkpoint.preprocess, choose_device(device))
