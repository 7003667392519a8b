"""CLIP architectures as directories without trained weights, for measuring speed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ...indexer.encoders.hub import folder_of
from ...indexer.encoders.vision_backbone import random_model

# Radford et al. (2021), Learning transferable visual models from natural language supervision, table 20
VIT_L_14: dict[str, Any] = {
    "projection_dim": 768,
    "vision_config": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
        "intermediate_size": 4096,
        "projection_dim": 768,
    },
    "text_config": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "projection_dim": 768,
    },
}


def write_architecture(folder: Path, like: str, dimensions: dict[str, Any]) -> Path:
    """Write a directory for `untrained:SEED:`, with the configuration of `like` but other dimensions, without weights.

    Parameters
    ----------
    like : hub id or directory of a CLIP
    """
    import transformers

    config = transformers.CLIPConfig.from_pretrained(like).to_dict()
    for name, value in dimensions.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    transformers.CLIPConfig.from_dict(config).save_pretrained(folder)
    transformers.CLIPImageProcessor.from_pretrained(like).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


def write_checkpoint(folder: Path, like: str, *, seed: int = 0) -> Path:
    """Write a checkpoint directory with the architecture of `like` and random weights."""
    shutil.copytree(folder_of(like, weights=False), folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    random_model(folder, seed).save_pretrained(folder)
    return folder
