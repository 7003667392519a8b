"""Checkpoint directories: configuration, preprocessing and weights of an encoder."""

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
from .hub import CONFIG, PICKLED, PREPROCESSING, SAFE, TOKENIZER, folder_of, has_weights, weight_files
from .preprocess import Preprocess

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A directory with `config.json`, how to preprocess, and maybe weights and a tokenizer."""

    folder: Path
    config: Mapping[str, Any]
    preprocess: Preprocess

    @property
    def has_tokenizer(self) -> bool:
        return any((self.folder / name).is_file() for name in TOKENIZER)

    @property
    def has_safetensors(self) -> bool:
        """True if `weights` can read them. Pickled ones are left to `transformers`, which guards against code."""
        return all(file.is_file() for file in weight_files(self.folder, SAFE))

    def weights(self) -> Weights:
        """Every weight by name, read from disk as it is looked at; raises EncoderError."""
        found: Weights = {}
        for file in weight_files(self.folder, SAFE):
            try:
                found |= load_file(file)
            except SafetensorError as e:
                raise EncoderError(f"{file} is damaged or no file of weights: {e}") from e
        return found


def open_checkpoint(place: str, *, weights: bool = True) -> Checkpoint:
    """The files of a directory or hub id; raises EncoderError, OSError or ValueError saying what is missing."""
    folder = folder_of(place, weights=weights)
    config = _json(folder / CONFIG)
    if weights and not has_weights(folder):
        raise EncoderError(f"{folder} has no weights, or not all of them: neither {SAFE[0]} nor {PICKLED[0]}")
    for name in PREPROCESSING:
        if (folder / name).is_file():
            content = _json(folder / name)
            content = content.get("image_processor", content)
            return Checkpoint(folder, config, Preprocess.from_config(content if isinstance(content, dict) else {}))
    raise EncoderError(f"{folder} has no {PREPROCESSING[0]}")


def fingerprint_of(weights: Weights, preprocess: Preprocess) -> str:
    """Hex SHA-256 over every weight (name, shape, float32 bytes) and the preprocessing."""
    digest = hashlib.sha256(json.dumps(preprocess.to_dict(), sort_keys=True).encode())
    for name, weight in sorted(weights.items()):
        if weight.is_floating_point():  # others number the places of older checkpoints
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise EncoderError(f"{file} is not readable as JSON: {e}") from e
    if not isinstance(content, dict):
        raise EncoderError(f"{file} is no JSON object")
    return content
