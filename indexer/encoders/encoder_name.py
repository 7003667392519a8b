"""Parse names of encoders, without importing torch.

NAME is a Hugging Face Hub id or a local directory, "timm:NAME" a model of timm, "open_clip:NAME/PRETRAINED" one of
open_clip, and "MODULE:FUNCTION" or "FILE.py:FUNCTION" a function that makes an encoder. "untrained:SEED:NAME" is an
architecture with random weights, "depth:NAME" a depth model and "int8:NAME" the same model in OpenVINO with 8-bit
arithmetic.
"""

from __future__ import annotations

import os
import re
import shlex

from ...errors import EncoderError

DEFAULT_ENCODER = "openai/clip-vit-base-patch32"

PLAIN = "plain"
UNTRAINED = "untrained:"
DEPTH = "depth:"
INT8 = "int8:"
TIMM = "timm:"
OPEN_CLIP = "open_clip:"
TRUSTED_CODE = "CLIPFAKE_ENCODERS"  # environment variable: names of own encoders, separated by commas
_RANDOM = re.compile(rf"{UNTRAINED}([0-9]{{1,18}}):(.+)", re.DOTALL)
_IDENTIFIER = r"[^\W\d]\w*"
_CODE = re.compile(rf"(.+\.py|{_IDENTIFIER}(?:\.{_IDENTIFIER})*):({_IDENTIFIER})")


def model_id_of(name: str) -> tuple[str, bool]:
    """Return the hub id or directory in an encoder's name, and whether its weights are needed.

    >>> model_id_of("int8:openai/clip-vit-base-patch32"), model_id_of("untrained:0:models/clip")
    (('openai/clip-vit-base-patch32', True), ('models/clip', False))
    """
    name = name.removeprefix(INT8).removeprefix(DEPTH)
    random = _RANDOM.fullmatch(name)
    return (random[2], False) if random else (name, True)


def code_of(name: str) -> tuple[str, str] | None:
    """Return module (or file) and function if an encoder's name is that of a function that makes it, else None.

    >>> code_of("my.encoders:tiny"), code_of("lib/enc.py:tiny"), code_of("timm:resnet50")
    (('my.encoders', 'tiny'), ('lib/enc.py', 'tiny'), None)
    """
    code = None if name.startswith((UNTRAINED, DEPTH, INT8, TIMM, OPEN_CLIP)) else _CODE.fullmatch(name)
    return (code[1], code[2]) if code else None


def require_trusted(name: str) -> None:
    """Raise EncoderError for a function that a file names as its encoder, unless the user's environment lists it.

    Who made a store must not choose which code runs on the machine that opens it.
    """
    if name in (listed.strip() for listed in os.environ.get(TRUSTED_CODE, "").split(",")):
        return
    raise EncoderError(
        f"the store names the encoder {name}, which is Python code, and code that a store names is not run unasked. If "
        f"you trust it, give --encoder {shlex.quote(name)} (in Python, encoder={name!r}), or list it in the "
        f"environment variable {TRUSTED_CODE}"
    )


def with_random_weights(name: str, seed: int = 0) -> str:
    """Return the name of the same architecture with random weights.

    >>> with_random_weights("models/clip")
    'untrained:0:models/clip'
    """
    return f"{UNTRAINED}{seed}:{name}"


def seed_of(name: str) -> int | None:
    """Return the seed of an encoder's random weights, or None if the weights are trained.

    >>> seed_of("untrained:7:models/clip"), seed_of("models/clip")
    (7, None)
    """
    random = _RANDOM.fullmatch(name)
    return int(random[1]) if random else None


def load_error(model: str, error: Exception) -> EncoderError:
    """Build the error for a model that cannot be loaded, with the reason and what to do."""
    reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
    return EncoderError(
        f"{model} cannot be loaded: {reason}. Name a directory that contains config.json, preprocessor_config.json and "
        f"weights, or a hub id that is in the Hugging Face cache or can be downloaded"
    )
