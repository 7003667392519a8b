"""Depth encoder: the map of a monocular depth model, reduced to 16 x 16 and centred, as a vector.

Liang et al. (2023), cited by the source paper, guide a triplet head by depth, because generated scenes have implausible
depth. Storing these vectors next to CLIP's, with triplets matched by content, applies that idea to stored vectors.
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
from .checkpoint import fingerprint_of, open_checkpoint, require_finite
from .encoder_name import DEPTH, load_error
from .onednn_linear import use_onednn_linear
from .preprocess import Preprocess
from .torch_encoder import choose_device
from .vision_backbone import load_model, probe

MAP_SIDE = 16  # pixels of the reduced depth map
BATCH_SIZE = 8  # images per call of the model


class DepthEncoder(Encoder):
    """Encodes an image as its depth map, averaged to 16 x 16, centred and scaled to unit length (256-d)."""

    def __init__(self, name: str, model: Any, preprocess: Preprocess, device: torch.device) -> None:
        self._space = Space(name, fingerprint_of(model.state_dict(), preprocess), MAP_SIDE * MAP_SIDE)
        self.preprocess: Preprocess = preprocess
        self.device: torch.device = device
        self.model = model.to(device).eval()
        if device.type == "cpu":
            use_onednn_linear(self.model)

    def shrink(self, pixels: Pixels) -> Pixels:
        return self.preprocess.shrink(pixels)

    @torch.inference_mode()
    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        maps = [np.zeros((0, MAP_SIDE * MAP_SIDE), np.float32)]
        for start in range(0, len(images), BATCH_SIZE):
            small = self.preprocess.by_input_size(images[start : start + BATCH_SIZE], self._small_maps)
            maps.append((small - small.mean(1, keepdim=True)).cpu().numpy())
        vectors = np.concatenate(maps)
        flat = np.abs(vectors).max(axis=1, initial=0) < 1e-6
        vectors[flat, 0] = 1e-3  # a flat map carries no information, but a zero vector cannot be stored
        return unit(vectors)

    def _small_maps(self, images: Sequence[Pixels]) -> torch.Tensor:
        """Return the (n, 256) reduced depth maps of n images with one input size."""
        return reduced_depth(self.model, self.preprocess(images, self.device, torch.float32))


def reduced_depth(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return the (n, 256) reduced depth maps of (n, 3, height, width) preprocessed pixels."""
    depth = model(pixel_values=pixels).predicted_depth  # (n, height, width)
    return torch.nn.functional.adaptive_avg_pool2d(depth[:, None].float(), MAP_SIDE).flatten(1)


def load_depth_encoder(name: str, *, device: str = "auto") -> DepthEncoder:
    """Load "depth:NAME", where AutoModelForDepthEstimation loads the hub id or directory NAME; raises EncoderError."""
    model_id = name.removeprefix(DEPTH)
    try:
        checkpoint = open_checkpoint(model_id)
        model = load_model(checkpoint.folder, "AutoModelForDepthEstimation").eval()
        require_finite(model.state_dict(), checkpoint.folder)
        probe(lambda pixels: reduced_depth(model, pixels), checkpoint.preprocess, zero=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, EncoderError) as e:
        raise load_error(f"the depth model {model_id}", e) from e
    if Path(model_id).is_dir():
        model_id = str(checkpoint.folder)
    return DepthEncoder(f"{DEPTH}{model_id}", model, checkpoint.preprocess, choose_device(device))
