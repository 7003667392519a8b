"""PyTorch data sets of a store."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.store.concatenated import concatenated_snapshot
from clipfake.store.exchange.torch_dataset import BlockDataset, VectorDataset
from clipfake.store.named_vectors import named_vectors_writer
from clipfake.store.store import Store
from torch.utils.data import DataLoader


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store.create(tmp_path_factory.mktemp("data") / "s", space(8))
    with store.writer(rows_per_shard=30) as writer:
        for block in synthetic(100, 8, size=30):
            writer.append(block)
    return store


def test_item_is_vector_and_label(store: Store) -> None:
    snapshot = store.snapshot()
    fake = snapshot.column("labels") == 1
    rows = VectorDataset(snapshot, fake)
    assert len(rows) == fake.sum()
    vector, label = rows[3]
    assert (vector.dtype, label.dtype, int(label)) == (torch.float32, torch.int64, 1)
    assert np.array_equal(vector.numpy(), snapshot.vectors(fake)[3])
    assert torch.equal(rows[-1][0], rows[len(rows) - 1][0])
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_data_loader_yields_every_row_once(store: Store) -> None:
    snapshot = store.snapshot()
    loaded = [vectors for vectors, _ in DataLoader(VectorDataset(snapshot), batch_size=7)]
    assert np.array_equal(torch.cat(loaded).numpy(), snapshot.vectors())
    shuffled = torch.cat([v for v, _ in DataLoader(VectorDataset(snapshot), batch_size=7, shuffle=True)])
    assert np.allclose(np.sort(shuffled.numpy(), axis=0), np.sort(snapshot.vectors(), axis=0))


def test_blocks_keep_the_row_order(store: Store) -> None:
    snapshot = store.snapshot()
    blocks = list(BlockDataset(snapshot, size=32))
    assert [len(vectors) for vectors, _ in blocks] == [32, 32, 32, 4]
    assert torch.cat([labels for _, labels in blocks]).tolist() == snapshot.column("labels").tolist()


def test_worker_copy_opens_the_same_snapshot(store: Store, tmp_path: Path) -> None:
    rows = VectorDataset(store.snapshot())
    copied = copy.copy(rows)  # uses __getstate__ and __setstate__, like pickling for a worker
    assert copied.snapshot.number == rows.snapshot.number
    assert copied.snapshot is not rows.snapshot
    assert torch.equal(copied[5][0], rows[5][0])


def test_worker_copy_keeps_the_named_vectors(store: Store) -> None:
    with named_vectors_writer(store.folder, "other", space(4)) as writer:
        writer.put(np.arange(100), np.eye(4, dtype=np.float32)[np.arange(100) % 4])
    rows = VectorDataset(concatenated_snapshot(store.snapshot(), ("main", "other")))
    assert torch.equal(copy.copy(rows)[5][0], rows[5][0])


@pytest.mark.slow
def test_workers_share_the_blocks(store: Store) -> None:
    snapshot = store.snapshot()
    loader = DataLoader(BlockDataset(snapshot, size=9), batch_size=None, num_workers=2, multiprocessing_context="spawn")
    vectors = torch.cat([vectors for vectors, _ in loader]).numpy()
    assert np.allclose(np.sort(vectors, axis=0), np.sort(snapshot.vectors(), axis=0))
