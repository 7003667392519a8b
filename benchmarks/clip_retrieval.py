"""Images per core-second of clip-retrieval, clipfake and the naive script, with the same images and weights.

clip-retrieval has its own environment (`make peers`) and is run as its users would, `clip-retrieval inference` with
`--clip_model hf_clip:DIR`, on a saved CLIP with random weights. It runs twice, over a few images and over all: the
difference gives its steady rate, and the remainder of the small run is its start-up. Core time includes all processes
that it starts. It decodes in workers and writes `.npy` files; clipfake writes sealed shards.

    python -m clipfake.benchmarks.clip_retrieval --images ../shared/data/minifact/* \\
        --encoder ../shared/encoders/clip-vit-base-patch32-untrained --limit 256 --threads 1
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ClipfakeError
from . import throughput
from .common import command
from .common.naive import load_naive
from .parity import agreement

PEERS = Path(".peers")
SMALL_RUN = 32  # images of the run that measures the start-up
BACK_ENDS = (("torch", "cpu", "float32"), ("openvino", "openvino", "float32"), ("openvino bf16", "openvino", "bf16"))
SEED = 0

# Runs clip-retrieval's inference. A CUDA build of torchvision cannot load its operators with a CPU build of torch, and
# then fails to import. None of the operators is called, so registering two names is enough.
LAUNCHER = """
import torch
try:
    import torchvision
except RuntimeError:
    import sys
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
if __name__ == "__main__":
    import fire
    from clip_retrieval.clip_inference.main import main
    torch.set_num_threads(%d)
    fire.Fire(main)
"""


def run(
    images: Sequence[str | Path],
    encoder: str,
    *,
    limit: int = 256,
    repeats: int = 3,
    threads: int | None = None,
    peers: Path = PEERS,
) -> dict[str, Any]:
    """Measure `clip_retrieval`, `naive` and each back end of clipfake: `per_cpu_second` and ratios.

    Parameters
    ----------
    encoder : directory of a CLIP; its weights are ignored, seeded random ones are used
    peers : the environment of `make peers`
    """
    if threads:
        torch.set_num_threads(threads)
    paths = command.image_paths(images, limit)
    result: dict[str, Any] = {"machine": throughput.machine(), "images": len(paths), "encoder": encoder}
    if not (python := peers / "bin" / "python").exists():
        return {**result, "why": f"clip-retrieval's environment {peers} does not exist; run `make peers` first"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint = save_checkpoint(encoder, folder / "checkpoint")
        try:
            peer_figures, vectors = measure_clip_retrieval(python, checkpoint, paths, folder)
        except ClipfakeError as e:
            return {**result, "why": str(e)}
        result["clip_retrieval"] = peer_figures
        for name, device, precision in BACK_ENDS:
            try:
                measured = throughput.run(
                    images, str(checkpoint), precision=precision, device=device, limit=limit, repeats=repeats
                )[precision]
            except ClipfakeError as e:  # OpenVINO is not installed, or the CPU has no bf16
                result[name] = {"why": str(e)}
                continue
            rate = measured["end_to_end"]["per_cpu_second"]
            result.setdefault("naive", {"per_cpu_second": measured["naive"]["per_cpu_second"]})
            result[name] = {
                "per_cpu_second": rate,
                "over_clip_retrieval": round(rate / peer_figures["per_cpu_second"], 2),
                "over_naive": measured["ratio_to_naive"]["cpu"],
            }
        result["agreement"] = agreement(vectors, load_naive(str(checkpoint), "cpu")(paths))
    return result


def save_checkpoint(encoder: str, folder: Path) -> Path:
    """Save a checkpoint with the encoder's architecture and seeded random weights, readable by `transformers`."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(SEED)
    model = transformers.CLIPModel(transformers.CLIPConfig.from_pretrained(encoder))
    model.save_pretrained(folder, safe_serialization=True)
    for file in Path(encoder).iterdir():
        if file.suffix in (".json", ".txt") and not (folder / file.name).exists():
            shutil.copy(file, folder)
    return folder


def measure_clip_retrieval(
    python: Path, checkpoint: Path, paths: Sequence[Path], folder: Path
) -> tuple[dict[str, float], Any]:
    """The figures and vectors of clip-retrieval, the latter in the order of `paths`.

    Raises ClipfakeError with its error message if it fails.
    """
    small_count = min(SMALL_RUN, len(paths) // 2)
    small_run = _core_seconds(python, checkpoint, paths[:small_count], folder / "small")
    large_run = _core_seconds(python, checkpoint, paths, folder / "all")
    seconds_per_image = (large_run - small_run) / (len(paths) - small_count)
    vectors = np.load(folder / "all" / "out" / "img_emb" / "img_emb_0.npy").astype(np.float32)
    if len(vectors) != len(paths):
        raise ClipfakeError(f"clip-retrieval embedded {len(vectors)} of {len(paths)} images")
    figures = {
        "per_cpu_second": round(1 / seconds_per_image, 2),
        "startup_cpu_seconds": round(small_run - small_count * seconds_per_image, 1),
    }
    return figures, vectors


def _core_seconds(python: Path, checkpoint: Path, paths: Sequence[Path], folder: Path) -> float:
    folder.mkdir()
    images = throughput.link_images(folder / "images", paths)
    script = folder / "inference.py"  # a file, because its spawned processes import it again
    script.write_text(LAUNCHER % torch.get_num_threads())
    options = {
        "input_dataset": images,
        "output_folder": folder / "out",
        "clip_model": f"hf_clip:{checkpoint}",
        "enable_text": False,
        "batch_size": SMALL_RUN,
        "num_prepro_workers": 2,
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(
        [python.absolute(), script, *(f"--{name}={value}" for name, value in options.items())],
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode != 0:
        raise ClipfakeError(f"clip-retrieval exited with {process.returncode}: {_first_error(process.stderr)}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _first_error(stderr: str) -> str:
    """The first error in its output, which causes the others; else its last line.

    >>> _first_error("Traceback:\\n  File x\\nIndexError: out of range\\nFileNotFoundError: gone")
    'IndexError: out of range'
    """
    lines = stderr.strip().splitlines() or ["no output"]
    return next((line for line in lines if re.match(r"[\w.]+Error\b", line)), lines[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", required=True, metavar="FOLDERS", help="folders of images")
    parser.add_argument("--encoder", required=True, help="directory of a CLIP; its weights are ignored")
    parser.add_argument("--limit", type=int, default=256, help="number of images")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of clipfake and the naive script")
    parser.add_argument("--threads", type=int, help="torch threads of all three programs")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the environment of `make peers`")
    options = vars(parser.parse_args())
    result = run(options.pop("images"), options.pop("encoder"), **options)
    command.print_result(result)
    sys.exit(1 if "why" in result else 0)


if __name__ == "__main__":
    main()
