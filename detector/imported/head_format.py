"""Formats of published heads: how their arrays are named, and which vectors they read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import HeadError, SpaceMismatch
from ...store.named_vectors import MAIN
from ...store.space import Space
from ..linear import LinearClassifier
from .arrays import read_arrays

Array = npt.NDArray[np.float64]
WEIGHT, BIAS = ("weight", "weights", "coef_"), ("bias", "intercept", "intercept_")  # last parts of their names
LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class HeadFormat:
    """A format of heads, with what is known of the vectors that they read."""

    name: str
    title: str
    views: tuple[str, ...] = (MAIN,)  # names of the stored vectors that it reads, the first that a store has
    dim: int = 0  # of these vectors; 0 for any
    encoder: str = ""  # their encoder in words; "" for any
    pattern: re.Pattern[str] = field(default_factory=lambda: re.compile(""))  # found in the encoder's name

    def require_space(self, space: Space, where: str, *, any_encoder: bool = False) -> None:
        """Raise SpaceMismatch unless vectors of this space may be those that a head of this format reads.

        Nothing in a published head names its encoder, so it is recognised by its name in the space. The names of two
        encoders of the same dimension differ; that of a folder may say nothing.

        Parameters
        ----------
        where : names the vectors in the error
        any_encoder : accept an encoder with any name
        """
        if not self.dim:
            return
        if space.dim != self.dim:
            raise SpaceMismatch(
                f"{where} have {space.dim} dimensions ({space}), but a head of the format {self.name} reads vectors of "
                f"{self.dim} dimensions: {self.vectors}"
            )
        if space.normalised:
            raise SpaceMismatch(
                f"{where} have unit length ({space}), but a head of the format {self.name} reads vectors as the "
                f"encoder gives them, with their length: {self.vectors}"
            )
        if not any_encoder and not self.pattern.search(space.encoder):
            raise SpaceMismatch(
                f"{where} were made by {space.encoder}, which is not known as {self.encoder}, the encoder of the "
                f"format {self.name}; its scores would mean nothing. If it is the same encoder under another name, "
                f"add --any-encoder"
            )

    @property
    def vectors(self) -> str:
        """The vectors that it reads, and how a store gets them, as a phrase."""
        return f"those of {self.encoder} that `clipfake store add-vectors {self.views[0]}` adds"


# OpenAI's CLIP ViT-L/14 in the names of the hub, open_clip, timm and of folders; not with the weights of others.
_CLIP_L14 = (
    r"^(?=.*clip)(?=.*(large|vit[-_ ]?l)[-_ /]?(patch)?[-_ ]?14(?!\d))"
    r"(?!.*(laion|datacomp|commonpool|dfn|metaclip|siglip|eva|bigg|streetclip|fashion|pubmed|depth:))"
)
FORMATS = {
    known.name: known
    for known in (
        HeadFormat(
            "univfd",
            "UniversalFakeDetect (Ojha, Li & Lee, CVPR 2023)",
            # the centre of the image without resizing, as in the paper's tests; else the resized image
            views=("crops", "raw"),
            dim=768,
            encoder="CLIP ViT-L/14 at 224 pixels",
            pattern=re.compile(rf"{_CLIP_L14}(?!.*336)", re.IGNORECASE),
        ),
        HeadFormat(
            "clip-cues",
            "linear probe of CLIP cues (github.com/marco-willi/clip-cues)",
            views=("pooled",),
            dim=1024,
            encoder="CLIP ViT-L/14 at 336 pixels",
            pattern=re.compile(rf"{_CLIP_L14}(?=.*336)", re.IGNORECASE),
        ),
        HeadFormat("linear", "linear head"),
    )
}


def format_named(name: str) -> HeadFormat:
    """The format of this name; raises HeadError."""
    if name == "rine":
        raise HeadError(
            "heads of the format rine read the class token of every block of CLIP ViT-L/14 as it is (24 x 1,024 "
            "numbers an image), and a store keeps these only reduced, in the vectors `layers`; train a head on them "
            "with `clipfake train --vectors layers`"
        )
    if name not in FORMATS:
        raise HeadError(f"unknown format {name!r} of heads; use one of {', '.join(FORMATS)}")
    return FORMATS[name]


def read_linear_head(path: Path, head_format: HeadFormat, *, fake_class: int = 1) -> LinearClassifier:
    """Read a linear head of one logit or, in the format "linear", of two classes, whose logits are subtracted.

    Parameters
    ----------
    path : a file with one weight, (1, dim), (dim,) or (2, dim), and its bias, (1,), () or (2,)
    fake_class : number of the class that means fake: the row of two, or the sign of one logit (1: above 0 is fake)

    Raises
    ------
    HeadError
        The file cannot be read, see `read_arrays`, or it is no linear head of this format.
    """
    weight, bias = _weight_and_bias(path, read_arrays(path))
    weight, bias = np.atleast_2d(weight), np.atleast_1d(bias)
    if weight.ndim != 2 or len(weight) not in (1, 2) or bias.shape != (len(weight),) or not weight.size:
        raise HeadError(
            f"{path} has a weight of shape {weight.shape} and a bias of shape {bias.shape}; a linear head has (1, dim) "
            f"and (1,), or (2, dim) and (2,) for the classes real and fake"
        )
    if head_format.dim and weight.shape != (1, head_format.dim):
        raise HeadError(
            f"{path} has a weight of shape {weight.shape}, but a head of the format {head_format.name} has "
            f"(1, {head_format.dim}); if it is another linear head, use --format linear"
        )
    if max(np.abs(weight).max(), np.abs(bias).max()) > LARGEST:
        raise HeadError(f"{path} holds numbers beyond float32, which no trained head has; get it again")
    if len(weight) == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    if not weight.any():
        raise HeadError(f"{path} gives every image the same score, as its weights are 0; get it again")
    sign = 1.0 if fake_class else -1.0
    return LinearClassifier(sign * weight[0], sign * float(bias[0]))


def _weight_and_bias(path: Path, arrays: Mapping[str, Array]) -> tuple[Array, Array]:
    """The only weight and the only bias of a file; raises HeadError if it holds anything else."""
    weights, biases = ([name for name in arrays if name.rpartition(".")[2] in endings] for endings in (WEIGHT, BIAS))
    if len(weights) != 1 or len(biases) != 1 or len(arrays) > 2:
        shown = ", ".join(f"{name[:80]} {arrays[name].shape}" for name in list(arrays)[:8])
        more = f" and {len(arrays) - 8:,} more" if len(arrays) > 8 else ""
        raise HeadError(f"{path} is no linear head, which has one weight and one bias; it holds {shown}{more}")
    return arrays[weights[0]], arrays[biases[0]]
