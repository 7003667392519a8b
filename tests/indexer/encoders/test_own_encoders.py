"""Encoders of the user: objects from Python, functions by name, and names in a store of someone else."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import clipfake
import numpy as np
import numpy.typing as npt
import pytest
from clipfake.cli import main
from clipfake.errors import EncoderError, SpaceMismatch
from clipfake.indexer.encoder_spec import EncoderSpec
from clipfake.indexer.encoders.encoder_name import TRUSTED_CODE
from clipfake.indexer.encoders.external.own_encoder import OwnEncoder, load_own_encoder
from clipfake.indexer.encoders.load import load_encoder
from conftest import SOURCES, draw_image
from PIL import Image

CODE = '''
import numpy as np
import clipfake
from pathlib import Path

Path(__file__).with_suffix(".ran").touch()


class Means:
    """Mean colour of each quarter of an image."""

    space = clipfake.Space("means", "means of quarters, version 1", 12)

    def encode(self, images):
        rows = []
        for image in images:
            height, width = image.shape[0] // 2, image.shape[1] // 2
            quarters = [image[:height, :width], image[:height, width:], image[height:, :width], image[height:, width:]]
            rows.append(np.concatenate([quarter.mean((0, 1)) for quarter in quarters]))
        vectors = np.array(rows, np.float32) - 128
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def means():
    return Means()


def number():
    return 7


def broken():
    raise OSError("no weights here")
'''


class Own:
    """An encoder whose vectors a test chooses."""

    def __init__(self, vectors: Callable[[int], Any], *, normalised: bool = True) -> None:
        self.space = clipfake.Space("own", "version 1", 4, normalised)
        self.vectors = vectors

    def encode(self, images: Sequence[Any]) -> Any:
        return self.vectors(len(images))


def unit_rows(count: int) -> npt.NDArray[np.float32]:
    rows = np.random.default_rng(0).normal(size=(count, 4))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two real and two fake sources of 16 images."""
    for source, label in list(SOURCES.items())[:4]:
        folder = tmp_path / "data" / ("fake" if label else "real") / source
        folder.mkdir(parents=True)
        for number in range(16):
            (folder / f"{number}.png").write_bytes(draw_image(source, number))
    return tmp_path / "data"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/my_encoder.py").write_text(CODE)
    return tmp_path / "mine/my_encoder.py"


def clipfake_command(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert not ended.value.code


def has_run(file: Path) -> bool:
    return file.with_suffix(".ran").exists()


def test_object_indexes_trains_and_judges(data: Path, file: Path, tmp_path: Path) -> None:
    means = load_own_encoder(f"{file}:means")._encoder  # type: ignore[attr-defined]
    store = tmp_path / "store"
    assert clipfake.index([data], store, encoder=means).added == 64
    assert str(clipfake.Store.open(store).snapshot().space).startswith("means (12-d")
    clipfake.Detector.fit(store, encoder=means).save()
    [verdict] = clipfake.Detector.load(store, encoder=means).predict([next(data.rglob("*.png"))])
    assert isinstance(verdict, clipfake.Verdict)
    [(image, _)] = clipfake.Session(store, encoder=means).judge([next(data.rglob("*.png"))])
    assert image.vector is not None and image.vector.shape == (12,)


def test_object_of_another_space_is_refused(data: Path, file: Path, tmp_path: Path) -> None:
    clipfake.index([data], tmp_path / "store", encoder=f"{file}:means")
    with pytest.raises(SpaceMismatch):
        _ = clipfake.Session(tmp_path / "store", encoder=Own(unit_rows)).main_encoder


@pytest.mark.parametrize(
    "vectors, found",
    [
        (lambda n: 3 * unit_rows(n), r"vectors of length 3 to 3, and its space is normalised.*normalised=False"),
        (lambda n: unit_rows(n)[:, :3], r"shape \(\d+, 3\).*4 dimensions"),
        (lambda n: unit_rows(n + 1), r"shape \(\d+, 4\)"),
        (lambda n: unit_rows(n).astype(np.float64), "returned float64; return float32"),
        (lambda n: unit_rows(n).tolist(), "returned a builtins.list"),
        (lambda n: unit_rows(n) * np.float32("nan"), r"NaN or infinity in (\d+) of \1"),
        (lambda n: 1 / 0, r"`encode` of the encoder own failed for \d+ inputs: ZeroDivisionError"),
    ],
)
def test_wrong_vectors_are_refused(vectors: Any, found: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=found):
        clipfake.index([data], tmp_path / "store", encoder=Own(vectors))


def test_vectors_of_a_space_without_normalisation_keep_their_length(data: Path, tmp_path: Path) -> None:
    encoder = Own(lambda n: 3 * unit_rows(n), normalised=False)
    clipfake.index([data], tmp_path / "store", encoder=encoder)
    norms = np.linalg.norm(clipfake.Store.open(tmp_path / "store").snapshot().vectors(), axis=1)
    assert np.allclose(norms, 3, rtol=1e-2)


def test_image_without_features_is_skipped(data: Path, tmp_path: Path) -> None:
    def zero_first(count: int) -> npt.NDArray[np.float32]:
        vectors = unit_rows(count)
        vectors[0] = 0
        return vectors

    report = clipfake.index([data], tmp_path / "store", encoder=Own(zero_first))
    assert report.added == 63 and "zero or not finite" in report.skipped[0][1]


@pytest.mark.parametrize("wrong", [object(), 7, Image])
def test_object_without_encode_or_space_is_refused(wrong: Any, data: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="needs a method `encode` and a `space`"):
        clipfake.index([data], tmp_path / "store", encoder=wrong)


def test_texts_of_an_object_are_used_and_checked(file: Path) -> None:
    class Texts(Own):
        def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            return unit_rows(len(texts))

    assert OwnEncoder(Texts(unit_rows)).encode_texts(["a", "b"]).shape == (2, 4)
    assert not OwnEncoder(Own(unit_rows)).has_text
    with pytest.raises(EncoderError, match="no text encoder"):
        OwnEncoder(Own(unit_rows)).encode_texts(["a"])


def test_function_in_a_file_is_stored_by_its_name(
    data: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(file.parent)
    store, image = str(tmp_path / "store"), str(next(data.rglob("*.png")))
    clipfake_command("index", "--folders", str(data), "--store", store, "--encoder", "my_encoder.py:means")
    clipfake_command("train", "--from-store", "--store", store)
    name = clipfake.Store.open(store).snapshot().space.encoder
    assert name == f"{file}:means"
    clipfake_command("query", image, "--store", store, "--encoder", name)
    with pytest.raises(SystemExit) as ended:
        main(["query", image, "--store", store])
    assert ended.value.code == 1
    assert f"--encoder {file}:means" in " ".join(capsys.readouterr().err.split())


def test_function_in_a_module_of_the_current_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    encoder = load_encoder("my_encoder:means")
    assert encoder.space == clipfake.Space("my_encoder:means", "means of quarters, version 1", 12)
    del sys.modules["my_encoder"]


def test_processes_load_a_function_by_its_name(data: Path, file: Path, tmp_path: Path) -> None:
    arguments = ["--folders", str(data), "--store", str(tmp_path / "store"), "--processes", "2"]
    clipfake_command("index", *arguments, "--encoder", f"{file}:means")
    assert len(clipfake.Store.open(tmp_path / "store")) == 64


@pytest.mark.parametrize(
    "function, found",
    [
        ("number", "needs a method `encode` and a `space`"),
        ("broken", "cannot be made: OSError: no weights here"),
        ("absent", "has no attribute 'absent'"),
    ],
)
def test_function_that_makes_no_encoder_is_named(function: str, found: str, file: Path) -> None:
    with pytest.raises(EncoderError, match=found):
        load_encoder(f"{file}:{function}")


@pytest.mark.parametrize("name", ["no.such.module:make", "no/such/file.py:make"])
def test_missing_module_or_file_is_named(name: str) -> None:
    with pytest.raises(EncoderError, match=r"No module named 'no'|no/such/file\.py of the encoder does not exist"):
        load_encoder(name)


def test_device_is_left_to_the_function(file: Path) -> None:
    with pytest.raises(EncoderError, match="leave both options out"):
        load_encoder(f"{file}:means", device="cpu")
    assert not has_run(file)


@pytest.mark.parametrize("prefix", ["", "int8:", "untrained:0:", "depth:"])
def test_store_of_a_stranger_runs_no_code(prefix: str, data: Path, file: Path, tmp_path: Path) -> None:
    name = f"{prefix}{file}:means"
    store = clipfake.Store.create(tmp_path / "store", clipfake.Space(name, "version 1", 4))
    image = next(data.rglob("*.png"))
    for attempt in (
        lambda: clipfake.index([data], store),
        lambda: list(clipfake.Session(store).embed([image])),
        lambda: EncoderSpec.of_space(store.snapshot().space).ensure_available(),
    ):
        with pytest.raises(EncoderError):
            attempt()
    assert not has_run(file)


def test_code_of_a_store_is_refused_with_what_to_do(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{file}:means"
    with pytest.raises(EncoderError, match=rf"not run unasked.*--encoder {name}.*{TRUSTED_CODE}"):
        load_encoder(name, trusted=False)
    monkeypatch.setenv(TRUSTED_CODE, f"other:function, {name}x")
    with pytest.raises(EncoderError, match="not run unasked"):
        load_encoder(name, trusted=False)
    assert not has_run(file)
    monkeypatch.setenv(TRUSTED_CODE, f"other:function, {name}")
    assert load_encoder(name, trusted=False).space.dim == 12


def test_documented_encoder_works(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs/ENCODERS.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox/photo.png").write_bytes(draw_image("gan_a", 99))
    monkeypatch.chdir(data.parent)
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(clipfake.Store.open("colours")) == 64
    assert str(names["detector"].session.snapshot.space).startswith("colours (6-d")
