"""A vision model in torch with its preprocessing, on one device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
import torch

from ...errors import EncoderError
from ...store.space import Space
from ..decoding.image import Pixels
from .base import Embeddings, Encoder, unit
from .onednn_linear import use_onednn_linear
from .pinned_upload import PinnedUploader
from .preprocess import Preprocess
from .text_encoder import TextEncoder

CPU_IMAGES = (
    8  # images a CPU encodes at once: more are no faster, and their layers too large for the allocator to reuse
)


class TorchEncoder(Encoder):
    """An image tower in torch with its preprocessing. Make it with `clipfake.indexer.encoders.load.load_encoder`."""

    def __init__(
        self,
        space: Future[Space],
        tower: torch.nn.Module,
        preprocess: Preprocess,
        words: TextEncoder | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`tower` gives (n, space.dim) features of (n, 3, height, width) preprocessed pixels.

        `space` may come later: the weights are still being hashed while they are moved and laid out.
        """
        self.preprocess: Preprocess = preprocess
        self.words, self.dtype = words, dtype
        self.has_text = words is not None
        self._pending_space = space
        self._move(tower, device)

    @property
    def space(self) -> Space:
        return self._pending_space.result()

    def _move(self, tower: torch.nn.Module, device: torch.device) -> None:
        self.tower = tower.to(device=device, dtype=self.dtype).eval()
        self.device: torch.device = device
        self.overlaps = device.type == "cuda"
        self._stream: torch.cuda.Stream | None = None
        self._upload: Callable[[Sequence[Pixels]], torch.Tensor] | None = None
        if device.type == "cuda":
            self._stream, self._upload = torch.cuda.Stream(device), PinnedUploader(device).upload  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))  # on which the weights are still being moved

    def on(self, device: torch.device) -> TorchEncoder:
        """A copy on another device."""
        twin = copy.copy(self)
        twin._move(copy.deepcopy(self.tower), device)
        return twin

    def use_onednn_linear(self) -> None:
        """On a CPU, lay the weights out for speed; after that, the encoder can no longer be copied `on` a device."""
        if self.device.type == "cpu":
            use_onednn_linear(self.tower)

    def shrink(self, pixels: Pixels) -> Pixels:
        return self.preprocess.shrink(pixels)

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        return self.begin(images)()

    def begin(self, images: Sequence[Pixels]) -> Callable[[], Embeddings]:
        """Start encoding; the function returned waits for the vectors. On a CPU they are ready at once."""
        if self._stream is None:
            size = CPU_IMAGES if self.device.type == "cpu" else max(len(images), 1)
            slices = [images[first : first + size] for first in range(0, len(images), size)]
            rows = [self._features(some).float().cpu().numpy() for some in slices]
            found = unit(np.concatenate([np.zeros((0, self.space.dim), np.float32), *rows]))
            return lambda: found
        with torch.cuda.stream(self._stream):
            features = self._features(images).float()
            here = torch.empty(features.shape, pin_memory=True)
            here.copy_(features, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)

        def wait() -> Embeddings:
            done.synchronize()
            return unit(here.numpy())

        return wait

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        if self.words is None:
            raise EncoderError(f"{self.space.encoder} has no text tower; use --no-text")
        return unit(self.words(texts))

    @torch.inference_mode()
    def _features(self, images: Sequence[Pixels]) -> torch.Tensor:
        features: torch.Tensor = self.tower(self.preprocess(images, self.device, self.dtype, self._upload))
        return features


def choose_device(name: str) -> torch.device:
    if name != "auto":
        try:
            device = torch.device(name)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as e:
            raise EncoderError(f"--device {name} is not usable here ({e}); try --device cpu") from e
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    names = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision != "auto":
        if precision not in names:
            raise EncoderError(f"unknown --precision {precision}; one of auto, {', '.join(names)}")
        return names[precision]
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16
