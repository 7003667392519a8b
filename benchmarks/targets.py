"""What indexing is meant to reach on this machine, and what it reaches: every target, one run, one JSON.

On a CPU: our pipeline with torch, with OpenVINO and with OpenVINO in bf16, each beside the naive script. On a GPU:
images a second from files to shards, beside the encoder's own rate, the rate at which the cores decode, and what the
card's matrix units were seen to do. `--long` adds what takes minutes: memory over a million rows and the start of a run
over millions of files (`benchmarks.indexing`).

    python -m clipfake.benchmarks.targets --images ../shared/data/minifact/* \\
        --encoder ../shared/encoders/clip-vit-base-patch32-untrained --untrained
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..indexer.encoder import UNTRAINED
from ..store.errors import ClipfakeError
from . import command, indexing, throughput

CPU_WAYS = (("torch", "cpu", "float32"), ("openvino", "openvino", "float32"), ("openvino bf16", "openvino", "bf16"))
MATRIX = 8192  # side of the square matrices that tell what a card does


@dataclass(frozen=True)
class Target:
    """One promise and what came of it."""

    what: str
    wanted: float
    found: float
    most: bool = False  # wanted at most, not at least

    @property
    def met(self) -> bool:
        return self.found <= self.wanted if self.most else self.found >= self.wanted

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def run(
    images: Sequence[str | Path],
    encoder: str,
    *,
    limit: int = 500,
    repeats: int = 3,
    threads: int | None = None,
    long: bool = False,
) -> dict[str, Any]:
    """`machine`, `runs` (as `throughput.run` tells them, or why there is none) and `targets`."""
    cuda = torch.cuda.is_available()
    ways = (("gpu", "auto", "auto"),) if cuda else CPU_WAYS
    runs: dict[str, Any] = {}
    for name, device, precision in ways:
        at: dict[str, Any] = {"limit": limit, "repeats": repeats, "threads": threads}
        try:
            runs[name] = throughput.run(images, encoder, precision=precision, device=device, **at)[precision]
        except ClipfakeError as e:  # no OpenVINO here, or no bf16 in this CPU
            runs[name] = {"why": str(e)}
    result: dict[str, Any] = {"machine": throughput.machine(), "encoder": encoder, "images": limit, "runs": runs}
    targets = on_gpu(runs["gpu"]) if cuda else on_cpu(runs)
    if cuda:
        result["card_tflops_bf16"] = round(card_tflops(), 1)
    if long:
        paths = command.image_paths(images, limit)
        sizes = {"memory_rows": indexing.MEMORY_ROWS, "start_rows": indexing.START_ROWS, "zip_rows": None}
        told = indexing.run(paths, encoder, ("memory", "start"), **sizes)
        result["indexing"] = told
        start = max(
            kind["listing_to_first_batch"]
            for kind in told["start"].values()
            if isinstance(kind, dict) and "rows" in kind
        )
        targets.append(Target("peak memory, many rows over few", 1.5, told["memory"]["peak_ratio"], most=True))
        targets.append(Target("seconds from listing to the first batch", 10, start, most=True))
    result["targets"] = [target.as_json() for target in targets]
    return result


def on_cpu(runs: dict[str, Any]) -> list[Target]:
    """Those of a CPU, of the ways that could be run; ratios are by core time, which other programs do not disturb."""
    found = []
    if "agreement" in (plain := runs["openvino"]):
        found.append(Target("OpenVINO float32 over the naive script", 1.3, plain["ratio_to_naive"]["cpu"]))
        found.append(Target("OpenVINO float32, lowest cosine with it", 0.99999, plain["agreement"]["cosine_min"]))
    if "agreement" in (half := runs["openvino bf16"]):
        found.append(Target("OpenVINO bf16 over the naive script", 2.5, half["ratio_to_naive"]["cpu"]))
    return found


def on_gpu(run: dict[str, Any]) -> list[Target]:
    """Those of a GPU."""
    rates = {name: run[name]["images_per_second"] for name in ("decode", "encode", "end_to_end")}
    slower = min(rates["decode"], rates["encode"])
    return [
        Target("images a second, files to shards", 25_000, rates["end_to_end"]),
        Target("end to end over the slower of decoding and encoding", 0.8, round(rates["end_to_end"] / slower, 3)),
    ]


def card_tflops() -> float:
    """What the card's matrix units do in bf16, in 10¹² operations a second: the best of a few large products."""
    a, b = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(10):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()
        best = max(best, 10 * 2 * MATRIX**3 / (time.perf_counter() - began) / 1e12)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", required=True, metavar="FOLDERS", help="folders of images")
    parser.add_argument("--encoder", default="openai/clip-vit-base-patch32", help="hub id or directory of a CLIP")
    parser.add_argument("--untrained", action="store_true", help="random weights of seed 0: speed, not accuracy")
    parser.add_argument("--limit", type=int, default=500, help="images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--long", action="store_true", help="memory and start-up too")
    told = vars(parser.parse_args())
    if told.pop("untrained"):
        told["encoder"] = f"{UNTRAINED}0:{told['encoder']}"
    result = run(told.pop("images"), told.pop("encoder"), **told)
    command.tell(result)


if __name__ == "__main__":
    main()
