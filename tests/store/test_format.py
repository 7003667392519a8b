"""A reader written from docs/FORMAT.md alone reads the stores of this release."""

import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.store.maintenance.compact import compact
from clipfake.store.maintenance.verify import verify
from clipfake.store.records import Block, Rows
from clipfake.store.store import Store

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/FORMAT.md").read_text(encoding="utf-8")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Store of three shards with deleted rows."""
    store = Store.create(tmp_path / "s", space(8))
    blocks = list(synthetic(900, dim=8, size=300))
    with store.writer(rows_per_shard=300) as writer:
        for block in blocks:
            writer.append(block)
        writer.delete(np.arange(900) % 7 == 0)
    return store


def reader() -> dict[str, Any]:
    """Names defined by the Python code on the page."""
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    defined: dict[str, Any] = {}
    exec(code, defined)
    return defined


def test_reader_from_format_page_reads_a_store(store: Store) -> None:
    snapshot = store.snapshot()
    names = [f.name for f in fields(Rows)]
    read = reader()["read"](store.folder, "vectors", *names)
    assert len(read["keys"]) == len(snapshot) < 900
    assert np.array_equal(read["vectors"], snapshot.vectors(dtype=np.float16))
    for name in names:
        ours = getattr(snapshot.rows, name)
        theirs = read[name].view("V16").reshape(-1) if name == "digests" else read[name]
        assert theirs.tolist() == ours.tolist(), name


def test_format_page_lists_every_dataset(store: Store) -> None:
    names = set(re.findall(r"`([a-z_/…]+)`", PAGE))
    with h5py.File(store.folder / "shards/000001.h5") as file:
        datasets: list[str] = []
        file.visititems(lambda name, node: datasets.append(name) if isinstance(node, h5py.Dataset) else None)
        unmappable = [name for name in datasets if file[name].id.get_offset() is None]
    assert {name for name in datasets if name not in names and f"{name.split('/')[0]}/…" not in names} == set()
    assert unmappable == []


def test_first_release_store_opens(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests/data/store-v1", tmp_path / "s")
    snapshot = Store.open(tmp_path / "s").snapshot()
    with np.load(ROOT / "tests/data/store-v1.npz") as truth:
        assert snapshot.rows.keys.tolist() == truth["keys"].tolist()
        assert snapshot.rows.labels.tolist() == truth["labels"].tolist()
        assert np.array_equal(snapshot.vectors(), truth["vectors"])
    assert verify(tmp_path / "s").sound


def test_first_release_store_can_be_extended_and_compacted(tmp_path: Path) -> None:
    """Old shards have no thumbnails and texts, the shards added to them do."""
    store = Store(shutil.copytree(ROOT / "tests/data/store-v1", tmp_path / "s"))
    before = store.snapshot()
    old = dict(zip(before.rows.keys.tolist(), before.vectors().tolist(), strict=True))
    [added] = synthetic(20, before.space.dim, seed=5, size=20)
    thumbnails, texts = tuple(key.encode() for key in added.rows.keys), {}
    for name in added.rows.categories.tolist():
        texts[name] = np.ones(before.space.dim, np.float32)
    replaced = Rows.make(before.rows.keys[:3], before.rows.labels[:3], digests=np.full(3, b"n" * 16, "V16"))
    with store.writer() as writer:
        counts = writer.append(Block(before.space, added.rows, added.vectors, thumbnails, texts))
        assert (counts.added, counts.replaced) == (20, 0)
        counts = writer.append(Block(before.space, replaced, -before.vectors(slice(0, 3))))
        assert (counts.added, counts.replaced) == (0, 3)
    expected = old | dict(zip(added.rows.keys.tolist(), added.vectors.astype(np.float16).tolist(), strict=True))
    expected |= {key: (-np.array(old[key])).tolist() for key in replaced.keys.tolist()}
    for change in (lambda: None, lambda: compact(store)):
        change()
        after = store.snapshot()
        assert dict(zip(after.rows.keys.tolist(), after.vectors().tolist(), strict=True)) == expected
        shown = dict(zip(after.rows.keys.tolist(), after.thumbnails(np.arange(len(after))), strict=True))
        assert {key for key in shown if shown[key]} == set(added.rows.keys.tolist())
        assert shown[added.rows.keys[7]] == thumbnails[7]
        assert after.texts.keys() == set(added.rows.categories.tolist())
        assert verify(store.folder).sound
