"""Uploads beside the encoder's work keep their order, on streams that run as late as they are allowed to."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from clipfake.indexer.encoders.gpu import pinned_upload
from clipfake.indexer.encoders.gpu.pinned_upload import PinnedUploader

BATCHES = 6


class Stream:
    """Work that waits until somebody waits for it."""

    current: Stream

    def __init__(self, device: object = None) -> None:
        self.pending: list[Callable[[], None]] = []

    def run(self) -> None:
        while self.pending:
            self.pending.pop(0)()

    def wait_event(self, event: Event) -> None:
        self.pending.append(event.happen)


class Event:
    def __init__(self, *, blocking: bool = False) -> None:
        self.stream: Stream | None = None
        self.happened = True  # never recorded: nothing to wait for, as in CUDA

    def record(self, stream: Stream) -> None:
        self.stream, self.happened = stream, False
        stream.pending.append(lambda: setattr(self, "happened", True))

    def happen(self) -> None:
        while not self.happened and self.stream is not None:
            self.stream.pending.pop(0)()

    synchronize = happen


class Card:
    """Memory that is handed out again at once when nobody holds it, unless a stream was recorded."""

    def __init__(self) -> None:
        self.free: list[np.ndarray] = []

    def copy(self, staged: torch.Tensor, device: object) -> OnCard:
        place = self.free.pop() if self.free else np.zeros(staged.numel(), np.uint8)
        source = staged.reshape(-1).numpy()  # read when the stream comes to it
        Stream.current.pending.append(lambda: np.copyto(place, source))
        return OnCard(self, place)


class OnCard:
    def __init__(self, card: Card, place: np.ndarray) -> None:
        self.place, self.users = place, list[Stream]()
        weakref.finalize(self, _freed, card, place, self.users)

    def record_stream(self, stream: Stream) -> None:
        self.users.append(stream)


def _freed(card: Card, place: np.ndarray, users: list[Stream]) -> None:
    if users:
        users[0].pending.append(lambda: card.free.append(place))
    else:
        card.free.append(place)


@contextmanager
def on(stream: Stream) -> Iterator[None]:
    before, Stream.current = Stream.current, stream
    yield
    Stream.current = before


@pytest.fixture
def encoder_stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream.current)
    monkeypatch.setattr(pinned_upload, "_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    monkeypatch.setattr(pinned_upload, "_copy", Card().copy)
    Stream.current = Stream()
    return Stream.current


def what_the_encoder_sees(stream: Stream) -> list[int]:
    """The first pixel of each batch as its work sees it; batch i is all i + 1."""
    uploads, seen = PinnedUploader(torch.device("cpu")), list[int]()

    def see(place: np.ndarray) -> None:
        seen.append(int(place[0]))

    for i in range(BATCHES):
        there = uploads.upload([np.full((2, 2, 3), i + 1, np.uint8)] * 3)
        place = there.place  # type: ignore[attr-defined]
        # a kernel holds no reference to the tensor
        stream.pending.append(lambda place=place: see(place))  # type: ignore[misc]
        del there
    stream.run()
    return seen


def test_each_batch_is_encoded_from_its_own_pixels(encoder_stream: Stream) -> None:
    assert what_the_encoder_sees(encoder_stream) == list(range(1, BATCHES + 1))


@pytest.mark.parametrize(
    ("kind", "forgotten"), [(Stream, "wait_event"), (Event, "synchronize"), (OnCard, "record_stream")]
)
def test_without_one_of_its_three_safeguards_it_is_not(
    encoder_stream: Stream, monkeypatch: pytest.MonkeyPatch, kind: type, forgotten: str
) -> None:
    monkeypatch.setattr(kind, forgotten, lambda *fields: None)
    assert what_the_encoder_sees(encoder_stream) != list(range(1, BATCHES + 1))


def test_a_copy_does_not_wait_for_the_encoder(encoder_stream: Stream) -> None:
    uploads = PinnedUploader(torch.device("cpu"))
    encoder_stream.pending.append(lambda: pytest.fail("the encoder's work was waited for"))
    for i in range(BATCHES):
        uploads.upload([np.full((2, 2, 3), i, np.uint8)])


def test_a_larger_batch_gets_a_larger_buffer(encoder_stream: Stream) -> None:
    uploads = PinnedUploader(torch.device("cpu"))
    uploads.upload([np.zeros((2, 2, 3), np.uint8)])
    there = uploads.upload([np.full((4, 4, 3), 7, np.uint8)] * 5)
    encoder_stream.run()
    assert there.place.tolist() == [7] * 240  # type: ignore[attr-defined]
