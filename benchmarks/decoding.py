"""JPEGs of several sizes through each decoder there is: images a core-second, and how far their pixels are apart.

Photographs are enlarged to squares of each size, with grain, and saved as JPEG (quality 90, chroma halved both ways).
`decode` is from bytes to pixels. `open` is what the indexer needs of a large image: decoded, resized for a CLIP encoder
and reduced to its thumbnail; on a GPU that is done where it was decoded, and only the small pixels come back. The core
time of nvImageCodec is that of its own threads too; images a second are one caller's, who waits for a call of several
images. Differences are in levels of 255 from Pillow's pixels, `resized` ones after resizing; with `--encoder`, vectors
of the resized images are compared too. Beside the decoders stand three that are off in a known way, to read the
tolerance of `indexer/decoding/gpu_decoder.py` by: libjpeg-turbo with chroma repeated rather than interpolated, with its
fast DCT, and with a fifth of the values one level off, up or down, as another careful DCT rounds.

    python -m clipfake.benchmarks.decoding --images ../shared/data/minifact/* \\
        --encoder ../shared/encoders/mobilenet-v1-imagenet

On a machine with a GPU and the extra `nvidia` its decoders are there as well: with the card's JPEG engine and without.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image as Pillow

from ..indexer.decoding.gpu_decoder import AGREED_MEAN, AGREED_MOST, ReducedImage, difference
from ..indexer.decoding.image import Pixels
from ..indexer.decoding.nvimagecodec import NAME, NvImageCodec, installed, on_a_core
from ..indexer.encoders.base import Encoder
from ..indexer.encoders.load import load_encoder
from ..indexer.encoders.preprocess import LARGE, Preprocess
from .common import command
from .parity import agreement
from .throughput import machine

RESULTS = Path(__file__).parent / "results" / "decoding.json"
SIDES = (200, 512, 1024, 2048)
TOGETHER = 8  # images of a call
QUALITY = 90
GRAIN = 6.0  # levels, standard deviation: an enlarged image has too little to decode
CLIP = Preprocess(
    height=0,
    width=0,
    short=224,
    crop=224,
    filter="bicubic",
    scale=1 / 255,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)

Whole = Callable[[Sequence[bytes]], Sequence[Pixels | None]]
Opens = Callable[[Sequence[bytes]], Sequence[ReducedImage | None]]


def run(
    images: Sequence[str | Path],
    encoder: str = "",
    *,
    sides: Sequence[int] = SIDES,
    count: int = 32,
    repeats: int = 3,
    device: str = "auto",
) -> dict[str, Any]:
    """Rates and differences, by side.

    Returns
    -------
    dict
        `machine`, `versions`, `allowed`; for each side `bytes` (mean of a file), `decode` and, of large images, `open`:
        for each decoder `images_per_core_second`, `images_per_second` and its difference `mean` and `most`; with an
        encoder `vectors`, their agreement with those of Pillow's pixels.
    """
    codecs, missing = there()
    plain: dict[str, Whole] = {"pillow": partial(each, by_pillow), "simplejpeg": partial(each, by_simplejpeg)}
    plain |= {name: codec.whole for name, codec in codecs.items()}
    plain["simplejpeg, chroma repeated"] = partial(each, partial(by_simplejpeg, fastupsample=True))
    plain["simplejpeg, fast dct"] = partial(each, partial(by_simplejpeg, fastdct=True))
    plain["a fifth one level off"] = partial(each, one_level_off)
    opened: dict[str, Opens] = {"cores": partial(each, partial(on_a_core, CLIP, True)), **codecs}
    result: dict[str, Any] = {
        "machine": machine(),
        "versions": {name: version_of(name) for name in ("pillow", "simplejpeg", "nvidia-nvimgcodec-cu12")},
        "images": count,
        "allowed": {"mean": AGREED_MEAN, "most": AGREED_MOST},
        **missing,
    }
    loaded = load_encoder(encoder, device=device) if encoder else None
    paths = command.image_paths(images, count)
    for side in sides:
        contents = [enlarged(paths[i % len(paths)], side, i) for i in range(count)]
        told: dict[str, Any] = {"bytes": round(sum(map(len, contents)) / count)}
        told["decode"] = rates(plain, contents, repeats)
        exact = plain["pillow"](contents)
        for name, decode in plain.items():
            found = decode(contents)
            told["decode"][name] |= apart(list(map(as_it_is, found)), list(map(as_it_is, exact)))
            if side * side > LARGE:
                told["decode"][name]["resized"] = apart(list(map(resized, found)), list(map(resized, exact)))
        if side * side > LARGE:
            told["open"] = rates(opened, contents, repeats)
            for name, small in opened.items():
                told["open"][name] |= apart(small(contents), opened["cores"](contents))
            if loaded is not None:
                told["vectors"] = vectors_apart(loaded, {name: decode(contents) for name, decode in plain.items()})
        result[str(side)] = told
    return result


def there() -> tuple[dict[str, NvImageCodec], dict[str, Any]]:
    """nvImageCodec's decoders on this machine by name, and why there is one missing."""
    ways = {f"{NAME} (cpu)": partial(NvImageCodec, CLIP, torch.device("cpu"))}
    if torch.cuda.is_available():
        ways[f"{NAME} (cuda, engine)"] = partial(NvImageCodec, CLIP, torch.device("cuda"))
        ways[f"{NAME} (cuda)"] = partial(NvImageCodec, CLIP, torch.device("cuda"), engine=False)
    if not installed():
        return {}, {NAME: {"why": "the extra nvidia is not installed"}}
    found, missing = {}, {}
    for name, make in ways.items():
        try:
            found[name] = make()
        except RuntimeError as e:  # the driver or a library of it is not as it should be
            missing[name] = {"why": str(e)}
    return found, missing


def rates(
    ways: Mapping[str, Callable[[Sequence[bytes]], object]], contents: Sequence[bytes], repeats: int
) -> dict[str, dict[str, Any]]:
    """Of each way, in calls of several images; the ways take turns, and medians are told."""
    calls = [contents[i : i + TOGETHER] for i in range(0, len(contents), TOGETHER)]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, do in ways.items():
            core, wall = time.process_time(), time.perf_counter()
            for some in calls:
                do(some)
            core, wall = time.process_time() - core, time.perf_counter() - wall
            if turn:  # the first warms up
                found[name].append((len(contents) / max(core, 1e-9), len(contents) / wall))
    told = {name: np.median(np.array(pairs), axis=0) for name, pairs in found.items()}
    return {
        name: {"images_per_core_second": round(float(core), 1), "images_per_second": round(float(wall), 1)}
        for name, (core, wall) in told.items()
    }


def apart(some: Sequence[ReducedImage | None], exact: Sequence[ReducedImage | None]) -> dict[str, Any]:
    """The difference of the images that were decoded both ways, the mean over all, and how many were not."""
    pairs = [difference(one, other) for one, other in zip(some, exact, strict=True) if one and other]
    if not pairs:
        return {"left": len(some)}
    mean = sum(told.mean for told in pairs) / len(pairs)
    worst = max(told.mean for told in pairs)
    left = {"left": len(some) - len(pairs)} if len(pairs) < len(some) else {}
    return {"mean": round(mean, 4), "mean_of_worst": round(worst, 4), "most": max(told.most for told in pairs), **left}


def vectors_apart(encoder: Encoder, pixels: Mapping[str, Sequence[Pixels | None]]) -> dict[str, Any]:
    """Cosines of the vectors of what each decoder saw with those of what Pillow saw."""
    seen = {
        name: encoder.encode([CLIP.shrink(one) for one in some if one is not None]) for name, some in pixels.items()
    }
    exact = seen.pop("pillow")
    return {name: agreement(vectors, exact) for name, vectors in seen.items() if vectors.shape == exact.shape}


def as_it_is(pixels: Pixels | None) -> ReducedImage | None:
    return None if pixels is None else ReducedImage(pixels, None)


def resized(pixels: Pixels | None) -> ReducedImage | None:
    return None if pixels is None else ReducedImage(CLIP.shrink(pixels), None)


def each(decode: Callable[[bytes], Any], contents: Sequence[bytes]) -> list[Any]:
    return [decode(content) for content in contents]


def by_pillow(content: bytes) -> Pixels:
    return np.asarray(Pillow.open(io.BytesIO(content)))


def by_simplejpeg(content: bytes, *, fastdct: bool = False, fastupsample: bool = False) -> Pixels:
    pixels: Pixels = simplejpeg.decode_jpeg(content, "RGB", fastdct=fastdct, fastupsample=fastupsample)
    return pixels


def one_level_off(content: bytes) -> Pixels:
    pixels = by_simplejpeg(content)
    drawn = np.random.default_rng(len(content)).integers(0, 10, pixels.shape, np.int8)
    off = (drawn == 0).astype(np.int16) - (drawn == 1)
    noisy: Pixels = np.clip(pixels + off, 0, 255).astype(np.uint8)
    return noisy


def enlarged(path: Path, side: int, seed: int) -> bytes:
    """A photograph as a square JPEG of that side."""
    with Pillow.open(path) as photograph:
        square = photograph.convert("RGB").resize((side, side), Pillow.Resampling.BICUBIC)
    grain = np.random.default_rng(seed).normal(0, GRAIN, (side, side, 3))
    pixels = np.clip(np.asarray(square) + grain, 0, 255).astype(np.uint8)
    return bytes(simplejpeg.encode_jpeg(pixels, QUALITY, colorsubsampling="420"))


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_images_option(parser)
    parser.add_argument("--encoder", default="", help="hub id or directory: compare vectors too")
    parser.add_argument("--device", default="auto", help="of the encoder")
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES), help="pixels")
    parser.add_argument("--count", type=int, default=32, help="images of each side")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    told = vars(parser.parse_args())
    out = told.pop("out")
    result = run(told.pop("images"), told.pop("encoder"), **told)
    out.write_text(json.dumps(result, indent=1) + "\n")
    command.print_result(result)


if __name__ == "__main__":
    main()
