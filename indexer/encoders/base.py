"""Images and words to unit vectors: an image tower on its device, and what reads its text."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ...errors import EncoderError
from ...store.space import Space
from ..decoding.image import Pixels
from .onednn_linear import use_onednn_linear
from .pinned_upload import PinnedUploader
from .preprocess import Preprocess
from .text_encoder import TextEncoder

Embeddings = npt.NDArray[np.float32]  # (n, dim), unit rows

CPU_IMAGES = 8  # that a CPU sees at once: more are no quicker, and their layers too large for the allocator to reuse


class Encoder(Protocol):
    """What turns images into vectors of one space."""

    @property
    def space(self) -> Space: ...

    @property
    def has_text(self) -> bool: ...

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        """(n, dim) unit vectors of n images."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """(n, dim) unit vectors of n texts; only where `has_text`."""
        ...


class PlainEncoder:
    """The plain one: each image shrunk to 8 x 8 pixels, centred. No weights, right by inspection, for trials."""

    has_text = False

    def __init__(self) -> None:
        self.space = Space("plain", hashlib.blake2b(b"8x8 box mean, centred", digest_size=32).hexdigest(), dim=192)

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        rows = []
        for pixels in images:
            if min(pixels.shape[:2]) < 8:
                pixels = pixels.repeat(8, 0).repeat(8, 1)
            bands = np.array_split(pixels.astype(np.float32), 8, axis=0)
            cells = [[cell.mean((0, 1)) for cell in np.array_split(band, 8, axis=1)] for band in bands]
            row = np.array(cells).reshape(-1) / 255
            rows.append(row - row.mean() + 1e-3)
        return unit(np.array(rows, np.float32))

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        raise EncoderError("the plain encoder knows no text")


class TorchEncoder:
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
        self.preprocess, self.words, self.dtype = preprocess, words, dtype
        self._space = space
        self._move(tower, device)

    @property
    def space(self) -> Space:
        return self._space.result()

    def _move(self, tower: torch.nn.Module, device: torch.device) -> None:
        self.tower = tower.to(device=device, dtype=self.dtype).eval()
        self.device = device
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

    @property
    def has_text(self) -> bool:
        return self.words is not None

    @property
    def overlaps(self) -> bool:
        """Whether `begin` returns before the work is done."""
        return self._stream is not None

    def shrink(self, pixels: Pixels) -> Pixels:
        """A large image made as small as the encoder sees it, in the thread that decoded it."""
        return self.preprocess.shrink(pixels)

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        return self.begin(images)()

    def begin(self, images: Sequence[Pixels]) -> Callable[[], Embeddings]:
        """Start encoding; the function returned waits for the vectors. On a CPU they are there at once."""
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


class Replicas:
    """One encoder on several devices; the indexer gives each its own batches."""

    def __init__(self, replicas: Sequence[Encoder]) -> None:
        self.replicas = tuple(replicas)
        self.space, self.has_text = replicas[0].space, replicas[0].has_text

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        return self.replicas[0].encode(images)

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        return self.replicas[0].encode_texts(texts)


def unit(vectors: npt.NDArray[Any]) -> Embeddings:
    """Rows divided by their Euclidean length; a zero row stays zero, for the store to refuse."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths == 0, 1, lengths), np.float32)


def choose_device(told: str) -> torch.device:
    if told != "auto":
        try:
            device = torch.device(told)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as e:
            raise EncoderError(f"--device {told} is not usable here ({e}); try --device cpu") from e
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
