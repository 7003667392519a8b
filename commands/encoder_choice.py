"""Choose the encoder of a command, and print the notice that belongs to it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .terminal import print_message

if TYPE_CHECKING:
    from ..indexer.encoder_spec import EncoderSpec


def choose_encoder(
    store: Path, encoder: str | None, device: str, precision: str, *, untrained: bool = False
) -> EncoderSpec:
    """Specification of the encoder to load: `encoder`, else the store's own, else the default."""
    from ..errors import NoStore
    from ..indexer.encoder_spec import EncoderSpec
    from ..indexer.encoders.encoder_name import DEFAULT_ENCODER, with_random_weights
    from ..store.store import Store

    spec = EncoderSpec(encoder or DEFAULT_ENCODER, device, precision)
    if encoder is None:
        with suppress(NoStore):
            spec = EncoderSpec.of_space(Store.open(store).snapshot().space, device, precision)
    return replace(spec, name=with_random_weights(spec.name)) if untrained else spec


def print_notice(encoder: str) -> None:
    """Print the notice of an encoder that is not a real one."""
    from ..session import encoder_notice

    if notice := encoder_notice(encoder):
        print_message(notice)
