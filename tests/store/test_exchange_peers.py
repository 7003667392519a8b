"""embedding-reader, autofaiss and clip-retrieval, installed in an environment of their own, read our exports."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.store.exchange.export_rows import export_rows
from clipfake.store.snapshot import Snapshot
from clipfake.store.store import Store

PYTHON = Path(__file__).parents[2] / ".peers/bin/python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="their environment is not installed; run `make peers`"),
]
pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
ROWS, DIM = 3000, 32

READER = """
from embedding_reader import EmbeddingReader
reader = EmbeddingReader(
    "img_emb", file_format="parquet_npy", metadata_folder="metadata", meta_columns=["key", "label"]
)
keys, labels, total = [], [], 0.0
for vectors, rows in reader(batch_size=700):
    keys += rows["key"].tolist(); labels += rows["label"].tolist(); total += float(vectors.sum())
print(json.dumps({"keys": keys, "labels": labels, "total": total}))
"""
AUTOFAISS = """
import numpy as np
from autofaiss import build_index
index, _ = build_index("img_emb", save_on_disk=False, metric_type="ip", max_index_memory_usage="1G",
                       current_memory_available="2G", verbose=50)
print(json.dumps({"rows": index.search(np.load("queries.npy"), 5)[1].tolist()}))
"""
CLIP_RETRIEVAL = """
import importlib.util, sys, types
import numpy as np
package = types.ModuleType("clip_retrieval")  # skips its __init__, which imports the image pipeline
package.__path__ = importlib.util.find_spec("clip_retrieval").submodule_search_locations
sys.modules["clip_retrieval"] = package
from clip_retrieval.clip_index import clip_index
from clip_retrieval.clip_back import ParquetMetadataProvider, load_index
clip_index(".", "index", max_index_memory_usage="1G", current_memory_available="2G")
index = load_index("index/image.index", enable_faiss_memory_mapping=True)
neighbours = index.search(np.load("queries.npy"), 5)[1]
rows = ParquetMetadataProvider("metadata").get(neighbours[:, 0].tolist(), ["key", "image_path"])
print(json.dumps({"neighbours": neighbours.tolist(), "rows": rows}))
"""


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    store = Store.create(tmp_path_factory.mktemp("peers") / "s", space(DIM))
    with store.writer(rows_per_shard=1000) as writer:
        for block in synthetic(ROWS, DIM, size=1000):
            writer.append(block)
        writer.delete(np.arange(ROWS) % 10 == 0)
    return store.snapshot()


@pytest.fixture
def exported(snapshot: Snapshot, tmp_path: Path) -> Path:
    export_rows(snapshot, tmp_path / "out", "clip-retrieval", rows_per_file=250)  # eleven files
    np.save(tmp_path / "out/queries.npy", snapshot.vectors(slice(0, 2700, 90)))
    return tmp_path / "out"


def run_peer(code: str, folder: Path) -> Any:
    done = subprocess.run(
        [PYTHON, "-c", "import json\n" + code], cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def recall(rows: list[list[int]], snapshot: Snapshot) -> float:
    exact = snapshot.search(snapshot.vectors(slice(0, 2700, 90)), 5, recall=1).rows
    return float(np.mean([len(set(ours) & set(theirs)) / 5 for ours, theirs in zip(exact.tolist(), rows, strict=True)]))


def test_embedding_reader_reads_vectors_and_rows(snapshot: Snapshot, exported: Path) -> None:
    read = run_peer(READER, exported)
    assert read["keys"] == snapshot.column("keys").tolist()
    assert read["labels"] == snapshot.column("labels").tolist()
    assert read["total"] == pytest.approx(float(snapshot.vectors().sum()), abs=0.1)


def test_autofaiss_finds_the_same_neighbours(snapshot: Snapshot, exported: Path) -> None:
    assert recall(run_peer(AUTOFAISS, exported)["rows"], snapshot) > 0.9


def test_clip_retrieval_indexes_and_names_rows(snapshot: Snapshot, exported: Path) -> None:
    read = run_peer(CLIP_RETRIEVAL, exported)
    assert recall(read["neighbours"], snapshot) > 0.9
    assert [row["key"] for row in read["rows"]] == snapshot.column("keys")[::90].tolist()
