"""JPEG decoders compared by image size: images per core-second, and differences between their pixels.

Photographs are enlarged to squares of each size, with grain, and saved as JPEG (quality 90, chroma halved both ways).
`decode` measures bytes to pixels. `open` measures what the indexer needs of a large image: decode, resize for a CLIP
encoder and make its thumbnail; a GPU does all of it and returns only the small images. The core time of nvImageCodec
includes its own threads; images per second are those of one caller that waits for each call of several images.
Differences are in levels (0 to 255) from Pillow's pixels, those named `resized` after resizing; with `--encoder` the
vectors of the resized images are compared too. Three decoders with a known error put the tolerance of
`indexer/decoding/gpu_decoder.py` into perspective: libjpeg-turbo with chroma repeated instead of interpolated, with its
fast DCT, and with a fifth of the values changed by one level, as another exact DCT might round them.

    python -m clipfake.benchmarks.decoding --images ../shared/data/minifact/* \\
        --encoder ../shared/encoders/mobilenet-v1-imagenet

With a GPU and the extra `nvidia`, its decoders are measured too: with and without the GPU's JPEG engine.
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

from ..indexer.decoding.gpu_decoder import MAX_TOLERANCE, MEAN_TOLERANCE, ReducedImage, difference
from ..indexer.decoding.image import Pixels
from ..indexer.decoding.nvimagecodec import NAME, NvImageCodec, decode_on_cpu, installed
from ..indexer.encoders.base import Encoder
from ..indexer.encoders.load import load_encoder
from ..indexer.encoders.preprocess import LARGE, Preprocess
from .common import command
from .parity import agreement
from .throughput import machine

RESULTS = Path(__file__).parent / "results" / "decoding.json"
SIDES = (200, 512, 1024, 2048)
IMAGES_PER_CALL = 8
QUALITY = 90
GRAIN = 6.0  # levels, standard deviation: an enlarged image has too little detail to be a realistic JPEG
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

Decode = Callable[[Sequence[bytes]], Sequence[Pixels | None]]
DecodeReduced = Callable[[Sequence[bytes]], Sequence[ReducedImage | None]]


def run(
    images: Sequence[str | Path],
    encoder: str = "",
    *,
    sides: Sequence[int] = SIDES,
    count: int = 32,
    repeats: int = 3,
    device: str = "auto",
) -> dict[str, Any]:
    """Rates and differences by side length.

    Returns
    -------
    dict
        `machine`, `versions`, `allowed`; for each side `bytes` (mean file size), `decode` and, for large images, `open`
        with `images_per_core_second`, `images_per_second` and the differences `mean` and `most` of each decoder; with
        an encoder `vectors`, the agreement of the vectors with those of Pillow's pixels.
    """
    codecs, missing = available_decoders()
    full_size: dict[str, Decode] = {
        "pillow": partial(decode_each, decode_with_pillow),
        "simplejpeg": partial(decode_each, decode_with_simplejpeg),
    }
    full_size |= {name: codec.decode_full_size for name, codec in codecs.items()}
    full_size["simplejpeg, chroma repeated"] = partial(decode_each, partial(decode_with_simplejpeg, fastupsample=True))
    full_size["simplejpeg, fast dct"] = partial(decode_each, partial(decode_with_simplejpeg, fastdct=True))
    full_size["a fifth one level off"] = partial(decode_each, decode_with_noise)
    resizing: dict[str, DecodeReduced] = {"cores": partial(decode_each, partial(decode_on_cpu, CLIP, True)), **codecs}
    result: dict[str, Any] = {
        "machine": machine(),
        "versions": {name: package_version(name) for name in ("pillow", "simplejpeg", "nvidia-nvimgcodec-cu12")},
        "images": count,
        "allowed": {"mean": MEAN_TOLERANCE, "most": MAX_TOLERANCE},
        **missing,
    }
    loaded = load_encoder(encoder, device=device) if encoder else None
    paths = command.image_paths(images, count)
    for side in sides:
        contents = [enlarge_photo(paths[i % len(paths)], side, i) for i in range(count)]
        figures: dict[str, Any] = {"bytes": round(sum(map(len, contents)) / count)}
        figures["decode"] = measure_rates(full_size, contents, repeats)
        exact = full_size["pillow"](contents)
        for name, decode in full_size.items():
            decoded = decode(contents)
            figures["decode"][name] |= compare_pixels(list(map(unreduced, decoded)), list(map(unreduced, exact)))
            if side * side > LARGE:
                small = list(map(reduced, decoded))
                figures["decode"][name]["resized"] = compare_pixels(small, list(map(reduced, exact)))
        if side * side > LARGE:
            figures["open"] = measure_rates(resizing, contents, repeats)
            for name, decode_reduced in resizing.items():
                figures["open"][name] |= compare_pixels(decode_reduced(contents), resizing["cores"](contents))
            if loaded is not None:
                pixels = {name: decode(contents) for name, decode in full_size.items()}
                figures["vectors"] = compare_vectors(loaded, pixels)
        result[str(side)] = figures
    return result


def available_decoders() -> tuple[dict[str, NvImageCodec], dict[str, Any]]:
    """The nvImageCodec decoders of this machine by name, and the reason for each one that cannot be used."""
    factories = {f"{NAME} (cpu)": partial(NvImageCodec, CLIP, torch.device("cpu"))}
    if torch.cuda.is_available():
        factories[f"{NAME} (cuda, engine)"] = partial(NvImageCodec, CLIP, torch.device("cuda"))
        factories[f"{NAME} (cuda)"] = partial(NvImageCodec, CLIP, torch.device("cuda"), engine=False)
    if not installed():
        return {}, {NAME: {"why": "the extra nvidia is not installed"}}
    codecs, missing = {}, {}
    for name, make in factories.items():
        try:
            codecs[name] = make()
        except RuntimeError as e:  # the driver or one of its libraries is missing or too old
            missing[name] = {"why": str(e)}
    return codecs, missing


def measure_rates(
    decoders: Mapping[str, Callable[[Sequence[bytes]], object]], contents: Sequence[bytes], repeats: int
) -> dict[str, dict[str, Any]]:
    """Median rates of each decoder, in interleaved repeats of calls of several images."""
    calls = [contents[i : i + IMAGES_PER_CALL] for i in range(0, len(contents), IMAGES_PER_CALL)]
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in decoders}
    for turn in range(repeats + 1):
        for name, decode in decoders.items():
            core, wall = time.process_time(), time.perf_counter()
            for call in calls:
                decode(call)
            core, wall = time.process_time() - core, time.perf_counter() - wall
            if turn:  # the first is a warm-up
                samples[name].append((len(contents) / max(core, 1e-9), len(contents) / wall))
    medians = {name: np.median(np.array(pairs), axis=0) for name, pairs in samples.items()}
    return {
        name: {"images_per_core_second": round(float(core), 1), "images_per_second": round(float(wall), 1)}
        for name, (core, wall) in medians.items()
    }


def compare_pixels(decoded: Sequence[ReducedImage | None], exact: Sequence[ReducedImage | None]) -> dict[str, Any]:
    """Pixel differences of the images that both decoders can decode, and the number of the others (`left`)."""
    differences = [difference(ours, theirs) for ours, theirs in zip(decoded, exact, strict=True) if ours and theirs]
    if not differences:
        return {"left": len(decoded)}
    means = [each.mean for each in differences]
    undecoded = len(decoded) - len(differences)
    return {
        "mean": round(sum(means) / len(means), 4),
        "mean_of_worst": round(max(means), 4),
        "most": max(each.maximum for each in differences),
        **({"left": undecoded} if undecoded else {}),
    }


def compare_vectors(encoder: Encoder, pixels: Mapping[str, Sequence[Pixels | None]]) -> dict[str, Any]:
    """Cosines of the vectors of each decoder's pixels with those of Pillow's pixels."""
    vectors = {
        name: encoder.encode([CLIP.shrink(image) for image in images if image is not None])
        for name, images in pixels.items()
    }
    exact = vectors.pop("pillow")
    return {name: agreement(ours, exact) for name, ours in vectors.items() if ours.shape == exact.shape}


def unreduced(pixels: Pixels | None) -> ReducedImage | None:
    return None if pixels is None else ReducedImage(pixels, None)


def reduced(pixels: Pixels | None) -> ReducedImage | None:
    return None if pixels is None else ReducedImage(CLIP.shrink(pixels), None)


def decode_each(decode: Callable[[bytes], Any], contents: Sequence[bytes]) -> list[Any]:
    return [decode(content) for content in contents]


def decode_with_pillow(content: bytes) -> Pixels:
    return np.asarray(Pillow.open(io.BytesIO(content)))


def decode_with_simplejpeg(content: bytes, *, fastdct: bool = False, fastupsample: bool = False) -> Pixels:
    pixels: Pixels = simplejpeg.decode_jpeg(content, "RGB", fastdct=fastdct, fastupsample=fastupsample)
    return pixels


def decode_with_noise(content: bytes) -> Pixels:
    pixels = decode_with_simplejpeg(content)
    draws = np.random.default_rng(len(content)).integers(0, 10, pixels.shape, np.int8)
    offsets = (draws == 0).astype(np.int16) - (draws == 1)
    noisy: Pixels = np.clip(pixels + offsets, 0, 255).astype(np.uint8)
    return noisy


def enlarge_photo(path: Path, side: int, seed: int) -> bytes:
    """A photograph resized to a square of `side` pixels, with grain, as JPEG."""
    with Pillow.open(path) as photograph:
        square = photograph.convert("RGB").resize((side, side), Pillow.Resampling.BICUBIC)
    grain = np.random.default_rng(seed).normal(0, GRAIN, (side, side, 3))
    pixels = np.clip(np.asarray(square) + grain, 0, 255).astype(np.uint8)
    return bytes(simplejpeg.encode_jpeg(pixels, QUALITY, colorsubsampling="420"))


def package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_images_option(parser)
    parser.add_argument("--encoder", default="", help="hub id or directory of an encoder; compares vectors too")
    parser.add_argument("--device", default="auto", help="device of the encoder")
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES), help="side lengths in pixels")
    parser.add_argument("--count", type=int, default=32, help="number of images of each side length")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats; medians are printed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file to write the results to")
    options = vars(parser.parse_args())
    out = options.pop("out")
    result = run(options.pop("images"), options.pop("encoder"), **options)
    out.write_text(json.dumps(result, indent=1) + "\n")
    command.print_result(result)


if __name__ == "__main__":
    main()
