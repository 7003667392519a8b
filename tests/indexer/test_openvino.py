"""The optional vision model in OpenVINO gives the same vectors."""

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


def random_images(count: int) -> list[npt.NDArray[np.uint8]]:
    return [np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), np.uint8) for i in range(count)]


@pytest.mark.slow
def test_openvino_gives_the_same_embeddings(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra `cpu` is not installed")
    folder = str(build_standin(tmp_path))
    torch_encoder, encoder = load_encoder(folder, device="cpu"), load_encoder(folder, device="openvino")
    images = random_images(11)
    assert encoder.space.same(torch_encoder.space)
    assert (torch_encoder.encode(images) * encoder.encode(images)).sum(1).min() >= 0.99999
    assert np.allclose(torch_encoder.encode_texts(["cat"]), encoder.encode_texts(["cat"]), atol=1e-6)
    with pytest.raises(EncoderError, match="float32, bf16, int8, not fp16"):
        load_encoder(folder, device="openvino", precision="fp16")


def test_missing_openvino_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"clipfake\[cpu\]"):
        load_encoder(str(build_standin(tmp_path)), device="openvino")


@pytest.mark.slow
def test_int8_is_close_repeatable_and_independent_of_the_batch(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra `cpu` is not installed")
    folder = str(build_standin(tmp_path))
    torch_encoder, int8 = load_encoder(folder, device="cpu"), load_encoder(folder, device="openvino", precision="int8")
    reloaded = load_encoder(int8.space.encoder)  # the name that a store records
    images = random_images(11)
    vectors = int8.encode(images)
    assert reloaded.space.same(int8.space) and not int8.space.same(torch_encoder.space)
    assert np.array_equal(vectors, reloaded.encode(images))
    assert np.allclose(vectors, int8.encode(images[::-1])[::-1], atol=1e-6)
    # close to float32, but not equal to it
    assert 0.99 < (vectors * torch_encoder.encode(images)).sum(1).min() < 1 - 1e-6


@pytest.mark.slow
def test_pointwise_convolution_is_quantised() -> None:
    openvino = pytest.importorskip("openvino", reason="the extra `cpu` is not installed")
    from openvino import opset13 as op

    rng = np.random.default_rng(0)
    pixels = op.parameter([2, 64, 5, 5], np.float32)
    weights = [rng.standard_normal(shape).astype(np.float32) / 8 for shape in ((32, 64, 1, 1), (8, 32, 3, 3))]
    pointwise = op.convolution(pixels, op.constant(weights[0]), [1, 1], [0, 0], [0, 0], [1, 1])
    output = op.convolution(pointwise, op.constant(weights[1]), [1, 1], [1, 1], [1, 1], [1, 1])
    model = openvino.Model([output], [pixels])
    batch = rng.standard_normal((2, 64, 5, 5)).astype(np.float32)
    before = openvino.compile_model(model, "CPU")([batch])[0]
    assert quantise_graph(model) == 1  # the 3 x 3 convolution stays in float32
    after = openvino.compile_model(model, "CPU")([batch])[0]
    assert 0 < np.abs(after - before).max() < 0.05 * np.abs(before).max()


@given(arrays(np.int16, (3, 5)))
def test_quantised_weights_are_off_by_at_most_half_a_step(integers: npt.NDArray[np.int16]) -> None:
    weights = integers.astype(np.float32) / 64
    values, zero, scale = quantise_weights(weights)  # type: ignore[arg-type]
    restored = (values.astype(np.float64) - zero) * scale
    assert (np.abs(restored - weights) <= 0.501 * scale).all()
    assert (restored[weights == 0] == 0).all()


def test_int8_is_a_separate_space() -> None:
    space = Space("clip", "0" * 64, 8)
    int8 = int8_space(space)
    assert int8.encoder == "int8:clip"
    with pytest.raises(SpaceMismatch):
        int8.require(space, "the store")


def test_int8_needs_openvino() -> None:
    with pytest.raises(EncoderError, match="--device openvino"):
        load_encoder("nowhere", precision="int8")
    with pytest.raises(EncoderError, match="OpenVINO on a CPU"):
        load_encoder("int8:nowhere", device="cuda")


def test_choosing_int8_prints_how_to_measure_its_accuracy(tmp_path: Path) -> None:
    output = CliRunner().invoke(app, ["query", "x.jpg", "--store", str(tmp_path), "--precision", "int8"])
    assert "less accurate" in output.stderr and "clipfake bench --only int8" in output.stderr
