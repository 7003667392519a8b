"""A store and an encoder by what the person said, or by what the store remembers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .options import DEFAULT_ENCODER
from .terminal import say

if TYPE_CHECKING:
    from ..indexer.encoders.base import Encoder
    from ..store.space import Space
    from ..store.store import Store


class Embeds(Protocol):
    """An encoder, or workers who have one."""

    @property
    def space(self) -> Space: ...


def open_encoder(
    store: Path,
    encoder: str | None,
    *,
    head: str = "",
    untrained: bool = False,
    device: str = "auto",
    precision: str = "auto",
) -> Encoder:
    """The encoder that was named, else the store's own, else the default.

    For a head that reads several columns of vectors it is all their encoders as one.
    """
    from ..indexer.encoders.load import load_encoder

    name = encoder_name(store, encoder, untrained=untrained)
    main = load_encoder(name, device=device, precision=precision)
    return with_columns(main, store, head, device, precision) if head else main


def encoder_name(store: Path, encoder: str | None, *, untrained: bool = False) -> str:
    """What `load_encoder` is to load: the encoder that was named, else the store's own, else the default."""
    from ..errors import NoStore
    from ..indexer.encoders.encoder_name import with_random_weights
    from ..store.store import Store

    if encoder is None:
        try:
            encoder = Store.open(store).snapshot().space.encoder
        except NoStore:
            encoder = DEFAULT_ENCODER
    return with_random_weights(encoder) if untrained else encoder


def with_columns(main: Encoder, store: Path, head: str, device: str, precision: str) -> Encoder:
    """The store's encoder, joined with those of the other columns that a head reads."""
    from ..detector.head import columns_of, head_folder
    from ..indexer.add_vectors import ConcatenatedEncoder
    from ..indexer.encoders.load import load_encoder
    from ..store.named_vectors import MAIN, open_named_vectors

    columns = columns_of(head_folder(store, head))
    if columns == (MAIN,):
        return main
    encoders = {name: open_named_vectors(store, name).space for name in columns if name != MAIN}
    loaded = {name: load_encoder(space.encoder, device=device, precision=precision) for name, space in encoders.items()}
    for name, space in encoders.items():
        loaded[name].space.require(space, f"the column {name} of {store}")
    return ConcatenatedEncoder([main if name == MAIN else loaded[name] for name in columns])


def create_store(folder: Path, encoder: Embeds) -> Store:
    from ..store.store import Store

    return Store.create(folder, encoder.space)


def notice(encoder: Embeds) -> None:
    """Say so in one line where verdicts mean nothing beyond the sample."""
    if text := notice_of(encoder):
        say(text)


def notice_of(encoder: Embeds) -> str:
    """What must be known of an encoder to read its verdicts; "" for a real one."""
    from ..indexer.encoders.encoder_name import INT8, seed_of
    from ..simulated.notice import NOTICE, is_standin

    name = encoder.space.encoder.removeprefix(INT8)
    if is_standin(name):
        return NOTICE
    if seed_of(name) is not None:
        return "The encoder has random weights: good for measuring speed, its verdicts mean nothing."
    return ""
