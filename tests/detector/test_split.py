"""Splits have the counts of the paper, depend on keys and seed only, and keep groups in one part."""

import numpy as np
import pytest
from clipfake.detector.split import NONE, PARTS, Split, choose
from clipfake.errors import NotEnoughRows
from clipfake.store.records import names
from hypothesis import given, settings
from hypothesis import strategies as st


def keys(n: int) -> list[str]:
    return [f"source/{i}.jpg" for i in range(n)]


@pytest.mark.parametrize(
    ("rows", "recipe", "counts"),
    [
        (15_210, "paper", (10_647, 1_520, 3_043)),
        (15_210, "paper-text", (10_647, 1_521, 3_042)),
        (40_000, "paper", (28_000, 3_999, 8_001)),
        (40_000, "paper-text", (28_000, 4_000, 8_000)),
        (55_210, "paper", (38_647, 5_520, 11_043)),
        (55_210, "paper-text", (38_647, 5_521, 11_042)),
    ],
)
def test_split_has_the_counts_of_the_paper(rows: int, recipe: str, counts: tuple[int, int, int]) -> None:
    labels = np.arange(rows) % 2
    split = Split.make(keys(rows), labels, recipe=recipe)
    assert tuple(split.counts.values()) == counts
    test = split.parts_of(keys(rows)) == PARTS["test"]
    assert abs(int(labels[test].sum()) - counts[2] / 2) <= 1  # stratified by label


def test_part_of_a_row_depends_on_its_key_only() -> None:
    split = Split.make(keys(100), np.arange(100) % 2)
    before = dict(zip(keys(100), split.parts_of(keys(100)).tolist(), strict=True))
    shuffled = list(np.random.default_rng(1).permutation(keys(100)))
    assert [before[k] for k in shuffled] == split.parts_of(shuffled).tolist()
    assert set(split.parts_of([f"new/{i}.jpg" for i in range(500)]).tolist()) == {NONE}
    assert split.parts_of([]).tolist() == []


def test_split_depends_on_the_seed() -> None:
    labels = np.arange(200) % 2
    digests = [Split.make(keys(200), labels, seed=seed).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 5), st.lists(st.integers(0, 20), min_size=60, max_size=60))
def test_no_group_is_in_two_parts(seed: int, groups: list[int]) -> None:
    groups = [*groups, *range(100, 160)]  # and some groups of one row
    labels = np.arange(len(groups)) % 2
    split = Split.make(keys(len(groups)), labels, recipe="grouped", groups=np.array(groups), seed=seed)
    parts = split.parts_of(keys(len(groups)))
    assert all(len({*parts[np.array(groups) == g].tolist()}) == 1 for g in set(groups))
    assert abs((parts == PARTS["train"]).mean() - 0.7) < 0.15


def test_grouped_split_of_single_rows_is_70_10_20() -> None:
    labels = (np.arange(1000) < 300).astype(int)
    split = Split.make(keys(1000), labels, recipe="grouped", groups=np.arange(1000))
    assert split.counts == {"train": 700, "validation": 100, "test": 200}
    assert [labels[split.parts_of(keys(1000)) == part].sum() for part in PARTS.values()] == [210, 30, 60]
    assert (
        split.digest == Split.make(keys(1000), labels, recipe="grouped").digest
    )  # without groups, each row is its own


@pytest.mark.parametrize("size", [2, 3, 7])
def test_grouped_split_of_copies_is_70_10_20_of_each_class(size: int) -> None:
    """For a rare class, and for any number of copies of each file."""
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(200), size))
    labels = (groups < 40).astype(int)
    parts = Split.make(keys(len(groups)), labels, recipe="grouped", groups=groups).parts_of(keys(len(groups)))
    for label, files in ((0, 160), (1, 40)):
        counts = np.bincount(parts[labels == label], minlength=3) / size
        assert np.abs(counts - [0.7 * files, 0.1 * files, 0.2 * files]).max() <= 1


def test_single_rows_compensate_for_large_groups() -> None:
    groups = np.concatenate([np.repeat([0, 1], 150), np.arange(2, 702)])  # 300 rows of two files, 700 single rows
    labels = np.concatenate([np.repeat([0, 1], 150), np.arange(700) % 5 == 0]).astype(int)
    for seed in range(5):
        split = Split.make(keys(1000), labels, recipe="grouped", groups=groups, seed=seed)
        assert split.counts == {"train": 700, "validation": 100, "test": 200}
        parts = split.parts_of(keys(1000))
        assert (parts[:300] == PARTS["train"]).all()  # no other part can hold that many rows
        assert [labels[parts == part].sum() for part in PARTS.values()] == [203, 29, 58]  # of 290


def test_grouped_split_depends_on_the_seed() -> None:
    labels = np.arange(300) % 2
    for groups in (np.arange(300), np.arange(300) // 4 * 2 + labels):
        result = [
            Split.make(keys(300), labels, recipe="grouped", groups=groups, seed=seed).digest for seed in (0, 0, 1)
        ]
        assert result[0] == result[1] != result[2]


def test_too_few_groups_are_an_error() -> None:
    with pytest.raises(NotEnoughRows, match="4 groups of copies are too few"):
        Split.make(keys(80), np.repeat([0, 1], 40), recipe="grouped", groups=np.repeat(np.arange(4), 20))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "^there are no rows to train on"),
        ([-1, -1], "^there are no labelled rows to train on"),
        ([0, 0, 0], "found 3 real and no fake ones"),
        ([1], "found 1 fake and no real ones"),
        ([0, 1, 0, 1, 0], "3 real and 2 fake rows are too few"),
        ([0] * 10_000 + [1], "10000 real and 1 fake rows are too few"),
    ],
)
def test_error_of_too_few_rows_says_what_to_do(labels: list[int], message: str) -> None:
    with pytest.raises(NotEnoughRows, match=message) as error:
        Split.make(keys(len(labels)), np.array(labels, int))
    assert "index" in str(error.value)


def test_choose_selects_sources_and_balances_classes() -> None:
    labels = np.array([0, 0, 0, 1, -1, 1, 0])
    sources = names(["a", "a", "b", "b", "b", "c", "c"])
    assert choose(labels, sources).tolist() == [0, 1, 2, 3, 5, 6]
    assert choose(labels, sources, only=["b", "c"]).tolist() == [2, 3, 5, 6]
    balanced = choose(labels, sources, balanced=True, seed=3)
    assert labels[balanced].sum() == 2 and len(balanced) == 4
    with pytest.raises(NotEnoughRows, match="no row of zzz is stored; the stored sources are a, b, c"):
        choose(labels, sources, only=["zzz"])


def test_balanced_choice_keeps_all_rows_of_the_smaller_class() -> None:
    labels = np.array([1, -1] + [0] * 40 + [1, 1, -1] + [0] * 40)
    sources = names(["s"] * len(labels))
    draws = [choose(labels, sources, balanced=True, seed=seed).tolist() for seed in range(20)]
    for rows in draws:
        assert rows == sorted(rows)
        assert labels[rows].tolist().count(0) == labels[rows].tolist().count(1) == 3
    assert {row for rows in draws for row in rows if row > 44} and len({tuple(rows) for rows in draws}) > 15
    assert choose(labels, sources, balanced=True, seed=3).tolist() == draws[3]
    assert choose(np.zeros(5, int), names(["s"] * 5), balanced=True).tolist() == []
