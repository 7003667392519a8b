"""An encoder's files, from a directory or a hub, and CLIP's image tower made from them without `transformers`."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from clipfake.errors import EncoderError
from clipfake.indexer.decoding.image import Pixels
from clipfake.indexer.encoders.checkpoint import fingerprint_of, open_checkpoint
from clipfake.indexer.encoders.clip_vision import ClipVision, VisionConfig
from clipfake.indexer.encoders.hub import PREPROCESSING, ensure_downloaded
from clipfake.indexer.encoders.load import load_encoder
from clipfake.simulated.standin_encoder import build_standin
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_standin(tmp_path_factory.mktemp("standin"))


@pytest.fixture
def clip(standin: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(standin, tmp_path / "clip"))


def pictures(count: int = 3) -> list[Pixels]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 40, 50, 3), np.uint8))


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("side, patch, heads", [(32, 8, 2), (28, 14, 3)])
@torch.inference_mode()
def test_a_tower_has_the_numbers_of_transformers(side: int, patch: int, heads: int, activation: str) -> None:
    import transformers

    vision = {"image_size": side, "patch_size": patch, "num_attention_heads": heads, "hidden_act": activation}
    vision |= {"hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 3, "layer_norm_eps": 1e-3}
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    for weight in model.parameters():
        weight.add_(torch.randn_like(weight) * 0.1)  # biases and norms start at 0 and 1, and would not be seen
    pixels = torch.randn(5, 3, side, side)
    ours = ClipVision.from_weights(VisionConfig.from_config(config.to_dict()), model.state_dict())(pixels)
    theirs = model.get_image_features(pixel_values=pixels).pooler_output
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours[0], ours[1], atol=1e-2)


def test_what_a_configuration_leaves_out_is_what_transformers_takes() -> None:
    import transformers

    assert (
        VisionConfig.from_config({}) == VisionConfig.from_config(transformers.CLIPConfig().to_dict()) == VisionConfig()
    )
    twice: dict[str, Any] = {"vision_config": {"patch_size": 32}, "vision_config_dict": {"patch_size": 14}}
    assert VisionConfig.from_config(twice).patch == transformers.CLIPConfig(**twice).vision_config.patch_size == 14
    with pytest.raises(EncoderError, match="swish"):
        VisionConfig.from_config({"vision_config": {"hidden_act": "swish"}})


def test_transformers_is_imported_for_words_only(standin: Path) -> None:
    text = f"""
import sys, numpy
from clipfake.indexer.encoders.load import load_encoder
encoder = load_encoder({str(standin)!r}, device="cpu")
encoder.encode([numpy.zeros((20, 20, 3), numpy.uint8)])
assert not {{"transformers", "torch._dynamo"}} & sys.modules.keys()  # each takes longer to import than all the rest
assert encoder.encode_texts(["leaves", "clouds"]).shape == (2, encoder.space.dim)
assert "transformers" in sys.modules
"""
    subprocess.run([sys.executable, "-c", text], check=True)


def in_halves(folder: Path) -> None:
    whole = load_file(folder / "model.safetensors")
    save_file({name: weight.half() for name, weight in whole.items()}, folder / "model.safetensors")


def pickled(folder: Path, *, legacy: bool = False) -> None:
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(whole, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)


def parted(folder: Path) -> None:
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = [f"model-{i + 1:05}-of-00003.safetensors" for i in range(3)]
    places = {name: files[i % 3] for i, name in enumerate(sorted(whole))}
    for file in files:
        save_file({name: whole[name] for name, at in places.items() if at == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def numbered(folder: Path) -> None:
    """As older checkpoints are."""
    whole = load_file(folder / "model.safetensors")
    places = {f"{tower}_model.embeddings.position_ids": torch.arange(77)[None] for tower in ("text", "vision")}
    save_file(whole | places, folder / "model.safetensors")


def one_file_for_all_processing(folder: Path) -> None:
    """As newer ones are."""
    content = json.loads((folder / PREPROCESSING[0]).read_text())
    (folder / PREPROCESSING[0]).unlink()
    (folder / PREPROCESSING[1]).write_text(json.dumps({"image_processor": content, "processor_class": "CLIPProcessor"}))


@pytest.mark.parametrize(
    "change", [pickled, partial(pickled, legacy=True), parted, numbered, one_file_for_all_processing]
)
def test_the_same_weights_in_other_files_are_the_same_encoder(standin: Path, clip: Path, change: Any) -> None:
    change(clip)
    before, after = load_encoder(str(standin), device="cpu"), load_encoder(str(clip), device="cpu")
    assert after.space.fingerprint == before.space.fingerprint
    assert np.array_equal(before.encode(pictures()), after.encode(pictures()))
    assert np.allclose(before.encode_texts(["leaves"]), after.encode_texts(["leaves"]), atol=1e-6)


def test_weights_kept_in_halves_are_read_and_are_another_encoder(standin: Path, clip: Path) -> None:
    in_halves(clip)
    before, after = load_encoder(str(standin), device="cpu"), load_encoder(str(clip), device="cpu")
    assert after.space.fingerprint != before.space.fingerprint
    assert (before.encode(pictures()) * after.encode(pictures())).sum(1).min() > 0.999


def test_the_fingerprint_is_that_of_the_model_transformers_makes(standin: Path) -> None:
    import transformers

    checkpoint = open_checkpoint(str(standin))
    model = transformers.CLIPModel.from_pretrained(standin)
    result = fingerprint_of(model.state_dict(), checkpoint.preprocess)
    assert result == fingerprint_of(checkpoint.weights(), checkpoint.preprocess)
    assert result == load_encoder(str(standin), device="cpu").space.fingerprint


def test_without_a_tokenizer_there_are_images_and_no_words(clip: Path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (clip / name).unlink()
    encoder = load_encoder(str(clip), device="cpu")
    assert encoder.encode(pictures()).shape == (3, encoder.space.dim) and not encoder.has_text
    with pytest.raises(EncoderError, match="no text encoder"):
        encoder.encode_texts(["leaves"])


def remove(name: str, folder: Path) -> None:
    (folder / name).unlink()


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def reshape(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["vision_config"]["patch_size"] = 32
    (folder / "config.json").write_text(json.dumps(content))


def lose_a_part(folder: Path) -> None:
    parted(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()


def execute(folder: Path) -> None:
    """A pickle that would run code."""
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Trap()}, folder / "pytorch_model.bin")


class Trap:
    def __reduce__(self) -> Any:
        return (Path("/nowhere/it-ran").touch, ())


@pytest.mark.parametrize(
    "change, text",
    [
        (partial(remove, "config.json"), "config.json"),
        (partial(remove, "preprocessor_config.json"), "preprocessor_config.json"),
        (partial(remove, "model.safetensors"), "model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "not a JSON object"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (cut, "damaged"),
        (reshape, "do not match the config.json"),
        (lose_a_part, "no complete weights"),
        (execute, "weights_only|[Ww]eights only"),
    ],
)
def test_what_is_wrong_with_a_directory_is_said(clip: Path, change: Any, text: str) -> None:
    change(clip)
    with pytest.raises(EncoderError, match=text) as raised:
        load_encoder(str(clip), device="cpu")
    assert str(clip) in str(raised.value)


class Hub:
    """A hub of one repository, as `huggingface_hub` asks it."""

    COMMIT = "c" * 40

    def __init__(self, folder: Path) -> None:
        self.folder, self.requests = folder, list[str]()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                if self.path.startswith("/api/models/someone/clip/tree"):
                    files = [
                        {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                        for file in sorted(folder.iterdir())
                    ]
                    self.answer(200, json.dumps(files).encode(), "application/json")
                elif self.path.startswith("/api/models/someone/clip"):
                    names = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                    fields = {"id": "someone/clip", "sha": hub.COMMIT, "siblings": names}
                    self.answer(200, json.dumps(fields).encode(), "application/json")
                elif (file := folder / self.path.rpartition("/")[2]).is_file():
                    self.answer(200, file.read_bytes(), "application/octet-stream")
                else:
                    self.answer(404, b"", "text/plain")

            def do_HEAD(self) -> None:
                self.do_GET()

            def answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                for name, value in (("X-Repo-Commit", hub.COMMIT), ("ETag", f'"{len(body):040x}"')):
                    self.send_header(name, value)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *value: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hub(clip: Path) -> Iterator[Hub]:
    hub = Hub(clip)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


CODE = """
import sys
from clipfake.indexer.encoders.load import load_encoder
from clipfake.errors import EncoderError
try:
    encoder = load_encoder("someone/clip", device="cpu")
    print(encoder.space.fingerprint, encoder.space.encoder)
    if "words" in sys.argv:
        print(encoder.encode_texts(["leaves"]).shape)
except EncoderError as e:
    print(e)
"""


def asked_of(hub: Hub, tmp_path: Path, *arguments: str, **environment: str) -> str:
    """What a process of its own prints, since the hub's library reads its settings once."""
    inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    settings = {**inherited, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), **environment}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], env=settings, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_hub_id_is_brought_once_and_then_needs_no_network(hub: Hub, clip: Path, tmp_path: Path) -> None:
    (clip / "flax_model.msgpack").write_bytes(b"not wanted")
    wanted = load_encoder(str(clip), device="cpu").space.fingerprint
    assert asked_of(hub, tmp_path).split()[:2] == [wanted, "someone/clip"]
    assert any("model.safetensors" in queries for queries in hub.requests)
    assert not any("msgpack" in queries for queries in hub.requests)
    hub.requests.clear()
    assert asked_of(hub, tmp_path, "words").split()[0] == wanted
    assert hub.requests == []
    hub.server.shutdown()
    hub.server.server_close()
    assert asked_of(hub, tmp_path).split()[0] == wanted


def test_a_hub_that_cannot_be_reached_is_told_with_a_way_out(hub: Hub, tmp_path: Path) -> None:
    hub.server.shutdown()
    hub.server.server_close()
    result = asked_of(hub, tmp_path)
    assert "the encoder someone/clip cannot be loaded" in result and "Name a directory" in result
    assert "offline" in asked_of(hub, tmp_path, HF_HUB_OFFLINE="1").lower()


def test_what_was_brought_in_part_is_completed(hub: Hub, clip: Path, tmp_path: Path) -> None:
    wanted = load_encoder(str(clip), device="cpu").space.fingerprint
    asked_of(hub, tmp_path)
    [snapshot] = (tmp_path / "cache").glob("models--someone--clip/snapshots/*")
    (snapshot / "model.safetensors").unlink()
    assert asked_of(hub, tmp_path).split()[0] == wanted


def test_names_are_brought_whatever_stands_before_them(clip: Path) -> None:
    for name in ("plain", str(clip), f"int8:{clip}", f"depth:{clip}", f"untrained:0:{clip}"):
        ensure_downloaded(name)
    (clip / "model.safetensors").unlink()
    ensure_downloaded(f"untrained:0:{clip}")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        ensure_downloaded("int8:/nowhere/at/all")
