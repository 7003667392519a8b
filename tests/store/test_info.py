"""The summary and the history of a store."""

import json
from pathlib import Path

import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.store import records
from clipfake.store.maintenance.info import history, info
from clipfake.store.store import Store
from hypothesis import given
from hypothesis import strategies as st


def small_store(folder: Path) -> Store:
    store = Store.create(folder, space(8))
    with store.writer("first") as writer:
        for block in synthetic(600, dim=8, size=200):
            writer.append(block)
        writer.delete(np.arange(600) < 50)
    return store


def test_info_adds_up(tmp_path: Path) -> None:
    store = small_store(tmp_path / "s")
    (tmp_path / "s/heads/default").mkdir(parents=True)
    (tmp_path / "s/heads/default/head.json").write_text('{"snapshot": 1}')
    report = info(store)
    rows = store.snapshot().rows
    assert (report.rows, report.deleted_rows, report.shards) == (550, 50, 1)
    assert report.labels == {"real": int((rows.labels == 0).sum()), "fake": int((rows.labels == 1).sum()), "unknown": 0}
    assert sum(s.rows for s in report.sources) == 550
    assert {s.name: s.fake for s in report.sources if s.real} == {f"source-{i:02d}": 0 for i in range(10)}
    assert report.bytes == (tmp_path / "s/shards/000001.h5").stat().st_size
    assert [(h.name, h.snapshot, h.stale) for h in report.heads] == [("default", 1, True)]
    assert json.loads(json.dumps(report.to_dict()))["space"]["encoder"] == "synthetic"


def test_info_of_an_empty_store(tmp_path: Path) -> None:
    report = info(Store.create(tmp_path / "s", space(8)))
    assert (report.rows, report.sources, report.categories) == (0, (), 0)


def test_history_lists_every_snapshot(tmp_path: Path) -> None:
    report = history(small_store(tmp_path / "s"))
    assert [(s.rows, s.note) for s in report.snapshots] == [(0, "created"), (550, "first")]


@given(st.lists(st.sampled_from(["", "cat", "dog", "Zebra", "ä", "日本", "\U0001f600"])), st.sampled_from([1, 3, 100]))
def test_distinct_agrees_with_numpy(texts: list[str], piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "PIECE_ROWS", piece)
        values, inverse, counts = records.distinct(records.names(texts))
    expected = np.unique(np.array(texts, "U8"), return_inverse=True, return_counts=True)
    for result, expected_result in zip((values, inverse, counts), expected, strict=True):
        assert result.tolist() == expected_result.tolist()
