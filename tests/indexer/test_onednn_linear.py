"""Linear layers that are packed for a CPU give what plain ones give."""

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


def layers(model: Any) -> set[type]:
    return {type(layer) for layer in model.modules() if "Linear" in type(layer).__name__}


@needs_onednn
@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_layer_gives_the_plain_ones_product(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(40, 24, bias=bias)).to(dtype)
    if not packable(plain[0].weight):  # type: ignore[arg-type]
        pytest.skip("this CPU has no bf16 products")
    rows = torch.randn(3, 5, 40).to(dtype)
    wanted, weight = plain(rows), plain[0].weight.clone()  # type: ignore[operator]
    use_onednn_linear(plain)
    assert layers(plain) == {OneDnnLinear}
    assert torch.allclose(plain(rows).float(), wanted.float(), atol=1e-5 if dtype is torch.float32 else 0.05)
    assert torch.allclose(
        plain(rows[:, :1]).float(), wanted[:, :1].float(), atol=1e-5 if dtype is torch.float32 else 0.05
    )
    assert plain[0].weight.dtype is dtype and torch.equal(plain[0].weight, weight)
    use_plain_linear(plain)
    assert layers(plain) == {torch.nn.Linear} and torch.equal(plain(rows), wanted)


@needs_onednn
def test_an_encoder_on_a_cpu_is_packed_and_sees_what_clip_sees(tmp_path: Path) -> None:
    place = str(build_standin(tmp_path))
    encoder = load_encoder(place, device="cpu")
    assert layers(encoder.vision_model) == {OneDnnLinear}  # type: ignore[attr-defined]
    pixels = np.random.default_rng(0).integers(0, 256, (9, 40, 50, 3), np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(len(pixels))]
    for path, one in zip(paths, pixels, strict=True):
        Image.fromarray(one).save(path)
    assert (encoder.encode(list(pixels)) * load_naive(place, "cpu")(paths)).sum(1).min() >= 0.99999


def test_several_devices_have_the_same_vectors(tmp_path: Path) -> None:
    both = load_encoder(str(build_standin(tmp_path)), device="cpu,cpu")
    image = [np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)]
    first, second = (replica.encode(image) for replica in both.replicas)
    assert np.allclose(first, second, atol=1e-6)


def test_where_onednn_is_missing_layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    use_onednn_linear(model)
    assert layers(model) == {torch.nn.Linear}


def test_subclasses_stay_as_they_are() -> None:
    model = torch.nn.MultiheadAttention(8, 2)
    use_onednn_linear(model)
    assert OneDnnLinear not in layers(model)
