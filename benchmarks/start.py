"""Cost of one query from the shell, as whole processes: `clipfake query` beside a script that only embeds the image.

The naive script imports torch and transformers, loads CLIP and embeds one image in the usual way, without a verdict.
`clipfake query` opens a store of 6,000 rows, embeds, searches and judges. The weights are random, in a checkpoint file.

    python -m clipfake.benchmarks.start --encoder ../shared/encoders/clip-vit-base-patch32-untrained
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..indexer.encoders.load import load_encoder
from ..simulated.images import simulated
from .common import command
from .common.architecture import write_checkpoint
from .service import create_bank
from .throughput import machine

NAIVE = """
import sys
import torch
import transformers
from PIL import Image

model = transformers.CLIPModel.from_pretrained(sys.argv[1]).eval()
processor = transformers.CLIPImageProcessor.from_pretrained(sys.argv[1])
inputs = processor(images=[Image.open(sys.argv[2]).convert("RGB")], return_tensors="pt")
with torch.no_grad():
    model.get_image_features(**inputs)
"""


def run(encoder: str, *, repeats: int = 5) -> dict[str, Any]:
    """Wall-clock and core seconds of each, medians of interleaved processes, and their ratios."""
    with tempfile.TemporaryDirectory() as scratch:
        clip, image = write_checkpoint(Path(scratch) / "clip", encoder), Path(scratch) / "image.jpg"
        image.write_bytes(simulated(0, 0, seed=9))
        store = create_bank(Path(scratch) / "bank", load_encoder(str(clip), device="cpu").space)
        query = ["-m", "clipfake", "query", str(image), "--store", str(store.folder), "--device", "cpu", "--json"]
        commands = {"ours": query, "naive": ["-c", NAIVE, str(clip), str(image)]}
        costs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for _ in range(repeats):
            for name, arguments in commands.items():
                costs[name].append(process_cost([sys.executable, *arguments]))
    result: dict[str, Any] = {"machine": machine(), "encoder": encoder, "repeats": repeats}
    for name, samples in costs.items():
        result[name] = {key: round(float(np.median([sample[key] for sample in samples])), 3) for key in samples[0]}
    pairs = list(zip(costs["ours"], costs["naive"], strict=True))
    for key in ("seconds", "core_seconds"):
        ratios = [ours[key] / naive[key] for ours, naive in pairs]
        result[f"{key}_ours_over_naive"] = round(float(np.median(ratios)), 3)
    return result


def process_cost(arguments: Sequence[str]) -> dict[str, float]:
    """Wall-clock and core seconds of a process; raises CalledProcessError if it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, arguments)
    return {
        "seconds": time.perf_counter() - began,
        "core_seconds": used.ru_utime + used.ru_stime,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="openai/clip-vit-base-patch32", help="hub id or directory of a CLIP")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats; medians are printed")
    options = vars(parser.parse_args())
    command.print_result(run(options.pop("encoder"), **options))


if __name__ == "__main__":
    main()
