"""Splits are the paper's, made once, and keep what belongs together on one side."""

import numpy as np
import pytest
from clipfake.detector.split import NONE, PARTS, Split, choose
from clipfake.store.block import names
from clipfake.store.errors import NotEnoughRows
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
def test_the_split_has_the_papers_counts(rows: int, recipe: str, counts: tuple[int, int, int]) -> None:
    labels = np.arange(rows) % 2
    split = Split.make(keys(rows), labels, recipe=recipe)
    assert tuple(split.counts.values()) == counts
    test = split.of(keys(rows)) == PARTS["test"]
    assert abs(int(labels[test].sum()) - counts[2] / 2) <= 1  # stratified by label


def test_the_part_of_a_row_follows_its_key_into_any_order_and_any_snapshot() -> None:
    split = Split.make(keys(100), np.arange(100) % 2)
    before = dict(zip(keys(100), split.of(keys(100)).tolist(), strict=True))
    shuffled = list(np.random.default_rng(1).permutation(keys(100)))
    assert [before[k] for k in shuffled] == split.of(shuffled).tolist()
    assert split.of(["new/1.jpg"]).tolist() == [NONE]


def test_a_seed_gives_one_split_and_another_seed_another() -> None:
    labels = np.arange(200) % 2
    digests = [Split.make(keys(200), labels, seed=seed).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 5), st.lists(st.integers(0, 20), min_size=60, max_size=60))
def test_no_group_stands_on_two_sides(seed: int, groups: list[int]) -> None:
    groups = [*groups, *range(100, 160)]  # and some rows alone
    labels = np.arange(len(groups)) % 2
    split = Split.make(keys(len(groups)), labels, recipe="grouped", groups=np.array(groups), seed=seed)
    parts = split.of(keys(len(groups)))
    assert all(len({*parts[np.array(groups) == g].tolist()}) == 1 for g in set(groups))
    assert abs((parts == PARTS["train"]).mean() - 0.7) < 0.15


def test_a_grouped_split_of_single_rows_is_seventy_ten_twenty() -> None:
    labels = (np.arange(1000) < 300).astype(int)
    split = Split.make(keys(1000), labels, recipe="grouped", groups=np.arange(1000))
    assert split.counts == {"train": 700, "validation": 100, "test": 200}
    assert [labels[split.of(keys(1000)) == part].sum() for part in PARTS.values()] == [210, 30, 60]


@pytest.mark.parametrize(
    ("labels", "said"), [([], "no row"), ([0, 0, 0], "not one fake"), ([1], "not one real"), ([0, 1, 0, 1], "too few")]
)
def test_too_few_rows_say_what_to_do(labels: list[int], said: str) -> None:
    with pytest.raises(NotEnoughRows, match=said) as error:
        Split.make(keys(len(labels)), np.array(labels, int))
    assert "index" in str(error.value)


def test_rows_are_chosen_by_source_and_balanced() -> None:
    labels = np.array([0, 0, 0, 1, -1, 1, 0])
    sources = names(["a", "a", "b", "b", "b", "c", "c"])
    assert choose(labels, sources).tolist() == [0, 1, 2, 3, 5, 6]
    assert choose(labels, sources, only=["b", "c"]).tolist() == [2, 3, 5, 6]
    balanced = choose(labels, sources, balanced=True, seed=3)
    assert labels[balanced].sum() == 2 and len(balanced) == 4
    with pytest.raises(NotEnoughRows, match="no row of zzz is stored; the sources here are a, b, c"):
        choose(labels, sources, only=["zzz"])
