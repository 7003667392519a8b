"""Encoders of the user: an object with `encode` and a `space`, or a function that makes one.

What `encode` returns is checked at every call, since a vector that is not normalised would be compared wrongly for as
long as the store exists.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch

from ....errors import EncoderError, MissingExtra
from ....store.space import Space
from ...decoding.image import Pixels
from ..base import Embeddings, Encoder
from ..encoder_name import code_of

UNIT_TOLERANCE = 1e-3  # deviation of a norm from 1; that of float16 arithmetic is half of it


class EncoderLike(Protocol):
    """What an encoder of your own needs. `encode_texts` and `batch_size` are optional.

    `space` names the vectors: vectors are compared only with those of the same fingerprint, so take one that changes
    with the weights and the preprocessing, for example a digest of both.
    """

    @property
    def space(self) -> Space:
        """Name, fingerprint and dimension of the vectors."""

    def encode(self, images: Sequence[Pixels], /) -> Embeddings:
        """Encode n (height, width, 3) uint8 images of any sizes as (n, dim) float32 vectors, unit if so in `space`."""


class OwnEncoder(Encoder):
    """Runs an encoder of the user's and checks what it returns."""

    def __init__(self, encoder: EncoderLike | Encoder, name: str = "") -> None:
        """Wrap an encoder; `name` replaces that in its space. Raises EncoderError if it lacks `encode` or a `space`."""
        space = getattr(encoder, "space", None)
        if not isinstance(space, Space) or not callable(getattr(encoder, "encode", None)):
            raise EncoderError(
                f"{name or type(encoder).__name__} is no encoder: it needs a method `encode` and a `space` of type "
                f"clipfake.Space, and has a space of type {type(space).__name__}"
            )
        self._encoder: Any = encoder
        self._space = replace(space, encoder=name or space.encoder)
        self._batch_size = int(getattr(encoder, "batch_size", 0) or super().batch_size)
        self.has_text = callable(getattr(encoder, "encode_texts", None))
        if isinstance(encoder, Encoder):
            self.has_text, self.device, self.preprocess = encoder.has_text, encoder.device, encoder.preprocess
            self.shrink = encoder.shrink  # type: ignore[method-assign]

    @property
    def batch_size(self) -> int:
        return self._batch_size

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        """Encode n images; raises EncoderError if the user's code fails or its vectors are not those of its space."""
        return self._checked(self._encoder.encode, images, "encode")

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        return (
            self._checked(self._encoder.encode_texts, texts, "encode_texts")
            if self.has_text
            else super().encode_texts(texts)
        )

    def _checked(self, encode: Callable[[Any], Any], inputs: Sequence[Any], method: str) -> Embeddings:
        try:
            vectors = encode(inputs)
        except (EncoderError, MissingExtra, torch.OutOfMemoryError):  # the last makes batches smaller
            raise
        except Exception as e:
            raise EncoderError(
                f"`{method}` of the encoder {self.space.encoder} failed for {len(inputs)} inputs: "
                f"{type(e).__name__}: {e}"
            ) from e
        if problem := _problem(vectors, len(inputs), self.space):
            raise EncoderError(f"`{method}` of the encoder {self.space.encoder} {problem}")
        return np.asarray(vectors)


def _problem(vectors: Any, count: int, space: Space) -> str:
    """Return what is wrong with the vectors of `count` images, or "". Images with a zero vector are skipped later."""
    if not isinstance(vectors, np.ndarray):
        kind = type(vectors)
        return f"returned a {kind.__module__}.{kind.__name__}; return a numpy array of float32"
    if vectors.shape != (count, space.dim):
        return (
            f"returned an array of shape {vectors.shape} for {count} inputs; its space has {space.dim} dimensions, so "
            f"return ({count}, {space.dim})"
        )
    if vectors.dtype != np.float32:
        return f"returned {vectors.dtype}; return float32, as by `.astype(np.float32)`"
    if not np.isfinite(vectors).all():
        rows = int((~np.isfinite(vectors).all(axis=1)).sum())
        return f"returned NaN or infinity in {rows} of {count} vectors"
    norms = np.linalg.norm(vectors, axis=1)
    norms = norms[norms > 0]
    if space.normalised and (np.abs(norms - 1) > UNIT_TOLERANCE).any():
        return (
            f"returned vectors of length {norms.min():.4g} to {norms.max():.4g}, and its space is normalised; divide "
            f"each by its length, or give the space normalised=False"
        )
    return ""


def as_encoder(encoder: EncoderLike | Encoder) -> Encoder:
    """Return our own encoders as they are, and any other object with its vectors checked; raises EncoderError."""
    return encoder if isinstance(encoder, Encoder) else OwnEncoder(encoder)


def load_own_encoder(name: str) -> Encoder:
    """Run the function that a name such as "module:function" or "file.py:function" gives, and return its encoder.

    The code has all rights of this process: call it with names that the user gave, never with one from a file. The
    current folder, or that of the file, is added to the end of `sys.path`. The space gets the name, with the file's
    path absolute, so that the store shows it.

    Raises
    ------
    EncoderError
        There is no such module or function, the function fails, or it returns no encoder.
    """
    code = code_of(name)
    if code is None:
        raise EncoderError(f"{name} is not of the form module:function or file.py:function")
    source, function_name = code
    is_file = source.endswith(".py")
    if is_file:
        source = str(Path(source).resolve())
    full_name = f"{source}:{function_name}"
    try:
        module = _module_of_file(Path(source)) if is_file else _module_named(source)
        encoder = getattr(module, function_name)()
    except (EncoderError, MissingExtra):
        raise
    except Exception as e:  # the user's code can raise anything
        raise EncoderError(f"the encoder {full_name} cannot be made: {type(e).__name__}: {e}") from e
    return OwnEncoder(encoder, full_name)


def _module_named(name: str) -> ModuleType:
    _add_to_path(Path.cwd())
    return importlib.import_module(name)


def _module_of_file(path: Path) -> ModuleType:
    """Import a file as a module of its own, once; raises EncoderError if it does not exist."""
    if not path.is_file():
        raise EncoderError(f"the file {path} of the encoder does not exist")
    name = f"{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=8).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    _add_to_path(path.parent)
    sys.modules[name] = module  # dataclasses and pickle look modules up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _add_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
