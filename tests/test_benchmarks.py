"""Every benchmark runs, at a size that says nothing, and its JSON has the ratios it is run for."""

import json
from pathlib import Path
from typing import Any

import pytest
from clipfake.benchmarks import atlas, command, indexing, parity, query, service, store_format, targets, throughput
from clipfake.indexer.sample import write_sample
from clipfake.indexer.standin import build_standin


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


def test_parity_is_told_for_each_precision(given: tuple[list[Path], str]) -> None:
    told = plain(parity.run(*given, precision="float32,bf16", limit=8))
    assert "float32" in json.dumps(told) and "bf16" in json.dumps(told)


def test_a_verdict_is_told_beside_a_forward_pass(given: tuple[list[Path], str]) -> None:
    told = plain(query.run(given[1], rows=2000, queries=3))
    assert told["recall_at_10"] == 1.0
    assert told["verdict_over_forward"] > 0


def test_a_stores_files_are_told_beside_plain_ones() -> None:
    told = plain(store_format.run(rows=3000, metadata_rows=3000, pairs_rows=200, repeats=2))
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
    assert plain(atlas.run(rows=2000, reals=3, fakes=4))["rows"] == 2000


@pytest.mark.slow
def test_the_targets_of_indexing_are_told_one_by_one(given: tuple[list[Path], str]) -> None:
    told = plain(targets.run(*given, limit=8, repeats=1))
    assert {"torch", "openvino", "openvino bf16"} == told["runs"].keys() or "gpu" in told["runs"]
    for target in told["targets"]:
        above = target["found"] >= target["wanted"]
        assert target["met"] == (target["found"] <= target["wanted"] if target["most"] else above)
