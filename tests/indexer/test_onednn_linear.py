"""Linear layers packed for a CPU give the same results as plain ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clipfake.benchmarks.common.naive import load_naive
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.encoders.onednn_linear import OneDnnLinear, packable, use_onednn_linear, use_plain_linear
from clipfake.simulated.standin_encoder import build_standin
from PIL import Image

needs_onednn = pytest.mark.skipif(not packable(torch.zeros(1, 1)), reason="this torch has no oneDNN products")


def linear_types(model: Any) -> set[type]:
    return {type(layer) for layer in model.modules() if "Linear" in type(layer).__name__}


@needs_onednn
@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layer_equals_the_plain_one(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 24, bias=bias)).to(dtype)
    if not packable(model[0].weight):  # type: ignore[arg-type]
        pytest.skip("this CPU has no bf16 products")
    rows = torch.randn(3, 5, 40).to(dtype)
    expected, weight = model(rows), model[0].weight.clone()  # type: ignore[operator]
    use_onednn_linear(model)
    assert linear_types(model) == {OneDnnLinear}
    assert torch.allclose(model(rows).float(), expected.float(), atol=1e-5 if dtype is torch.float32 else 0.05)
    assert torch.allclose(
        model(rows[:, :1]).float(), expected[:, :1].float(), atol=1e-5 if dtype is torch.float32 else 0.05
    )
    assert model[0].weight.dtype is dtype and torch.equal(model[0].weight, weight)
    use_plain_linear(model)
    assert linear_types(model) == {torch.nn.Linear} and torch.equal(model(rows), expected)


@needs_onednn
def test_cpu_encoder_is_packed_and_equals_transformers(tmp_path: Path) -> None:
    folder = str(build_standin(tmp_path))
    encoder = load_encoder(folder, device="cpu")
    assert linear_types(encoder.vision_model) == {OneDnnLinear}  # type: ignore[attr-defined]
    pixels = np.random.default_rng(0).integers(0, 256, (9, 40, 50, 3), np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    assert (encoder.encode(list(pixels)) * load_naive(folder, "cpu")(paths)).sum(1).min() >= 0.99999


def test_replicas_give_the_same_vectors(tmp_path: Path) -> None:
    encoder = load_encoder(str(build_standin(tmp_path)), device="cpu,cpu")
    image = [np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)]
    first, second = (replica.encode(image) for replica in encoder.replicas)
    assert np.allclose(first, second, atol=1e-6)


def test_layers_stay_plain_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    use_onednn_linear(model)
    assert linear_types(model) == {torch.nn.Linear}


def test_subclasses_of_linear_are_not_packed() -> None:
    model = torch.nn.MultiheadAttention(8, 2)
    use_onednn_linear(model)
    assert OneDnnLinear not in linear_types(model)
