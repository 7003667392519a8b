"""What indexing is meant to reach on this machine, and what it reaches: every target, one run, one JSON.

On a CPU: our pipeline with torch, with OpenVINO and with OpenVINO in bf16, each beside the naive script. On a GPU, for
the encoder given and for one of ViT-L/14's dimensions: images a second from files to shards, beside the encoder's own
rate, the rate at which the cores decode, what the card's matrix units were seen to do, and the naive script. `--long`
adds what takes minutes: memory over a million rows and the start of a run over millions of files
(`benchmarks.indexing`). `--quick` is a trial of the command, its figures say nothing.

    python -m clipfake.benchmarks.targets --images ../shared/data/minifact/* \\
        --encoder ../shared/encoders/clip-vit-base-patch32-untrained --untrained
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ClipfakeError
from ..indexer.distributed.process_pool import WORTH, processes_for
from ..indexer.encoders.checkpoint import open_checkpoint
from ..indexer.encoders.clip_vision import VisionConfig
from ..indexer.encoders.encoder_spec import place_of, with_random_weights
from ..indexer.index import IndexOptions
from . import indexing, throughput
from .common import command
from .common.architecture import VIT_L_14, write_architecture
from .common.flops import flops_per_image, matrix_rate

CPU_WAYS = (("torch", "cpu", "float32"), ("openvino", "openvino", "float32"), ("openvino bf16", "openvino", "bf16"))
CPU_IMAGES = 500
CARD_IMAGES = {"ViT-B/32": 200_000, "ViT-L/14": 20_000}  # some seconds of work, were every target met
NAIVE_IMAGES = 500  # of a card's run; the naive script sees a few hundred a second
QUICK = 16  # images, of everything


@dataclass(frozen=True)
class Target:
    """One promise and what came of it."""

    what: str
    wanted: float
    found: float
    most: bool = False  # wanted at most, not at least
    stretch: bool = False  # hoped for, not promised

    @property
    def met(self) -> bool:
        return self.found <= self.wanted if self.most else self.found >= self.wanted

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def run(
    images: Sequence[str | Path],
    encoder: str,
    *,
    limit: int | None = None,
    repeats: int = 3,
    threads: int | None = None,
    long: bool = False,
    quick: bool = False,
) -> dict[str, Any]:
    """`machine`, `runs` (as `throughput.run` tells them, or why there is none), `ratio_to_naive` and `targets`.

    Parameters
    ----------
    limit : images; a number that suits the machine unless told
    """
    if quick:
        limit, repeats = limit or QUICK, 1
    result: dict[str, Any] = {"machine": throughput.machine(), "encoder": encoder}
    if torch.cuda.is_available():
        told, targets = on_card(images, encoder, limit=limit, repeats=repeats, threads=threads, quick=quick)
    else:
        told, targets = on_cores(images, encoder, limit=limit or CPU_IMAGES, repeats=repeats, threads=threads)
    result |= told
    ran = {name: found for name, found in result["runs"].items() if "why" not in found}
    result["ratio_to_naive"] = {name: found["ratio_to_naive"] for name, found in ran.items()}
    if long:
        paths = command.image_paths(images, limit or CPU_IMAGES)
        result["indexing"] = indexing.run(
            paths,
            encoder,
            ("memory", "start"),
            memory_rows=indexing.MEMORY_ROWS,
            start_rows=indexing.START_ROWS,
            zip_rows=None,
        )
        targets += of_long_runs(result["indexing"])
    result["targets"] = [target.to_dict() for target in targets]
    return result


def on_cores(
    images: Sequence[str | Path], encoder: str, *, limit: int, repeats: int, threads: int | None
) -> tuple[dict[str, Any], list[Target]]:
    """The runs of a CPU, each beside the naive script, and their targets."""
    runs: dict[str, Any] = {}
    for name, device, precision in CPU_WAYS:
        at: dict[str, Any] = {"limit": limit, "repeats": repeats, "threads": threads}
        try:
            runs[name] = throughput.run(images, encoder, precision=precision, device=device, **at)[precision]
        except ClipfakeError as e:  # no OpenVINO here, or no bf16 in this CPU
            runs[name] = {"why": str(e)}
    # in float32 this is MKL, which on some CPUs does half of what oneDNN and OpenVINO do
    rates = {"float32": torch.float32, "bf16": torch.bfloat16}
    core = {name: round(matrix_rate("cpu", dtype, rounds=3) * 1000, 1) for name, dtype in rates.items()}
    return {"images": limit, "runs": runs, "core_gflops_of_torch": core}, of_cores(runs)


def of_cores(runs: dict[str, Any]) -> list[Target]:
    """Those of a CPU, of the ways that could be run; ratios are by core time, which other programs do not disturb."""
    found = []
    if "agreement" in (plain := runs["openvino"]):
        found.append(Target("OpenVINO float32 over the naive script", 1.3, plain["ratio_to_naive"]["cpu"]))
        found.append(Target("OpenVINO float32, lowest cosine with it", 0.99999, plain["agreement"]["cosine_min"]))
    if "agreement" in (half := runs["openvino bf16"]):
        found.append(Target("OpenVINO bf16 over the naive script", 2.5, half["ratio_to_naive"]["cpu"]))
    return found


def on_card(
    images: Sequence[str | Path],
    encoder: str,
    *,
    limit: int | None,
    repeats: int,
    threads: int | None,
    quick: bool = False,
    device: str = "cuda",
    dimensions: dict[str, Any] = VIT_L_14,
) -> tuple[dict[str, Any], list[Target]]:
    """The runs of a GPU, each beside the naive script and the card's own rate, and their targets."""
    place, _ = place_of(encoder)
    processes = processes_for(device, lambda: WORTH, IndexOptions.threads)
    card = matrix_rate(device, torch.bfloat16, QUICK * 16 if quick else 0)
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        large = write_architecture(Path(made) / "large", place, dimensions)
        encoders = {"ViT-B/32": (encoder, place), "ViT-L/14": (with_random_weights(str(large)), str(large))}
        for name, (told, folder) in encoders.items():
            at: dict[str, Any] = {"limit": limit or CARD_IMAGES[name], "repeats": repeats, "threads": threads}
            at |= {"processes": processes}
            try:
                found = throughput.run(images, told, device=device, naive_limit=NAIVE_IMAGES, repeated=True, **at)
            except (ClipfakeError, torch.OutOfMemoryError) as e:
                runs[name] = {"why": str(e)}
                continue
            operations = flops_per_image(VisionConfig.from_config(open_checkpoint(folder, weights=False).config))
            run = runs[name] = found["auto"]
            run["images"], run["gflop_per_image"] = found["images"], round(operations / 1e9, 2)
            run["encoder_over_card"] = round(run["encode"]["images_per_second"] * operations / (card * 1e12), 3)
    return {"runs": runs, "card_tflops_bf16": round(card, 1)}, of_card(runs)


def of_card(runs: dict[str, Any]) -> list[Target]:
    """Those of a GPU, of the encoders that could be run."""
    found = []
    if "encode" in (base := runs["ViT-B/32"]):
        decode, encode = (base[name]["images_per_second"] for name in ("decode", "encode"))
        whole = of_the_better(base)
        share = round(whole / min(decode, encode), 3)
        found += [
            Target("ViT-B/32, images a second from files to shards", 25_000, whole),
            Target("ViT-B/32, images a second from files to shards", 40_000, whole, stretch=True),
            Target("ViT-B/32, end to end over the slower of decoding and encoding", 0.8, share),
        ]
    if "encode" in (large := runs["ViT-L/14"]):
        encode, whole = large["encode"]["images_per_second"], of_the_better(large)
        found += [
            Target("ViT-L/14, images a second from files to shards", 2_500, whole),
            Target("ViT-L/14, end to end over the encoder's own rate", 0.85, round(whole / encode, 3)),
            Target("ViT-L/14, encoder's share of the card's matrix rate", 0.5, large["encoder_over_card"]),
        ]
    return found


def of_the_better(run: dict[str, Any]) -> float:
    """Images a second, files to shards, by one process or by several."""
    return max(float(run[way]["images_per_second"]) for way in ("end_to_end", "crew") if way in run)


def of_long_runs(told: dict[str, Any]) -> list[Target]:
    """Those of many rows and many files."""
    kinds = [kind for kind in told["start"].values() if isinstance(kind, dict) and "rows" in kind]
    start = max(kind["listing_to_first_batch"] for kind in kinds)
    return [
        Target("peak memory, many rows over few", 1.5, told["memory"]["peak_ratio"], most=True),
        Target("seconds from listing to the first batch", 10, start, most=True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_images_option(parser)
    command.add_encoder_options(parser)
    parser.add_argument("--limit", type=int, help=f"images [default: {CPU_IMAGES}, on a GPU {CARD_IMAGES}]")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--long", action="store_true", help="memory and start-up too")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} images, once: a trial of the command")
    told = command.parse_options(parser)
    command.print_result(run(told.pop("images"), told.pop("encoder"), **told))


if __name__ == "__main__":
    main()
