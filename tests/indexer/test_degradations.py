"""Degraded copies: images of any size have them, and their strength does not depend on the size."""

import numpy as np
import pytest
from clipfake.benchmarks.detector.stability import CANDIDATES, SHIPPED
from clipfake.indexer.degradations import DEGRADATIONS, LONGEST, blurred, degraded, degraded_by_name
from clipfake.service.state import VIEWS
from PIL import Image


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_each_copy_differs_from_the_image_and_from_the_others() -> None:
    pixels = np.asarray(noise(64, 48))
    copies = degraded_by_name(pixels)
    assert list(copies) == list(DEGRADATIONS)
    assert {copy.shape for copy in copies.values()} == {(48, 64, 3), (24, 32, 3)}
    assert len({copy.tobytes() for copy in (pixels, *copies.values())}) == len(copies) + 1
    assert [copy.tobytes() for copy in degraded(pixels)] == [copy.tobytes() for copy in copies.values()]


@pytest.mark.parametrize("size", [(1, 1), (2, 70), (17_000, 170)])
def test_image_of_any_size_has_copies(size: tuple[int, int]) -> None:
    copies = degraded(np.zeros((size[1], size[0], 3), np.uint8))
    assert all(copy.dtype == np.uint8 and copy.size for copy in copies)
    assert max(copies[0].shape) <= LONGEST


def test_blur_is_as_strong_for_a_larger_image() -> None:
    small = noise(50, 50).resize((200, 200), Image.Resampling.BICUBIC)
    large = small.resize((800, 800), Image.Resampling.BICUBIC)
    of_small = np.asarray(blurred(0.02)(small), float)
    of_large = np.asarray(blurred(0.02)(large).resize((200, 200), Image.Resampling.BOX), float)
    assert np.abs(of_small - of_large).mean() < 0.1 * np.abs(of_small - np.asarray(small)).mean()


def test_service_and_benchmark_count_the_same_copies() -> None:
    assert 1 + len(DEGRADATIONS) == VIEWS  # the service imports no encoder
    pixels = noise(40, 40)
    measured = [np.asarray(CANDIDATES[name](pixels)).tobytes() for name in SHIPPED]
    assert measured == [copy.tobytes() for copy in degraded(np.asarray(pixels))]
