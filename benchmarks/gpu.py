"""Performance of indexing on a GPU: end-to-end rates first, then the figures that explain them.

Each step runs in a process with its own time limit, so that a failure does not affect the other steps. Its result is
appended to a file as one JSON object at once, so that it is kept if the machine is lost. Steps that no longer fit into
the budget are skipped. On a machine without a GPU, `--dry` runs every step with a few images to test the program; its
figures are meaningless.

    python -m clipfake.benchmarks.gpu --images ../shared/data/minifact --out gpu.jsonl \\
        --encoder ../shared/encoders/clip-vit-base-patch32-untrained
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow

from ..indexer.decoding.image import Pixels, decode
from ..indexer.distributed.process_pool import MIN_IMAGES, ProcessPool, processes_for
from ..indexer.distributed.worker_pool import index_with
from ..indexer.encoder_spec import EncoderSpec
from ..indexer.encoders.base import Encoder
from ..indexer.encoders.checkpoint import open_checkpoint
from ..indexer.encoders.clip_vision import VisionConfig
from ..indexer.encoders.load import load_encoder
from ..indexer.encoders.torch_encoder import TorchEncoder
from ..indexer.index import IndexOptions
from ..indexer.sources.folders import expand, images_in
from ..indexer.sources.image_ref import ImageRef
from ..indexer.stage import limit_of
from ..store.store import Store
from .common import command, naive
from .common.architecture import VIT_L_14, write_architecture, write_checkpoint
from .common.flops import flops_per_image, matrix_rate
from .feeding import TrivialEncoderSpec
from .throughput import encode_batches

BUDGET = 420  # seconds for all steps together
MIN_STEP_SECONDS = 15  # no step is started if less time remains
DRY_IMAGES = 192
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Setup:
    """Inputs of the steps."""

    images: list[str]
    encoder: str  # directory of a CLIP, with or without weights
    work: Path  # folder of checkpoints with random weights, which are written once for all steps
    dry: bool

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @cached_property
    def refs(self) -> list[ImageRef]:
        return [ref for ref in images_in(expand(self.images)) if not ref.refused]

    def pixels(self, count: int) -> list[Pixels]:
        return [decode(ref.byte_source.read()[0]).pixels for ref in self.refs[:count]]

    @property
    def b32(self) -> str:
        return self._checkpoint("B32", self.encoder)

    @property
    def l14(self) -> str:
        if self.dry:  # a CPU takes minutes
            return self.b32
        large = self.work / "large"
        if not large.exists():
            write_architecture(large, self.encoder, VIT_L_14)
        return self._checkpoint("L14", str(large))

    def _checkpoint(self, name: str, like: str) -> str:
        folder, partial = self.work / name, self.work / f"{name}.partial"
        if not folder.exists():
            shutil.rmtree(partial, ignore_errors=True)
            write_checkpoint(partial, like).rename(folder)
        return str(folder)


@dataclass(frozen=True)
class RenamedImages:
    """A source of `rows` images: the files repeated, under keys that start with the source's name."""

    files: Sequence[ImageRef]
    rows: int
    name: str

    @property
    def path(self) -> str:
        return self.name

    def images(self) -> Iterator[ImageRef]:
        for i in range(self.rows):
            key = f"{self.name}/{i // 1000:05d}/{i:09d}.jpg"
            yield self.files[i % len(self.files)]._replace(key=key, source=self.name)


def machine(setup: Setup) -> dict[str, Any]:
    """Describe the machine and its limits: matrix rates and upload rate."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cores": CORES}
    if setup.dry:
        return versions
    query = "--query-gpu=name,driver_version,memory.total,power.limit,pcie.link.gen.current,pcie.link.width.current"
    gpu = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True)
    rates = {
        f"matrix_tflops_{name}": round(matrix_rate("cuda", dtype, rounds=4), 1)
        for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16))
    }
    pinned = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    on_device = pinned.to("cuda")
    upload = _rate(lambda: on_device.copy_(pinned, non_blocking=True), 2**28 / 1e9, setup)
    return {**versions, "gpu": gpu.stdout.strip(), **rates, "upload_GBps": round(upload, 1)}


def compare_with_cpu(setup: Setup) -> dict[str, Any]:
    """Compare pixels, thumbnails and vectors with those of a CPU, and overlapped batches with sequential ones."""
    images = setup.pixels(8 if setup.dry else 256)
    result: dict[str, Any] = {}
    exact = load_encoder(setup.b32, device="cpu", precision="float32")
    exact_vectors = exact.encode(images[:32])
    for precision in ("float32",) if setup.dry else ("auto", "float32", "bf16", "fp16"):
        vectors = load_encoder(setup.b32, device=setup.device, precision=precision).encode(images[:32])
        centred, reference = vectors - exact_vectors.mean(0), exact_vectors - exact_vectors.mean(0)
        cosines = (centred * reference).sum(1) / np.linalg.norm(centred, axis=1) / np.linalg.norm(reference, axis=1)
        result[precision] = {
            "cosine_min": float((vectors * exact_vectors).sum(1).min()),
            "centred_min": float(cosines.min()),
        }
    encoder = _torch_encoder(setup, setup.b32)
    result["fused_kernel"] = encoder.reduces
    rng = np.random.default_rng(0)
    sizes = [(int(width), int(height)) for width, height in rng.integers(64, 448, (len(images), 2))]
    mixed = [np.asarray(Pillow.fromarray(image).resize(size)) for image, size in zip(images, sizes, strict=True)]
    inputs = encoder.inputs(mixed, torch.float32)
    plain = encoder.preprocess(mixed, torch.device(setup.device), torch.float32)
    result["pixels_unlike_products"] = float(((inputs - plain).abs() > 1e-3).float().mean())
    thumbnails = encoder.begin_reduced(mixed)()[1]
    expected = Encoder.begin_reduced(encoder, mixed)()[1]
    result["thumbnails_unlike_pillow"] = sum(
        not np.array_equal(a, b) for a, b in zip(thumbnails, expected, strict=True)
    )
    size = 4 if setup.dry else 64
    batches = [(mixed[i:] + mixed[:i])[: size + i % 3] for i in range(4 if setup.dry else 24)]
    sequential = [encoder.encode(batch) for batch in batches]
    for _ in range(1 if setup.dry else 5):
        overlapped = encode_batches(encoder, batches)
        difference = max(float(np.abs(a - b).max()) for a, b in zip(sequential, overlapped, strict=True))
        result["overlapped_apart"] = max(result.get("overlapped_apart", 0.0), difference)
    for name, batch in (("one size", images), ("many sizes", mixed)):
        rate = _rate(lambda: encoder.encode(batch), len(batch), setup)  # noqa: B023 - called at once
        result[f"us_per_image, {name}"] = round(1e6 / rate, 1)
    return result


def index_images(
    setup: Setup,
    encoder: EncoderSpec,
    rows: int,
    *,
    thumbnails: bool = True,
    processes: int = 0,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Rate from files to shards with several processes, after a warm-up run."""
    if setup.dry:
        rows, processes = DRY_IMAGES, 2
    processes = processes or processes_for(setup.device, lambda: MIN_IMAGES, CORES)
    options = IndexOptions(text=False, thumbnails=thumbnails, threads=CORES, batch_size=batch_size)
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPool(encoder, Path(scratch) / "store", options, processes) as pool,
    ):
        result: dict[str, Any] = {"processes": processes, "thumbnails": thumbnails}
        result["start_s"] = round(time.perf_counter() - began, 1)
        store = Store.create(Path(scratch) / "store", pool.space)
        index_with(pool, [RenamedImages(setup.refs, max(rows // 5, processes * 64), "warm")], store, options)
        pids = [int(worker.rsplit(" ", 1)[1]) for worker in pool.workers]
        core, driver, began = _core_seconds(pids), time.process_time(), time.perf_counter()
        with MachineMonitor(setup.dry) as monitor:
            report = index_with(pool, [RenamedImages(setup.refs, rows, "timed")], store, options)
        seconds = time.perf_counter() - began
        result |= {
            "images": report.added,
            "images_per_second": round(report.added / seconds),
            "seconds": round(seconds, 2),
            "worker_us": round((_core_seconds(pids) - core) / rows * 1e6, 1),
            "driver_us": round((time.process_time() - driver) / rows * 1e6, 1),
            "limit": limit_of(report.stages, seconds),
            "stages": {name: round(stage.share(seconds), 3) for name, stage in report.stages.items()},
            "batch_size": report.batch_size,
            "skipped": len(report.skipped),
            **monitor.means,
        }
    return result


def encoder_rates(setup: Setup, name: str) -> dict[str, Any]:
    """Rate of the encoder with uploads, as in the indexer, and of its parts with the images already on the GPU."""
    operations = flops_per_image(VisionConfig.from_config(open_checkpoint(name, weights=False).config))
    result: dict[str, Any] = {"gflop_per_image": round(operations / 1e9, 2)}
    for precision in ("float32",) if setup.dry else ("auto", "bf16"):
        encoder = _torch_encoder(setup, name, precision)
        size = 4 if setup.dry else encoder.batch_size
        images = setup.pixels(2 * size)
        count = 2 if setup.dry else max(6, min(32, int(4e12 / operations)))
        batches = [[images[(i * size + j) % len(images)] for j in range(size)] for i in range(count)]
        inputs = encoder.inputs(batches[0])
        with torch.inference_mode():
            cell = {
                "batch": size,
                "tower_only": _rate(lambda: encoder.vision_model(inputs), size, setup, 8),  # noqa: B023 - called at once
                "inputs_only": _rate(lambda: encoder.inputs(batches[0]), size, setup, 8),  # noqa: B023
                "with_uploads": _rate(lambda: encode_batches(encoder, batches), count * size, setup, 1),  # noqa: B023
            }
        if not setup.dry:
            peak = matrix_rate("cuda", encoder.dtype, rounds=4) * 1e12
            cell |= {f"share_{way}": round(cell[way] * operations / peak, 3) for way in ("tower_only", "with_uploads")}
            cell["GiB"] = round(torch.cuda.max_memory_reserved() / 2**30, 1)
        result[precision] = {key: round(value, 3) for key, value in cell.items()}
    return result


def feeding(setup: Setup) -> dict[str, Any]:
    """Rates of the pipeline with an encoder that takes no time."""
    result = {}
    spec, keys = TrivialEncoderSpec("trivial"), ("images_per_second", "worker_us", "driver_us", "cores_busy")
    for processes in (2,) if setup.dry else (8, 14):
        for thumbnails in (True, False):
            settings: dict[str, Any] = {"thumbnails": thumbnails, "processes": processes, "batch_size": 1024}
            cell = index_images(setup, spec, 120_000, **settings)
            name = f"{processes} processes, {'' if thumbnails else 'no '}thumbnails"
            result[name] = {key: cell.get(key) for key in keys}
    return result


def decoding(setup: Setup) -> dict[str, Any]:
    """Images per second of processes that only read and decode, which shows how many cores are really available."""
    paths = [ref.path for ref in setup.refs]
    paths = (paths * 4)[: 64 if setup.dry else 4000]
    result = {}
    context = get_context("spawn")
    for count in (1, 2) if setup.dry else (1, 8, 16):
        ready, done = context.Barrier(count + 1), context.Barrier(count + 1)
        processes = [context.Process(target=_decode, args=(paths, ready, done), daemon=True) for _ in range(count)]
        for process in processes:
            process.start()
        ready.wait(120)
        began = time.perf_counter()
        done.wait(120)
        result[str(count)] = round(count * len(paths) / (time.perf_counter() - began))
    return result


def naive_rate(setup: Setup) -> dict[str, Any]:
    """Rate of the naive script: Pillow, CLIPImageProcessor and CLIPModel in a loop."""
    return naive.run(setup.images, setup.b32, limit=8 if setup.dry else 500, repeats=1, device=setup.device)


STEPS: dict[str, tuple[int, Callable[[Setup], dict[str, Any]]]] = {  # time limit in seconds, and the step
    "machine": (40, machine),
    "sound": (60, compare_with_cpu),
    "index32": (90, lambda setup: index_images(setup, EncoderSpec(setup.b32, setup.device), 200_000)),
    "encoder32": (60, lambda setup: encoder_rates(setup, setup.b32)),
    "index14": (90, lambda setup: index_images(setup, EncoderSpec(setup.l14, setup.device), 24_000)),
    "encoder14": (60, lambda setup: encoder_rates(setup, setup.l14)),
    "bare32": (60, lambda setup: index_images(setup, EncoderSpec(setup.b32, setup.device), 200_000, thumbnails=False)),
    "many32": (60, lambda setup: index_images(setup, EncoderSpec(setup.b32, setup.device), 200_000, processes=14)),
    "naive": (40, naive_rate),
    "decoding": (40, decoding),
    "feeding": (120, feeding),
}


def run_steps(setup: Setup, steps: Sequence[str], out: Path, budget: float) -> list[dict[str, Any]]:
    """Run each step in its own process, and append its result, or the reason (`why`) for having none, to `out`."""
    began = time.perf_counter()
    results = []
    for step in steps:
        remaining = budget - (time.perf_counter() - began)
        result: dict[str, Any] = {"step": step, "why": "no time left"}
        if remaining >= MIN_STEP_SECONDS:
            result = _run_step(setup, step, min(remaining, STEPS[step][0] * (10 if setup.dry else 1)))
        results.append(result)
        with out.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result)[:1000], flush=True)
    return results


def _run_step(setup: Setup, step: str, seconds: float) -> dict[str, Any]:
    options = ["--one", step, "--work", str(setup.work), "--encoder", setup.encoder, "--images", *setup.images]
    arguments = [sys.executable, "-m", "clipfake.benchmarks.gpu", *options, *(["--dry"] if setup.dry else [])]
    began = time.perf_counter()
    try:
        process = subprocess.run(arguments, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as e:
        log = e.stderr.decode(errors="replace") if isinstance(e.stderr, bytes) else e.stderr or ""
        return {"step": step, "why": f"took more than {seconds:.0f} s", "log": log[-1500:]}
    if process.returncode:
        return {"step": step, "why": f"exit status {process.returncode}", "log": process.stderr[-1500:]}
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    warnings = {"log": process.stderr[-1500:]} if process.stderr.strip() else {}
    return {"step": step, "took_s": round(time.perf_counter() - began, 1), **result, **warnings}


class MachineMonitor:
    """Mean use of cores and GPU during a `with` block."""

    def __init__(self, dry: bool) -> None:
        self.means: dict[str, float] = {}
        self._dry, self._lines, self._end = dry, list[list[float]](), threading.Event()

    def __enter__(self) -> MachineMonitor:
        self._before = self._ticks()
        if not self._dry:
            threading.Thread(target=self._read_gpu, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        spent = self._ticks() - self._before
        self.means["cores_busy"] = round(float(1 - spent[3:5].sum() / max(spent.sum(), 1)) * CORES, 2)
        if self._lines:
            averages = np.mean(self._lines, 0).round(1).tolist()
            self.means |= dict(zip(("gpu_percent", "gpu_MiB", "watts"), averages, strict=True))

    @staticmethod
    def _ticks() -> Any:
        return np.array(Path("/proc/stat").read_text().split("\n")[0].split()[1:9], float)

    def _read_gpu(self) -> None:
        query = "--query-gpu=utilization.gpu,memory.used,power.draw"
        command_line = ["nvidia-smi", query, "--format=csv,noheader,nounits", "-lms", "500"]
        with subprocess.Popen(command_line, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if self._end.is_set():
                    break
                self._lines.append([float(word) for word in line.split(",")])
            process.kill()


def _torch_encoder(setup: Setup, name: str, precision: str = "auto") -> TorchEncoder:
    encoder = load_encoder(name, device=setup.device, precision=precision)
    assert isinstance(encoder, TorchEncoder)
    return encoder


def _rate(call: Callable[[], object], amount: float, setup: Setup, calls: int = 8) -> float:
    """Amount per second, the best of three rounds of calls."""

    def finish() -> None:
        if not setup.dry:
            torch.cuda.synchronize()

    call()
    best = 0.0
    for _ in range(1 if setup.dry else 3):
        finish()
        began = time.perf_counter()
        for _ in range(1 if setup.dry else calls):
            call()
        finish()
        best = max(best, amount * (1 if setup.dry else calls) / (time.perf_counter() - began))
    return best


def _core_seconds(pids: Sequence[int]) -> float:
    fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return sum(int(values[11]) + int(values[12]) for values in fields) / os.sysconf("SC_CLK_TCK")


def _decode(paths: Sequence[str], ready: Any, done: Any) -> None:
    decode(Path(paths[0]).read_bytes())
    ready.wait(120)
    for path in paths:
        decode(Path(path).read_bytes())
    done.wait(120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_images_option(parser)
    parser.add_argument("--encoder", required=True, help="directory of a CLIP; the weights may be missing")
    parser.add_argument("--steps", default=",".join(STEPS), help="steps to run, separated by commas")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all steps together")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="file that results are appended to")
    parser.add_argument("--dry", action="store_true", help="a few images on the CPU: only tests the program")
    parser.add_argument("--work", type=Path, help="folder for checkpoints with random weights (default: temporary)")
    parser.add_argument("--one", choices=STEPS, help=argparse.SUPPRESS)  # run this step in this process
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        setup = Setup(options.images, options.encoder, (options.work or Path(scratch)).resolve(), options.dry)
        setup.work.mkdir(parents=True, exist_ok=True)
        if options.one:
            print(json.dumps(STEPS[options.one][1](setup)))
        else:
            run_steps(setup, options.steps.split(","), options.out, options.budget)


if __name__ == "__main__":
    main()
