"""An encoder's files, from a directory or the hub, and CLIP's vision model built without `transformers`."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from clipfake.cli import main
from clipfake.detector.training.fit import fit_detector
from clipfake.detector.training.train import TrainOptions
from clipfake.detector.training.triplet import TripletOptions
from clipfake.errors import EncoderError
from clipfake.indexer.decoding.image import Pixels
from clipfake.indexer.encoders.checkpoint import fingerprint_of, open_checkpoint
from clipfake.indexer.encoders.clip_vision import ClipVision, VisionConfig
from clipfake.indexer.encoders.encoder_name import seed_of
from clipfake.indexer.encoders.hub import PREPROCESSING, ensure_available
from clipfake.indexer.encoders.load import load_encoder
from clipfake.simulated.standin_encoder import build_standin
from clipfake.store.records import Block, Rows
from clipfake.store.space import Space
from clipfake.store.store import Store
from PIL import Image
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_standin(tmp_path_factory.mktemp("standin"))


@pytest.fixture
def clip(standin: Path, tmp_path: Path) -> Path:
    """A copy of the stand-in encoder that a test may change."""
    return Path(shutil.copytree(standin, tmp_path / "clip"))


def random_images(count: int = 3) -> list[Pixels]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 40, 50, 3), np.uint8))


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("side, patch, heads", [(32, 8, 2), (28, 14, 3)])
@torch.inference_mode()
def test_vision_model_equals_transformers(side: int, patch: int, heads: int, activation: str) -> None:
    import transformers

    vision = {"image_size": side, "patch_size": patch, "num_attention_heads": heads, "hidden_act": activation}
    vision |= {"hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 3, "layer_norm_eps": 1e-3}
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    for weight in model.parameters():
        weight.add_(torch.randn_like(weight) * 0.1)  # biases start at 0 and norms at 1, which would hide errors
    pixels = torch.randn(5, 3, side, side)
    ours = ClipVision.from_weights(VisionConfig.from_config(config.to_dict()), model.state_dict())(pixels)
    theirs = model.get_image_features(pixel_values=pixels).pooler_output
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours[0], ours[1], atol=1e-2)


def test_config_defaults_are_those_of_transformers() -> None:
    import transformers

    assert (
        VisionConfig.from_config({}) == VisionConfig.from_config(transformers.CLIPConfig().to_dict()) == VisionConfig()
    )
    conflicting: dict[str, Any] = {"vision_config": {"patch_size": 32}, "vision_config_dict": {"patch_size": 14}}
    patch = transformers.CLIPConfig(**conflicting).vision_config.patch_size
    assert VisionConfig.from_config(conflicting).patch == patch == 14
    with pytest.raises(EncoderError, match="swish"):
        VisionConfig.from_config({"vision_config": {"hidden_act": "swish"}})


def test_transformers_is_imported_only_for_texts(standin: Path) -> None:
    text = f"""
import sys, numpy
from clipfake.indexer.encoders.load import load_encoder
encoder = load_encoder({str(standin)!r}, device="cpu")
encoder.encode([numpy.zeros((20, 20, 3), numpy.uint8)])
assert not {{"transformers", "torch._dynamo"}} & sys.modules.keys()  # each takes longer to import than everything else
assert encoder.encode_texts(["leaves", "clouds"]).shape == (2, encoder.space.dim)
assert "transformers" in sys.modules
"""
    subprocess.run([sys.executable, "-c", text], check=True)


def convert_to_fp16(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight.half() for name, weight in weights.items()}, folder / "model.safetensors")


def use_pickle(folder: Path, *, legacy: bool = False) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)


def split_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = [f"model-{i + 1:05}-of-00003.safetensors" for i in range(3)]
    weight_map = {name: files[i % 3] for i, name in enumerate(sorted(weights))}
    for file in files:
        save_file({name: weights[name] for name in weights if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def add_position_ids(folder: Path) -> None:
    """Add the position ids of older checkpoints."""
    weights = load_file(folder / "model.safetensors")
    position_ids = {f"{kind}_model.embeddings.position_ids": torch.arange(77)[None] for kind in ("text", "vision")}
    save_file(weights | position_ids, folder / "model.safetensors")


def use_processor_config(folder: Path) -> None:
    """Move the preprocessing to the processor_config.json of newer checkpoints."""
    content = json.loads((folder / PREPROCESSING[0]).read_text())
    (folder / PREPROCESSING[0]).unlink()
    (folder / PREPROCESSING[1]).write_text(json.dumps({"image_processor": content, "processor_class": "CLIPProcessor"}))


@pytest.mark.parametrize(
    "change", [use_pickle, partial(use_pickle, legacy=True), split_weights, add_position_ids, use_processor_config]
)
def test_same_weights_in_other_files_are_the_same_encoder(standin: Path, clip: Path, change: Any) -> None:
    change(clip)
    before, after = load_encoder(str(standin), device="cpu"), load_encoder(str(clip), device="cpu")
    assert after.space.fingerprint == before.space.fingerprint
    assert np.array_equal(before.encode(random_images()), after.encode(random_images()))
    assert np.allclose(before.encode_texts(["leaves"]), after.encode_texts(["leaves"]), atol=1e-6)


def test_fp16_weights_are_read_as_another_encoder(standin: Path, clip: Path) -> None:
    convert_to_fp16(clip)
    before, after = load_encoder(str(standin), device="cpu"), load_encoder(str(clip), device="cpu")
    assert after.space.fingerprint != before.space.fingerprint
    assert (before.encode(random_images()) * after.encode(random_images())).sum(1).min() > 0.999


def test_fingerprint_equals_that_of_the_transformers_model(standin: Path) -> None:
    import transformers

    checkpoint = open_checkpoint(str(standin))
    model = transformers.CLIPModel.from_pretrained(standin)
    result = fingerprint_of(model.state_dict(), checkpoint.preprocess)
    assert result == fingerprint_of(checkpoint.weights(), checkpoint.preprocess)
    assert result == load_encoder(str(standin), device="cpu").space.fingerprint


def test_without_a_tokenizer_only_images_are_encoded(clip: Path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (clip / name).unlink()
    encoder = load_encoder(str(clip), device="cpu")
    assert encoder.encode(random_images()).shape == (3, encoder.space.dim) and not encoder.has_text
    with pytest.raises(EncoderError, match="no text encoder"):
        encoder.encode_texts(["leaves"])


def remove(name: str, folder: Path) -> None:
    (folder / name).unlink()


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def change_patch_size(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["vision_config"]["patch_size"] = 32
    (folder / "config.json").write_text(json.dumps(content))


def remove_part(folder: Path) -> None:
    split_weights(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()


def use_malicious_pickle(folder: Path) -> None:
    """Replace the weights with a pickle that would run code."""
    (folder / "model.safetensors").unlink()
    torch.save({"weight": MaliciousObject()}, folder / "pytorch_model.bin")


class MaliciousObject:
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
        (truncate, "damaged"),
        (change_patch_size, "do not match the config.json"),
        (remove_part, "no complete weights"),
        (use_malicious_pickle, "weights_only|[Ww]eights only"),
    ],
)
def test_error_says_what_is_wrong_with_a_directory(clip: Path, change: Any, text: str) -> None:
    change(clip)
    with pytest.raises(EncoderError, match=text) as raised:
        load_encoder(str(clip), device="cpu")
    assert str(clip) in str(raised.value)


class Hub:
    """A server of one repository with the API that `huggingface_hub` uses."""

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
                    self.reply(200, json.dumps(files).encode(), "application/json")
                elif self.path.startswith("/api/models/someone/clip"):
                    names = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                    fields = {"id": "someone/clip", "sha": hub.COMMIT, "siblings": names}
                    self.reply(200, json.dumps(fields).encode(), "application/json")
                elif (file := folder / self.path.rpartition("/")[2]).is_file():
                    self.reply(200, file.read_bytes(), "application/octet-stream")
                else:
                    self.reply(404, b"", "text/plain")

            def do_HEAD(self) -> None:
                self.do_GET()

            def reply(self, status: int, body: bytes, kind: str) -> None:
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
from clipfake.cli import main
from clipfake.detector.training.fit import fit_detector
from clipfake.detector.training.train import TrainOptions
from clipfake.detector.training.triplet import TripletOptions
from clipfake.errors import EncoderError
try:
    encoder = load_encoder("someone/clip", device="cpu", trusted="stored" not in sys.argv)
    print(encoder.space.fingerprint, encoder.space.encoder)
    if "texts" in sys.argv:
        print(encoder.encode_texts(["leaves"]).shape)
except EncoderError as e:
    print(e)
"""


def load_from(hub: Hub | SimpleNamespace, tmp_path: Path, *arguments: str, **environment: str) -> str:
    """Return what CODE prints in a new process, since `huggingface_hub` reads its settings only once."""
    inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    settings = {**inherited, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), **environment}
    process = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], env=settings, capture_output=True, text=True, check=True
    )
    return process.stdout


def test_hub_id_is_downloaded_once_and_then_works_offline(hub: Hub, clip: Path, tmp_path: Path) -> None:
    (clip / "flax_model.msgpack").write_bytes(b"not wanted")
    fingerprint = load_encoder(str(clip), device="cpu").space.fingerprint
    assert load_from(hub, tmp_path).split()[:2] == [fingerprint, "someone/clip"]
    assert any("model.safetensors" in request for request in hub.requests)
    assert not any("msgpack" in request for request in hub.requests)
    hub.requests.clear()
    assert load_from(hub, tmp_path, "texts").split()[0] == fingerprint
    assert hub.requests == []
    hub.server.shutdown()
    hub.server.server_close()
    assert load_from(hub, tmp_path).split()[0] == fingerprint


def test_unreachable_hub_error_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    hub.server.shutdown()
    hub.server.server_close()
    result = load_from(hub, tmp_path)
    assert "the encoder someone/clip cannot be loaded" in result and "Name a directory" in result
    assert "offline" in load_from(hub, tmp_path, HF_HUB_OFFLINE="1").lower()


def test_partial_download_is_completed(hub: Hub, clip: Path, tmp_path: Path) -> None:
    fingerprint = load_encoder(str(clip), device="cpu").space.fingerprint
    load_from(hub, tmp_path)
    [snapshot] = (tmp_path / "cache").glob("models--someone--clip/snapshots/*")
    (snapshot / "model.safetensors").unlink()
    assert load_from(hub, tmp_path).split()[0] == fingerprint


def test_download_accepts_names_with_prefixes(clip: Path) -> None:
    for name in ("plain", str(clip), f"int8:{clip}", f"depth:{clip}", f"untrained:0:{clip}"):
        ensure_available(name)
    (clip / "model.safetensors").unlink()
    ensure_available(f"untrained:0:{clip}")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        ensure_available("int8:/nowhere/at/all")


def test_what_a_store_names_is_never_downloaded(hub: Hub, tmp_path: Path) -> None:
    assert "give --encoder someone/clip" in load_from(hub, tmp_path, "stored")
    assert hub.requests == []
    load_from(hub, tmp_path)
    hub.requests.clear()
    assert load_from(hub, tmp_path, "stored").split()[1] == "someone/clip"
    assert hub.requests == []


NAMED_BY_A_STORE = ("someone/clip", "int8:someone/clip", "depth:someone/clip", "untrained:0:someone/clip", "clip")


@pytest.fixture(params=NAMED_BY_A_STORE, scope="module")
def trained_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a head, whose manifest names an encoder."""
    space = Space(request.param, "0" * 64, dim=8)
    labels = np.arange(240) % 2
    vectors = np.random.default_rng(0).standard_normal((240, 8)) + 2 * labels[:, None]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = Store.create(tmp_path_factory.mktemp("named") / "store", space)
    with store.writer() as writer:
        writer.append(Block(space, Rows.make([f"s/{i}" for i in range(240)], labels, sources=["s"] * 240), vectors))
    fit_detector(
        store, options=TrainOptions(classifier="triplet-svm", triplet=TripletOptions(epochs=1), baselines=())
    ).save()
    return store


@pytest.mark.parametrize("command", ["query", "serve", "bank add", "index"])
def test_command_downloads_no_encoder_that_only_the_store_names(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trained_store: Store,
    command: str,
) -> None:
    from huggingface_hub import constants

    for setting, value in (("ENDPOINT", hub.url), ("HF_HUB_CACHE", str(tmp_path / "cache")), ("HF_HUB_OFFLINE", False)):
        monkeypatch.setattr(constants, setting, value)
    name = trained_store.snapshot().space.encoder
    image = tmp_path / "fake" / "a.png"
    image.parent.mkdir()
    Image.new("RGB", (64, 64)).save(image)
    arguments = {
        "query": [str(image)],
        "serve": ["--port", "0"],
        "bank add": [str(image.parent), "--source", "s", "--label", "fake"],
        "index": [str(image.parent)],
    }[command]
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), *arguments, "--store", str(trained_store.folder)])
    assert ended.value.code == 1
    assert f"the encoder {name} is not on this machine" in capsys.readouterr().err
    assert hub.requests == []


def test_hub_that_answers_badly_is_an_encoder_error(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def hang_up() -> None:
        with suppress(OSError):
            while True:
                listener.accept()[0].close()

    Thread(target=hang_up, daemon=True).start()
    hub = SimpleNamespace(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert "the encoder someone/clip cannot be loaded" in load_from(hub, tmp_path)
    listener.close()


@pytest.mark.parametrize("name", ["untrained:x:clip", "untrained::clip", f"untrained:{'9' * 5000}:clip"])
def test_name_with_an_invalid_seed_is_no_hub_id(name: str) -> None:
    assert seed_of(name) is None
    with pytest.raises(EncoderError, match="cannot be loaded"):
        ensure_available(name)
