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
from .clip_vision import ClipVision
from .gpu.batch_input import GpuInput, ReducedImages, gpu_input_for
from .gpu.pinned_upload import PinnedUploader
from .onednn_linear import use_onednn_linear
from .preprocess import Preprocess
from .text_encoder import TextEncoder

# Images a CPU encodes at once: more are no faster, and their layers too large for the allocator to reuse.
CPU_IMAGES = 8
GPU_TOKENS = 65_536  # of a batch on a GPU, about: 1,024 images of ViT-B/32, 256 of ViT-L/14


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
        self._gpu_input: GpuInput | None = None
        if device.type == "cuda":
            uploader = PinnedUploader(device)
            self._stream, self._upload = torch.cuda.Stream(device), uploader.upload  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))  # on which the weights are still being moved
            with torch.cuda.stream(self._stream):
                self._gpu_input = gpu_input_for(self.preprocess, device, uploader)
        self.reduces = self._gpu_input is not None

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

    @property
    def batch_size(self) -> int:
        if self.device.type != "cuda" or not isinstance(self.tower, ClipVision):
            return super().batch_size
        tokens = self.tower.shape.patches + 1
        return int(2 ** np.clip(round(np.log2(GPU_TOKENS / tokens)), 4, 10))

    def begin(self, images: Sequence[Pixels]) -> Callable[[], Embeddings]:
        """Start encoding; the function returned waits for the vectors. On a CPU they are ready at once."""
        if self._stream is None:
            size = CPU_IMAGES if self.device.type == "cpu" else max(len(images), 1)
            rows = [np.zeros((0, self.space.dim), np.float32)]
            with torch.inference_mode():
                for first in range(0, len(images), size):
                    features = self.tower(self.inputs(images[first : first + size]))
                    rows.append(features.float().cpu().numpy())
            vectors = unit(np.concatenate(rows))
            return lambda: vectors
        wait = self._launch(images, reduce=False)
        return lambda: wait()[0]

    def begin_reduced(self, images: Sequence[Pixels]) -> Callable[[], tuple[Embeddings, Sequence[Pixels]]]:
        return self._launch(images, reduce=True) if self.reduces else super().begin_reduced(images)

    def _launch(self, images: Sequence[Pixels], *, reduce: bool) -> Callable[[], tuple[Embeddings, Sequence[Pixels]]]:
        """Queue all work of a batch on the device, and return a function that waits for it."""
        assert self._stream is not None
        dtype = self.dtype
        with torch.cuda.stream(self._stream), torch.inference_mode():
            small: ReducedImages | None = None
            if reduce and self._gpu_input is not None:
                pixels, small = self._gpu_input.with_reduced(images, self.dtype)
            else:
                pixels = self.inputs(images)
            features = self.tower(pixels).float()
            here = torch.empty(features.shape, pin_memory=True)
            here.copy_(features, non_blocking=True)
            thumbnails = small.download() if small is not None else None
            # `blocking`: waiting in a loop would keep a core from decoding
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record(self._stream)

        def wait() -> tuple[Embeddings, Sequence[Pixels]]:
            done.synchronize()
            vectors = here.numpy()
            if dtype is torch.float16 and not np.isfinite(vectors).all():
                self._use_bf16()
                vectors = self._launch(images, reduce=False)()[0]
            return unit(vectors), thumbnails.images() if thumbnails is not None else ()

        return wait

    def _use_bf16(self) -> None:
        """Change to bf16, whose range is that of float32: an activation has overflowed fp16."""
        if self.dtype is torch.bfloat16:
            return
        torch.cuda.synchronize(self.device)  # batches in flight still read the weights
        self.dtype = torch.bfloat16
        self.tower = self.tower.to(self.dtype)

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        if self.words is None:
            raise EncoderError(f"{self.space.encoder} has no text tower; use --no-text")
        return unit(self.words(texts))

    @torch.inference_mode()
    def inputs(self, images: Sequence[Pixels], dtype: torch.dtype | None = None) -> torch.Tensor:
        """(n, 3, height, width) input of the tower, on the device: (height, width, 3) uint8 images, preprocessed."""
        if self._gpu_input is not None:
            return self._gpu_input(images, dtype or self.dtype)
        return self.preprocess(images, self.device, dtype or self.dtype, self._upload)


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


def choose_dtype(precision: str, device: torch.device, *, clip: bool = False) -> torch.dtype:
    """The type of the weights; `clip` for CLIP, whose weights were trained in fp16.

    In fp16 its vectors are those of float32 to a cosine of .99995 at worst, in bf16 to .9967 (centred, on an H100).
    """
    names = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision != "auto":
        if precision not in names:
            raise EncoderError(f"unknown --precision {precision}; one of auto, {', '.join(names)}")
        return names[precision]
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and torch.cuda.is_bf16_supported() and not clip:
        return torch.bfloat16
    return torch.float16
