"""Vision models of `transformers` other than CLIP."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import EncoderError
from .checkpoint import require_floats
from .checkpoint_rules.weight_names import WeightNames, is_pooler, is_text
from .preprocess import Preprocess

CLASS_TOKEN = re.compile(r"(^|[._])(cls|class)_(token|embedding)s?$")  # names of its weight


class VisionBackbone(torch.nn.Module):
    """Maps (n, 3, height, width) preprocessed pixels to (n, dim) features, the model's pooled output.

    Without a pooler, the features are the class token, or in a model without one the mean of all positions.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.has_class_token = any(CLASS_TOKEN.search(name) for name in model.state_dict())
        self.pooling = ""  # how features are pooled, if not by the model and not its first token; known after a call

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (n, dim) features, not normalised; raises EncoderError if the model has none."""
        output = getattr(self.model, "get_image_features", self.model)(pixel_values=pixels)
        if isinstance(output, torch.Tensor):  # `get_image_features` in transformers 4
            return output
        for name in ("image_embeds", "pooler_output"):
            features = getattr(output, name, None)
            if features is not None:
                return torch.flatten(features, 1)
        class_token = getattr(output, "cls_token_value", None)  # of CvT, (n, 1, dim); None if its last stage has none
        if class_token is not None:
            self.pooling = "class token"
            return torch.flatten(class_token, 1)
        return self._without_pooler(getattr(output, "last_hidden_state", None))

    def _without_pooler(self, hidden: torch.Tensor | None) -> torch.Tensor:
        """Return (n, dim) features of (n, tokens, dim) tokens or (n, dim, height, width) feature maps."""
        if hidden is None or hidden.ndim not in (3, 4):
            raise EncoderError(f"{type(self.model).__name__} gives no features of a whole image; it cannot be used")
        if hidden.ndim == 3 and self.has_class_token:
            return hidden[:, 0]
        self.pooling = "mean"
        return hidden.mean((2, 3) if hidden.ndim == 4 else 1)


def quiet_transformers() -> Any:
    """Import `transformers`, which takes two seconds, and silence its log and progress bars."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def load_model(folder: Path, kind: str = "AutoModel") -> Any:
    """Load a model of `transformers` in float32 from a directory.

    A pooler or text model that the checkpoint lacks is removed from the model, since it would have random weights.

    Raises
    ------
    EncoderError
        Weights are missing, left over, of another shape or stored as integers, or the model cannot be loaded at all.
    """
    require_floats(folder)
    model, names = _loaded(folder, kind)
    pooler = [name for name in names.unexpected if is_pooler(name.removeprefix(f"{model.base_model_prefix}."))]
    if pooler and "add_pooling_layer" in inspect.signature(type(model).__init__).parameters:
        model, names = _loaded(folder, kind, add_pooling_layer=True)
    modules = {name.partition(".")[0] for name in model.state_dict()}
    if problem := names.problem(modules, model.base_model_prefix):
        raise EncoderError(
            f"{folder}: the weights do not match {type(model).__name__}, which config.json names: {problem}"
        )
    if names.lacks_pooler:
        model.pooler = None
    if names.lacks_text:
        for module in {name.partition(".")[0] for name in model.state_dict() if is_text(name)}:
            setattr(model, module, None)
    with torch.no_grad():
        for name in names.unused:
            model.get_parameter(name).zero_()  # random numbers would enter the fingerprint
    return model


def has_text_model(model: Any) -> bool:
    """Return whether a model of `transformers` can encode texts."""
    return hasattr(model, "get_text_features") and getattr(model, "text_model", model) is not None


def _loaded(folder: Path, kind: str, **options: Any) -> tuple[Any, WeightNames]:
    """Load a model, and compare its weights with those in the directory; raises EncoderError."""
    try:
        model, found = getattr(quiet_transformers(), kind).from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by name instead
            **options,
        )
    except Exception as e:
        raise EncoderError(f"{folder}: {str(e).strip() or type(e).__name__}") from e
    shapes = {name: (tuple(shape), tuple(wanted)) for name, shape, wanted in found["mismatched_keys"]}
    missing = set(found["missing_keys"]) - set(shapes)
    if not (missing or found["unexpected_keys"] or shapes):
        return model, WeightNames()
    prefix, architecture = model.base_model_prefix, architecture_of(model.config.to_dict())
    saved_as = "" if architecture == type(model).__name__ else architecture
    saved = _weights_of_class(saved_as, model)
    # a class with a head has the pooler or not; of the bare model, checkpoints exist with it and without it (DINO)
    optional = [name for name in model.state_dict() if is_pooler(name) and f"{prefix}.{name}" not in saved]
    if hasattr(model, "get_image_features"):
        optional += [name for name in model.state_dict() if is_text(name)]
    held = [name for name in model.state_dict() if f"{prefix}.{name}" in saved]
    head = {name for name in saved if not name.startswith(f"{prefix}.")}
    return model, WeightNames(missing, found["unexpected_keys"], shapes, optional, head, saved_as, held)


def _weights_of_class(name: str, model: Any) -> set[str]:
    """Return the names of all weights in a class with a head on top of `model`; none if it is not such a class."""
    kind = getattr(quiet_transformers(), name, None) if name else None
    if getattr(kind, "base_model_prefix", None) != model.base_model_prefix:
        return set()
    whole: Any = None
    with suppress(Exception), torch.device("meta"):  # classes check a config.json in many ways
        whole = kind(model.config)  # type: ignore[misc]
    return set(whole.state_dict()) if hasattr(whole, model.base_model_prefix) else set()


def architecture_of(config: Mapping[str, Any]) -> str:
    """Return the class that a checkpoint was saved from, by its config.json, or "".

    >>> architecture_of({"architectures": ["CLIPModel"]}), architecture_of({"architectures": None})
    ('CLIPModel', '')
    """
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def kind_of(config: Mapping[str, Any]) -> str:
    """Return the class of `transformers` to load a checkpoint with. AutoModel would drop the projection of some.

    >>> kind_of({"architectures": ["CLIPVisionModelWithProjection"]}), kind_of({"architectures": ["ViTModel"]})
    ('CLIPVisionModelWithProjection', 'AutoModel')
    """
    architecture = architecture_of(config)
    return architecture if architecture.endswith("VisionModelWithProjection") else "AutoModel"


def random_model(folder: Path, seed: int, kind: str = "AutoModel") -> Any:
    """Build the architecture in a directory with random weights."""
    transformers = quiet_transformers()
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind != "AutoModel":
            return getattr(transformers, kind)._from_config(config, dtype=torch.float32)
        return transformers.AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)


def load_text_model(folder: Path, load: Callable[[Path], Any]) -> tuple[Any, Any]:
    """Load a directory's tokenizer, and its model by `load`; the vision model in it is dropped."""
    model = load(folder)
    if hasattr(model, "vision_model"):
        del model.vision_model
    tokenizer = quiet_transformers().AutoTokenizer
    return tokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False), model


@torch.inference_mode()
def probe(compute: Callable[[torch.Tensor], torch.Tensor], preprocess: Preprocess, *, zero: bool = False) -> int:
    """Run a model on images of noise, and return the length of its (n, dim) features; `zero` allows zeros alone.

    Raises
    ------
    EncoderError
        The model cannot take the sizes of the preprocessed images. Or its features are NaN, infinite or zero, depend
        in length on the size, or are random, as those of a model that masks a part of its input.
    """
    sizes = [(64, 64)] if preprocess.fixed_size else [(96, 192), (192, 96)]
    features = [_probe_size(compute, preprocess, size) for size in sizes]
    if not zero and not any(bool(of_one.any()) for of_one in features):
        raise EncoderError("the model gives features that are all zero, so its weights are wrong; download it again")
    lengths = {of_one.shape[1] for of_one in features}
    if len(lengths) > 1:
        raise EncoderError(
            f"the model gives {' or '.join(map(str, sorted(lengths)))} numbers for an image, depending on its aspect "
            f"ratio; give size in preprocessor_config.json a height and a width"
        )
    return lengths.pop()


def _probe_size(
    compute: Callable[[torch.Tensor], torch.Tensor], preprocess: Preprocess, size: tuple[int, int]
) -> torch.Tensor:
    """Return the features of an image of noise; raises EncoderError if they are not finite or not repeatable."""
    # not a plain image: the features of one are the same whichever patches are masked
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    image = preprocess([noise], torch.device("cpu"), torch.float32)
    try:
        features = compute(image)
    except EncoderError:
        raise
    except Exception as e:  # models check their input in many ways
        height, width = image.shape[2:]
        varying = "" if preprocess.fixed_size else ", and to other sizes for images of another aspect ratio"
        raise EncoderError(
            f"preprocessor_config.json resizes images to {height} x {width} pixels{varying}, which the model "
            f"cannot take ({str(e).strip() or type(e).__name__}); correct size or crop_size"
        ) from e
    if features.ndim != 2:
        raise EncoderError(f"the model gives features of shape {tuple(features.shape)}, not one vector for an image")
    if not bool(features.isfinite().all()):
        raise EncoderError(
            "the model gives features that are not finite (NaN or infinity), though its weights are finite, so they "
            "are wrong; download it again"
        )
    if not torch.allclose(features, compute(image), rtol=1e-4, atol=1e-5 * float(features.abs().max())):
        raise EncoderError("the model gives other features for the same image each time; it cannot be used to encode")
    return features
