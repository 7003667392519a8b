"""Large JPEGs through NVIDIA's nvImageCodec: decoded, resized and reduced on a card; only small pixels come back.

Needs the extra `nvidia`. On a card it decodes with nvJPEG (the JPEG engine of an A100 or H100, or CUDA). Without one it
has libjpeg-turbo, which is what the cores use anyway: worth nothing but a trial, which is what the tests make of it.
It has not run on a card yet: how fast nvJPEG is, how far its pixels are from libjpeg-turbo's, and whether the order of
streams below is enough, only a card can show (one test, skipped without it). The first two are measured in every run
before it is used (`offload.py`), and by `benchmarks.decoding`.
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
from .gpu_decoder import Decodes, GpuDecoder, ReducedImage
from .image import Pixels, decode, jpeg_header, reduced, thumbnail_factor

NAME = "nvimagecodec"
DECODERS = ("auto", "cpu", NAME)
HOST_THREADS = 4  # of the library's own, for the part of nvJPEG that runs on cores; ours go on decoding beside them


def require_decoder(decoder: str) -> None:
    """Raise EncoderError for a decoder nobody knows, MissingExtra for one that is not installed."""
    if decoder not in DECODERS:
        raise EncoderError(f"unknown --decoder {decoder}; one of {', '.join(DECODERS)}")
    if decoder == NAME and not installed():
        raise MissingExtra(f"--decoder {NAME}", "nvidia")


def installed() -> bool:
    try:
        return importlib.util.find_spec("nvidia.nvimgcodec") is not None
    except ModuleNotFoundError:  # not even a package `nvidia`
        return False


def gpu_decoder_for(decoder: str, encoder: Encoder, *, thumbnails: bool) -> GpuDecoder | None:
    """Return the decoder of large images beside the CPU; None where the CPU decodes everything.

    "auto" takes it for an encoder on a card where it is installed, and drops it where it does not pay; asked for by its
    name it is used wherever its pixels agree. Of an encoder on several cards, the first one decodes.

    Raises
    ------
    EncoderError, MissingExtra
        As `require_decoder`; or asked for by name, for an encoder that does not say how it resizes.
    """
    require_decoder(decoder)
    preprocess, device = encoder.preprocess, encoder.device or torch.device("cpu")
    on_card = device.type == "cuda"
    if decoder == "cpu" or (decoder == "auto" and not (on_card and installed() and preprocess)):
        return None
    if preprocess is None:
        raise EncoderError(f"--decoder {NAME} cannot resize for {encoder.space.encoder}; leave it out")
    make: Callable[..., Decodes] = partial(NvImageCodec, preprocess, device, thumbnails=thumbnails)
    # an engine may repeat chroma where CUDA interpolates it: where its pixels do not agree, it is tried without
    ways = [partial(make, engine=True), partial(make, engine=False)] if on_card else [make]
    here = partial(on_a_core, preprocess, thumbnails)
    name = f"{NAME} ({device if on_card else 'cpu'})"
    return GpuDecoder(name, ways, here, must_pay=decoder == "auto")


def on_a_core(preprocess: Preprocess, thumbnails: bool, content: bytes) -> ReducedImage:
    """Decode on the CPU, as the reference for the decoder below."""
    pixels = decode(content).pixels
    return ReducedImage(preprocess.shrink(pixels), reduced(pixels) if thumbnails else None)


class NvImageCodec:
    """Decoder on a GPU. Not thread-safe: its buffers are reused from call to call."""

    def __init__(
        self, preprocess: Preprocess, device: torch.device, *, thumbnails: bool = True, engine: bool = True
    ) -> None:
        codec = library()
        self._preprocess, self._thumbnails = preprocess, thumbnails
        self._device = device if device.type == "cuda" else torch.device("cpu")
        self._stream: Any = None
        kinds = [codec.CPU_ONLY]
        number = codec.NVIMGCODEC_DEVICE_CPU_ONLY
        if self._device.type == "cuda":
            # without its decoder for cores among them: what a card cannot decode, ours do
            kinds = [*([codec.HW_GPU_ONLY] if engine else []), codec.HYBRID_CPU_GPU, codec.GPU_ONLY]
            number = torch.cuda.current_device() if device.index is None else device.index
            self._device = torch.device("cuda", number)
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._params = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)
        self._decoder = codec.Decoder(
            device_id=number,
            max_num_cpu_threads=1 if self._stream is None else HOST_THREADS,
            backends=[codec.Backend(kind) for kind in kinds],
            options=":fancy_upsampling=1",  # as libjpeg-turbo does; some releases have another default
        )

    @torch.inference_mode()
    def __call__(self, contents: Sequence[bytes]) -> list[ReducedImage | None]:
        # Everything is on one stream: the library's own streams wait for it and it for them, so that what torch does
        # next comes after the decoding, and the pixels' memory, freed on the stream too, is not given away early.
        with self._on_stream() as stream:
            decoded = self._decoder.decode(list(contents), params=self._params, cuda_stream=stream)
            return [self._small(content, image) for content, image in zip(contents, decoded, strict=True)]

    @torch.inference_mode()
    def whole(self, contents: Sequence[bytes]) -> list[Pixels | None]:
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
        """(height, width, 3) uint8 where it was decoded, without a copy; on a machine without CUDA it has no DLPack."""
        return torch.from_numpy(np.asarray(image)) if self._stream is None else from_dlpack(image)

    def _small(self, content: bytes, image: Any) -> ReducedImage | None:
        """Resized and reduced where it was decoded; `cpu()` waits for it, before its image is let go."""
        if image is None:
            return None
        pixels = self._pixels(image)
        header = jpeg_header(content)
        if header is None or tuple(pixels.shape) != (header.height, header.width, 3):
            return None
        seen = self._preprocess.resize(pixels[None])[0].permute(1, 2, 0).to(torch.uint8)
        small = box_mean(pixels, thumbnail_factor(header.height, header.width)) if self._thumbnails else None
        return ReducedImage(seen.contiguous().cpu().numpy(), None if small is None else small.cpu().numpy())


def box_mean(pixels: torch.Tensor, factor: int) -> torch.Tensor:
    """(h, w, 3) uint8 with each factor x factor pixels made one, as Pillow's `reduce` rounds; on any device."""
    if factor == 1:
        return pixels.clone()
    planes = pixels.permute(2, 0, 1)[None].float()  # sums below are whole numbers that float32 holds
    sums = torch.nn.functional.avg_pool2d(planes, factor, ceil_mode=True, divisor_override=1)[0].long()
    height, width = pixels.shape[:2]
    down, across = (torch.full((-(-length // factor),), factor) for length in (height, width))
    down[-1], across[-1] = height - factor * (len(down) - 1), width - factor * (len(across) - 1)  # of what is left
    counts = down[:, None] * across[None]
    # Pillow divides by multiplying with a whole number of 2^-24
    by = torch.from_numpy(np.floor(np.float32(2**32) / (256 * counts.numpy()).astype(np.float32)).astype(np.int64))
    counts, by = counts.to(pixels.device), by.to(pixels.device)
    return (((sums + counts // 2) * by) >> 24).to(torch.uint8).permute(1, 2, 0).contiguous()


_silencing = threading.Lock()


@cache
def library() -> Any:
    """nvImageCodec, told to be silent; raises MissingExtra."""
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # it warns of every image it cannot decode; read once
    try:
        # what it loads on its first import says for each library of NVIDIA that is missing how to install it
        with _silent():
            from nvidia import nvimgcodec
    except ImportError as e:
        raise MissingExtra(f"--decoder {NAME}", "nvidia") from e
    return nvimgcodec


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing reaches standard error: C libraries write to the file, whatever Python has as sys.stderr."""
    with _silencing:
        try:
            before = os.dup(2)
        except OSError:  # it is closed: nobody listens
            yield
            return
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
