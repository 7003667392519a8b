"""Large JPEGs decoded elsewhere than on the cores, where that gives the same pixels sooner. Who decodes them is given.

Threads share it: one has it at a time, and one that finds it taken decodes an image itself, so that both rates add up.
Agreement is checked, not believed: on a few images made on the spot, then on the first real ones, each decoded both
ways. What disagrees, fails or is slower than a core is not used for the rest of the run, and `unused` says so.
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

# Levels of 255 between an image decoded and resized both ways. Decoders that follow the standard carefully differ by a
# level here and there, which resizing mostly averages away: a fifth of an image's values off by one leaves 0.17 in the
# mean of 512 x 512 pixels, 0.12 of 1024 x 1024, and centred cosines of vectors from 0.998 on. What is off to one side,
# as libjpeg-turbo's fast DCT is, does not average out (0.86 to 0.94) and is refused. So is chroma that is repeated and
# not interpolated, where an image is colourful (up to 0.43). `benchmarks.decoding` prints all of these. At most: tests
# of nvImageCodec's own allow 6 levels before resizing, whose negative weights can enlarge one.
AGREED_MEAN = 0.25
AGREED_MOST = 8

PROVED = 32  # real images that are decoded both ways before it is trusted
TOGETHER_PIXELS = 2**25  # that are decoded at once, or of one image: 100 MB as bytes, four times that while resizing
ELONGATED = 4  # times as long as wide, at most: beyond it, resizing by matrices is no bargain
ENDING = 64  # bytes in which a whole JPEG has its end marker


@dataclass(frozen=True)
class ReducedImage:
    """Part of a large image that the pipeline needs."""

    pixels: Pixels  # (height, width, 3) of the size the encoder sees
    reduced: Pixels | None  # (height, width, 3) of its thumbnail's size, where thumbnails are wanted


Decodes = Callable[[Sequence[bytes]], Sequence[ReducedImage | None]]  # None: this one is the cores' to do


@dataclass(frozen=True)
class PixelDifference:
    """Levels of 255 between two versions of an image."""

    mean: float
    most: int

    @property
    def agreed(self) -> bool:
        return self.mean <= AGREED_MEAN and self.most <= AGREED_MOST


class GpuDecoder:
    """A decoder beside the cores'."""

    def __init__(
        self, name: str, ways: Sequence[Callable[[], Decodes]], here: Callable[[bytes], ReducedImage], *, must_pay: bool
    ) -> None:
        """Nothing is made before the first large image.

        Parameters
        ----------
        name : in reports
        ways : of making it; the first whose pixels agree is used
        here : how a core does the same, raising ImageError for what it cannot read
        must_pay : not to be used where a core is as quick
        """
        self.name = name
        self.unused = ""  # why it is not used (any more)
        self._ways, self._here, self._must_pay = list(ways), here, must_pay
        self._decode: Decodes | None = None
        self._to_prove = PROVED
        self._seconds = {"there": 0.0, "here": 0.0}  # that the images decoded both ways took
        self._taken = Lock()

    def wants(self, content: bytes) -> JpegHeader | None:
        """The header of an image that it may be given."""
        return None if self.unused else large_and_plain(content)

    def decode(self, contents: Sequence[bytes]) -> Sequence[ReducedImage | None] | None:
        """Decode each image; None for those left to the CPU, and None at once while another thread has the decoder."""
        if not self._taken.acquire(blocking=False):
            return None
        try:
            if self._decode is None and not self.unused:
                self._next_way("it was not made")
            if self._decode is None:
                return [None] * len(contents)
            began = time.perf_counter()
            found = list(self._decode(contents))
            if self._to_prove:
                self._seconds["there"] += time.perf_counter() - began
                found = self._proved(contents, found)
            return found
        except Exception as e:  # noqa: BLE001 - whatever a driver raises: the cores can do its work
            self._give_up(f"it failed ({_first_line(e)})")
            return [None] * len(contents)
        finally:
            self._taken.release()

    def _next_way(self, reason: str) -> None:
        """Make it in the next way whose pixels agree on images made on the spot."""
        self._decode = None
        self._to_prove, self._seconds = PROVED, dict.fromkeys(self._seconds, 0.0)
        while self._ways:
            try:
                decode = self._ways.pop(0)()
                disagreement = _disagreement(decode(made_up()), [self._here(content) for content in made_up()])
            except Exception as e:  # noqa: BLE001 - a library or a card that is not as it should be
                disagreement = f"it failed ({_first_line(e)})"
            if not disagreement:
                self._decode = decode
                return
            reason = disagreement
        self._give_up(reason)

    def _proved(self, contents: Sequence[bytes], found: list[ReducedImage | None]) -> list[ReducedImage | None]:
        """Return the images that may be used: one that the CPU refuses is refused, and all are if one disagrees."""
        began = time.perf_counter()
        here = [self._here_or_none(content) for content in contents]
        self._seconds["here"] += time.perf_counter() - began
        found = [there if mine is not None else None for there, mine in zip(found, here, strict=True)]
        both = [(there, mine) for there, mine in zip(found, here, strict=True) if there is not None]
        if both and (disagreement := _disagreement(*zip(*both, strict=True))):
            self._next_way(disagreement)
            return [None] * len(contents)
        self._to_prove = max(self._to_prove - len(both), 0)
        if not self._to_prove and self._must_pay and self._seconds["there"] >= self._seconds["here"]:
            there, mine = (1000 * seconds / PROVED for seconds in self._seconds.values())
            self._give_up(f"it takes {there:.1f} ms an image, a core {mine:.1f}")
        return found

    def _here_or_none(self, content: bytes) -> ReducedImage | None:
        try:
            return self._here(content)
        except ImageError:
            return None

    def _give_up(self, reason: str) -> None:
        self._decode, self._ways = None, []
        self.unused = f"{self.name} is not used: {reason}"


def large_and_plain(content: bytes) -> JpegHeader | None:
    """The header of a JPEG that is worth it, and that every decoder reads alike: upright, grey or YCbCr, whole."""
    header = jpeg_header(content)
    if header is None or not header.plain or header.components == b"RGB":
        return None
    short, long = sorted((header.width, header.height))
    fits = LARGE < header.pixels <= TOGETHER_PIXELS and long <= ELONGATED * short
    # a card may fill up what is missing of a file that was cut off; a core says that it is
    return header if fits and b"\xff\xd9" in content[-ENDING:] else None


def difference(one: ReducedImage, other: ReducedImage) -> PixelDifference:
    """Difference between two versions of an image: of their pixels or thumbnails, whichever is larger."""
    pairs = [(one.pixels, other.pixels)]
    if one.reduced is not None and other.reduced is not None:
        pairs.append((one.reduced, other.reduced))
    if any(a.shape != b.shape for a, b in pairs):
        return PixelDifference(255.0, 255)
    levels = [np.abs(a.astype(np.int16) - b) for a, b in pairs]
    return PixelDifference(max(float(some.mean()) for some in levels), max(int(some.max()) for some in levels))


@cache
def made_up() -> tuple[bytes, ...]:
    """A JPEG of each kind that a decoder has its own way with: chroma in full and in part, grey, progressive."""
    rng = np.random.default_rng(0)
    shapes = rng.integers(0, 256, (9, 12, 3), np.uint8)
    smooth = np.asarray(Pillow.fromarray(shapes).resize((640, 480), Pillow.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-8, 9, smooth.shape, np.int16)
    picture = Pillow.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))
    return (
        _jpeg(picture, subsampling="4:2:0"),
        _jpeg(picture, subsampling="4:4:4"),
        _jpeg(picture.convert("L")),
        _jpeg(picture, subsampling="4:2:0", progressive=True),
    )


def _jpeg(picture: Pillow.Image, **how: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=90, **how)
    return out.getvalue()


def _disagreement(there: Sequence[ReducedImage | None], here: Sequence[ReducedImage]) -> str:
    """Why these pixels are not to be used, "" where they agree; an image that was left to the cores is no reason."""
    apart = [difference(one, other) for one, other in zip(there, here, strict=True) if one is not None]
    if not apart:
        return "it decodes no JPEG here (on a GPU it needs nvidia-nvjpeg-cu12)"
    worst = max(apart, key=lambda difference: (not difference.agreed, difference.mean))
    if worst.agreed:
        return ""
    return (
        f"its pixels differ from a core's by {worst.mean:.2f} levels in the mean and {worst.most} at most, "
        f"where {AGREED_MEAN} and {AGREED_MOST} are allowed"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
