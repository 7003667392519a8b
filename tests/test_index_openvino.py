"""The optional image tower in OpenVINO gives the same vectors."""

from pathlib import Path

import numpy as np
import pytest
from clipfake.indexer.load import load_encoder
from clipfake.indexer.standin import build_standin
from clipfake.store.errors import EncoderError, MissingExtra


@pytest.mark.slow
def test_openvino_gives_the_same_embeddings(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra `cpu` is not installed")
    place = str(build_standin(tmp_path))
    plain, fast = load_encoder(place, device="cpu"), load_encoder(place, device="openvino")
    images = [np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), np.uint8) for i in range(11)]
    assert fast.space.same(plain.space)
    assert (plain.encode(images) * fast.encode(images)).sum(1).min() >= 0.99999
    assert np.allclose(plain.encode_texts(["cat"]), fast.encode_texts(["cat"]), atol=1e-6)
    with pytest.raises(EncoderError, match="float32 or bf16"):
        load_encoder(place, device="openvino", precision="fp16")


def test_without_openvino_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"clipfake\[cpu\]"):
        load_encoder(str(build_standin(tmp_path)), device="openvino")
