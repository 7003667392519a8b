"""The optional image tower in OpenVINO gives the same vectors."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from clipfake.cli import app
from clipfake.errors import EncoderError, MissingExtra, SpaceMismatch
from clipfake.indexer.encoders.int8 import quantise_graph, quantise_weights
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.encoders.openvino import int8_space
from clipfake.simulated.standin_encoder import build_standin
from clipfake.store.space import Space
from hypothesis import given
from hypothesis.extra.numpy import arrays
from typer.testing import CliRunner


def pictures(count: int) -> list[npt.NDArray[np.uint8]]:
    return [np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), np.uint8) for i in range(count)]


@pytest.mark.slow
def test_openvino_gives_the_same_embeddings(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra `cpu` is not installed")
    place = str(build_standin(tmp_path))
    plain, fast = load_encoder(place, device="cpu"), load_encoder(place, device="openvino")
    images = pictures(11)
    assert fast.space.same(plain.space)
    assert (plain.encode(images) * fast.encode(images)).sum(1).min() >= 0.99999
    assert np.allclose(plain.encode_texts(["cat"]), fast.encode_texts(["cat"]), atol=1e-6)
    with pytest.raises(EncoderError, match="float32, bf16, int8, not fp16"):
        load_encoder(place, device="openvino", precision="fp16")


def test_without_openvino_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"clipfake\[cpu\]"):
        load_encoder(str(build_standin(tmp_path)), device="openvino")


@pytest.mark.slow
def test_int8_is_near_and_repeatable_whatever_shares_the_batch(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra `cpu` is not installed")
    place = str(build_standin(tmp_path))
    plain, small = load_encoder(place, device="cpu"), load_encoder(place, device="openvino", precision="int8")
    again = load_encoder(small.space.encoder)  # as a store names it
    images = pictures(11)
    vectors = small.encode(images)
    assert again.space.same(small.space) and not small.space.same(plain.space)
    assert np.array_equal(vectors, again.encode(images))
    assert np.allclose(vectors, small.encode(images[::-1])[::-1], atol=1e-6)
    assert 0.99 < (vectors * plain.encode(images)).sum(1).min() < 1 - 1e-6  # near, and not float32 under another name


@pytest.mark.slow
def test_a_pointwise_convolution_is_rounded_as_a_product() -> None:
    openvino = pytest.importorskip("openvino", reason="the extra `cpu` is not installed")
    from openvino import opset13 as op

    rng = np.random.default_rng(0)
    pixels = op.parameter([2, 64, 5, 5], np.float32)
    weights = [rng.standard_normal(shape).astype(np.float32) / 8 for shape in ((32, 64, 1, 1), (8, 32, 3, 3))]
    small = op.convolution(pixels, op.constant(weights[0]), [1, 1], [0, 0], [0, 0], [1, 1])
    wide = op.convolution(small, op.constant(weights[1]), [1, 1], [1, 1], [1, 1], [1, 1])
    model = openvino.Model([wide], [pixels])
    given_pixels = rng.standard_normal((2, 64, 5, 5)).astype(np.float32)
    before = openvino.compile_model(model, "CPU")([given_pixels])[0]
    assert quantise_graph(model) == 1  # the one of 3 x 3 stays as it is
    after = openvino.compile_model(model, "CPU")([given_pixels])[0]
    assert 0 < np.abs(after - before).max() < 0.05 * np.abs(before).max()


@given(arrays(np.int16, (3, 5)))
def test_rounded_weights_are_off_by_half_a_step_at_most(whole: npt.NDArray[np.int16]) -> None:
    weights = whole.astype(np.float32) / 64
    values, zero, scale = quantise_weights(weights)  # type: ignore[arg-type]
    back = (values.astype(np.float64) - zero) * scale
    assert (np.abs(back - weights) <= 0.501 * scale).all()
    assert (back[weights == 0] == 0).all()


def test_int8_is_a_space_of_its_own() -> None:
    space = Space("here", "0" * 64, 8)
    small = int8_space(space)
    assert small.encoder == "int8:here"
    with pytest.raises(SpaceMismatch):
        small.require(space, "the store")


def test_int8_elsewhere_than_in_openvino_is_refused() -> None:
    with pytest.raises(EncoderError, match="--device openvino"):
        load_encoder("nowhere", precision="int8")
    with pytest.raises(EncoderError, match="OpenVINO on a CPU"):
        load_encoder("int8:nowhere", device="cuda")


def test_who_asks_for_int8_is_told_of_the_check(tmp_path: Path) -> None:
    output = CliRunner().invoke(app, ["query", "x.jpg", "--store", str(tmp_path), "--precision", "int8"])
    assert "less accurate" in output.stderr and "clipfake bench --only int8" in output.stderr
