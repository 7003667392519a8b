"""Tiny vision models of `transformers`, saved with the preprocessing they need."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SMALL: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
FIELDS: Mapping[str, Any] = {"image_processor_type": "ViTImageProcessor", "size": 32}


def saved(folder: Path, model: Any, fields: Mapping[str, Any] = FIELDS) -> Path:
    """Save a model as a checkpoint directory."""
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return folder
