"""Any other vision model that `transformers` knows, as an image tower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...errors import EncoderError


class VisionBackbone(torch.nn.Module):
    """(n, 3, height, width) preprocessed pixels to (n, dim) features: a model's one vector an image."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        output = getattr(self.model, "get_image_features", self.model)(pixel_values=pixels)
        if isinstance(output, torch.Tensor):  # of two towers, in transformers 4
            return output
        pooled = getattr(output, "pooler_output", None)
        found: torch.Tensor = output.last_hidden_state[:, 0] if pooled is None else pooled
        return found.flatten(1)


def quiet_transformers() -> Any:
    """`transformers`, which takes two seconds to import and would tell of its own."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def load_model(folder: Path, kind: str = "AutoModel") -> Any:
    """A model of `transformers` in float32 from the files of a directory; raises EncoderError."""
    try:
        return getattr(quiet_transformers(), kind).from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    except Exception as e:
        raise EncoderError(f"{folder}: {str(e).strip() or type(e).__name__}") from e


def random_model(folder: Path, seed: int) -> Any:
    """A directory's architecture with random weights."""
    transformers = quiet_transformers()
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)


def words_of(folder: Path, load: Callable[[Path], Any]) -> tuple[Any, Any]:
    """A directory's tokenizer, and the model that `load` makes of it without its image tower."""
    model = load(folder)
    if hasattr(model, "vision_model"):
        del model.vision_model
    tokenizer = quiet_transformers().AutoTokenizer
    return tokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False), model
