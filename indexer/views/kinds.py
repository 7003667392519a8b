"""Kinds of views, and the embedding space of each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ...errors import InvalidOption
from ...store.named_vectors import MAIN, NamedVectors
from ...store.space import Space

LAYERS, RAW, POOLED, TOKENS, CROPS, CROPS5 = "layers", "raw", "pooled", "tokens", "crops", "crops5"


@dataclass(frozen=True)
class ViewKind:
    """How a view is computed, and whether it is fitted to images first."""

    law: str  # enters the fingerprint of the view's space: change it whenever the vectors change
    normalised: bool = True
    crops: int = 0  # crops of the image that are encoded
    fitted: bool = False  # needs parameters that are fitted to images of the store


KINDS: dict[str, ViewKind] = {
    # statistics of the outputs of every block, at most 512 dimensions
    LAYERS: ViewKind(
        "class token and mean of the others, or mean and standard deviation, of each block; whitened; unit length",
        fitted=True,
    ),
    # the encoder's vector of the centre, with its length; the mean of those of the centre and the four corners
    CROPS: ViewKind(
        "torchvision CenterCrop to the input size, zeros outside; not normalised", normalised=False, crops=1
    ),
    CROPS5: ViewKind(
        "torchvision FiveCrop to the input size, zeros outside; mean; not normalised", normalised=False, crops=5
    ),
    # the main vector with its length, and the vector before CLIP's projection with its length
    RAW: ViewKind("features of the encoder; not normalised", normalised=False),
    POOLED: ViewKind("class token after the last layer norm, before the projection; not normalised", normalised=False),
    # patches side by side
    TOKENS: ViewKind(
        "blocks at .28 and .84 of the depth, averaged to a grid of at most 8 x 8, in a feature map of the first also "
        "standard deviations; whitened; patches row by row; not normalised",
        normalised=False,
        fitted=True,
    ),
}


def parse_views(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of views; "main", which every row has, may be among them.

    Raises InvalidOption for an unknown name.

    >>> parse_views("main,layers,crops"), parse_views("main")
    (('layers', 'crops'), ())
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name != MAIN and name not in KINDS:
            raise InvalidOption(
                f"unknown view {name!r}; the views are {', '.join([MAIN, *KINDS])}. "
                f"Vectors of another encoder are added with `clipfake store add-vectors`"
            )
    return tuple(dict.fromkeys(name for name in names if name != MAIN))


def view_space(encoder: Space, kind: str, dim: int, digest: str = "") -> Space:
    """Space of a view: its fingerprint depends on the encoder's, the kind's law and the digest of its parameters."""
    law = f"{encoder.fingerprint} {kind}: {KINDS[kind].law} {digest}"
    fingerprint = hashlib.sha256(law.encode()).hexdigest()
    return Space(encoder.encoder, fingerprint, dim, KINDS[kind].normalised)


def kind_of(column: NamedVectors) -> str:
    """Kind of the view that named vectors are, "" for the vectors of another encoder; raises InvalidOption."""
    if column.view is None:
        return ""
    if column.view.kind not in KINDS:
        raise InvalidOption(
            f"the vectors {column.name} of {column.folder} are a view {column.view.kind!r}, which this release does "
            f"not know; upgrade clipfake"
        )
    return column.view.kind
