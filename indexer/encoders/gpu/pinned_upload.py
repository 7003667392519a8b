"""Upload batches from two alternating pinned buffers on a separate CUDA stream, concurrently with encoding.

A copy on the encoder's stream would start only after the previous batch is encoded. On a separate stream, it runs at
the same time, and events keep the order: the encoder's stream waits for the copy, and a buffer is refilled only after
its last copy. A test checks this with fake streams that run as late as they may. On an H100, overlapping batches gave
exactly the same vectors as single ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from ...decoding.image import Pixels


class PinnedUploader:
    """Uploads batches to one CUDA device for work on the current stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers = [_pinned(0) for _ in range(2)]
        self._copied = [torch.cuda.Event(blocking=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        self._copy_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._turn = 0

    def upload(self, images: Sequence[Pixels]) -> torch.Tensor:
        """Upload n images of equal size as (n, h, w, 3) uint8; only the current stream waits for the copy."""
        return self._upload((len(images), *images[0].shape), lambda staged: np.stack(images, out=staged))

    def upload_bytes(self, parts: Sequence[npt.NDArray[np.uint8]], size: int) -> torch.Tensor:
        """Upload flat arrays, `size` bytes in total, concatenated to (size,) uint8."""
        return self._upload((size,), lambda staged: np.concatenate(parts, out=staged))

    def _upload(self, shape: tuple[int, ...], fill: Callable[[npt.NDArray[np.uint8]], object]) -> torch.Tensor:
        turn, self._turn = self._turn, 1 - self._turn
        copied = self._copied[turn]
        copied.synchronize()  # the last copy from this buffer must finish before it is overwritten
        size = int(np.prod(shape))
        if len(self._buffers[turn]) < size:
            self._buffers[turn] = _pinned(size)
        staged = self._buffers[turn][:size].view(shape)
        fill(staged.numpy())
        with torch.cuda.stream(self._copy_stream):
            uploaded = _copy(staged, self._device)
            copied.record(self._copy_stream)
        user_stream = torch.cuda.current_stream(self._device)
        user_stream.wait_event(copied)
        # Without this, the next copy could reuse the memory once the tensor is freed, while a kernel still reads it.
        uploaded.record_stream(user_stream)
        return uploaded


def _pinned(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def _copy(staged: torch.Tensor, device: torch.device) -> torch.Tensor:
    return staged.to(device, non_blocking=True)
