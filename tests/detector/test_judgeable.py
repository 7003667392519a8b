"""Images with nothing to judge get a refusal with its reason, from Python, and are indexed nevertheless."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake import index
from clipfake.api import Detector
from clipfake.detector.judgeable import FLAT_BRIGHTNESS, MIN_SIDE, require_judgeable
from clipfake.detector.verdict import Refusal, Verdict
from clipfake.errors import NothingToJudge
from clipfake.indexer.encoders.base import PlainEncoder
from PIL import Image as Pillow
from PIL import ImageDraw

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (400, 300, 3), np.uint8)


def flat(colour: Any = "black", size: tuple[int, int] = (200, 100)) -> Any:
    return np.asarray(Pillow.new("RGB", size, colour)).copy()


def screenshot() -> Any:
    """A white page of one short word in light grey, without any noise."""
    page = Pillow.new("RGB", (1280, 720), "white")
    ImageDraw.Draw(page).text((801, 333), "ok", (240, 240, 240))
    return np.asarray(page)


def compressed(pixels: Any, kind: str) -> Any:
    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, kind, quality=30)
    return np.asarray(Pillow.open(out).convert("RGB"))


@pytest.mark.parametrize("size", [(1, 1), (MIN_SIDE - 1, MIN_SIDE), (500, MIN_SIDE - 1)])
def test_small_image_cannot_be_judged(size: tuple[int, int]) -> None:
    with pytest.raises(NothingToJudge, match=f"cannot be judged: {size[0]} x {size[1]} pixels; at least 32"):
        require_judgeable(NOISE[: size[1], : size[0]] if size[0] < 300 else flat(size=size))


@pytest.mark.parametrize("colour", ["black", "white", "red", (3, 200, 77)])
@pytest.mark.parametrize("kind", ["", "JPEG", "WEBP", "AVIF"])
def test_flat_image_cannot_be_judged(colour: Any, kind: str) -> None:
    pixels = compressed(flat(colour), kind) if kind else flat(colour)
    with pytest.raises(NothingToJudge, match="one colour only"):
        require_judgeable(pixels)


def test_flat_image_may_vary_by_a_few_levels() -> None:
    varied = (100 + RNG.integers(0, FLAT_BRIGHTNESS + 1, (90, 70, 3))).astype(np.uint8)
    with pytest.raises(NothingToJudge):
        require_judgeable(varied)
    varied[50, 33] = 100 + FLAT_BRIGHTNESS + 3
    require_judgeable(varied)


def test_images_with_content_can_be_judged() -> None:
    gradient = np.linspace(0, 20, 500).astype(np.uint8)[None, :, None].repeat(90, 0).repeat(3, 2)
    dot = flat("white", (1000, 1000))
    dot[999, 999] = 0
    two_colours = flat("red", (64, 64))
    two_colours[:, 32:] = (0, 76, 0)
    for pixels in (NOISE, NOISE[:MIN_SIDE, :MIN_SIDE], gradient, dot, two_colours, screenshot()):
        require_judgeable(pixels)


def test_prediction_refuses_what_holds_nothing(toy: Any) -> None:
    clear = Pillow.new("RGBA", (64, 64), (9, 9, 9, 0))
    images = [NOISE, flat(size=(1, 1)), clear, flat("red"), NOISE[:, :40]]
    answers = Detector.load(toy.store, encoder=toy.encoder).predict(images, check_stability=True)
    assert [type(answer) for answer in answers] == [Verdict, Refusal, Refusal, Refusal, Verdict]
    reasons = [answer.error for answer in answers if isinstance(answer, Refusal)]
    assert reasons == [
        "cannot be judged: 1 x 1 pixels; at least 32 on each side are needed",
        "cannot be judged: it has one colour only, RGB (255, 255, 255)",
        "cannot be judged: it has one colour only, RGB (255, 0, 0)",
    ]


def test_small_and_flat_images_are_indexed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name, pixels in {"dot": flat(size=(1, 1)), "flat": flat("red"), "noise": NOISE}.items():
        Pillow.fromarray(pixels).save(tmp_path / f"images/{name}.png")
    report = index([tmp_path / "images"], tmp_path / "store", encoder=PlainEncoder())
    assert (report.added, report.skipped) == (3, [])
