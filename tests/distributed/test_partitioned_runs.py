"""Several processes that index parts of one data set store every row once."""

import os
from pathlib import Path

import numpy as np
import pytest
from clipfake.errors import SourceError
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.index import IndexOptions, index
from clipfake.indexer.index_run import part_of
from clipfake.indexer.shard_inbox import FOLDER, StagedWriter, commit
from clipfake.store.records import Block, Rows
from clipfake.store.store import Store
from indexed import store_at
from PIL import Image as Pillow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "p"
    path.mkdir()
    for i in range(24):
        noise = np.random.default_rng(i).integers(0, 256, (6, 6, 3), np.uint8)
        Pillow.fromarray(noise).resize((24, 24)).save(path / f"{i:02d}.png")
    return path


def keys_of(store: Store) -> list[str]:
    return sorted(store.snapshot().rows.keys.tolist())


def waiting(store: Store) -> list[Path]:
    return list((store.folder / FOLDER).glob("*"))


@pytest.mark.parametrize("parts", [1, 2, 7, 64])
def test_keys_spread_evenly_over_the_parts(parts: int) -> None:
    counts = np.bincount([part_of(f"source/é {i}.jpg", parts) for i in range(200 * parts)], minlength=parts)
    assert len(counts) == parts
    assert (abs(counts - 200) < 5 * np.sqrt(200)).all()


def test_parts_together_equal_a_whole_run(folder: Path, tmp_path: Path) -> None:
    store, whole = store_at(tmp_path / "s"), store_at(tmp_path / "whole")
    added = [index([folder], store, PlainEncoder(), IndexOptions(part=(i, 3))).added for i in range(3)]
    index([folder], whole, PlainEncoder())
    assert keys_of(store) == keys_of(whole)
    assert sum(added) == 24
    assert all(added)
    assert waiting(store) == []
    assert index([folder], store, PlainEncoder()).known == 24


def test_locked_store_leaves_shards_for_the_next_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfake.indexer.index.COMMIT_TIMEOUT", 0.0)
    store = store_at(tmp_path / "s")
    with store.writer():  # another process is writing
        report = index([folder], store, PlainEncoder(), IndexOptions(part=(0, 2), batch_size=4, rows_per_shard=4))
    assert (len(store.snapshot()), len(waiting(store))) == (0, -(-report.added // 4))
    second_report = index([folder], store, PlainEncoder())
    assert (second_report.known, second_report.added) == (report.added, 24 - report.added)
    assert waiting(store) == []


def test_adopting_twice_adds_once_and_replaces_changes(tmp_path: Path) -> None:
    store, space = store_at(tmp_path / "s"), PlainEncoder().space

    def sealed(digest: int) -> None:
        rows = Rows.make(["a/1", "a/2"], [0, 1], digests=np.full((2, 16), digest, np.uint8).view("V16").reshape(-1))
        writer = StagedWriter(store, 100)
        writer.append(Block(space, rows, np.ones((2, space.dim), np.float32), (b"x", b"y")))
        writer.seal()

    sealed(1)
    sealed(1)
    assert commit(store)
    assert keys_of(store) == ["a/1", "a/2"]
    sealed(1)
    assert waiting(store) == []  # the rows are already known
    sealed(2)
    assert commit(store)
    assert store.snapshot().digests(np.arange(2)).tobytes() == bytes([2] * 32)
    assert store.snapshot().thumbnail(0) == b"x"


def test_sync_of_a_part_raises_source_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="whole listing"):
        index([folder], store_at(tmp_path / "s"), PlainEncoder(), IndexOptions(part=(0, 2), sync=True))


def test_unfinished_shards_are_removed_after_a_day(tmp_path: Path) -> None:
    store = store_at(tmp_path / "s")
    (store.folder / FOLDER).mkdir()
    old, new = (store.folder / FOLDER / f"{name}.h5.7.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"unfinished")
    os.utime(old, (0, 0))
    assert commit(store)
    assert waiting(store) == [new]
