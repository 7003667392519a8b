"""The service outlives the damage of a file of its store, and recovers when the file is restored."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
from starlette.testclient import TestClient


def kind_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].removeprefix("urn:clipfake:problem:")


@pytest.fixture
def store(toy: Any, tmp_path: Path) -> Any:
    return toy.copy(tmp_path / "store")


@pytest.mark.parametrize("length", [0, 4096, 5000, 12_000])
def test_service_outlives_a_shard_that_is_cut_short(
    toy: Any, store: Any, tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = store.folder / "shards/000001.h5"
    shutil.copy(path, tmp_path / "backup")
    content, search = toy.draw_image("gan_a", 7), {"key": "gan_a/img 7.png"}
    with TestClient(toy.app(store=store), base_url="http://127.0.0.1") as client:
        assert client.post("/v1/query", content=content).status_code == 200
        for restore in (shutil.copy, os.replace):  # into the file, and a new file in its place
            os.truncate(path, length)
            caplog.clear()
            for _ in range(3):
                answer = client.post("/v1/search", json=search)
                assert kind_of(answer) == (409, "store-damaged")
                assert str(tmp_path) not in answer.text
            assert client.get("/healthz").status_code == 200
            assert client.post("/v1/embed", content=content).status_code == 200
            assert "000001.h5" in caplog.text
            restore(tmp_path / "backup", path)
            assert client.post("/v1/search", json=search).status_code == 200
            assert client.post("/v1/query", content=content).status_code == 200
            shutil.copy(path, tmp_path / "backup")


def test_disk_that_fails_is_told_as_such(toy: Any, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    search = {"key": "gan_a/img 7.png"}
    with TestClient(toy.app(store=store), base_url="http://127.0.0.1") as client:
        assert client.post("/v1/search", json=search).status_code == 200
        with monkeypatch.context() as patched:
            patched.setattr(os, "preadv", failing)
            patched.setattr(os, "pread", failing)
            answer = client.post("/v1/search", json=search)
            assert kind_of(answer) == (503, "store-unreadable") and "Retry-After" in answer.headers
        assert client.post("/v1/search", json=search).status_code == 200
