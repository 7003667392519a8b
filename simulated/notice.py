"""The stand-in encoder's name, and the notice that limits the meaning of its verdicts. Imports no torch."""

from __future__ import annotations

from pathlib import Path

NAME = "clipfake-standin-clip"
NOTICE = (
    "The encoder is a stand-in built from a seed, not CLIP, and the sample is simulated: "
    "these verdicts hold for this sample only."
)


def is_standin(encoder: str) -> bool:
    """True if this is the name or directory of the stand-in encoder.

    >>> is_standin("demo/clipfake-standin-clip"), is_standin("openai/clip-vit-base-patch32")
    (True, False)
    """
    return Path(encoder).name == NAME
