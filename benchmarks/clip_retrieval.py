"""clip-retrieval's inference beside ours and the naive script: images a core-second over the same images and weights.

clip-retrieval has an environment of its own (`make peers`) and is run as people run it, `clip-retrieval inference` with
`--clip_model hf_clip:DIR`, on an untrained CLIP that is saved for it first. It is run twice, over a few images and over
all: the difference is its steady rate, what is left of the first its start-up. Its core time is that of its process and
of all it starts. It decodes in workers and writes `.npy` files; ours writes sealed shards.

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
FEW = 32  # images of the run that tells the start-up
WAYS = (("torch", "cpu", "float32"), ("openvino", "openvino", "float32"), ("openvino bf16", "openvino", "bf16"))
SEED = 0

# Runs clip-retrieval's inference. torchvision's wheel for CUDA does not load its own operators beside a torch for CPUs,
# and then cannot be imported at all; none of them is called, so two names are enough.
START = """
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
    """`clip_retrieval`, `naive` and each of our ways: `per_cpu_second`, and ours over theirs.

    Parameters
    ----------
    encoder : directory of a CLIP, with or without weights: seeded ones are taken
    peers : the environment that `make peers` made
    """
    if threads:
        torch.set_num_threads(threads)
    paths = command.image_paths(images, limit)
    result: dict[str, Any] = {"machine": throughput.machine(), "images": len(paths), "encoder": encoder}
    if not (python := peers / "bin" / "python").exists():
        return {**result, "why": f"{peers} is no environment of clip-retrieval; run `make peers` first"}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        checkpoint = saved(encoder, folder / "checkpoint")
        try:
            theirs, vectors = inference(python, checkpoint, paths, folder)
        except ClipfakeError as e:
            return {**result, "why": str(e)}
        result["clip_retrieval"] = theirs
        for name, device, precision in WAYS:
            try:
                found = throughput.run(
                    images, str(checkpoint), precision=precision, device=device, limit=limit, repeats=repeats
                )[precision]
            except ClipfakeError as e:  # no OpenVINO here, or no bf16 in this CPU
                result[name] = {"why": str(e)}
                continue
            ours = found["end_to_end"]["per_cpu_second"]
            result.setdefault("naive", {"per_cpu_second": found["naive"]["per_cpu_second"]})
            result[name] = {
                "per_cpu_second": ours,
                "over_clip_retrieval": round(ours / theirs["per_cpu_second"], 2),
                "over_naive": found["ratio_to_naive"]["cpu"],
            }
        result["agreement"] = agreement(vectors, load_naive(str(checkpoint), "cpu")(paths))
    return result


def saved(encoder: str, folder: Path) -> Path:
    """A checkpoint of the encoder's architecture with seeded weights, as any `transformers` loads it."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(SEED)
    model = transformers.CLIPModel(transformers.CLIPConfig.from_pretrained(encoder))
    model.save_pretrained(folder, safe_serialization=True)
    for file in Path(encoder).iterdir():
        if file.suffix in (".json", ".txt") and not (folder / file.name).exists():
            shutil.copy(file, folder)
    return folder


def inference(python: Path, checkpoint: Path, paths: Sequence[Path], folder: Path) -> tuple[dict[str, float], Any]:
    """Its figures, and its vectors in the order of `paths`; raises ClipfakeError with what it said where it fails."""
    few = min(FEW, len(paths) // 2)
    short = _core_seconds(python, checkpoint, paths[:few], folder / "few")
    long = _core_seconds(python, checkpoint, paths, folder / "all")
    each = (long - short) / (len(paths) - few)
    found = np.load(folder / "all" / "out" / "img_emb" / "img_emb_0.npy").astype(np.float32)
    if len(found) != len(paths):
        raise ClipfakeError(f"clip-retrieval embedded {len(found)} of {len(paths)} images")
    figures = {"per_cpu_second": round(1 / each, 2), "startup_cpu_seconds": round(short - few * each, 1)}
    return figures, found


def _core_seconds(python: Path, checkpoint: Path, paths: Sequence[Path], folder: Path) -> float:
    folder.mkdir()
    images = throughput.linked(folder / "images", paths)
    script = folder / "inference.py"  # a file, as its processes that are spawned import it again
    script.write_text(START % torch.get_num_threads())
    told = {
        "input_dataset": images,
        "output_folder": folder / "out",
        "clip_model": f"hf_clip:{checkpoint}",
        "enable_text": False,
        "batch_size": FEW,
        "num_prepro_workers": 2,
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(
        [python.absolute(), script, *(f"--{name}={value}" for name, value in told.items())],
        env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode != 0:
        raise ClipfakeError(f"clip-retrieval ended with {process.returncode}: {_reason(process.stderr)}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _reason(said: str) -> str:
    """The first error of its processes, the others follow from it; else its last line.

    >>> _reason("Traceback:\\n  File x\\nIndexError: out of range\\nFileNotFoundError: gone")
    'IndexError: out of range'
    """
    lines = said.strip().splitlines() or ["nothing was said"]
    return next((line for line in lines if re.match(r"[\w.]+Error\b", line)), lines[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", required=True, metavar="FOLDERS", help="folders of images")
    parser.add_argument("--encoder", required=True, help="directory of a CLIP; its weights are not used")
    parser.add_argument("--limit", type=int, default=256, help="images")
    parser.add_argument("--repeats", type=int, default=3, help="of ours and the naive script")
    parser.add_argument("--threads", type=int, help="threads of torch, ours and theirs")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the environment of `make peers`")
    told = vars(parser.parse_args())
    result = run(told.pop("images"), told.pop("encoder"), **told)
    command.print_result(result)
    sys.exit(1 if "why" in result else 0)


if __name__ == "__main__":
    main()
