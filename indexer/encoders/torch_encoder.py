"""Run a vision model in torch, with its preprocessing, on one device."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np
import torch

from ...errors import EncoderError
from ...store.space import Space
from ..decoding.image import Pixels
from .base import Embeddings, Encoder, Features, unit
from .clip_vision import ClipVision
from .gpu.batch_input import GpuInput, ReducedImages, gpu_input_for
from .gpu.pinned_upload import PinnedUploader
from .onednn_linear import use_onednn_linear
from .preprocess import Preprocess
from .text_encoder import TextEncoder

logger = logging.getLogger(__name__)

# Larger batches are no faster on a CPU, and the allocator cannot reuse the memory of their activations.
CPU_BATCH_SIZE = 8
GPU_BATCH_TOKENS = 65_536  # approximate tokens per batch on a GPU: 1,024 images of ViT-B/32, 256 of ViT-L/14


class TorchEncoder(Encoder):
    """Encoder that runs in torch. Create it with `clipfake.indexer.encoders.load.load_encoder`."""

    def __init__(
        self,
        space: Future[Space],
        vision_model: torch.nn.Module,
        preprocess: Preprocess,
        text_encoder: TextEncoder | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`vision_model` maps (n, 3, height, width) preprocessed pixels to (n, space.dim) features.

        `space` is a future because the weights are hashed while they are moved to the device.
        """
        self.preprocess: Preprocess = preprocess
        self.text_encoder, self.dtype = text_encoder, dtype
        self.has_text = text_encoder is not None
        self._pending_space = space
        self._tokens = vision_model.config.patches + 1 if isinstance(vision_model, ClipVision) else 0  # 0: unknown
        self._move(vision_model, device)

    @property
    def space(self) -> Space:
        return self._pending_space.result()

    def _move(self, vision_model: torch.nn.Module, device: torch.device) -> None:
        if self.dtype is torch.float16 and not fits_fp16(vision_model):
            self.dtype = torch.bfloat16
        self.vision_model = vision_model.to(device=device, dtype=self.dtype).eval()
        self.device: torch.device = device
        self.overlaps = device.type == "cuda"
        self._stream: torch.cuda.Stream | None = None
        self._upload: Callable[[Sequence[Pixels]], torch.Tensor] | None = None
        self._gpu_input: GpuInput | None = None
        if device.type == "cuda":
            uploader = PinnedUploader(device)
            self._stream, self._upload = torch.cuda.Stream(device), uploader.upload  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))  # it may still be copying the weights
            with torch.cuda.stream(self._stream):
                self._gpu_input = gpu_input_for(self.preprocess, device, uploader)
        self.reduces = self._gpu_input is not None

    def copy_to(self, device: torch.device) -> TorchEncoder:
        """Return a copy of the encoder on another device."""
        replica = copy.copy(self)
        replica._move(copy.deepcopy(self.vision_model), device)
        return replica

    def with_model(self, vision_model: torch.nn.Module) -> TorchEncoder:
        """Return the same encoder with another model on its device, whose features may be longer than the space's."""
        other = copy.copy(self)
        other.vision_model = vision_model
        return other

    def use_onednn_linear(self) -> None:
        """On a CPU, pack the weights for speed; the encoder can then no longer be copied with `copy_to`."""
        if self.device.type == "cpu":
            use_onednn_linear(self.vision_model)

    def shrink(self, pixels: Pixels) -> Pixels:
        return self.preprocess.shrink(pixels)

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        return self.begin(images)()

    @property
    def batch_size(self) -> int:
        if self.device.type != "cuda" or not self._tokens:
            return super().batch_size
        return int(2 ** np.clip(round(np.log2(GPU_BATCH_TOKENS / self._tokens)), 4, 10))

    def begin(self, images: Sequence[Pixels]) -> Callable[[], Embeddings]:
        """Start encoding and return a function that waits for the vectors; on a CPU they are ready at once."""
        wait = self.begin_features(images)
        return lambda: unit(wait()[0])

    def begin_reduced(self, images: Sequence[Pixels]) -> Callable[[], tuple[Embeddings, Sequence[Pixels]]]:
        if not self.reduces:
            return super().begin_reduced(images)
        wait = self.begin_features(images, reduce=True)

        def wait_for_vectors() -> tuple[Embeddings, Sequence[Pixels]]:
            features, thumbnails = wait()
            return unit(features), thumbnails

        return wait_for_vectors

    def begin_features(
        self, images: Sequence[Pixels], *, reduce: bool = False
    ) -> Callable[[], tuple[Features, Sequence[Pixels]]]:
        """Start encoding and return a function that waits for the features, which are not normalised.

        With `reduce`, which needs `reduces`, it also returns the images reduced for thumbnails.
        """
        if self._stream is not None:
            return self._launch(images, reduce=reduce)
        size = CPU_BATCH_SIZE if self.device.type == "cpu" else max(len(images), 1)
        rows = []
        with torch.inference_mode():
            for first in range(0, len(images), size):
                features = self._features(images[first : first + size])
                rows.append(features.float().cpu().numpy())
        if not rows:
            return lambda: (np.zeros((0, self.space.dim), np.float32), ())
        checked = self._without_overflow(np.concatenate(rows), images, self.dtype)
        return lambda: (checked, ())

    def _launch(self, images: Sequence[Pixels], *, reduce: bool) -> Callable[[], tuple[Features, Sequence[Pixels]]]:
        """Queue all work of a batch on the device and return a function that waits for the results."""
        assert self._stream is not None
        dtype = self.dtype
        with torch.cuda.stream(self._stream), torch.inference_mode():
            reduced_images: ReducedImages | None = None
            if reduce and self._gpu_input is not None:
                pixels, reduced_images = self._gpu_input.with_reduced(images, self.dtype)
                features = self.vision_model(pixels).float()
            else:
                features = self._features(images).float()
            output = torch.empty(features.shape, pin_memory=True)
            output.copy_(features, non_blocking=True)
            thumbnails = reduced_images.download() if reduced_images is not None else None
            # blocking, because a busy wait would take a core from the decoding threads
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record(self._stream)

        def wait() -> tuple[Features, Sequence[Pixels]]:
            done.synchronize()
            features = self._without_overflow(output.numpy(), images, dtype)
            return features, thumbnails.images() if thumbnails is not None else ()

        return wait

    def _features(self, images: Sequence[Pixels]) -> torch.Tensor:
        """Return the (n, dim) features of n images, those with one input size at a time."""
        return self.preprocess.by_input_size(images, lambda members: self.vision_model(self.inputs(members)))

    def _without_overflow(self, features: Features, images: Sequence[Pixels], dtype: torch.dtype) -> Features:
        """Return the features, computed again if an activation overflowed fp16; from then on bf16 is used."""
        if dtype is not torch.float16 or np.isfinite(features).all():
            return features
        if self.dtype is torch.float16:
            logger.warning("fp16 overflows in %s; it continues in bf16", self.space.encoder)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # batches in flight read the weights
            self.dtype = torch.bfloat16
            self.vision_model = self.vision_model.to(self.dtype)
        return self.begin_features(images)()[0]

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        if self.text_encoder is None:
            raise EncoderError(f"{self.space.encoder} has no text encoder; use --no-text")
        return unit(self.text_encoder(texts))

    @torch.inference_mode()
    def inputs(self, images: Sequence[Pixels], dtype: torch.dtype | None = None) -> torch.Tensor:
        """Preprocess n (height, width, 3) uint8 images to (n, 3, height, width) model inputs on the device."""
        if self._gpu_input is not None:
            return self._gpu_input(images, dtype or self.dtype)
        return self.preprocess(images, self.device, dtype or self.dtype, self._upload)


def fits_fp16(model: torch.nn.Module) -> bool:
    """True if no weight of a float32 model becomes infinite in fp16."""
    largest = torch.finfo(torch.float16).max
    weights = (weight for weight in model.state_dict().values() if weight.is_floating_point())
    return all(bool((weight.abs() <= largest).all()) for weight in weights)


def choose_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is a GPU if there is one, else the CPU. Raises EncoderError."""
    if name != "auto":
        try:
            device = torch.device(name)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as e:
            raise EncoderError(f"--device {name} cannot be used on this machine ({e}); try --device cpu") from e
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_dtype(precision: str, device: torch.device, *, clip: bool = False) -> torch.dtype:
    """Return the dtype of the weights; `clip` is true for CLIP, which was trained in fp16.

    The lowest centred cosine of CLIP's vectors with float32 is .9999 in fp16 and .996 in bf16 (results/gpu.json).
    """
    names = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision != "auto":
        if precision not in names:
            raise EncoderError(f"unknown --precision {precision}; choose auto, {', '.join(names)}")
        return names[precision]
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and torch.cuda.is_bf16_supported() and not clip:
        return torch.bfloat16
    return torch.float16
