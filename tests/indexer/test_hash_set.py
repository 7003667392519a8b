"""What came by before is known, whatever the hashes, in a few bytes a name."""

import sys

import numpy as np
import pytest
from clipfake.indexer.sources.hash_set import HashSet


class Crowded(str):
    """A name whose hash is one of few, at the end of all that there are."""

    def __hash__(self) -> int:
        return -2 - int(self) % 1500


@pytest.mark.parametrize("kind", [str, Crowded])
def test_a_name_is_again_there_exactly_if_it_came_before(kind: type[str]) -> None:
    seen, before = HashSet(), set[int]()
    for number in np.random.default_rng(0).integers(0, 1500, 4000).tolist():
        assert seen.contains_or_add(kind(number)) == (number in before)
        before.add(number)
    assert len(seen) == len(before) > 1300


def test_a_name_costs_a_few_bytes() -> None:
    seen = HashSet()
    assert not any(seen.contains_or_add(f"coco2017/train2017/img{i:06d}.jpg") for i in range(100_000))
    held = sum(sys.getsizeof(value) for value in vars(seen).values())
    assert 100_000 * 8 < held < 100_000 * 27
