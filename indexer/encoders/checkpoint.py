"""Read a checkpoint directory: an encoder's configuration, preprocessing and weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ...core.reading import SMALL_FILE, read_text, require_regular
from ...errors import EncoderError
from .checkpoint_rules.weight_names import holds_integers
from .hub import (
    CONFIG,
    PICKLED,
    PREPROCESSING,
    SAFETENSORS,
    SMALL_FILES,
    TOKENIZER,
    folder_of,
    has_weights,
    weight_files,
)
from .preprocess import Preprocess

Weights = Mapping[str, torch.Tensor]
NAFLEX = ("siglip2", "siglip2_vision_model")  # values of model_type; SigLIP 2 of a fixed size has "siglip"
FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes as safetensors names them


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
        weights: dict[str, torch.Tensor] = {}
        for file in weight_files(self.folder, SAFETENSORS):
            try:
                weights |= load_file(file)
            except SafetensorError as e:
                raise EncoderError(f"{file} is damaged or not a safetensors file ({e}); download it again") from e
        return weights


def open_checkpoint(model_id: str, *, weights: bool = True) -> Checkpoint:
    """Open the checkpoint of a directory or hub id; raises EncoderError, OSError or ValueError if files are missing."""
    folder = folder_of(model_id, weights=weights)
    _require_files(folder)
    config = _json(folder / CONFIG)
    if config.get("model_type") in NAFLEX:
        raise EncoderError(
            f"{folder} is a NaFlex variant of SigLIP 2, which takes images of any aspect ratio as sequences of "
            f"patches; it is not supported. Use one of a fixed size, such as google/siglip2-base-patch16-224"
        )
    if weights and not has_weights(folder):
        raise EncoderError(
            f"{folder} has no complete weights: neither {SAFETENSORS[0]} nor {PICKLED[0]}, in one file or in parts"
        )
    model_type = str(config.get("model_type", ""))
    return Checkpoint(folder, config, Preprocess.from_config(_preprocessing_of(folder), model_type))


def _preprocessing_of(folder: Path) -> dict[str, Any]:
    """Read the fields of the image processor; as in `transformers`, those in processor_config.json go first."""
    flat, nested = PREPROCESSING
    for name in (nested, flat):
        content = _json(folder / name) if (folder / name).is_file() else {}
        if "image_processor" in content:
            content = content["image_processor"]
            if not isinstance(content, dict):
                raise EncoderError(f"the image_processor in {folder / name} is not a JSON object")
            return content
    if (folder / flat).is_file():
        return _json(folder / flat)
    raise EncoderError(f"{folder} has neither {flat} nor {nested} with an image_processor")


def require_floats(folder: Path) -> None:
    """Raise EncoderError if weights in a directory are stored as integers, truth values or complex numbers.

    `transformers` casts them to floats without a word. Integers are quantised, and useless without their scales.
    """
    dtypes = _dtypes(folder)
    wrong = sorted(name for name, dtype in dtypes.items() if not (dtype.is_floating_point or holds_integers(name)))
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise EncoderError(
            f"{folder}: {wrong[0]}{more} are stored as {dtypes[wrong[0]]}, as quantised weights are, and their scales "
            f"are not known; name a checkpoint in float32, float16 or bfloat16"
        )


def _dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Return the dtype of each weight; the weights are not read. Files that cannot be read are left out."""
    files = weight_files(folder, SAFETENSORS)
    dtypes: dict[str, torch.dtype] = {}
    if all(file.is_file() for file in files):
        for file in files:
            with suppress(SafetensorError), safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    if opened.get_slice(name).get_dtype() not in FLOATS:
                        dtypes[name] = opened.get_tensor(name).dtype
        return dtypes
    from transformers.modeling_utils import load_state_dict

    for file in weight_files(folder, PICKLED):
        with suppress(Exception):  # loading the model will say what is wrong with it
            content = load_state_dict(file, map_location="meta", weights_only=True)  # runs no code in it
            dtypes |= {name: weight.dtype for name, weight in content.items() if isinstance(weight, torch.Tensor)}
    return dtypes


def require_finite(weights: Weights, model: Path | str) -> None:
    """Raise EncoderError if a weight is NaN or infinite."""
    # a sum is the fastest test, but one of finite weights may be infinite as well
    suspects = [name for name, weight in weights.items() if not bool(weight.float().sum().isfinite())]
    broken = sorted(name for name in suspects if not bool(weights[name].float().isfinite().all()))
    if broken:
        shown = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        raise EncoderError(f"{model}: {len(broken)} weights contain NaN or infinity ({shown}); download it again")


def fingerprint_of(weights: Weights, preprocess: Preprocess, pooling: str = "") -> str:
    """Return the hex SHA-256 of all weights (name, shape, float32 bytes), the preprocessing and the pooling, if any."""
    digest = hashlib.sha256(json.dumps(preprocess.to_dict(), sort_keys=True).encode())
    digest.update(pooling.encode())
    for name, weight in sorted(weights.items()):
        if weight.is_floating_point():  # skips the integer position ids of older checkpoints
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _require_files(folder: Path) -> None:
    """Raise EncoderError for a pipe, a device or a giant in a directory: `transformers` would read without an end."""
    for path in folder.iterdir():
        try:
            if path.name in SMALL_FILES and path.stat().st_size > SMALL_FILE:
                raise EncoderError(f"{path} has more than {SMALL_FILE:,} bytes; download it again")
            require_regular(path)
        except (FileNotFoundError, IsADirectoryError):
            continue  # reported by who needs it
        except OSError as e:
            raise EncoderError(f"{path} cannot be read: {e.strerror}; remove it, or download the encoder again") from e


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as e:
        raise EncoderError(f"{file} is not valid JSON: {e}") from e
    if not isinstance(content, dict):
        raise EncoderError(f"{file} is not a JSON object")
    return content
