"""Every benchmark runs at a tiny size and prints its ratios as JSON."""

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
    gpu,
    house,
    indexing,
    int8,
    parity,
    service,
    soak,
    start,
    targets,
    throughput,
)
from clipfake.benchmarks.common import command
from clipfake.benchmarks.common.architecture import VIT_L_14, write_architecture
from clipfake.benchmarks.common.flops import flops_per_image, matrix_rate
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.benchmarks.detector import classifiers, curation, fusion, leave_one_out, query, stability
from clipfake.benchmarks.store import file_format
from clipfake.indexer.decoding import nvimagecodec
from clipfake.indexer.decoding.image import Pixels
from clipfake.indexer.encoders.base import Embeddings, PlainEncoder
from clipfake.indexer.encoders.clip_vision import VisionConfig
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.encoders.onednn_linear import use_plain_linear
from clipfake.indexer.encoders.vision_backbone import random_model
from clipfake.indexer.index import index
from clipfake.simulated.images import write_sample
from clipfake.simulated.standin_encoder import build_standin
from clipfake.store.store import Store
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], str]:
    folder = tmp_path_factory.mktemp("bench")
    return write_sample(folder / "sample", images_per_source=3), str(build_standin(folder))


def printed(result: dict[str, Any]) -> dict[str, Any]:
    """The result as it is printed: a table, and JSON without NaN."""
    assert len(command.table(result)) > 3
    return dict(json.loads(json.dumps(result, allow_nan=False)))


def test_throughput_beside_naive_script(inputs: tuple[list[Path], str]) -> None:
    result = printed(throughput.run(*inputs, precision="float32", limit=8, repeats=1))["float32"]
    assert result["agreement"]["cosine_min"] > 0.9999
    assert result["ratio_to_naive"].keys() == result["share_of_encoder"].keys() == {"wall", "cpu"}


def test_throughput_of_several_processes(inputs: tuple[list[Path], str]) -> None:
    result = printed(throughput.run(*inputs, precision="float32", limit=8, repeats=1, processes=2))["float32"]
    assert result["crew"]["processes"] == 2
    assert targets.best_rate(result) == max(result[way]["images_per_second"] for way in ("crew", "end_to_end"))


def test_query_process_beside_naive_script(inputs: tuple[list[Path], str]) -> None:
    result = printed(start.run(inputs[1], repeats=1))
    assert result["ours"]["core_seconds"] > 0 and result["naive"]["core_seconds"] > 0
    ratio = result["ours"]["core_seconds"] / result["naive"]["core_seconds"]
    assert result["core_seconds_ours_over_naive"] == pytest.approx(ratio, abs=0.01)


def test_decoders_beside_pillow(inputs: tuple[list[Path], str]) -> None:
    result = printed(decoding.run(*inputs, sides=(60, 500), count=3, repeats=1))
    assert result["60"].keys() == {"bytes", "decode"} and result["500"].keys() == {"bytes", "decode", "open", "vectors"}
    assert result["500"]["vectors"]["simplejpeg"]["cosine_min"] > 0.9999
    names = {"pillow", "simplejpeg", "simplejpeg, chroma repeated", "simplejpeg, fast dct"}
    assert names <= result["500"]["decode"].keys()
    assert result["500"]["decode"]["simplejpeg"]["most"] == 0
    assert result["500"]["decode"]["simplejpeg, fast dct"]["resized"]["mean"] > result["allowed"]["mean"]
    assert all(way["images_per_core_second"] > 0 for way in result["500"]["open"].values())
    if nvimagecodec.installed():
        assert result["500"]["decode"]["nvimagecodec (cpu)"]["most"] == 0
        assert result["500"]["open"]["nvimagecodec (cpu)"]["most"] <= 1


def test_parity_by_precision(inputs: tuple[list[Path], str]) -> None:
    result = printed(parity.run(*inputs, precision="float32,bf16", limit=8))
    assert "float32" in json.dumps(result) and "bf16" in json.dumps(result)


def test_verdict_beside_forward_pass(inputs: tuple[list[Path], str]) -> None:
    result = printed(query.run(inputs[1], rows=2000, queries=3))
    assert result["recall_at_10"] == 1.0
    assert result["verdict_over_forward"] > 0


def test_store_files_beside_plain_files() -> None:
    result = printed(file_format.run(rows=3000, metadata_rows=3000, pairs_rows=200, repeats=2))
    assert result["order_to_memmap"] > 0 and result["random_to_memmap"] > 0
    assert result["metadata"]["rows"] == 3000


@pytest.mark.slow
def test_indexing_cost_by_part(inputs: tuple[list[Path], str]) -> None:
    paths = command.image_paths(inputs[0], 6)
    sizes: dict[str, Any] = {"list_rows": 50, "memory_rows": [20, 60], "start_rows": 70, "zip_rows": None}
    result = printed(indexing.run(paths, inputs[1], indexing.PARTS, **sizes))
    assert result["read"]["images"] == 6
    for kind in ("metadata.csv", "list.csv", "zip", "folder"):
        assert result["list"][kind]["images"] == result["list"][kind]["counted"] == 50
    assert result["memory"]["peak_ratio"] > 0 and result["memory"]["zip"]["60"]["peak_mib"] > 0
    assert result["start"]["zip"]["rows"] == 70


@pytest.mark.slow
def test_service_beside_its_encoder(inputs: tuple[list[Path], str]) -> None:
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    result = printed(service.run(inputs[1], images=8, concurrency=4, batch=4, repeats=1))
    assert {"service_to_encoder", "together_to_one_by_one", "together_to_naive_one"} <= result.keys()


@pytest.mark.slow
def test_soak_counts_every_request() -> None:
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    result = printed(soak.run("plain", requests=40, concurrency=4, every=20))
    assert sum(sum(counts.values()) for counts in result["statuses"].values()) == 40
    assert result["memory_curve"].keys() == {"20", "40"}


@pytest.mark.slow
def test_classifiers_on_left_out_sources(tmp_path: Path) -> None:
    leave_one_out.write_store(str(tmp_path), 500, 2, 3)
    result = printed(classifiers.run(Store.open(tmp_path / "s")))
    assert [row["c"] for row in result["classifiers"] if row["classifier"] == "rbf-svm"] == [1.0, 10.0]
    assert len(result["left_out"]) == 5


def test_leave_one_out_beside_refitting() -> None:
    assert printed(leave_one_out.run(rows=2000, reals=3, fakes=4))["rows"] == 2000


def test_throughput_with_repeated_images_and_naive_limit(inputs: tuple[list[Path], str]) -> None:
    result = throughput.run(*inputs, precision="float32", limit=100, repeats=1, naive_limit=3, repeated=True)
    assert result["images"] == 100 and result["float32"]["agreement"]["cosine_min"] > 0.9999


class Overlapping(PlainEncoder):
    """Records when batches are begun and waited for."""

    overlaps = True

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def begin(self, images: Sequence[Pixels]) -> Callable[[], Embeddings]:
        number = sum(event.startswith("begun") for event in self.events)
        self.events.append(f"begun {number}")

        def wait() -> Embeddings:
            self.events.append(f"waited {number}")
            return self.encode(images)

        return wait


def test_encoder_rate_overlaps_batches() -> None:
    encoder, rng = Overlapping(), np.random.default_rng(0)
    batches = [[rng.integers(0, 256, (9, 9, 3), np.uint8)] for _ in range(3)]
    vectors = throughput.encode_batches(encoder, batches)
    assert encoder.events == ["begun 0", "begun 1", "waited 0", "begun 2", "waited 1", "waited 2"]
    assert np.array_equal(np.concatenate(vectors), np.concatenate(throughput.encode_batches(PlainEncoder(), batches)))


def test_flops_match_the_model(inputs: tuple[list[Path], str]) -> None:
    encoder: Any = load_encoder(inputs[1], device="cpu")
    use_plain_linear(encoder.vision_model)
    pixels = torch.zeros(3, 3, 224, 224)
    reference = random_model(Path(inputs[1]), 0)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        encoder.vision_model(pixels)
    config = encoder.vision_model.config
    assert flops_per_image(config) == pytest.approx(counter.get_total_flops() / 3, rel=1e-6)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        reference.get_image_features(pixel_values=pixels)
    assert flops_per_image(config, whole=True) == pytest.approx(counter.get_total_flops() / 3, rel=1e-6)
    assert matrix_rate("cpu", torch.float32, 64, rounds=1) > 0


def test_written_architecture_has_its_dimensions(inputs: tuple[list[Path], str], tmp_path: Path) -> None:
    folder = write_architecture(tmp_path / "large", inputs[1], VIT_L_14)
    config = transformers.CLIPConfig.from_pretrained(folder)
    assert (config.vision_config.num_hidden_layers, config.vision_config.patch_size) == (24, 14)
    assert config.text_config.vocab_size == transformers.CLIPConfig.from_pretrained(inputs[1]).text_config.vocab_size
    assert flops_per_image(VisionConfig.from_config(config.to_dict()), whole=True) / 1e9 == pytest.approx(162, rel=0.01)
    small = {"projection_dim": 32, "vision_config": {"hidden_size": 64, "projection_dim": 32}}
    folder = write_architecture(tmp_path / "small", inputs[1], small)
    assert load_encoder(f"untrained:0:{folder}", device="cpu").space.dim == 32


def test_targets_of_the_runs_that_succeeded() -> None:
    rates = {"decode": 60_000.0, "encode": 40_000.0, "end_to_end": 36_000.0}
    base: dict[str, Any] = {name: {"images_per_second": rate} for name, rate in rates.items()}
    measured = targets.gpu_targets({"ViT-B/32": base, "ViT-L/14": {"why": "no memory"}})
    assert [(target.measured, target.met, target.stretch) for target in measured] == [
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
    assert (
        targets.Target("seconds", 10, 9.0, is_maximum=True).met
        and not targets.Target("seconds", 10, 11.0, is_maximum=True).met
    )


@pytest.mark.slow
def test_targets_of_this_machine(inputs: tuple[list[Path], str]) -> None:
    result = printed(targets.run(*inputs, quick=True))
    assert {"torch", "openvino", "openvino bf16"} == result["runs"].keys() or "ViT-B/32" in result["runs"]
    assert result["ratio_to_naive"].keys() == {name for name, run in result["runs"].items() if "why" not in run}


@pytest.mark.slow
def test_gpu_run_works_on_a_cpu(inputs: tuple[list[Path], str]) -> None:
    small = {"vision_config": {"hidden_size": 64, "intermediate_size": 128}}
    settings: dict[str, Any] = {"limit": 20, "repeats": 1, "threads": 1, "quick": True}
    result, measured = targets.run_on_gpu(*inputs, **settings, device="cpu", dimensions=small)
    assert len(measured) == 6 and result["card_tflops_bf16"] > 0
    assert all(run["images"] == 20 and run["ratio_to_naive"]["wall"] > 0 for run in result["runs"].values())


@pytest.mark.slow
def test_sweep_measures_every_configuration(inputs: tuple[list[Path], str], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile  # the eager back end needs no C++ compiler
    monkeypatch.setattr(torch, "compile", lambda call, **options: compiled(call, backend="eager", dynamic=False))
    result = printed(encoder_sweep.run(inputs[1], device="cpu", batches=[2], precisions=["float32"], repeats=1))
    cells = {name: cell for name, cell in result["float32"].items() if isinstance(cell, dict)}
    assert cells.keys() == {"eager 2", "compile 2", "eager 2, tower only", "compile 2, tower only"}
    assert all(cell["cosine_min"] > 0.9999 and cell["share_of_peak"] > 0 for cell in cells.values())
    assert result["float32"]["best"] in cells


def test_configuration_that_fails_gives_its_reason(
    inputs: tuple[list[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(call: object, **options: object) -> object:
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(torch, "compile", no_compiler)
    result = encoder_sweep.run(
        inputs[1], device="cpu", batches=[1], modes=["compile"], precisions=["float32"], repeats=1
    )
    assert result["float32"]["compile 1"] == {"why": "no C++ compiler"} and result["float32"]["best"] == ""


@pytest.mark.slow
def test_int8_beside_float32(inputs: tuple[list[Path], str], tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra `cpu` is not installed")
    images = write_sample(tmp_path, images_per_source=12)  # enough for a triplet in each part of the split
    result = printed(int8.run(images, inputs[1], precision="int8", limit=8, repeats=1))
    assert result["float32"]["same_neighbours"] == 1 and 0.3 < result["int8"]["same_neighbours"] <= 1
    assert result["int8"]["space"] != result["float32"]["space"]
    assert result["int8"]["test"].keys() == {"head", *int8.BASELINES}


def test_missing_peers_environment_names_make_peers(inputs: tuple[list[Path], str], tmp_path: Path) -> None:
    result = clip_retrieval.run(*inputs, limit=4, peers=tmp_path)
    assert "make peers" in result["why"]


def test_failed_peer_gives_its_error(inputs: tuple[list[Path], str], tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho no such module >&2; exit 3\n")
    python.chmod(0o755)
    result = clip_retrieval.run(*inputs, limit=4, peers=tmp_path)
    assert "exited with 3: no such module" in result["why"]


@pytest.mark.slow
def test_clip_retrieval_beside_clipfake(inputs: tuple[list[Path], str], tmp_path: Path) -> None:
    peers = Path(__file__).parent.parent / ".peers"
    if not list(peers.glob("lib/python3*/site-packages/all_clip")):
        pytest.skip("`make peers` has not been run")
    folder = write_architecture(
        tmp_path / "clip", inputs[1], {"text_config": {"vocab_size": 49_408}}
    )  # the size of CLIP's vocabulary
    result = printed(clip_retrieval.run(inputs[0], str(folder), limit=12, repeats=1, threads=1, peers=peers))
    assert result["agreement"]["cosine_min"] > 0.999 and result["clip_retrieval"]["startup_cpu_seconds"] > 0


def test_feeding_by_worker_and_driver(inputs: tuple[list[Path], str]) -> None:
    result = printed(feeding.run(inputs[0], small_run=40, large_run=200, processes=1))
    assert result["crew"].keys() == {"processes", "worker_us", "driver_us", "images_per_second"}
    assert result["of_cores"].keys() == {"4", "8", "16", "32"}


def write_tree(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def test_structure_of_a_source_tree(tmp_path: Path) -> None:
    body = "".join(f"    x = {i}\n" for i in range(60))
    files = {
        "__init__.py": '"""A package."""\n',
        "store/__init__.py": "",
        "store/block.py": "class Block:\n    def f(self, a, b, c, d, e, f, *, g): ...\n",
        "store/shard.py": f"from .block import Block\n\n\ndef long():\n{body}",
        "store/store.py": "from . import shard\n\n\nclass Block: ...\n",
        "detector/__init__.py": "",
        "detector/head.py": (
            "from typing import TYPE_CHECKING\n\nfrom ..store.store import Block\n\nif TYPE_CHECKING:\n"
            "    from .fit import fit\n"
        ),
        "detector/fit.py": "def fit(told):\n    from . import head\n    return told\n",
        "tests/test_block.py": "asked = 1\n",
        "docs/example.py": "told = 1  # no part of the package\n",
    }
    result = printed(house.run(write_tree(tmp_path, files), names=True))
    assert result["modules"] == {"(root)": 1, "detector": 3, "store": 4}
    assert result["import_floors"] == {"detector": 2, "store": 3}
    assert (result["shared_names"], result["classes_with_shared_names"]) == (1, 2)
    assert result["names"] == {
        "shared_names": {"Block": ["store.block", "store.store"]},
        "parameters": ["store.block.Block.f"],
        "long": ["store.shard.long"],
    }
    assert result["identifiers"] == {"told": 2, "said": 0, "asked": 1, "tell": 0}
    assert result["lines"] == 2 + 62 + 2 + 4 + 3


def test_circular_imports_have_a_depth(tmp_path: Path) -> None:
    files = {"__init__.py": "", "a/__init__.py": "", "a/b.py": "from . import c\n", "a/c.py": "from . import b\n"}
    assert house.run(write_tree(tmp_path, files))["import_floors"] == {"a": 2}


@pytest.mark.slow
def test_gpu_benchmark_runs_without_a_gpu(inputs: tuple[list[Path], str], tmp_path: Path) -> None:
    folders, encoder = inputs
    setup = gpu.Setup([str(folder) for folder in folders], encoder, tmp_path / "work", dry=True)
    setup.work.mkdir()
    out = tmp_path / "gpu.jsonl"
    results = gpu.run_steps(setup, ["index32", "encoder32", "decoding"], out, budget=280)
    assert [json.loads(line) for line in out.read_text().splitlines()] == results
    index, rates, decoding = results
    assert index["images"] == gpu.DRY_IMAGES and index["skipped"] == 0, index
    assert rates["float32"]["tower_only"] > 0, rates
    assert decoding["1"] > 0, decoding
    [late] = gpu.run_steps(setup, ["sound"], out, budget=0)
    assert late == {"step": "sound", "why": "no time left"}


def test_fusion_beside_its_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "FEW", (60,))
    rng = np.random.default_rng(0)
    rows = [f"{label + rng.normal():.4f},{label + rng.normal():.4f},{label}" for label in [0, 1] * 120]
    (tmp_path / "scores.csv").write_text("\n".join(["a,b,truth", *rows]))
    result = printed(fusion.run(tmp_path / "scores.csv", "truth", seeds=1))
    assert result["rows"] == 240
    assert {"best signal", "plain mean", "fusion", "linear", "boosted"} <= result["auc"].keys()
    assert result["coverage"]["20%"]["answered"] > result["coverage"]["1%"]["answered"]
    assert result["few"]["60"]["auc"] > 0.6


def test_stability_compares_what_is_withdrawn_with_what_is_kept() -> None:
    # one row per image: its own answer, then those of two copies; -1 is unsure
    answers = np.array([[0, 0, 0], [0, -1, 0], [1, 0, 1], [1, 1, 1], [-1, 0, 1]], np.int8)
    scores = np.array([[-3, -3, -3], [-1, 0.5, -1], [4, -2, 4], [5, 5, 5], [0, -1, 1]], float)
    judged = stability.JudgedViews(np.array([0, 1, 0, 1, 1], np.int8), scores, answers[None])
    withdrawn = {rule: judged.withdrawn(rule, [1, 2], 0).tolist() for rule in ("differs", "opposite", "sign")}
    assert withdrawn["differs"] == [False, True, True, False, False]
    assert withdrawn["opposite"] == [False, False, True, False, False]
    assert withdrawn["sign"] == [False, True, True, False, False]
    result = stability.gain(judged, judged.withdrawn("differs", [1], 0), 0, seed=0)
    assert (result["withdrawn"], result["answered"], result["accuracy"]) == (2, 0.4, 1.0)
    assert (result["accuracy_of_withdrawn"], result["by_score"]) == (0.0, 0.5)
    assert result["gain_interval"][0] >= 0


def test_stability_encodes_each_copy_once(
    inputs: tuple[list[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.create(tmp_path / "store", PlainEncoder().space)
    index(inputs[0], store, PlainEncoder())
    snapshot = store.snapshot()
    rows = stability.sample(snapshot, 2, seed=0)
    assert len(rows) == 2 * len(inputs[0])
    views = stability.encoded_views(snapshot, rows, tmp_path / "cache")
    assert views.shape == (len(rows), 1 + len(stability.CANDIDATES), snapshot.space.dim)
    assert np.allclose(np.linalg.norm(views, axis=2), 1, atol=1e-3)
    monkeypatch.setattr(stability, "pixels_of", None)  # no copy is made again
    assert np.array_equal(stability.encoded_views(snapshot, rows, tmp_path / "cache"), views)
    left_out = list(stability.folds(snapshot))
    assert sorted(source for fold in left_out for source in fold) == sorted(set(snapshot.column("sources").tolist()))


def test_curation_compares_banks_with_the_whole_one_and_a_random_one(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", space(8))
    with store.writer() as writer:
        for block in synthetic(400, 8):
            writer.append(block)
    result = curation.run(store, [100], rotations=1)
    for protocol in ("both unseen", "generator unseen"):
        for head in ("neighbours", "SVM"):
            banks = result[protocol][head]
            assert set(banks) == {"400 all rows", "100 random", *(f"100 {name}" for name in curation.METHODS)}
            assert all(0 <= bank["auc"] <= 1 for bank in banks.values())
            assert banks["100 random"]["from random"] == [0, 0, 0]
            difference, low, high = banks["100 facility location"]["from all rows"]
            assert low <= difference <= high
            expected = banks["100 facility location"]["auc"] - banks["400 all rows"]["auc"]
            assert difference == pytest.approx(expected, abs=1e-4)
    assert curation.cost(300, 50)["kept"] == 50
