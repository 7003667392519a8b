"""Text encoder that is loaded on first use, since most runs and queries have no texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


class TextEncoder:
    """Maps n texts to (n, dim) features, not normalised, on the CPU in float32, since texts are few."""

    def __init__(self, load: Callable[[], tuple[Any, Any]]) -> None:
        """`load` returns a tokenizer and a model of `transformers` with `get_text_features`."""
        self._load = load
        self._loaded: tuple[Any, Any] | None = None
        self._lock = Lock()

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
        tokenizer, model = self._loaded
        length = _trained_length(model)
        padding = {"padding": "max_length", "max_length": length} if length else {"padding": True}
        tokens = tokenizer(list(texts), truncation=True, return_tensors="pt", **padding)
        if length:
            tokens = {"input_ids": tokens["input_ids"]}  # the padding is not masked
        with torch.inference_mode():
            output = model.get_text_features(**tokens)
        features = output if isinstance(output, torch.Tensor) else output.pooler_output  # transformers 4 and 5
        return np.asarray(features.float().numpy())


def _trained_length(model: Any) -> int:
    """Return the length in tokens that all texts of SigLIP are padded to, 0 for a model that masks its padding.

    SigLIP and SigLIP 2 take the last token as the vector and were trained with padding up to their maximal length.
    """
    config: Any = getattr(model, "config", None)
    if not str(getattr(config, "model_type", "")).startswith("siglip"):
        return 0
    return int(getattr(config, "text_config", config).max_position_embeddings)
