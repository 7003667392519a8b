"""Two pinned buffers, filled in turn while the GPU copies from the other: uploads that nobody waits for.

Written for CUDA and not yet measured on one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .image import Pixels


class Staging:
    """Uploads batches of equally large images to one CUDA device on the current stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers = [torch.empty(0, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0

    def upload(self, images: Sequence[Pixels]) -> torch.Tensor:
        """(n, h, w, 3) uint8 on the device; the copy may still be under way."""
        turn, self._turn = self._turn, 1 - self._turn
        self._copied[turn].synchronize()  # the buffer's last copy must be done before it is written over
        shape = (len(images), *images[0].shape)
        size = int(np.prod(shape))
        if len(self._buffers[turn]) < size:
            self._buffers[turn] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        staged = self._buffers[turn][:size].view(shape)
        np.stack(images, out=staged.numpy())
        there = staged.to(self._device, non_blocking=True)
        self._copied[turn].record(torch.cuda.current_stream(self._device))
        return there
