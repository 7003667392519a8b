"""Choose the encoder of a command, and print the notice that belongs to it."""

from __future__ import annotations

from pathlib import Path

from .terminal import print_message


def encoder_name(store: Path, encoder: str | None, *, untrained: bool = False) -> str:
    """Return the name of the encoder to load: `encoder`, else the store's own, else the default."""
    from ..errors import NoStore
    from ..indexer.encoders.encoder_name import DEFAULT_ENCODER, with_random_weights
    from ..store.store import Store

    if encoder is None:
        try:
            encoder = Store.open(store).snapshot().space.encoder
        except NoStore:
            encoder = DEFAULT_ENCODER
    return with_random_weights(encoder) if untrained else encoder


def print_notice(encoder: str) -> None:
    """Print the notice of an encoder that is not a real one."""
    from ..session import encoder_notice

    if notice := encoder_notice(encoder):
        print_message(notice)
