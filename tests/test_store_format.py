"""docs/FORMAT.md is the contract: a reader written from that page alone reads what we write."""

import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from clipfake.benchmarks.store_synthetic import space, synthetic
from clipfake.store.block import Rows
from clipfake.store.store import Store
from clipfake.store.verify import verify

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/FORMAT.md").read_text(encoding="utf-8")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three shards; rows of two of them are deleted or replaced."""
    store = Store.create(tmp_path / "s", space(8))
    blocks = list(synthetic(900, dim=8, size=300))
    with store.writer(rows_per_shard=300) as writer:
        for block in blocks:
            writer.append(block)
        writer.delete(np.arange(900) % 7 == 0)
    return store


def reader() -> dict[str, Any]:
    """What the page's Python block defines."""
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    defined: dict[str, Any] = {}
    exec(code, defined)
    return defined


def test_the_pages_reader_reads_what_we_write(store: Store) -> None:
    snapshot = store.snapshot()
    names = [f.name for f in fields(Rows)]
    read = reader()["read"](store.folder, "vectors", *names)
    assert len(read["keys"]) == len(snapshot) < 900
    assert np.array_equal(read["vectors"], snapshot.vectors(dtype=np.float16))
    for name in names:
        ours = getattr(snapshot.rows, name)
        theirs = read[name].view("V16").reshape(-1) if name == "digests" else read[name]
        assert theirs.tolist() == ours.tolist(), name


def test_the_page_names_every_dataset_of_a_shard(store: Store) -> None:
    told = set(re.findall(r"`([a-z_/…]+)`", PAGE))
    with h5py.File(store.folder / "shards/000001.h5") as file:
        datasets: list[str] = []
        file.visititems(lambda name, node: datasets.append(name) if isinstance(node, h5py.Dataset) else None)
        unmappable = [name for name in datasets if file[name].id.get_offset() is None]
    assert {name for name in datasets if name not in told and f"{name.split('/')[0]}/…" not in told} == set()
    assert unmappable == []


def test_the_store_of_the_first_release_still_opens(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests/data/store-v1", tmp_path / "s")
    snapshot = Store.open(tmp_path / "s").snapshot()
    with np.load(ROOT / "tests/data/store-v1.npz") as truth:
        assert snapshot.rows.keys.tolist() == truth["keys"].tolist()
        assert snapshot.rows.labels.tolist() == truth["labels"].tolist()
        assert np.array_equal(snapshot.vectors(), truth["vectors"])
    assert verify(tmp_path / "s").sound
