"""Encoders by name, and what to say of them."""

from __future__ import annotations

from pathlib import Path

from .terminal import say


def encoder_name(store: Path, encoder: str | None, *, untrained: bool = False) -> str:
    """The name of the encoder to load: the one given, else the store's own, else the default."""
    from ..errors import NoStore
    from ..indexer.encoders.encoder_name import DEFAULT_ENCODER, with_random_weights
    from ..store.store import Store

    if encoder is None:
        try:
            encoder = Store.open(store).snapshot().space.encoder
        except NoStore:
            encoder = DEFAULT_ENCODER
    return with_random_weights(encoder) if untrained else encoder


def say_notice(encoder: str) -> None:
    """Print what limits the meaning of an encoder's verdicts, if anything does."""
    from ..session import encoder_notice

    if notice := encoder_notice(encoder):
        say(notice)
