"""Specification of an encoder: which one to load and where. Needs no torch until it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .encoders.base import Encoder


@dataclass(frozen=True)
class EncoderSpec:
    """Specification of an encoder: the arguments of `load_encoder`, small enough to send to another process."""

    name: str = ""  # "" for a store's own, where there is a store to ask
    device: str = "auto"
    precision: str = "auto"

    def load(self) -> Encoder:
        """Load the encoder; raises EncoderError or MissingExtra."""
        from .encoders.load import load_encoder

        return load_encoder(self.name, device=self.device, precision=self.precision)
