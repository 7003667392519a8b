"""Every benchmark runs, at a size that says nothing, and its JSON has the ratios it is run for."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from clipfake.benchmarks import (
    clip_retrieval,
    decoding,
    encoder_sweep,
    feeding,
    indexing,
    int8,
    parity,
    service,
    start,
    targets,
    throughput,
)
from clipfake.benchmarks.common import command
from clipfake.benchmarks.common.architecture import VIT_L_14, write_architecture
from clipfake.benchmarks.common.flops import flops_per_image, matrix_rate
from clipfake.benchmarks.detector import leave_one_out, query
from clipfake.benchmarks.store import file_format
from clipfake.indexer.decoding import nvimagecodec
from clipfake.indexer.decoding.image import Pixels
from clipfake.indexer.encoders.base import Embeddings, PlainEncoder
from clipfake.indexer.encoders.clip_vision import VisionConfig
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.encoders.onednn_linear import use_plain_linear
from clipfake.indexer.encoders.vision_backbone import random_model
from clipfake.simulated.images import write_sample
from clipfake.simulated.standin_encoder import build_standin
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], str]:
    folder = tmp_path_factory.mktemp("bench")
    return write_sample(folder / "sample", images_per_source=3), str(build_standin(folder))


def plain(result: dict[str, Any]) -> dict[str, Any]:
    """As it is printed: a table, and JSON without NaN."""
    assert len(command.table(result)) > 3
    return json.loads(json.dumps(result, allow_nan=False))  # type: ignore[no-any-return]


def test_throughput_is_told_beside_the_naive_script(given: tuple[list[Path], str]) -> None:
    told = plain(throughput.run(*given, precision="float32", limit=8, repeats=1))["float32"]
    assert told["agreement"]["cosine_min"] > 0.9999
    assert told["ratio_to_naive"].keys() == told["share_of_encoder"].keys() == {"wall", "cpu"}


def test_throughput_by_several_processes_is_told_beside_that_of_one(given: tuple[list[Path], str]) -> None:
    told = plain(throughput.run(*given, precision="float32", limit=8, repeats=1, processes=2))["float32"]
    assert told["crew"]["processes"] == 2
    assert targets.best_rate(told) == max(told[way]["images_per_second"] for way in ("crew", "end_to_end"))


def test_an_answers_whole_cost_is_told_beside_a_script_that_only_embeds(given: tuple[list[Path], str]) -> None:
    told = plain(start.run(given[1], repeats=1))
    assert told["ours"]["core_seconds"] > 0 and told["naive"]["core_seconds"] > 0
    ratio = told["ours"]["core_seconds"] / told["naive"]["core_seconds"]
    assert told["core_seconds_ours_over_naive"] == pytest.approx(ratio, abs=0.01)


def test_decoders_are_told_beside_pillow(given: tuple[list[Path], str]) -> None:
    told = plain(decoding.run(*given, sides=(60, 500), count=3, repeats=1))
    assert told["60"].keys() == {"bytes", "decode"} and told["500"].keys() == {"bytes", "decode", "open", "vectors"}
    assert told["500"]["vectors"]["simplejpeg"]["cosine_min"] > 0.9999
    names = {"pillow", "simplejpeg", "simplejpeg, chroma repeated", "simplejpeg, fast dct"}
    assert names <= told["500"]["decode"].keys()
    assert told["500"]["decode"]["simplejpeg"]["most"] == 0
    assert told["500"]["decode"]["simplejpeg, fast dct"]["resized"]["mean"] > told["allowed"]["mean"]
    assert all(way["images_per_core_second"] > 0 for way in told["500"]["open"].values())
    if nvimagecodec.installed():
        assert told["500"]["decode"]["nvimagecodec (cpu)"]["most"] == 0
        assert told["500"]["open"]["nvimagecodec (cpu)"]["most"] <= 1


def test_parity_is_told_for_each_precision(given: tuple[list[Path], str]) -> None:
    told = plain(parity.run(*given, precision="float32,bf16", limit=8))
    assert "float32" in json.dumps(told) and "bf16" in json.dumps(told)


def test_a_verdict_is_told_beside_a_forward_pass(given: tuple[list[Path], str]) -> None:
    told = plain(query.run(given[1], rows=2000, queries=3))
    assert told["recall_at_10"] == 1.0
    assert told["verdict_over_forward"] > 0


def test_a_stores_files_are_told_beside_plain_ones() -> None:
    told = plain(file_format.run(rows=3000, metadata_rows=3000, pairs_rows=200, repeats=2))
    assert told["order_to_memmap"] > 0 and told["random_to_memmap"] > 0
    assert told["metadata"]["rows"] == 3000


@pytest.mark.slow
def test_what_indexing_costs_is_told_part_by_part(given: tuple[list[Path], str]) -> None:
    paths = command.image_paths(given[0], 6)
    sizes: dict[str, Any] = {"list_rows": 50, "memory_rows": [20, 60], "start_rows": 70, "zip_rows": None}
    told = plain(indexing.run(paths, given[1], indexing.PARTS, **sizes))
    assert told["read"]["images"] == 6
    for kind in ("metadata.csv", "list.csv", "zip", "folder"):
        assert told["list"][kind]["images"] == told["list"][kind]["counted"] == 50
    assert told["memory"]["peak_ratio"] > 0 and told["memory"]["zip"]["60"]["peak_mib"] > 0
    assert told["start"]["zip"]["rows"] == 70


@pytest.mark.slow
def test_a_service_is_told_beside_its_encoder(given: tuple[list[Path], str]) -> None:
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    told = plain(service.run(given[1], images=8, concurrency=4, batch=4, repeats=1))
    assert {"service_to_encoder", "together_to_one_by_one", "together_to_naive_one"} <= told.keys()


@pytest.mark.slow
def test_the_atlas_is_told_beside_fitting_anew() -> None:
    assert plain(leave_one_out.run(rows=2000, reals=3, fakes=4))["rows"] == 2000


def test_images_may_be_taken_again_and_the_naive_script_be_given_fewer(given: tuple[list[Path], str]) -> None:
    told = throughput.run(*given, precision="float32", limit=100, repeats=1, naive_limit=3, repeated=True)
    assert told["images"] == 100 and told["float32"]["agreement"]["cosine_min"] > 0.9999


class Overlapping(PlainEncoder):
    """Tells what was begun and what was waited for."""

    overlaps = True

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def begin(self, images: Sequence[Pixels]) -> Callable[[], Embeddings]:
        number = len([one for one in self.told if one.startswith("begun")])
        self.told.append(f"begun {number}")

        def wait() -> Embeddings:
            self.told.append(f"waited {number}")
            return self.encode(images)

        return wait


def test_an_encoders_own_rate_has_the_next_batch_under_way() -> None:
    encoder, rng = Overlapping(), np.random.default_rng(0)
    batches = [[rng.integers(0, 256, (9, 9, 3), np.uint8)] for _ in range(3)]
    found = throughput.encode_batches(encoder, batches)
    assert encoder.told == ["begun 0", "begun 1", "waited 0", "begun 2", "waited 1", "waited 2"]
    assert np.array_equal(np.concatenate(found), np.concatenate(throughput.encode_batches(PlainEncoder(), batches)))


def test_arithmetic_is_what_the_tower_does(given: tuple[list[Path], str]) -> None:
    encoder: Any = load_encoder(given[1], device="cpu")
    use_plain_linear(encoder.tower)
    pixels = torch.zeros(3, 3, 224, 224)
    theirs = random_model(Path(given[1]), 0)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        encoder.tower(pixels)
    assert flops_per_image(encoder.tower.shape) == pytest.approx(counted.get_total_flops() / 3, rel=1e-6)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        theirs.get_image_features(pixel_values=pixels)
    assert flops_per_image(encoder.tower.shape, whole=True) == pytest.approx(counted.get_total_flops() / 3, rel=1e-6)
    assert matrix_rate("cpu", torch.float32, 64, rounds=1) > 0


def test_an_architecture_is_written_as_a_model_of_its_dimensions(given: tuple[list[Path], str], tmp_path: Path) -> None:
    place = write_architecture(tmp_path / "large", given[1], VIT_L_14)
    config = transformers.CLIPConfig.from_pretrained(place)
    assert (config.vision_config.num_hidden_layers, config.vision_config.patch_size) == (24, 14)
    assert config.text_config.vocab_size == transformers.CLIPConfig.from_pretrained(given[1]).text_config.vocab_size
    assert flops_per_image(VisionConfig.from_config(config.to_dict()), whole=True) / 1e9 == pytest.approx(162, rel=0.01)
    small = {"projection_dim": 32, "vision_config": {"hidden_size": 64, "projection_dim": 32}}
    place = write_architecture(tmp_path / "small", given[1], small)
    assert load_encoder(f"untrained:0:{place}", device="cpu").space.dim == 32


def test_targets_are_told_where_they_can_be() -> None:
    rates = {"decode": 60_000.0, "encode": 40_000.0, "end_to_end": 36_000.0}
    base: dict[str, Any] = {name: {"images_per_second": rate} for name, rate in rates.items()}
    found = targets.gpu_targets({"ViT-B/32": base, "ViT-L/14": {"why": "no memory"}})
    assert [(target.found, target.met, target.stretch) for target in found] == [
        (36_000, True, False),
        (36_000, False, True),
        (0.9, True, False),
    ]
    large = {**base, "encoder_over_card": 0.4}
    assert [target.met for target in targets.gpu_targets({"ViT-B/32": {"why": "?"}, "ViT-L/14": large})] == [
        True,
        True,
        False,
    ]
    assert targets.cpu_targets({"openvino": {"why": "not installed"}, "openvino bf16": {"why": "not installed"}}) == []
    assert targets.Target("seconds", 10, 9.0, most=True).met and not targets.Target("seconds", 10, 11.0, most=True).met


@pytest.mark.slow
def test_the_targets_of_indexing_are_told_one_by_one(given: tuple[list[Path], str]) -> None:
    told = plain(targets.run(*given, quick=True))
    assert {"torch", "openvino", "openvino bf16"} == told["runs"].keys() or "ViT-B/32" in told["runs"]
    assert told["ratio_to_naive"].keys() == {name for name, run in told["runs"].items() if "why" not in run}


@pytest.mark.slow
def test_a_cards_run_goes_its_whole_way_on_a_cpu_too(given: tuple[list[Path], str]) -> None:
    small = {"vision_config": {"hidden_size": 64, "intermediate_size": 128}}
    at: dict[str, Any] = {"limit": 20, "repeats": 1, "threads": 1, "quick": True}
    told, found = targets.run_on_gpu(*given, **at, device="cpu", dimensions=small)
    assert len(found) == 6 and told["card_tflops_bf16"] > 0
    assert all(run["images"] == 20 and run["ratio_to_naive"]["wall"] > 0 for run in told["runs"].values())


@pytest.mark.slow
def test_a_sweep_tells_every_way(given: tuple[list[Path], str], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile  # without a C++ compiler's minutes
    monkeypatch.setattr(torch, "compile", lambda call, **told: compiled(call, backend="eager", dynamic=False))
    told = plain(encoder_sweep.run(given[1], device="cpu", batches=[2], precisions=["float32"], repeats=1))
    cells = {name: cell for name, cell in told["float32"].items() if isinstance(cell, dict)}
    assert cells.keys() == {"eager 2", "compile 2", "eager 2, tower only", "compile 2, tower only"}
    assert all(cell["cosine_min"] > 0.9999 and cell["share_of_peak"] > 0 for cell in cells.values())
    assert told["float32"]["best"] in cells


def test_a_way_that_cannot_be_run_says_why(given: tuple[list[Path], str], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(call: object, **told: object) -> object:
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", no_compiler)
    told = encoder_sweep.run(given[1], device="cpu", batches=[1], ways=["compile"], precisions=["float32"], repeats=1)
    assert told["float32"]["compile 1"] == {"why": "no C++ compiler"} and told["float32"]["best"] == ""


@pytest.mark.slow
def test_what_int8_costs_is_told_beside_float32(given: tuple[list[Path], str], tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra `cpu` is not installed")
    images = write_sample(tmp_path, images_per_source=12)  # enough for a triplet in each part
    told = plain(int8.run(images, given[1], precision="int8", limit=8, repeats=1))
    assert told["float32"]["same_neighbours"] == 1 and 0.3 < told["int8"]["same_neighbours"] <= 1
    assert told["int8"]["space"] != told["float32"]["space"]
    assert told["int8"]["test"].keys() == {"head", *int8.BASELINES}


def test_without_the_peers_environment_one_is_told_how_to_make_it(
    given: tuple[list[Path], str], tmp_path: Path
) -> None:
    told = clip_retrieval.run(*given, limit=4, peers=tmp_path)
    assert "make peers" in told["why"]


def test_a_peer_that_fails_says_what_it_said(given: tuple[list[Path], str], tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho no such module >&2; exit 3\n")
    python.chmod(0o755)
    told = clip_retrieval.run(*given, limit=4, peers=tmp_path)
    assert "ended with 3: no such module" in told["why"]


@pytest.mark.slow
def test_clip_retrieval_is_told_beside_ours(given: tuple[list[Path], str], tmp_path: Path) -> None:
    peers = Path(__file__).parent.parent / ".peers"
    if not list(peers.glob("lib/python3*/site-packages/all_clip")):
        pytest.skip("`make peers` has not been run")
    place = write_architecture(
        tmp_path / "clip", given[1], {"text_config": {"vocab_size": 49_408}}
    )  # it tokenizes as CLIP
    told = plain(clip_retrieval.run(given[0], str(place), limit=12, repeats=1, threads=1, peers=peers))
    assert told["agreement"]["cosine_min"] > 0.999 and told["clip_retrieval"]["startup_cpu_seconds"] > 0


def test_what_a_gpu_can_be_fed_is_told_by_worker_and_driver(given: tuple[list[Path], str]) -> None:
    told = plain(feeding.run(given[0], few=40, many=200, processes=1))
    assert told["crew"].keys() == {"processes", "worker_us", "driver_us", "images_per_second"}
    assert told["of_cores"].keys() == {"4", "8", "16", "32"}
