"""The Python interface: docs/PYTHON.md is run as written, and importing clipfake loads nothing heavy."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import clipfake
import numpy as np
import pytest
from conftest import SOURCES, draw_image

PAGE = (Path(__file__).parent.parent / "docs/PYTHON.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CLIP = "openai/clip-vit-base-patch32"
HEAVY = ("torch", "transformers", "faiss", "sklearn", "pandas", "h5py", "numpy", "PIL")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images under data/ and inbox/, and a trained store in mystore/."""
    folder = tmp_path_factory.mktemp("python")
    for source, label in SOURCES.items():
        source_folder = folder / "data" / ("fake" if label else "real") / source
        source_folder.mkdir(parents=True)
        for number in range(16):
            (source_folder / f"{number}.png").write_bytes(draw_image(source, number))
    (folder / "data/real/broken.png").write_bytes(b"no image")
    (folder / "inbox").mkdir()
    (folder / "inbox/photo.png").write_bytes(draw_image("gan_a", 99))
    (folder / "inbox/broken.png").write_bytes(b"no image")
    clipfake.index([folder / "data/*"], store=folder / "mystore", encoder="plain")
    clipfake.Detector.fit(clipfake.Store.open(folder / "mystore")).save()
    return folder


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(code.replace(CLIP, "plain"), names)
    return names


def test_index_and_train_as_documented(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").symlink_to(folder / "data")
    monkeypatch.chdir(tmp_path)
    names = run(CODE[0])
    assert names["report"].added == 80
    assert [key for key, _ in names["report"].skipped] == ["real/broken.png"]
    assert len(names["store"]) == 80
    assert clipfake.Detector.load("mystore").head.digest == names["detector"].head.digest


def test_predict_as_documented(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    run(CODE[1])
    printed = capsys.readouterr().out
    assert re.search(r"^inbox/photo.png (real|fake|unsure) ", printed, re.M)
    assert "inbox/broken.png cannot be judged" in printed


def test_vectors_as_documented(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names = run(CODE[2])
    detector, vectors = names["detector"], names["vectors"]
    scores, shares = detector.decision_function(vectors), detector.predict_proba(vectors)
    assert scores.shape == (4,) and shares.shape == (4, 2)
    assert np.allclose(shares.sum(1), 1)
    assert ((shares[:, 1] > 0.5) == (scores > 0)).all()
    # 128 dimensions, or those of the vectors, or fewer components of a few rows
    projected = detector.head.transform(vectors)
    assert len(projected) == 4 and projected.shape[1] <= vectors.shape[1]


def test_search_as_documented(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names = run(CODE[3])
    neighbors = names["neighbors"].to_pandas()
    assert len(neighbors) == 9
    assert set(neighbors["label"]) == {"fake"} and set(neighbors["generator"]) <= {"gan_a", "gan_b"}
    assert len(names["rows"]) == 80 and set(names["rows"]["label"]) == {"real", "fake"}
    assert len(names["dataset"]) == 80


def test_import_loads_nothing_heavy() -> None:
    program = f"import clipfake, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_exported_names_exist_and_are_sorted() -> None:
    assert clipfake.__all__ == sorted(clipfake.__all__)
    assert all(getattr(clipfake, name) is not None for name in clipfake.__all__)
    assert set(clipfake.__all__) <= set(dir(clipfake))
    with pytest.raises(AttributeError, match="nonsense"):
        getattr(clipfake, "nonsense")  # noqa: B009 - the attribute does not exist, for mypy either


@pytest.mark.parametrize("wrong", [{"prior": 0}, {"prior": 2}, {"error": 0}, {"error": -1}, {"error": float("nan")}])
def test_query_options_are_shares(wrong: dict[str, float]) -> None:
    with pytest.raises(clipfake.errors.InvalidOption, match=f"{next(iter(wrong))} must be between 0 and 1"):
        clipfake.QueryOptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be between"):
        clipfake.QueryOptions(**wrong)  # type: ignore[arg-type]


def test_search_refuses_invalid_arguments(folder: Path) -> None:
    store = clipfake.Store.open(folder / "mystore")
    query = store.snapshot().vectors(np.arange(1))
    with pytest.raises(clipfake.errors.InvalidOption, match="k must be at least 1, found 0"):
        store.search(query, k=0)
    with pytest.raises(clipfake.errors.BadFilter, match=r"must be a clipfake\.Filter, found dict"):
        store.search(query, where={"label": "fake"})  # type: ignore[arg-type]
