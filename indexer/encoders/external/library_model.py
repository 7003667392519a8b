"""A vision model of another library, with what our encoder needs to run it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from ....errors import EncoderError, MissingExtra
from ..preprocess import Preprocess
from ..text_encoder import TextEncoder


@dataclass(frozen=True)
class LibraryModel:
    """A model in float32 on the CPU, in evaluation mode."""

    name: str  # name of the encoder, in which a folder is absolute
    architecture: str  # enters the fingerprint, for the same weights mean something else in another architecture
    vision_model: torch.nn.Module  # maps (n, 3, height, width) preprocessed pixels to (n, dim) features
    preprocess: Preprocess
    weights: Mapping[str, torch.Tensor]  # all of them, by name
    text_encoder: TextEncoder | None = None


def import_library(module: str, extra: str) -> Any:
    """Import timm or open_clip.

    Raises
    ------
    MissingExtra
        The library or torchvision, which it needs, is not installed.
    EncoderError
        Its import fails.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as e:
        raise MissingExtra(f"an encoder of {module}", extra) from e
    except Exception as e:  # torchvision raises RuntimeError beside a build of torch that is not its own
        raise EncoderError(
            f"{module} is installed but cannot be imported ({e}); where torchvision is the reason, install the one of "
            f"this torch ({torch.__version__}), from the same index"
        ) from e


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Keep a library's log messages, of which an error repeats what matters, from the terminal."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)  # `logging.warning` would install one that prints
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        root.removeHandler(handler)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw the random weights of a model from a seed; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        yield
