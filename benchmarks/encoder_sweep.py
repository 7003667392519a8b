"""Fastest configuration of an encoder on this GPU: batch size × {eager, compiled, CUDA graph, both} × precision.

Each cell gives images per second, the share of the device's matrix rate in that precision, the seconds until it was
ready (compiling, capturing) and the lowest cosine with eager float32. The images are on the device: their 200 × 200
pixels are resized and normalised in the same call or, as `tower only`, before it. Only the vision model is compiled (a
compiler would trace the construction of the resize matrices); a CUDA graph includes the preprocessing. `best` names the
fastest configuration of each precision. On a CPU (core time, eager and compiled) this only tests the script.

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
from ..indexer.encoders.clip_vision import ClipVision
from ..indexer.encoders.load import load_encoder
from ..indexer.encoders.onednn_linear import use_plain_linear
from ..indexer.encoders.torch_encoder import TorchEncoder
from . import throughput
from .common import command
from .common.flops import flops_per_image, matrix_rate, measure_seconds

SIDE = 200  # pixels, as in ArtiFact
BATCHES = (64, 128, 256, 512, 1024, 2048)
MODES = ("eager", "compile", "graph", "compile+graph")
CPU_MODES = ("eager", "compile")
PRECISIONS = ("bf16", "fp16")
WARMUP_CALLS = 3  # calls before timing or capturing
CALLS = 10
Call = Callable[[torch.Tensor], torch.Tensor]  # (n, side, side, 3) uint8 on the device to (n, dim)


def run(
    encoder: str,
    *,
    device: str = "auto",
    batches: Sequence[int] = BATCHES,
    modes: Sequence[str] = (),
    precisions: Sequence[str] = PRECISIONS,
    repeats: int = 3,
) -> dict[str, Any]:
    """Measure all configurations: `machine`, and for each precision `matrix_tflops`, every cell and the `best` one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    modes = modes or (MODES if device.startswith("cuda") else CPU_MODES)
    result: dict[str, Any] = {"machine": throughput.machine(), "encoder": encoder, "device": device}
    reference = _checked_encoder(load_encoder(encoder, device=device, precision="float32"))
    for precision in precisions:
        candidate = _checked_encoder(load_encoder(encoder, device=device, precision=precision))
        peak = matrix_rate(device, candidate.dtype, 0 if device.startswith("cuda") else 256)
        cells: dict[str, Any] = {"matrix_tflops": round(peak, 2)}
        # seconds per image at the full matrix rate
        ideal = flops_per_image(_clip_vision(candidate).config) / (peak * 1e12)
        for preprocess in (True, False):
            for mode in modes:
                for size in batches:
                    cell = _measure_cell(candidate, reference, mode, size, preprocess, repeats)
                    if "images_per_second" in cell:
                        cell["share_of_peak"] = round(cell["images_per_second"] * ideal, 3)
                    cells[_name(mode, size, preprocess)] = cell
        cells["best"] = best(cells)
        result[precision] = cells
    return result


def best(cells: dict[str, Any]) -> str:
    """Name of the fastest cell that includes the preprocessing; "" if none could be run.

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


def _name(mode: str, size: int, preprocess: bool) -> str:
    return f"{mode} {size}" + ("" if preprocess else TOWER_ONLY)


def _checked_encoder(encoder: Any) -> TorchEncoder:
    if not isinstance(encoder, TorchEncoder):
        raise EncoderError(f"the sweep needs a CLIP encoder in torch on one device, found {type(encoder).__name__}")
    use_plain_linear(_clip_vision(encoder))  # compilers cannot trace the oneDNN layers of a CPU
    return encoder


def _clip_vision(encoder: TorchEncoder) -> ClipVision:
    if not isinstance(encoder.vision_model, ClipVision):
        raise EncoderError(f"the sweep needs a CLIP encoder, and {encoder.space.encoder} is not one")
    return encoder.vision_model


@torch.inference_mode()
def _measure_cell(
    encoder: TorchEncoder, reference: TorchEncoder, mode: str, size: int, preprocess: bool, repeats: int
) -> dict[str, Any]:
    """Figures of one configuration, or the reason why it cannot be run."""
    device = str(encoder.device)
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (size, SIDE, SIDE, 3), np.uint8)).to(device)
    inputs = pixels if preprocess else _inputs(encoder, pixels)
    began = time.perf_counter()
    try:
        call = _prepare_call(encoder, mode, inputs, preprocess)
        vectors = call(inputs).float().clone()  # the next call overwrites the output of a graph
        ready = time.perf_counter() - began

        def repeat_call() -> None:
            for _ in range(CALLS):
                call(inputs)

        rates = [CALLS * size / measure_seconds(repeat_call, device) for _ in range(repeats)]
    except (RuntimeError, torch.OutOfMemoryError) as e:  # no compiler, out of memory, or not capturable
        return {"why": (str(e).strip().splitlines() or [type(e).__name__])[0][:200]}
    finally:
        if mode.startswith("compile"):
            torch.compiler.reset()
    exact = reference.vision_model(_inputs(reference, pixels)).float()
    return {
        "images_per_second": round(float(np.median(rates)), 1),
        "ready_seconds": round(ready, 2),
        "cosine_min": float(torch.nn.functional.cosine_similarity(vectors, exact).min()),
    }


def _inputs(encoder: TorchEncoder, pixels: torch.Tensor) -> torch.Tensor:
    """Preprocessed input of the model from (n, side, side, 3) uint8 pixels that are on its device already."""
    placeholder = np.empty((SIDE, SIDE, 3), np.uint8)  # never read: `upload` returns all pixels
    return encoder.preprocess([placeholder], encoder.device, encoder.dtype, lambda _: pixels)


def _prepare_call(encoder: TorchEncoder, mode: str, inputs: torch.Tensor, preprocess: bool) -> Call:
    """The call, compiled or captured and warmed up."""
    features: Call = encoder.vision_model
    if mode.startswith("compile"):
        compile_mode = "reduce-overhead" if mode.endswith("graph") else "default"
        features = torch.compile(features, dynamic=False, mode=compile_mode)
    call: Call = (lambda pixels: features(_inputs(encoder, pixels))) if preprocess else features
    if mode == "graph":
        return _capture_graph(call, inputs)
    for _ in range(WARMUP_CALLS):
        call(inputs)
    return call


def _capture_graph(plain: Call, inputs: torch.Tensor) -> Call:
    """Record one call as a CUDA graph, which reads its inputs from a buffer of its own."""
    buffer = inputs.clone()
    side_stream = torch.cuda.Stream(inputs.device)  # type: ignore[no-untyped-call]
    side_stream.wait_stream(torch.cuda.current_stream(inputs.device))
    with torch.cuda.stream(side_stream):  # lazy initialisation must happen before the capture
        for _ in range(WARMUP_CALLS):
            plain(buffer)
    torch.cuda.current_stream(inputs.device).wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        vectors = plain(buffer)

    def replay(pixels: torch.Tensor) -> torch.Tensor:
        buffer.copy_(pixels)
        graph.replay()
        return vectors

    return replay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_encoder_options(parser)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), help="batch sizes, separated by commas")
    parser.add_argument(
        "--modes", default="", help=f"some of {','.join(MODES)} (default: all that the device supports)"
    )
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="separated by commas")
    parser.add_argument("--repeats", type=int, default=3)
    options = command.parse_options(parser)
    options["batches"] = [int(size) for size in options["batches"].split(",")]
    for key in ("modes", "precisions"):
        options[key] = [word for word in options[key].split(",") if word]
    command.print_result(run(options.pop("encoder"), **options))


if __name__ == "__main__":
    main()
