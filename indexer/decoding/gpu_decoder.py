"""Decode large JPEGs on a GPU, if that gives the same pixels faster than the CPU. The decoder itself is a parameter.

Threads share a GPU decoder: one uses it at a time, and a thread that finds it busy decodes an image on the CPU, so that
both rates add up. That the pixels agree is verified: on a few generated images, then on the first real ones, each of
them decoded on both. A decoder that disagrees, fails or is slower than a core is not used for the rest of the run, and
`unused` says why.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from threading import Lock

import numpy as np
from PIL import Image as Pillow

from ...errors import ImageError
from ..encoders.preprocess import LARGE
from .image import JpegHeader, Pixels, jpeg_header

# Allowed difference, in levels of 255, between an image decoded and resized by both decoders. Decoders that follow the
# standard closely differ by one level in some values, which resizing mostly averages away: a fifth of an image's values
# off by one leaves a mean difference of 0.17 for 512 x 512 pixels and of 0.12 for 1024 x 1024, and centred cosines of
# the vectors of at least 0.998. A one-sided difference, as of libjpeg-turbo's fast DCT, does not average out (0.86 to
# 0.94) and is refused. So is chroma that is repeated instead of interpolated, in colourful images (up to 0.43).
# `benchmarks.decoding` prints all of these. The maximum: nvImageCodec's own tests allow 6 levels before resizing, whose
# negative weights can enlarge a difference.
MEAN_TOLERANCE = 0.25
MAX_TOLERANCE = 8

VERIFIED_IMAGES = 32  # real images that are decoded by both decoders before the GPU's is trusted
BATCH_PIXELS = 2**25  # pixels decoded at once, also of a single image: 100 MB as bytes, four times that while resizing
MAX_ASPECT_RATIO = 4  # beyond it, resizing by matrices does not pay
END_BYTES = 64  # last bytes of the file, in which a complete JPEG has its end marker


@dataclass(frozen=True)
class ReducedImage:
    """A large image at the sizes that the pipeline needs."""

    pixels: Pixels  # (height, width, 3), at the encoder's input size
    thumbnail: Pixels | None  # (height, width, 3), None if no thumbnails are wanted


DecodeFunction = Callable[[Sequence[bytes]], Sequence[ReducedImage | None]]  # None: the CPU has to decode this image


@dataclass(frozen=True)
class PixelDifference:
    """Difference between two versions of an image, in levels of 255."""

    mean: float
    maximum: int

    @property
    def within_tolerance(self) -> bool:
        return self.mean <= MEAN_TOLERANCE and self.maximum <= MAX_TOLERANCE


class GpuDecoder:
    """Decoder of large JPEGs beside the CPU's, verified against it while it runs."""

    def __init__(
        self,
        name: str,
        factories: Sequence[Callable[[], DecodeFunction]],
        cpu_decode: Callable[[bytes], ReducedImage],
        *,
        must_be_faster: bool,
    ) -> None:
        """Set how to make the decoder; it is made for the first large image.

        Parameters
        ----------
        name : name in reports
        factories : make the decoder in different ways; the first whose pixels agree is used
        cpu_decode : decodes one image on the CPU; raises ImageError
        must_be_faster : drop the decoder if a CPU core is as fast
        """
        self.name = name
        self.unused = ""  # why it is not or no longer used, "" if it is
        self._factories, self._cpu_decode, self._must_be_faster = list(factories), cpu_decode, must_be_faster
        self._decode: DecodeFunction | None = None
        self._to_verify = VERIFIED_IMAGES
        self._gpu_seconds = self._cpu_seconds = 0.0  # spent on the images decoded by both
        self._in_use = Lock()

    def accepts(self, content: bytes) -> JpegHeader | None:
        """Header of an image that `decode` takes, None for any other."""
        return None if self.unused else large_and_plain(content)

    def decode(self, contents: Sequence[bytes]) -> Sequence[ReducedImage | None] | None:
        """Decode each image; None for those left to the CPU, and None at once while another thread has the decoder."""
        if not self._in_use.acquire(blocking=False):
            return None
        try:
            if self._decode is None and not self.unused:
                self._make_next("it was not made")
            if self._decode is None:
                return [None] * len(contents)
            began = time.perf_counter()
            decoded = list(self._decode(contents))
            if self._to_verify:
                self._gpu_seconds += time.perf_counter() - began
                decoded = self._verify(contents, decoded)
            return decoded
        except Exception as e:  # noqa: BLE001 - a driver may raise anything, and the CPU can decode instead
            self._give_up(f"it failed ({_first_line(e)})")
            return [None] * len(contents)
        finally:
            self._in_use.release()

    def _make_next(self, reason: str) -> None:
        """Make the decoder with the next factory whose pixels agree on the generated images; give up if none does."""
        self._decode = None
        self._to_verify, self._gpu_seconds, self._cpu_seconds = VERIFIED_IMAGES, 0.0, 0.0
        while self._factories:
            try:
                decode = self._factories.pop(0)()
                references = [self._cpu_decode(content) for content in probe_jpegs()]
                disagreement = _disagreement(decode(probe_jpegs()), references)
            except Exception as e:  # noqa: BLE001 - a faulty library or GPU may raise anything
                disagreement = f"it failed ({_first_line(e)})"
            if not disagreement:
                self._decode = decode
                return
            reason = disagreement
        self._give_up(reason)

    def _verify(self, contents: Sequence[bytes], decoded: list[ReducedImage | None]) -> list[ReducedImage | None]:
        """Return the images that may be used: none that the CPU refuses, and none at all if one disagrees."""
        began = time.perf_counter()
        references = [self._cpu_decode_or_none(content) for content in contents]
        self._cpu_seconds += time.perf_counter() - began
        decoded = [
            image if reference is not None else None for image, reference in zip(decoded, references, strict=True)
        ]
        pairs = [(image, reference) for image, reference in zip(decoded, references, strict=True) if image is not None]
        if pairs and (disagreement := _disagreement(*zip(*pairs, strict=True))):
            self._make_next(disagreement)
            return [None] * len(contents)
        self._to_verify = max(self._to_verify - len(pairs), 0)
        if not self._to_verify and self._must_be_faster and self._gpu_seconds >= self._cpu_seconds:
            gpu, cpu = 1000 * self._gpu_seconds / VERIFIED_IMAGES, 1000 * self._cpu_seconds / VERIFIED_IMAGES
            self._give_up(f"it takes {gpu:.1f} ms per image, a CPU core {cpu:.1f}")
        return decoded

    def _cpu_decode_or_none(self, content: bytes) -> ReducedImage | None:
        try:
            return self._cpu_decode(content)
        except ImageError:
            return None

    def _give_up(self, reason: str) -> None:
        self._decode, self._factories = None, []
        self.unused = f"{self.name} is not used: {reason}"


def large_and_plain(content: bytes) -> JpegHeader | None:
    """Header of a large JPEG that all decoders read alike (upright, grey or YCbCr, complete); None for any other."""
    header = jpeg_header(content)
    if header is None or not header.plain or header.components == b"RGB":
        return None
    short, long = sorted((header.width, header.height))
    fits = LARGE < header.pixels <= BATCH_PIXELS and long <= MAX_ASPECT_RATIO * short
    # a GPU may fill in the missing part of a truncated file, where the CPU raises an error
    return header if fits and b"\xff\xd9" in content[-END_BYTES:] else None


def difference(first: ReducedImage, second: ReducedImage) -> PixelDifference:
    """Difference between two versions of an image: of their pixels or thumbnails, whichever is larger."""
    pairs = [(first.pixels, second.pixels)]
    if first.thumbnail is not None and second.thumbnail is not None:
        pairs.append((first.thumbnail, second.thumbnail))
    if any(a.shape != b.shape for a, b in pairs):
        return PixelDifference(255.0, 255)
    levels = [np.abs(a.astype(np.int16) - b) for a, b in pairs]
    return PixelDifference(max(float(delta.mean()) for delta in levels), max(int(delta.max()) for delta in levels))


@cache
def probe_jpegs() -> tuple[bytes, ...]:
    """Generate JPEGs that decoders may treat differently: full and subsampled chroma, grey, progressive."""
    rng = np.random.default_rng(0)
    shapes = rng.integers(0, 256, (9, 12, 3), np.uint8)
    smooth = np.asarray(Pillow.fromarray(shapes).resize((640, 480), Pillow.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-8, 9, smooth.shape, np.int16)
    image = Pillow.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))
    return (
        _jpeg(image, subsampling="4:2:0"),
        _jpeg(image, subsampling="4:4:4"),
        _jpeg(image.convert("L")),
        _jpeg(image, subsampling="4:2:0", progressive=True),
    )


def _jpeg(image: Pillow.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90, **options)
    return out.getvalue()


def _disagreement(decoded: Sequence[ReducedImage | None], references: Sequence[ReducedImage]) -> str:
    """Why the decoded images cannot be used, "" if they can; images left to the CPU do not count."""
    differences = [
        difference(image, reference) for image, reference in zip(decoded, references, strict=True) if image is not None
    ]
    if not differences:
        return "it decodes no JPEG on this machine (on a GPU it needs nvidia-nvjpeg-cu12)"
    worst = max(differences, key=lambda difference: (not difference.within_tolerance, difference.mean))
    if worst.within_tolerance:
        return ""
    return (
        f"its pixels differ from the CPU's by {worst.mean:.2f} levels on average and {worst.maximum} at most, "
        f"where {MEAN_TOLERANCE} and {MAX_TOLERANCE} are allowed"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
