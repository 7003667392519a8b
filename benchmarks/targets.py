"""Performance targets of indexing on this machine beside the measured values: one run, one JSON object.

On a CPU: the pipeline with torch, with OpenVINO and with OpenVINO in bf16, each beside the naive script. On a GPU, for
the encoder of `--encoder` and for one with ViT-L/14's dimensions: images per second from files to shards, beside the
rates of the encoder alone and of decoding alone, the GPU's measured matrix rate, and the naive script. `--long` adds
parts of `benchmarks.indexing` that take minutes: memory for a million rows, and the start over millions of files.
`--quick` only tests the command; its figures are meaningless.

    python -m clipfake.benchmarks.targets --images ../shared/data/minifact/* \\
        --encoder ../shared/encoders/clip-vit-base-patch32-untrained --untrained
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ClipfakeError
from ..indexer.distributed.process_pool import MIN_IMAGES, processes_for
from ..indexer.encoders.checkpoint import open_checkpoint
from ..indexer.encoders.clip_vision import VisionConfig
from ..indexer.encoders.encoder_name import model_id_of, with_random_weights
from ..indexer.index import IndexOptions
from . import indexing, throughput
from .common import command
from .common.architecture import VIT_L_14, write_architecture
from .common.flops import flops_per_image, matrix_rate

CPU_BACK_ENDS = (
    ("torch", "cpu", "float32"),
    ("openvino", "openvino", "float32"),
    ("openvino bf16", "openvino", "bf16"),
)
CPU_IMAGES = 500
GPU_IMAGES = {"ViT-B/32": 200_000, "ViT-L/14": 20_000}  # several seconds of work at the target rates
NAIVE_IMAGES = 500  # on a GPU; the naive script does a few hundred per second
QUICK = 16  # images per run


@dataclass(frozen=True)
class Target:
    """A target with its measured value."""

    name: str
    bound: float
    measured: float
    is_maximum: bool = False
    stretch: bool = False  # desirable, not required

    @property
    def met(self) -> bool:
        return self.measured <= self.bound if self.is_maximum else self.measured >= self.bound

    def to_dict(self) -> dict[str, Any]:
        return {
            "what": self.name,
            "wanted": self.bound,
            "found": self.measured,
            "most": self.is_maximum,
            "stretch": self.stretch,
            "met": self.met,
        }


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
    """Measure this machine: `machine`, `runs`, `ratio_to_naive` and `targets`.

    A run is the result of `throughput.run`, or the reason (`why`) that there is none.

    Parameters
    ----------
    limit : number of images (default: suits the machine)
    long : measure memory and start-up too
    quick : a few images, once, to test the command
    """
    if quick:
        limit, repeats = limit or QUICK, 1
    result: dict[str, Any] = {"machine": throughput.machine(), "encoder": encoder}
    if torch.cuda.is_available():
        measured, targets = run_on_gpu(images, encoder, limit=limit, repeats=repeats, threads=threads, quick=quick)
    else:
        measured, targets = run_on_cpu(images, encoder, limit=limit or CPU_IMAGES, repeats=repeats, threads=threads)
    result |= measured
    ran = {name: run for name, run in result["runs"].items() if "why" not in run}
    result["ratio_to_naive"] = {name: run["ratio_to_naive"] for name, run in ran.items()}
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
        targets += long_run_targets(result["indexing"])
    result["targets"] = [target.to_dict() for target in targets]
    return result


def run_on_cpu(
    images: Sequence[str | Path], encoder: str, *, limit: int, repeats: int, threads: int | None
) -> tuple[dict[str, Any], list[Target]]:
    """Runs on a CPU, each beside the naive script, and their targets."""
    runs: dict[str, Any] = {}
    for name, device, precision in CPU_BACK_ENDS:
        settings: dict[str, Any] = {"limit": limit, "repeats": repeats, "threads": threads}
        try:
            runs[name] = throughput.run(images, encoder, precision=precision, device=device, **settings)[precision]
        except ClipfakeError as e:  # OpenVINO is not installed, or the CPU has no bf16
            runs[name] = {"why": str(e)}
    # float32 uses MKL, which on some CPUs has half the rate of oneDNN and OpenVINO
    rates = {"float32": torch.float32, "bf16": torch.bfloat16}
    core = {name: round(matrix_rate("cpu", dtype, rounds=3) * 1000, 1) for name, dtype in rates.items()}
    return {"images": limit, "runs": runs, "core_gflops_of_torch": core}, cpu_targets(runs)


def cpu_targets(runs: dict[str, Any]) -> list[Target]:
    """Targets of the CPU runs that succeeded; ratios are of core time, which other programs do not disturb."""
    targets = []
    if "agreement" in (plain := runs["openvino"]):
        targets.append(Target("OpenVINO float32 over the naive script", 1.3, plain["ratio_to_naive"]["cpu"]))
        targets.append(Target("OpenVINO float32, lowest cosine with it", 0.99999, plain["agreement"]["cosine_min"]))
    if "agreement" in (half := runs["openvino bf16"]):
        targets.append(Target("OpenVINO bf16 over the naive script", 2.5, half["ratio_to_naive"]["cpu"]))
    return targets


def run_on_gpu(
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
    """Runs on a GPU, each beside the naive script and the GPU's matrix rate, and their targets."""
    model_path, _ = model_id_of(encoder)
    processes = processes_for(device, lambda: MIN_IMAGES, IndexOptions.threads)
    peak = matrix_rate(device, torch.bfloat16, QUICK * 16 if quick else 0)
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        large = write_architecture(Path(scratch) / "large", model_path, dimensions)
        encoders = {"ViT-B/32": (encoder, model_path), "ViT-L/14": (with_random_weights(str(large)), str(large))}
        for name, (spec, folder) in encoders.items():
            settings: dict[str, Any] = {"limit": limit or GPU_IMAGES[name], "repeats": repeats, "threads": threads}
            settings |= {"processes": processes}
            try:
                result = throughput.run(
                    images, spec, device=device, naive_limit=NAIVE_IMAGES, repeated=True, **settings
                )
            except (ClipfakeError, torch.OutOfMemoryError) as e:
                runs[name] = {"why": str(e)}
                continue
            operations = flops_per_image(VisionConfig.from_config(open_checkpoint(folder, weights=False).config))
            run = runs[name] = result["auto"]
            run["images"], run["gflop_per_image"] = result["images"], round(operations / 1e9, 2)
            run["encoder_over_card"] = round(run["encode"]["images_per_second"] * operations / (peak * 1e12), 3)
    return {"runs": runs, "card_tflops_bf16": round(peak, 4)}, gpu_targets(runs)


def gpu_targets(runs: dict[str, Any]) -> list[Target]:
    """Targets of the GPU runs that succeeded."""
    targets = []
    if "encode" in (base := runs["ViT-B/32"]):
        decode, encode = (base[name]["images_per_second"] for name in ("decode", "encode"))
        end_to_end = best_rate(base)
        share = round(end_to_end / min(decode, encode), 3)
        targets += [
            Target("ViT-B/32, images per second from files to shards", 25_000, end_to_end),
            Target("ViT-B/32, images per second from files to shards", 40_000, end_to_end, stretch=True),
            Target("ViT-B/32, end to end over the slower of decoding and encoding", 0.8, share),
        ]
    if "encode" in (large := runs["ViT-L/14"]):
        encode, end_to_end = large["encode"]["images_per_second"], best_rate(large)
        targets += [
            Target("ViT-L/14, images per second from files to shards", 2_500, end_to_end),
            Target("ViT-L/14, end to end over the encoder's own rate", 0.85, round(end_to_end / encode, 3)),
            Target("ViT-L/14, encoder's share of the GPU's matrix rate", 0.5, large["encoder_over_card"]),
        ]
    return targets


def best_rate(run: dict[str, Any]) -> float:
    """Images per second from files to shards, by one process or by several, whichever is faster."""
    return max(float(run[pipeline]["images_per_second"]) for pipeline in ("end_to_end", "crew") if pipeline in run)


def long_run_targets(result: dict[str, Any]) -> list[Target]:
    """Targets for memory and start-up, from a result of `indexing.run`."""
    kinds = [kind for kind in result["start"].values() if isinstance(kind, dict) and "rows" in kind]
    start = max(kind["listing_to_first_batch"] for kind in kinds)
    return [
        Target("peak memory, many rows over few", 1.5, result["memory"]["peak_ratio"], is_maximum=True),
        Target("seconds from listing to the first batch", 10, start, is_maximum=True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_images_option(parser)
    command.add_encoder_options(parser)
    parser.add_argument("--limit", type=int, help=f"number of images (default: {CPU_IMAGES}, on a GPU {GPU_IMAGES})")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats; medians are printed")
    parser.add_argument("--threads", type=int, help="torch threads (default: chosen by torch)")
    parser.add_argument("--long", action="store_true", help="measure memory and start-up too")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} images, once: only tests the command")
    options = command.parse_options(parser)
    command.print_result(run(options.pop("images"), options.pop("encoder"), **options))


if __name__ == "__main__":
    main()
