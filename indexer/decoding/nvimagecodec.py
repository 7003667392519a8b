"""Decode large JPEGs with NVIDIA's nvImageCodec; they are resized on the GPU and only the small pixels come back.

Needs the extra `nvidia`. On a GPU it decodes with nvJPEG (the JPEG engine of an A100 or H100, or CUDA). Without a GPU
it uses libjpeg-turbo, as the CPU decoder does, which only helps testing. It has not run on a GPU yet: the speed of
nvJPEG, how far its pixels are from libjpeg-turbo's, and whether the stream order below suffices are unknown (one test
covers them, skipped without a GPU). Every run measures the first two before it relies on the decoder
(`gpu_decoder.py`), and so does `benchmarks.decoding`.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from ...errors import EncoderError, MissingExtra
from ..encoders.base import Encoder
from ..encoders.preprocess import Preprocess
from .gpu_decoder import DecodeFunction, GpuDecoder, ReducedImage
from .image import Pixels, decode, jpeg_header, reduced, thumbnail_factor

NAME = "nvimagecodec"
DECODERS = ("auto", "cpu", NAME)
HOST_THREADS = 4  # threads of the library, for the part of nvJPEG that runs on the CPU beside our decoding threads


def require_decoder(decoder: str) -> None:
    """Raise EncoderError for an unknown decoder, MissingExtra for one that is not installed."""
    if decoder not in DECODERS:
        raise EncoderError(f"unknown --decoder {decoder}; choose one of {', '.join(DECODERS)}")
    if decoder == NAME and not installed():
        raise MissingExtra(f"--decoder {NAME}", "nvidia")


def installed() -> bool:
    try:
        return importlib.util.find_spec("nvidia.nvimgcodec") is not None
    except ModuleNotFoundError:  # there is no package `nvidia` at all
        return False


def gpu_decoder_for(decoder: str, encoder: Encoder, *, thumbnails: bool) -> GpuDecoder | None:
    """Return the decoder of large images beside the CPU; None if the CPU decodes everything.

    "auto" uses nvImageCodec if it is installed and the encoder runs on a GPU, and drops it if it is not faster than a
    CPU core. Requested by name, it is used whenever its pixels agree. If an encoder runs on several GPUs, the first of
    them decodes.

    Raises
    ------
    EncoderError, MissingExtra
        As `require_decoder`; also if it is requested by name for an encoder that has no preprocessing.
    """
    require_decoder(decoder)
    preprocess, device = encoder.preprocess, encoder.device or torch.device("cpu")
    on_gpu = device.type == "cuda"
    if decoder == "cpu" or (decoder == "auto" and not (on_gpu and installed() and preprocess)):
        return None
    if preprocess is None:
        raise EncoderError(f"--decoder {NAME} cannot resize for {encoder.space.encoder}; omit --decoder")
    if preprocess.shrinking is None:  # the decoder returns images that are resized already
        if decoder == "auto":
            return None
        raise EncoderError(f"--decoder {NAME} cannot resize as {encoder.space.encoder} does; omit --decoder")
    make: Callable[..., DecodeFunction] = partial(NvImageCodec, preprocess, device, thumbnails=thumbnails)
    # the JPEG engine may repeat chroma where CUDA interpolates it: if its pixels disagree, CUDA is tried alone
    factories = [partial(make, engine=True), partial(make, engine=False)] if on_gpu else [make]
    cpu_decode = partial(decode_on_cpu, preprocess, thumbnails)
    name = f"{NAME} ({device if on_gpu else 'cpu'})"
    return GpuDecoder(name, factories, cpu_decode, must_be_faster=decoder == "auto")


def decode_on_cpu(preprocess: Preprocess, thumbnails: bool, content: bytes) -> ReducedImage:
    """Decode and reduce an image on the CPU; the reference for `NvImageCodec`."""
    pixels = decode(content).pixels
    return ReducedImage(preprocess.shrink(pixels), reduced(pixels) if thumbnails else None)


class NvImageCodec:
    """Decoder of JPEGs on a GPU. Not thread-safe: its buffers are reused from call to call."""

    def __init__(
        self, preprocess: Preprocess, device: torch.device, *, thumbnails: bool = True, engine: bool = True
    ) -> None:
        codec = library()
        self._shrinking, self._thumbnails = preprocess.shrinking or preprocess, thumbnails
        self._device = device if device.type == "cuda" else torch.device("cpu")
        self._stream: Any = None
        backends = [codec.CPU_ONLY]
        device_id = codec.NVIMGCODEC_DEVICE_CPU_ONLY
        if self._device.type == "cuda":
            # without the library's CPU decoder: our own decodes the images that the GPU cannot
            backends = [*([codec.HW_GPU_ONLY] if engine else []), codec.HYBRID_CPU_GPU, codec.GPU_ONLY]
            device_id = torch.cuda.current_device() if device.index is None else device.index
            self._device = torch.device("cuda", device_id)
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._params = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)
        self._decoder = codec.Decoder(
            device_id=device_id,
            max_num_cpu_threads=1 if self._stream is None else HOST_THREADS,
            backends=[codec.Backend(backend) for backend in backends],
            options=":fancy_upsampling=1",  # as in libjpeg-turbo; the default depends on the release
        )

    @torch.inference_mode()
    def __call__(self, contents: Sequence[bytes]) -> list[ReducedImage | None]:
        # All work is on one stream: it and the library's own streams wait for each other, so that torch's operations
        # run after the decoding, and memory of the pixels, also freed on the stream, is not reused too early.
        with self._on_stream() as stream:
            decoded = self._decoder.decode(list(contents), params=self._params, cuda_stream=stream)
            return [self._small(content, image) for content, image in zip(contents, decoded, strict=True)]

    @torch.inference_mode()
    def decode_full_size(self, contents: Sequence[bytes]) -> list[Pixels | None]:
        """Decode each image at full size and copy it to the host, for comparison."""
        with self._on_stream() as stream:
            decoded = self._decoder.decode(list(contents), params=self._params, cuda_stream=stream)
            return [None if image is None else self._pixels(image).cpu().numpy().copy() for image in decoded]

    @contextmanager
    def _on_stream(self) -> Iterator[int]:
        if self._stream is None:
            yield 0
            return
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield self._stream.cuda_stream

    def _pixels(self, image: Any) -> torch.Tensor:
        """(height, width, 3) uint8 on the decoder's device, without a copy; without CUDA, images lack DLPack."""
        return torch.from_numpy(np.asarray(image)) if self._stream is None else from_dlpack(image)

    def _small(self, content: bytes, image: Any) -> ReducedImage | None:
        """Resize and reduce on the decoder's device; `cpu()` waits for the result before the image is freed."""
        if image is None:
            return None
        pixels = self._pixels(image)
        header = jpeg_header(content)
        if header is None or tuple(pixels.shape) != (header.height, header.width, 3):
            return None
        resized = self._shrinking.resize(pixels[None])[0].permute(1, 2, 0).to(torch.uint8)
        small = box_mean(pixels, thumbnail_factor(header.height, header.width)) if self._thumbnails else None
        return ReducedImage(resized.contiguous().cpu().numpy(), None if small is None else small.cpu().numpy())


def box_mean(pixels: torch.Tensor, factor: int) -> torch.Tensor:
    """Average each factor x factor pixels, rounded as in Pillow's `reduce`; (h, w, 3) uint8 on any device."""
    if factor == 1:
        return pixels.clone()
    planes = pixels.permute(2, 0, 1)[None].float()  # the sums below are integers that float32 represents exactly
    sums = torch.nn.functional.avg_pool2d(planes, factor, ceil_mode=True, divisor_override=1)[0].long()
    height, width = pixels.shape[:2]
    down, across = (torch.full((-(-length // factor),), factor) for length in (height, width))
    down[-1], across[-1] = height - factor * (len(down) - 1), width - factor * (len(across) - 1)  # the remainder
    counts = down[:, None] * across[None]
    # Pillow divides by multiplying with an integer multiple of 2^-24
    inverse = np.floor(np.float32(2**32) / (256 * counts.numpy()).astype(np.float32)).astype(np.int64)
    counts, multipliers = counts.to(pixels.device), torch.from_numpy(inverse).to(pixels.device)
    return (((sums + counts // 2) * multipliers) >> 24).to(torch.uint8).permute(1, 2, 0).contiguous()


_stderr_lock = threading.Lock()


@cache
def library() -> Any:
    """Import nvImageCodec with its messages turned off; raises MissingExtra."""
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # it warns about every image it cannot decode; read once
    try:
        # its first import prints how to install each missing NVIDIA library
        with _silent():
            from nvidia import nvimgcodec
    except ImportError as e:
        raise MissingExtra(f"--decoder {NAME}", "nvidia") from e
    return nvimgcodec


@contextmanager
def _silent() -> Iterator[None]:
    """Discard standard error at the file descriptor, as C libraries do not write to sys.stderr."""
    with _stderr_lock:
        try:
            before = os.dup(2)
        except OSError:  # standard error is closed
            yield
            return
        with Path(os.devnull).open("wb") as null:
            os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
