"""A store that is replaced, removed, moved or half there under the running service: no stale answer, and no 500."""

import base64
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
from clipfake.core.file_identity import FileDigests
from clipfake.store.manifest import numbers, path_of
from clipfake.store.records import Block, Rows
from clipfake.store.space import Space
from clipfake.store.store import Store
from starlette.testclient import TestClient

KEY = "gan_a/img 7.png"
TOKEN = {"Authorization": "Bearer secret"}


@pytest.fixture
def folder(toy: Any, tmp_path: Path) -> Path:
    store: Path = toy.copy(tmp_path / "store").folder
    return store


@pytest.fixture
def client(toy: Any, folder: Path) -> Iterator[TestClient]:
    with TestClient(toy.app(store=Store.open(folder), token="secret"), base_url="http://127.0.0.1") as client:
        yield client


def new_store(folder: Path, space: Space, number: int, source: str = "gan_a", seed: int = 1) -> None:
    """A store of 10 rows without thumbnails whose newest snapshot has this number."""
    rng = np.random.default_rng(seed)
    rows = Rows.make(keys=[f"{source}/img {i}.png" for i in range(10)], labels=[1] * 10, sources=["other"] * 10)
    store = Store.create(folder, space)
    while store.snapshot().number < number:
        with store.writer() as writer:
            vectors = rng.standard_normal((10, space.dim)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            writer.append(Block(space, rows, vectors))
    assert store.snapshot().number == number


def ask_all(toy: Any, client: TestClient) -> dict[str, int]:
    """Statuses of all routes that use the store."""
    image = toy.draw_image("gan_a", 7, seed=3)
    text = base64.b64encode(image).decode()
    form: Any = {"data": {"source": "new", "label": "fake"}, "files": [("images", ("a.png", image))], "headers": TOKEN}
    return {
        "query": client.post("/v1/query", content=image).status_code,
        "search": client.post("/v1/search", json={"key": KEY}).status_code,
        "search image": client.post("/v1/search", json={"image": text}).status_code,
        "knn": client.post("/knn-service", json={"image": text}).status_code,
        "thumbnail": client.get(f"/v1/thumbnails/{KEY}").status_code,
        "map": client.get("/v1/map").status_code,
        "store": client.get("/v1/store").status_code,
        "ready": client.get("/readyz").status_code,
        "delete": client.delete("/v1/bank/none", headers=TOKEN).status_code,
        "add": client.post("/v1/bank", **form).status_code,
    }


def test_store_made_again_with_the_same_number_is_read_again(toy: Any, client: TestClient, folder: Path) -> None:
    before = client.post("/v1/search", json={"key": KEY, "k": 1}).json()
    number = toy.store.snapshot().number
    assert before["snapshot"] == number
    assert before["rows"][0]["source"] == "gan_a"
    assert client.get(f"/v1/thumbnails/{KEY}").status_code == 200
    shutil.rmtree(folder)
    new_store(folder, toy.encoder.space, number)
    after = client.post("/v1/search", json={"key": KEY, "k": 1}).json()
    assert (after["snapshot"], after["rows"][0]["source"]) == (number, "other")
    assert client.get("/v1/store").json()["rows"] == 10
    assert client.get(f"/v1/thumbnails/{KEY}").status_code == 404
    assert client.post("/v1/query", content=toy.draw_image("gan_a", 7)).status_code == 409  # it has no head


def test_restored_older_copy_is_read_again(toy: Any, client: TestClient, folder: Path) -> None:
    image = [("images", ("a.png", toy.draw_image("gan_a", 99)))]
    copy = shutil.copytree(folder, folder.with_name("copy"))
    added = client.post("/v1/bank", headers=TOKEN, data={"source": "new", "label": "fake"}, files=image)
    assert added.json()["added"] == 1
    assert client.post("/v1/search", json={"key": "new/a.png"}).status_code == 200
    shutil.rmtree(folder)
    copy.rename(folder)
    assert client.post("/v1/search", json={"key": "new/a.png"}).status_code == 404
    assert client.post("/v1/search", json={"key": KEY}).json()["snapshot"] == added.json()["before"]


def test_store_of_another_encoder_is_refused(toy: Any, client: TestClient, folder: Path) -> None:
    assert client.post("/v1/search", json={"key": KEY}).status_code == 200
    shutil.rmtree(folder)
    new_store(folder, Space("another", "f" * 64, toy.encoder.space.dim), toy.store.snapshot().number)
    statuses = ask_all(toy, client)
    assert statuses.pop("ready") == 503
    assert set(statuses.values()) == {409}
    assert "another" in client.get("/readyz").json()["detail"]


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def make_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no store")


def remove_shards(folder: Path) -> None:
    shutil.rmtree(folder / "shards")


def cut_shards(folder: Path) -> None:
    for shard in (folder / "shards").glob("*.h5"):
        content = shard.read_bytes()
        shard.unlink()  # the service has mapped the old file
        shard.write_bytes(content[: len(content) // 2])


def remove_snapshots(folder: Path) -> None:
    shutil.rmtree(folder / "snapshots")


def spoil_manifest(folder: Path) -> None:
    path_of(folder, numbers(folder)[-1]).write_text("{}")


@pytest.mark.parametrize(
    "spoil",
    [remove, make_file, remove_shards, cut_shards, remove_snapshots, spoil_manifest],
    ids=lambda spoil: spoil.__name__,
)
@pytest.mark.parametrize("used", [True, False], ids=["used", "unused"])
def test_store_that_is_gone_is_a_conflict_until_it_is_back(
    toy: Any, client: TestClient, folder: Path, spoil: Callable[[Path], None], used: bool
) -> None:
    copy = shutil.copytree(folder, folder.with_name("copy"))
    if used:
        assert client.get(f"/v1/thumbnails/{KEY}").status_code == 200
    spoil(folder)
    for route, status in ask_all(toy, client).items():
        # what was loaded before can still be answered if only shards are gone
        assert status in ({200, 404, 409} if route != "ready" else {200, 503}), route
    if spoil in (remove, make_file, remove_snapshots, spoil_manifest):
        assert client.get(f"/v1/thumbnails/{KEY}").status_code == 409
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.unlink(missing_ok=True)
    copy.rename(folder)
    statuses = ask_all(toy, client)
    assert (statuses.pop("delete"), set(statuses.values())) == (404, {200})


def test_head_of_the_same_size_and_time_is_loaded_again(tmp_path: Path) -> None:
    path, digests = tmp_path / "head.json", FileDigests()
    path.write_text("one")
    before = path.stat()
    first = digests.of([path])
    assert digests.of([path]) == first
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests.of([path]) != first
    path.write_text("one")
    assert digests.of([path]) == first
    assert digests.of([tmp_path / "missing"]) == ()


def test_replaced_thumbnail_is_not_taken_from_a_cache(toy: Any, client: TestClient) -> None:
    first = client.get(f"/v1/thumbnails/{KEY}")
    assert "no-cache" in first.headers["cache-control"]
    assert "max-age" not in first.headers["cache-control"]
    condition = {"If-None-Match": f'W/"other", {first.headers["etag"]}'}
    again = client.get(f"/v1/thumbnails/{KEY}", headers=condition)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    form = {"source": "gan_a", "label": "fake"}
    image = [("images", ("img 7.png", toy.draw_image("gan_b", 7)))]
    assert client.post("/v1/bank", headers=TOKEN, data=form, files=image).json()["replaced"] == 1
    replaced = client.get(f"/v1/thumbnails/{KEY}", headers=condition)
    assert replaced.status_code == 200
    assert replaced.content != first.content
