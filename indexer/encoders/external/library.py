"""Models of other libraries as encoders: the library is chosen by the encoder's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....errors import EncoderError, MissingExtra
from ..encoder_name import OPEN_CLIP, TIMM

REASON = 400  # characters; the names of all weights can be many thousands

if TYPE_CHECKING:
    from .hub_weights import HubWeights
    from .library_model import LibraryModel


def is_library_model(model_id: str) -> bool:
    """True if a name without its "untrained:SEED:" is that of a model of timm or open_clip."""
    return model_id.startswith((TIMM, OPEN_CLIP))


def hub_weights_of(model_id: str) -> HubWeights | None:
    """The file of a model's weights on the hub, None if the name gives a path; raises EncoderError or MissingExtra."""
    if model_id.startswith(TIMM):
        from . import timm_models

        return timm_models.hub_weights(model_id.removeprefix(TIMM))
    from . import open_clip_models

    return open_clip_models.hub_weights(model_id.removeprefix(OPEN_CLIP))


def load_library_model(model_id: str, seed: int | None = None) -> LibraryModel:
    """Load a model whose weights are on this machine, or with random weights of a seed.

    Raises
    ------
    EncoderError
        The library does not know the model, the weights do not match it, or its preprocessing is not supported.
    MissingExtra
        The library is not installed.
    """
    try:
        if model_id.startswith(TIMM):
            from . import timm_models

            return timm_models.load(model_id.removeprefix(TIMM), seed)
        from . import open_clip_models

        return open_clip_models.load(model_id.removeprefix(OPEN_CLIP), seed)
    except (EncoderError, MissingExtra):
        raise
    except Exception as e:  # the libraries check names, files and weights in many ways
        reason = " ".join(str(e).split()) or type(e).__name__
        raise EncoderError(f"the encoder {model_id} cannot be loaded: {reason[:REASON]}") from e
