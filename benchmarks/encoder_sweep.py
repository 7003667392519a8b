"""How an encoder is best run on this card: batch size x {eager, compiled, CUDA graph, both} x precision.

Each cell tells images a second, the share of the device's own matrix rate in that precision, the seconds until it was
ready (compiling, capturing) and the lowest cosine with eager float32. Images lie on the device: their
200 x 200 pixels are resized and normalised in the same call, or, as `tower only`, before it. The tower is what is
compiled (a compiler would trace how the resize matrices are made); a graph holds the preprocessing too. `best` of each
precision is what to take. On a CPU, where a core's time is counted, it is a trial of the script: eager and compiled.

    python -m clipfake.benchmarks.encoder_sweep --untrained \\
        --encoder ../shared/encoders/clip-vit-base-patch32-untrained
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import EncoderError
from ..indexer.encoders.base import TorchEncoder
from ..indexer.encoders.clip_vision import ClipVision
from ..indexer.encoders.load import load_encoder
from ..indexer.encoders.onednn_linear import use_plain_linear
from . import throughput
from .common import command
from .common.flops import flops_per_image, matrix_rate, seconds

SIDE = 200  # pixels of the images, as ArtiFact's
BATCHES = (64, 128, 256, 512, 1024, 2048)
WAYS = ("eager", "compile", "graph", "compile+graph")
CPU_WAYS = ("eager", "compile")
PRECISIONS = ("bf16", "fp16")
WARM = 3  # calls before a way is timed or captured
CALLS = 10
Call = Callable[[torch.Tensor], torch.Tensor]  # (n, side, side, 3) uint8 on the device to (n, dim)


def run(
    encoder: str,
    *,
    device: str = "auto",
    batches: Sequence[int] = BATCHES,
    ways: Sequence[str] = (),
    precisions: Sequence[str] = PRECISIONS,
    repeats: int = 3,
) -> dict[str, Any]:
    """`machine`, for each precision its `matrix_tflops`, every cell and the `best` one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    ways = ways or (WAYS if device.startswith("cuda") else CPU_WAYS)
    result: dict[str, Any] = {"machine": throughput.machine(), "encoder": encoder, "device": device}
    reference = _tower(load_encoder(encoder, device=device, precision="float32"))
    for precision in precisions:
        tower = _tower(load_encoder(encoder, device=device, precision=precision))
        peak = matrix_rate(device, tower.dtype, 0 if device.startswith("cuda") else 256)
        told: dict[str, Any] = {"matrix_tflops": round(peak, 2)}
        each = flops_per_image(_clip(tower).shape) / (peak * 1e12)  # seconds, were it all products at full rate
        for preprocess in (True, False):
            for way in ways:
                for size in batches:
                    cell = _cell(tower, reference, way, size, preprocess, repeats)
                    if "images_per_second" in cell:
                        cell["share_of_peak"] = round(cell["images_per_second"] * each, 3)
                    told[_name(way, size, preprocess)] = cell
        told["best"] = best(told)
        result[precision] = told
    return result


def best(cells: dict[str, Any]) -> str:
    """The cell of most images a second, of those that do all the work an image needs; "" where none could be run.

    >>> best({"eager 64": {"images_per_second": 2.0}, "eager 64, tower only": {"images_per_second": 9.0}})
    'eager 64'
    """
    rates = {
        name: cell["images_per_second"]
        for name, cell in cells.items()
        if isinstance(cell, dict) and "images_per_second" in cell and not name.endswith(TOWER_ONLY)
    }
    return max(rates, key=lambda name: rates[name], default="")


TOWER_ONLY = ", tower only"


def _name(way: str, size: int, preprocess: bool) -> str:
    return f"{way} {size}" + ("" if preprocess else TOWER_ONLY)


def _tower(encoder: Any) -> TorchEncoder:
    if not isinstance(encoder, TorchEncoder):
        raise EncoderError("a sweep is of one CLIP on one device")
    use_plain_linear(_clip(encoder))  # of a CPU: compilers know plain layers
    return encoder


def _clip(encoder: TorchEncoder) -> ClipVision:
    if not isinstance(encoder.tower, ClipVision):
        raise EncoderError(f"a sweep is of a CLIP, and {encoder.space.encoder} is none")
    return encoder.tower


@torch.inference_mode()
def _cell(
    tower: TorchEncoder, reference: TorchEncoder, way: str, size: int, preprocess: bool, repeats: int
) -> dict[str, Any]:
    """One way at one size: its figures, or why there are none."""
    device = str(tower.device)
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (size, SIDE, SIDE, 3), np.uint8)).to(device)
    given = pixels if preprocess else _inputs(tower, pixels)
    began = time.perf_counter()
    try:
        call = _made(tower, way, given, preprocess)
        found = call(given).float().clone()  # a graph's own output is written over by the next call
        ready = time.perf_counter() - began

        def several() -> None:
            for _ in range(CALLS):
                call(given)

        rates = [CALLS * size / seconds(several, device) for _ in range(repeats)]
    except (RuntimeError, torch.OutOfMemoryError) as e:  # no compiler, no memory, nothing that can be captured
        return {"why": (str(e).strip().splitlines() or [type(e).__name__])[0][:200]}
    finally:
        if way.startswith("compile"):
            torch.compiler.reset()
    exact = reference.tower(_inputs(reference, pixels)).float()
    return {
        "images_per_second": round(float(np.median(rates)), 1),
        "ready_seconds": round(ready, 2),
        "cosine_min": float(torch.nn.functional.cosine_similarity(found, exact).min()),
    }


def _inputs(tower: TorchEncoder, pixels: torch.Tensor) -> torch.Tensor:
    """What the tower sees of (n, side, side, 3) pixels that are on its device already."""
    one = np.empty((SIDE, SIDE, 3), np.uint8)  # never read: `upload` has them all
    return tower.preprocess([one], tower.device, tower.dtype, lambda _: pixels)


def _made(tower: TorchEncoder, way: str, given: torch.Tensor, preprocess: bool) -> Call:
    """The call, ready to be timed."""
    features: Call = tower.tower
    if way.startswith("compile"):
        mode = "reduce-overhead" if way.endswith("graph") else "default"
        features = torch.compile(features, dynamic=False, mode=mode)
    call: Call = (lambda pixels: features(_inputs(tower, pixels))) if preprocess else features
    if way == "graph":
        return _captured(call, given)
    for _ in range(WARM):
        call(given)
    return call


def _captured(plain: Call, given: torch.Tensor) -> Call:
    """One call recorded as a CUDA graph; its replay reads a buffer of its own, which the copy into it fills."""
    buffer = given.clone()
    aside = torch.cuda.Stream(given.device)  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream(given.device))
    with torch.cuda.stream(aside):  # what is set up lazily must be there before the capture
        for _ in range(WARM):
            plain(buffer)
    torch.cuda.current_stream(given.device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = plain(buffer)

    def replay(pixels: torch.Tensor) -> torch.Tensor:
        buffer.copy_(pixels)
        graph.replay()
        return found

    return replay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_encoder_options(parser)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), help="sizes, commas between")
    parser.add_argument("--ways", default="", help=f"some of {','.join(WAYS)} [default: all the device has]")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="commas between")
    parser.add_argument("--repeats", type=int, default=3)
    told = command.parse_options(parser)
    told["batches"] = [int(size) for size in told["batches"].split(",")]
    for key in ("ways", "precisions"):
        told[key] = [word for word in told[key].split(",") if word]
    command.print_result(run(told.pop("encoder"), **told))


if __name__ == "__main__":
    main()
