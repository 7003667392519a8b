"""Read a checkpoint directory: an encoder's configuration, preprocessing and weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ...errors import EncoderError
from .hub import CONFIG, PICKLED, PREPROCESSING, SAFETENSORS, TOKENIZER, folder_of, has_weights, weight_files
from .preprocess import Preprocess

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A directory with `config.json` and a preprocessing configuration, optionally with weights and a tokenizer."""

    folder: Path
    config: Mapping[str, Any]
    preprocess: Preprocess

    @property
    def has_tokenizer(self) -> bool:
        return any((self.folder / name).is_file() for name in TOKENIZER)

    @property
    def has_safetensors(self) -> bool:
        """True if `weights` can read the weights. `transformers` reads pickled ones, without running code in them."""
        return all(file.is_file() for file in weight_files(self.folder, SAFETENSORS))

    def weights(self) -> Weights:
        """Memory-map all weights, by name; raises EncoderError."""
        weights: Weights = {}
        for file in weight_files(self.folder, SAFETENSORS):
            try:
                weights |= load_file(file)
            except SafetensorError as e:
                raise EncoderError(f"{file} is damaged or not a safetensors file ({e}); download it again") from e
        return weights


def open_checkpoint(model_id: str, *, weights: bool = True) -> Checkpoint:
    """Open the checkpoint of a directory or hub id; raises EncoderError, OSError or ValueError if files are missing."""
    folder = folder_of(model_id, weights=weights)
    config = _json(folder / CONFIG)
    if weights and not has_weights(folder):
        raise EncoderError(
            f"{folder} has no complete weights: neither {SAFETENSORS[0]} nor {PICKLED[0]}, in one file or in parts"
        )
    for name in PREPROCESSING:
        if (folder / name).is_file():
            content = _json(folder / name)
            content = content.get("image_processor", content)
            return Checkpoint(folder, config, Preprocess.from_config(content if isinstance(content, dict) else {}))
    raise EncoderError(f"{folder} has neither {PREPROCESSING[0]} nor {PREPROCESSING[1]}")


def fingerprint_of(weights: Weights, preprocess: Preprocess) -> str:
    """Return the hex SHA-256 of all weights (name, shape, float32 bytes) and the preprocessing."""
    digest = hashlib.sha256(json.dumps(preprocess.to_dict(), sort_keys=True).encode())
    for name, weight in sorted(weights.items()):
        if weight.is_floating_point():  # skips the integer position ids of older checkpoints
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise EncoderError(f"{file} is not valid JSON: {e}") from e
    if not isinstance(content, dict):
        raise EncoderError(f"{file} is not a JSON object")
    return content
