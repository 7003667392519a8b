"""An encoder's files: a directory's, or those of a hub id, from the Hugging Face cache or brought into it.

What is in the cache is taken from there without asking the hub again: a machine without network waits for nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..store.errors import EncoderError
from .preprocess import Preprocess

Weights = dict[str, torch.Tensor]

CONFIG = "config.json"
PREPROCESSING = ("preprocessor_config.json", "processor_config.json")
TOKENIZER = ("tokenizer.json", "vocab.json")  # either is enough
SMALL = [CONFIG, *PREPROCESSING, *TOKENIZER, "merges.txt", "tokenizer_config.json", "special_tokens_map.json"]
SAFE = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
PICKLED = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"]


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
        """Whether `weights` can be read. torch's pickled ones are left to `transformers`, which guards against code."""
        return bool(weight_files(self.folder, SAFE))

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
    folder = Path(place).resolve() if Path(place).is_dir() else _from_hub(place, weights)
    config = _json(folder / CONFIG)
    if weights and not _has_weights(folder):
        raise EncoderError(f"{folder} has no weights, or not all of them: neither {SAFE[0]} nor {PICKLED[0]}")
    for name in PREPROCESSING:
        if (folder / name).is_file():
            told = _json(folder / name)
            return Checkpoint(folder, config, Preprocess.from_config(told.get("image_processor", told)))
    raise EncoderError(f"{folder} has no {PREPROCESSING[0]}")


def fingerprint_of(weights: Weights, preprocess: Preprocess) -> str:
    """Hex SHA-256 over every weight (name, shape, float32 bytes) and the preprocessing."""
    digest = hashlib.sha256(json.dumps(preprocess.as_json(), sort_keys=True).encode())
    for name, weight in sorted(weights.items()):
        if weight.is_floating_point():  # others number the places of older checkpoints
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _json(file: Path) -> dict[str, Any]:
    told = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(told, dict):
        raise EncoderError(f"{file} is no JSON object")
    return told


def _from_hub(name: str, weights: bool) -> Path:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    cached = try_to_load_from_cache(name, CONFIG)
    if isinstance(cached, str):
        folder = Path(cached).parent
        if any((folder / file).is_file() for file in PREPROCESSING) and (not weights or _has_weights(folder)):
            return folder
    folder = Path(snapshot_download(name, allow_patterns=SMALL))
    for kind in (SAFE, PICKLED):
        if weights and not _has_weights(folder):
            snapshot_download(name, allow_patterns=kind)
    return folder


def weight_files(folder: Path, kind: Sequence[str]) -> list[Path]:
    """The files of a kind that together hold every weight; none where one of them is missing."""
    whole, index, _ = kind
    files = [folder / whole]
    if (folder / index).is_file():
        parts = _json(folder / index)["weight_map"].values()
        files = [folder / Path(part).name for part in sorted(set(parts))]
    return files if all(file.is_file() for file in files) else []


def _has_weights(folder: Path) -> bool:
    return any(weight_files(folder, kind) for kind in (SAFE, PICKLED))
