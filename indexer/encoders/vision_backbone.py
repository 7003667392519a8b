"""Vision models of `transformers` other than CLIP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...errors import EncoderError


class VisionBackbone(torch.nn.Module):
    """Maps (n, 3, height, width) preprocessed pixels to (n, dim) features, the model's pooled output."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        output = getattr(self.model, "get_image_features", self.model)(pixel_values=pixels)
        if isinstance(output, torch.Tensor):  # `get_image_features` in transformers 4
            return output
        pooled = getattr(output, "pooler_output", None)
        features: torch.Tensor = output.last_hidden_state[:, 0] if pooled is None else pooled
        return features.flatten(1)


def quiet_transformers() -> Any:
    """Import `transformers`, which takes two seconds, and silence its log and progress bars."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def load_model(folder: Path, kind: str = "AutoModel") -> Any:
    """Load a model of `transformers` in float32 from a directory; raises EncoderError."""
    try:
        return getattr(quiet_transformers(), kind).from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    except Exception as e:
        raise EncoderError(f"{folder}: {str(e).strip() or type(e).__name__}") from e


def random_model(folder: Path, seed: int) -> Any:
    """Build the architecture in a directory with random weights."""
    transformers = quiet_transformers()
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)


def load_text_model(folder: Path, load: Callable[[Path], Any]) -> tuple[Any, Any]:
    """Load a directory's tokenizer, and its model by `load`; the vision model in it is dropped."""
    model = load(folder)
    if hasattr(model, "vision_model"):
        del model.vision_model
    tokenizer = quiet_transformers().AutoTokenizer
    return tokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False), model
