"""Training rows: subsampling, selection and the facts of their files."""

from pathlib import Path

import numpy as np
import pytest
from clipfake.detector.training.examples import FACTS, Examples, file_facts, subsample
from clipfake.store.records import Block, Rows
from clipfake.store.space import Space
from clipfake.store.store import Store
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.integers(1, 250), st.integers(0, 3))
def test_subsample_keeps_the_share_of_each_class(groups: list[int], most: int, seed: int) -> None:
    labels, positions = np.array(groups), 10 + 3 * np.arange(len(groups))
    kept = subsample(positions, labels, most, seed)
    if len(groups) <= most:
        assert kept.tolist() == positions.tolist()
        return
    assert kept.tolist() == sorted(set(kept.tolist()) & set(positions.tolist()))
    for label in set(groups):
        count = int((labels[(kept - 10) // 3] == label).sum())
        assert count >= 1
        assert abs(count - most * groups.count(label) / len(groups)) <= 1
    assert subsample(positions, labels, most, seed).tolist() == kept.tolist()


def test_subsample_keeps_a_single_fake_and_covers_all_rows() -> None:
    labels = np.append(np.zeros(10_000, int), 1)
    kept = [subsample(np.arange(10_001), labels, 100, seed) for seed in (0, 1)]
    for rows in kept:
        assert len(rows) == 101 and rows[-1] == 10_000
        assert np.histogram(rows, 4, (0, 10_000))[0].min() > 10
    assert len(set(kept[0].tolist()) & set(kept[1].tolist())) < 20


def test_file_facts_are_numbers_and_minus_one_where_unknown(tmp_path: Path) -> None:
    space = Space("toy", "0" * 64, dim=2)
    store = Store.create(tmp_path / "s", space)
    rows = Rows.make(
        ["a", "b", "c", "d"],
        [0, 1, 0, 1],
        formats=["JPEG", "PNG", "WEBP", "BMP"],
        widths=[200, 10, 20, 0],
        heights=[100, 30, 20, 0],
        bytes=[5000, 600, 100, 70],
        qualities=[91, -1, -1, -1],
    )
    with store.writer() as writer:
        writer.append(Block(space, rows, np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]))
    facts = file_facts(store.snapshot(), np.array([0, 1, 2, 3]))
    assert dict(zip(FACTS, facts.T.tolist(), strict=True)) == {
        "JPEG": [1, 0, 0, 0],
        "PNG": [0, 1, 0, 0],
        "WEBP": [0, 0, 1, 0],
        "other format": [0, 0, 0, 1],
        "width": [200, 10, 20, 0],
        "height": [100, 30, 20, 0],
        "JPEG quality": [91, -1, -1, -1],
        "bytes per pixel": [0.25, 2, 0.25, -1],
    }


def test_take_keeps_all_columns() -> None:
    examples = Examples.from_arrays(np.eye(3), np.array([0, 1, 1]), facts=np.arange(24.0).reshape(3, 8))
    taken = examples.take(np.array([2, 0]))
    assert taken.vectors.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert taken.labels.tolist() == [1, 0] and len(taken) == 2
    assert taken.facts[:, 0].tolist() == [16, 0]
    assert taken.categories.tolist() == ["", ""]
    assert examples.take(np.array([True, False, True])).labels == pytest.approx([0, 1])
