"""Uploads concurrent with encoding keep their order, even on streams that run as late as CUDA allows."""

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
    """A stream that runs its queued work as late as possible: only when something waits for it."""

    current: Stream

    def __init__(self, device: object = None) -> None:
        self.pending: list[Callable[[], None]] = []

    def run(self) -> None:
        while self.pending:
            self.pending.pop(0)()

    def wait_event(self, event: Event) -> None:
        self.pending.append(event.run_until_complete)


class Event:
    def __init__(self, *, blocking: bool = False) -> None:
        self.stream: Stream | None = None
        self.completed = True  # as in CUDA, an event that was never recorded is complete

    def record(self, stream: Stream) -> None:
        self.stream, self.completed = stream, False
        stream.pending.append(lambda: setattr(self, "completed", True))

    def run_until_complete(self) -> None:
        while not self.completed and self.stream is not None:
            self.stream.pending.pop(0)()

    synchronize = run_until_complete  # two names, so that a test can disable one alone


class Device:
    """Device memory that is reused as soon as a tensor is freed, unless `record_stream` was called."""

    def __init__(self) -> None:
        self.free: list[np.ndarray] = []

    def copy(self, staged: torch.Tensor, target: object) -> DeviceTensor:
        memory = self.free.pop() if self.free else np.zeros(staged.numel(), np.uint8)
        source = staged.reshape(-1).numpy()  # read when the stream runs the copy
        Stream.current.pending.append(lambda: np.copyto(memory, source))
        return DeviceTensor(self, memory)


class DeviceTensor:
    def __init__(self, device: Device, memory: np.ndarray) -> None:
        self.memory, self.users = memory, list[Stream]()
        weakref.finalize(self, _free, device, memory, self.users)

    def record_stream(self, stream: Stream) -> None:
        self.users.append(stream)


def _free(device: Device, memory: np.ndarray, users: list[Stream]) -> None:
    if users:
        users[0].pending.append(lambda: device.free.append(memory))
    else:
        device.free.append(memory)


@contextmanager
def use_stream(stream: Stream) -> Iterator[None]:
    previous, Stream.current = Stream.current, stream
    yield
    Stream.current = previous


@pytest.fixture
def encoder_stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", use_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream.current)
    monkeypatch.setattr(pinned_upload, "_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    monkeypatch.setattr(pinned_upload, "_copy", Device().copy)
    Stream.current = Stream()
    return Stream.current


def encoded_pixels(stream: Stream) -> list[int]:
    """Return the first pixel of each batch as read by its encoding; batch i is filled with i + 1."""
    uploader, pixels = PinnedUploader(torch.device("cpu")), list[int]()

    def encode(memory: np.ndarray) -> None:
        pixels.append(int(memory[0]))

    for i in range(BATCHES):
        uploaded = uploader.upload([np.full((2, 2, 3), i + 1, np.uint8)] * 3)
        memory = uploaded.memory  # type: ignore[attr-defined]
        # like a kernel, it holds no reference to the tensor
        stream.pending.append(lambda memory=memory: encode(memory))  # type: ignore[misc]
        del uploaded
    stream.run()
    return pixels


def test_each_batch_is_encoded_from_its_own_pixels(encoder_stream: Stream) -> None:
    assert encoded_pixels(encoder_stream) == list(range(1, BATCHES + 1))


@pytest.mark.parametrize(
    ("owner", "method"), [(Stream, "wait_event"), (Event, "synchronize"), (DeviceTensor, "record_stream")]
)
def test_each_of_the_three_safeguards_is_needed(
    encoder_stream: Stream, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    monkeypatch.setattr(owner, method, lambda *arguments: None)
    assert encoded_pixels(encoder_stream) != list(range(1, BATCHES + 1))


def test_a_copy_does_not_wait_for_the_encoder(encoder_stream: Stream) -> None:
    uploader = PinnedUploader(torch.device("cpu"))
    encoder_stream.pending.append(lambda: pytest.fail("the upload waited for the encoder"))
    for i in range(BATCHES):
        uploader.upload([np.full((2, 2, 3), i, np.uint8)])


def test_a_larger_batch_gets_a_larger_buffer(encoder_stream: Stream) -> None:
    uploader = PinnedUploader(torch.device("cpu"))
    uploader.upload([np.zeros((2, 2, 3), np.uint8)])
    uploaded = uploader.upload([np.full((4, 4, 3), 7, np.uint8)] * 5)
    encoder_stream.run()
    assert uploaded.memory.tolist() == [7] * 240  # type: ignore[attr-defined]
