"""Machine-readable progress of a run."""

import io
import json
from pathlib import Path

import numpy as np
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.index import IndexOptions, index, plan
from clipfake.indexer.progress import JsonLines, PrometheusFile, all_of
from clipfake.indexer.report import IndexReport
from clipfake.store.store import Store
from PIL import Image as Pillow


def indexed(folder: Path, *progress: object, count: int = 6) -> IndexReport:
    (folder / "p/0_real").mkdir(parents=True)
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (24, 24, 3), np.uint8)
        Pillow.fromarray(noise).save(folder / f"p/0_real/{i}.png")
    (folder / "p/0_real/bad.png").write_text("no image")
    store = Store.create(folder / "s", PlainEncoder().space)
    return index([folder / "p"], store, PlainEncoder(), IndexOptions(batch_size=2), all_of(*progress))  # type: ignore[arg-type]


def test_json_lines_end_with_an_end_event(tmp_path: Path) -> None:
    stream = io.StringIO()
    indexed(tmp_path, JsonLines(stream, every=0.0))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["progress"] * (len(lines) - 1) + ["end"]
    assert [line["added"] for line in lines] == sorted(line["added"] for line in lines)
    assert (lines[-1]["added"], lines[-1]["bad"]) == (6, 1)
    assert set(lines[-1]["busy"]) == {"list", "decode", "encode", "write"}


def test_json_lines_respect_the_interval(tmp_path: Path) -> None:
    stream = io.StringIO()
    indexed(tmp_path, JsonLines(stream, every=60.0, clock=lambda: 0.0))
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["progress", "end"]


def test_prometheus_file_has_the_last_figures(tmp_path: Path) -> None:
    indexed(tmp_path, PrometheusFile(tmp_path / "clipfake.prom"))
    lines = (tmp_path / "clipfake.prom").read_text().splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(samples['clipfake_index_images_total{outcome="added"}']) == 6
    assert float(samples["clipfake_index_running"]) == 0
    named = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {sample.split("{")[0] for sample in samples} == named


def test_distribution_counts_targets_and_labels(tmp_path: Path) -> None:
    (tmp_path / "pro_gan").mkdir()
    rows = "".join(f"{i},{i}.jpg,{target},cat\n" for i, target in enumerate([0, 0, 6, 6, 6, 2]))
    (tmp_path / "pro_gan/metadata.csv").write_text("filename,image_path,target,category\n" + rows)
    assert plan([tmp_path / "pro_gan"]).distribution() == [
        {"source": "pro_gan", "targets": {"0": 2, "2": 1, "6": 3}, "labels": {"real": 2, "fake": 4, "unknown": 0}}
    ]
