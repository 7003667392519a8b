"""A small CLIP built from a seed, for trials without downloaded weights. It is a stand-in, trained on no image.

The classes, files and loading path are those of any CLIP of `transformers`. The weights are chosen so that the vectors
depend on how the pixels were made: the patch filters are cosines (a block DCT) weighted against the 1/f law of natural
images, the first layer takes their absolute values, the second averages these over all patches, and the projection
mixes them at random. Its verdicts hold for the simulated sample only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .notice import NAME

_SIZE, _PATCH, _WIDTH, _HIDDEN, _DIM = 224, 16, 192, 384, 128
_POWER = 1.0  # exponent of frequency by which the filters grow, since natural amplitudes fall as 1/f


def build_standin(folder: Path, *, seed: int = 0) -> Path:
    """Write the stand-in's checkpoint to the directory `folder`/clipfake-standin-clip, and return its path."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    out = folder / NAME
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(out)
    tower = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "quick_gelu"}
    vision = {"hidden_size": _WIDTH, "intermediate_size": _HIDDEN, "image_size": _SIZE, "patch_size": _PATCH}
    text = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": vocabulary, "max_position_embeddings": 77}
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    config = transformers.CLIPConfig(
        text_config={**tower, **text, **ends}, vision_config={**tower, **vision}, projection_dim=_DIM
    )
    model = transformers.CLIPModel(config)
    _fill(model, np.random.default_rng(seed))
    model.save_pretrained(out, safe_serialization=True)
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": _SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": _SIZE, "width": _SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (out / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=1))
    return out


@torch.no_grad()
def _fill(model: Any, rng: np.random.Generator) -> None:
    """Set every weight: chosen matrices for some, random ones for the text encoder, zeros and ones for the rest."""
    eye = np.eye(_WIDTH, dtype=np.float32)
    steep = np.float32(4.0)  # so that quick_gelu(x) + quick_gelu(-x) is close to |x|
    chosen = {
        "vision_model.embeddings.patch_embedding.weight": _cosines(),
        "vision_model.encoder.layers.0.mlp.fc1.weight": np.concatenate([steep * eye, -steep * eye]),
        "vision_model.encoder.layers.0.mlp.fc2.weight": np.concatenate([eye, eye], axis=1),
        "vision_model.encoder.layers.1.self_attn.v_proj.weight": eye,
        "vision_model.encoder.layers.1.self_attn.out_proj.weight": eye,
        "visual_projection.weight": np.linalg.qr(rng.standard_normal((_WIDTH, _DIM)))[0].T,
    }
    for name, weight in sorted(model.named_parameters()):
        shape = tuple(weight.shape)
        if name in chosen:
            values = chosen[name].reshape(shape)
        elif "norm" in name and name.endswith("weight"):
            values = np.ones(shape)
        elif name.startswith("vision_model"):
            values = np.zeros(shape)
        else:
            values = rng.standard_normal(shape) / np.sqrt(shape[-1] if shape else 1)
        weight.copy_(torch.from_numpy(np.asarray(values, np.float32)))


def _cosines() -> npt.NDArray[np.float32]:
    """(width, 3, patch, patch) grey two-dimensional cosines without the lowest frequencies, scaled by frequency."""
    n = np.arange(_PATCH)
    basis = np.cos(np.pi * (n[None] + 0.5) * n[:, None] / _PATCH)  # (frequency, position)
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    order = sorted(((np.hypot(u, v), u, v) for u in range(_PATCH) for v in range(_PATCH)), reverse=True)
    waves = [f**_POWER * np.outer(basis[u], basis[v]) for f, u, v in order[:_WIDTH]]
    grey = np.array([0.299, 0.587, 0.114])[:, None, None]
    return np.asarray(np.stack(waves)[:, None] * grey, np.float32)


def _write_tokenizer(out: Path) -> int:
    """Write a tokenizer of byte-level tokens without merges, enough for category names; returns the vocabulary size."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]  # GPT-2's table
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (out / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (out / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    fields = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": tokens[-2],
        "eos_token": tokens[-1],
    }
    (out / "tokenizer_config.json").write_text(json.dumps({**fields, "pad_token": tokens[-1], "unk_token": tokens[-1]}))
    return len(tokens)
