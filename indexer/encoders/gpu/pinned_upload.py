"""Pinned buffers, filled in turn, and a stream of their own to copy from: uploads that neither side waits for.

The encoder's stream holds the work of the batch before, so a copy on it would begin when that is done. On a stream
beside it the copy runs meanwhile, and two events keep the order: the encoder's stream waits for the copy, and a buffer
is filled again only after its last copy. A test holds this order with streams that run as late as they may; on an H100,
batches in flight gave exactly the vectors that they give alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from ...decoding.image import Pixels


class PinnedUploader:
    """Uploads batches of equally large images to one CUDA device, for work on the current stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers = [_pinned(0) for _ in range(2)]
        self._copied = [torch.cuda.Event(blocking=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        self._copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._turn = 0

    def upload(self, images: Sequence[Pixels]) -> torch.Tensor:
        """(n, h, w, 3) uint8 on the device; the copy may still be under way, the current stream waits for it."""
        return self._upload((len(images), *images[0].shape), lambda staged: np.stack(images, out=staged))

    def upload_bytes(self, parts: Sequence[npt.NDArray[np.uint8]], size: int) -> torch.Tensor:
        """(size,) uint8 on the device: flat arrays of `size` bytes in all, one behind the other."""
        return self._upload((size,), lambda staged: np.concatenate(parts, out=staged))

    def _upload(self, shape: tuple[int, ...], fill: Callable[[npt.NDArray[np.uint8]], object]) -> torch.Tensor:
        turn, self._turn = self._turn, 1 - self._turn
        copied = self._copied[turn]
        copied.synchronize()  # the buffer's last copy must be done before it is written over
        size = int(np.prod(shape))
        if len(self._buffers[turn]) < size:
            self._buffers[turn] = _pinned(size)
        staged = self._buffers[turn][:size].view(shape)
        fill(staged.numpy())
        with torch.cuda.stream(self._copying):
            there = _copy(staged, self._device)
            copied.record(self._copying)
        using = torch.cuda.current_stream(self._device)
        using.wait_event(copied)
        # The memory is the copy stream's: freed, its next copy would have it at once, though it is still being read.
        there.record_stream(using)
        return there


def _pinned(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def _copy(staged: torch.Tensor, device: torch.device) -> torch.Tensor:
    return staged.to(device, non_blocking=True)
