"""Names of encoders. Needs no torch.

NAME is a hub id or a directory. "untrained:SEED:NAME" is its architecture with random weights, "depth:NAME" a depth
model, "int8:NAME" the same model in OpenVINO with 8-bit arithmetic.
"""

from __future__ import annotations

from ...errors import EncoderError

DEFAULT_ENCODER = "openai/clip-vit-base-patch32"

PLAIN = "plain"
UNTRAINED = "untrained:"
DEPTH = "depth:"
INT8 = "int8:"


def place_of(name: str) -> tuple[str, bool]:
    """The hub id or directory in an encoder's name, and whether its weights are needed.

    >>> place_of("int8:openai/clip-vit-base-patch32"), place_of("untrained:0:here")
    (('openai/clip-vit-base-patch32', True), ('here', False))
    """
    name = name.removeprefix(INT8).removeprefix(DEPTH)
    if not name.startswith(UNTRAINED):
        return name, True
    return name.removeprefix(UNTRAINED).partition(":")[2], False


def with_random_weights(name: str, seed: int = 0) -> str:
    """The name of the same architecture with random weights.

    >>> with_random_weights("here")
    'untrained:0:here'
    """
    return f"{UNTRAINED}{seed}:{name}"


def seed_of(name: str) -> int | None:
    """The seed of an encoder's random weights; None where it has its own.

    >>> seed_of("untrained:7:here"), seed_of("here")
    (7, None)
    """
    return int(name.removeprefix(UNTRAINED).partition(":")[0]) if name.startswith(UNTRAINED) else None


def cannot_load(what: str, error: Exception) -> EncoderError:
    """Why a model cannot be had, and what to do."""
    reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
    return EncoderError(
        f"{what} cannot be loaded: {reason}. Name a directory that holds config.json, weights and "
        f"preprocessor_config.json, or a hub id while online (or already in the Hugging Face cache)"
    )
