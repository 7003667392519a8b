"""Specification of an encoder: which one to load, and on which device. Imports torch only when it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..store.space import Space

if TYPE_CHECKING:
    from .encoders.base import Encoder


@dataclass(frozen=True)
class EncoderSpec:
    """Arguments of `load_encoder`, small enough to send to another process."""

    name: str = ""  # "": the encoder of the store
    device: str = "auto"
    precision: str = "auto"
    # False for a name that a store gives: an encoder is downloaded, or its code run, only if the user names it
    trusted: bool = True

    @classmethod
    def of_space(cls, space: Space, device: str = "auto", precision: str = "auto") -> EncoderSpec:
        """The encoder of stored vectors, which is neither downloaded nor, if it is code, run."""
        return cls(space.encoder, device, precision, trusted=False)

    def ensure_available(self) -> None:
        """Download the encoder's files unless they are on this machine; raises EncoderError or MissingExtra."""
        from .encoders.hub import ensure_available

        ensure_available(self.name, trusted=self.trusted)

    def load(self) -> Encoder:
        """Load the encoder; raises EncoderError or MissingExtra."""
        from .encoders.load import load_encoder

        return load_encoder(self.name, device=self.device, precision=self.precision, trusted=self.trusted)
