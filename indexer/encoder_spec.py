"""Specification of an encoder: which one to load, and on which device. Imports torch only when it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .encoders.base import Encoder


@dataclass(frozen=True)
class EncoderSpec:
    """Arguments of `load_encoder`, small enough to send to another process."""

    name: str = ""  # "": the encoder of the store
    device: str = "auto"
    precision: str = "auto"

    def load(self) -> Encoder:
        """Load the encoder; raises EncoderError or MissingExtra."""
        from .encoders.load import load_encoder

        return load_encoder(self.name, device=self.device, precision=self.precision)
