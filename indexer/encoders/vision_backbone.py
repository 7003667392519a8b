"""Vision models of `transformers` other than CLIP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import EncoderError
from .checkpoint_rules.weight_names import WeightNames
from .preprocess import Preprocess


class VisionBackbone(torch.nn.Module):
    """Maps (n, 3, height, width) preprocessed pixels to (n, dim) features, the model's pooled output.

    Without a pooler, the features are the class token.
    """

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
    """Load a model of `transformers` in float32 from a directory.

    A pooler that the checkpoint lacks is removed from the model, since it would have random weights.

    Raises
    ------
    EncoderError
        Weights are missing, left over or of another shape, or the model cannot be loaded at all.
    """
    try:
        model, found = getattr(quiet_transformers(), kind).from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by name instead
        )
    except Exception as e:
        raise EncoderError(f"{folder}: {str(e).strip() or type(e).__name__}") from e
    shapes = {name: (tuple(shape), tuple(wanted)) for name, shape, wanted in found["mismatched_keys"]}
    names = WeightNames(set(found["missing_keys"]) - set(shapes), found["unexpected_keys"], shapes)
    modules = {name.partition(".")[0] for name in model.state_dict()}
    if problem := names.problem(modules, model.base_model_prefix):
        raise EncoderError(
            f"{folder}: the weights do not match {type(model).__name__}, which config.json names: {problem}"
        )
    if names.lacks_pooler:
        model.pooler = None
    with torch.no_grad():
        for name in names.unused:
            model.get_parameter(name).zero_()  # random numbers would enter the fingerprint
    return model


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


@torch.inference_mode()
def probe(compute: Callable[[torch.Tensor], torch.Tensor], preprocess: Preprocess) -> int:
    """Run a model on grey images, and return the length of its (n, dim) features.

    Raises
    ------
    EncoderError
        The model cannot take the sizes of the preprocessed images, or its features are random, as those of a model
        that masks a part of its input.
    """
    sizes = [(64, 64)] if preprocess.fixed_size else [(96, 192), (192, 96)]
    for size in sizes:
        grey = preprocess([np.full((*size, 3), 128, np.uint8)], torch.device("cpu"), torch.float32)
        try:
            features = compute(grey)
        except Exception as e:  # models check their input in many ways
            height, width = grey.shape[2:]
            varying = "" if preprocess.fixed_size else ", and to other sizes for images of another aspect ratio"
            raise EncoderError(
                f"preprocessor_config.json resizes images to {height} x {width} pixels{varying}, which the model "
                f"cannot take ({str(e).strip() or type(e).__name__}); correct size or crop_size"
            ) from e
    if not torch.allclose(features, compute(grey), rtol=1e-4, atol=1e-5 * float(features.abs().max())):
        raise EncoderError("the model gives other features for the same image each time; it cannot be used to encode")
    return int(features.shape[1])
