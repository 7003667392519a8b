"""The set contains exactly the added names, also if hashes collide, in few bytes per name."""

import sys

import numpy as np
import pytest
from clipfake.indexer.sources.hash_set import HashSet


class Crowded(str):
    """Name with one of 1500 hashes, all at the end of the range."""

    def __hash__(self) -> int:
        return -2 - int(self) % 1500


@pytest.mark.parametrize("kind", [str, Crowded])
def test_contains_exactly_the_added_names(kind: type[str]) -> None:
    hash_set, before = HashSet(), set[int]()
    for number in np.random.default_rng(0).integers(0, 1500, 4000).tolist():
        assert hash_set.contains_or_add(kind(number)) == (number in before)
        before.add(number)
    assert len(hash_set) == len(before) > 1300


def test_a_name_takes_few_bytes() -> None:
    hash_set = HashSet()
    assert not any(hash_set.contains_or_add(f"coco2017/train2017/img{i:06d}.jpg") for i in range(100_000))
    held = sum(sys.getsizeof(value) for value in vars(hash_set).values())
    assert 100_000 * 8 < held < 100_000 * 27
