"""The routes of the service: responses, errors and authorization."""

import base64
import gzip
import importlib.util
import io
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
from clipfake.detector.detector import QueryOptions, VectorDetector
from clipfake.errors import BackendDamaged, BackendError, BackendTimeout, BackendUnavailable, Locked
from clipfake.service import search_backend
from clipfake.service.limits import Limits
from clipfake.service.problems import KINDS
from clipfake.service.schemas import VerdictJson
from clipfake.store.filter import Filter
from clipfake.store.records import Block, Rows
from clipfake.store.store import Store
from PIL import Image
from starlette.testclient import TestClient

PAGE = Path(__file__).parents[2] / "docs" / "SERVICE.md"
TOKEN = {"Authorization": "Bearer secret"}


AS_PNG, AS_JSON = {"Content-Type": "image/png"}, {"Content-Type": "application/json"}


@contextmanager
def client_of(toy: Any, **options: Any) -> Iterator[TestClient]:
    with TestClient(toy.app(**options), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture(scope="module")
def client(toy: Any) -> Iterator[TestClient]:
    with client_of(toy) as client:
        yield client


def files(*images: bytes) -> list[Any]:
    return [("images", (f"{i}.png", content)) for i, content in enumerate(images)]


def problem(response: Any) -> tuple[int, str]:
    """Status and kind of a problem response, after checking it against RFC 9457."""
    answer = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail"} <= answer.keys()
    assert answer["status"] == response.status_code
    kind = answer["type"].removeprefix("urn:clipfake:problem:")
    assert KINDS[kind] == (response.status_code, answer["title"])
    return response.status_code, kind


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


# --- query


def test_query_returns_the_json_of_the_command_line(toy: Any, client: TestClient) -> None:
    content = toy.draw_image("gan_b", 3, seed=1)
    image = toy.decode(content)
    verdict = VectorDetector.load(toy.store).judge_one(
        "0.png", toy.encoder.encode([image.pixels])[0], image.digest, QueryOptions(prior=0.1, error=0.2)
    )
    answer = client.post("/v1/query", files=files(content), params={"prior": 0.1, "error": 0.2}).json()
    assert answer == {"snapshot": toy.store.snapshot().number, "answers": [json.loads(json.dumps(verdict.to_dict()))]}
    assert verdict.verdict == "fake"
    described = {field.alias or name for name, field in VerdictJson.model_fields.items()}
    assert verdict.to_dict().keys() == described
    VerdictJson.model_validate(verdict.to_dict(), extra="forbid")


def test_image_as_body(toy: Any, client: TestClient) -> None:
    content = toy.draw_image("camera_a", 3, seed=1)
    [in_form] = client.post("/v1/query", files=files(content)).json()["answers"]
    for kind in ("image/png", "application/octet-stream", "image/jpeg; charset=x"):
        [answer] = client.post("/v1/query", content=content, headers={"content-type": kind}).json()["answers"]
        assert {**answer, "image": ""} == {**in_form, "image": ""}
    [unnamed] = client.post("/v1/query", content=content).json()["answers"]
    assert unnamed["verdict"] == "real"


def test_bad_image_keeps_its_position_in_the_answers(toy: Any, client: TestClient) -> None:
    good = [toy.draw_image("camera_a", 1, seed=2), toy.draw_image("gan_a", 1, seed=2)]
    answer = client.post("/v1/query", files=files(good[0], b"no image", good[1]), params={"map": True}).json()
    assert [one.get("verdict") for one in answer["answers"]] == ["real", None, "fake"]
    assert answer["answers"][1].keys() == {"image", "error"}
    assert [client_file is None for client_file in answer["places"]] == [False, True, False]
    alone = client.post("/v1/query", files=files(good[1])).json()
    own, other = alone["answers"][0], answer["answers"][2]
    assert other["image"] == "2.png" and own["verdict"] == other["verdict"]
    assert own["score"] == pytest.approx(other["score"], abs=1e-3)  # products in batches round otherwise
    for label in ("real", "fake"):
        assert [n["key"] for n in own["neighbors"][label]] == [n["key"] for n in other["neighbors"][label]]


def flat(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, "PNG")
    return out.getvalue()


def test_image_with_nothing_to_judge_is_refused(toy: Any, client: TestClient) -> None:
    answer = client.post("/v1/query", files=files(flat(1, 1), toy.draw_image("gan_a", 1, seed=2), flat(64, 64))).json()
    assert [one.get("verdict") for one in answer["answers"]] == [None, "fake", None]
    small, _, black = answer["answers"]
    assert small["error"] == "cannot be judged: 1 x 1 pixels; at least 32 on each side are needed"
    assert black["error"] == "cannot be judged: it has one colour only, RGB (0, 0, 0)"
    for alone in (flat(1, 1), flat(64, 64)):
        assert problem(client.post("/v1/query", content=alone, params={"steady": False})) == (422, "nothing-to-judge")
        assert client.post("/v1/embed", content=alone).status_code == 200


@pytest.mark.parametrize(
    "how", [{"prior": 0}, {"error": 0.6}, {"prior": "much"}, {"changes": "perhaps"}, {"pior": 0.1}]
)
def test_invalid_query_parameters_are_refused(toy: Any, client: TestClient, how: Any) -> None:
    refused = client.post("/v1/query", content=toy.draw_image("gan_a", 1), params=how)
    assert problem(refused) == (422, "invalid")
    assert refused.json()["errors"][0]["where"] == f"query.{next(iter(how))}"


def test_problem_names_all_images_if_none_is_readable(client: TestClient) -> None:
    refused = client.post("/v1/query", files=files(b"no image", b""))
    assert problem(refused) == (422, "bad-image")
    assert [one["image"] for one in refused.json()["images"]] == ["0.png", "1.png"]


def test_stored_image_is_not_its_own_evidence(toy: Any, client: TestClient) -> None:
    [answer] = client.post("/v1/query", files=files(toy.draw_image("gan_a", 7))).json()["answers"]
    assert answer["known"] == "gan_a/img 7.png"
    origin = {"key": "gan_a/img 7.png", "label": "fake", "source": "gan_a", "generator": "gan_a"}
    assert answer["stored"][0] == {**origin, "match": "file", "mirrored": False}
    assert (answer["verdict"], answer["generator"]) == ("fake", "gan_a")
    assert answer["copy"].startswith("A copy of a known fake, gan_a/img 7.png")
    assert answer["reasons"][0] == "it is a copy of the known fake image gan_a/img 7.png, the same file"
    assert "gan_a/img 7.png" not in [one["key"] for one in answer["neighbors"]["fake"]]


def test_map_places_the_query_near_its_class(toy: Any, client: TestClient) -> None:
    flat = client.get("/v1/map").json()
    points, labels = np.array(flat["points"]), np.array(flat["labels"])
    assert len(points) == len(labels) == len(flat["sources"]) == 300
    answer = client.post("/v1/query", files=files(toy.draw_image("gan_c", 1, seed=3)), params={"map": True}).json()
    distance = np.linalg.norm(points - answer["places"][0], axis=1)
    assert flat["names"][flat["sources"][int(distance.argmin())]] == "gan_c"
    assert client.get("/v1/map").json() == flat


# --- vectors


def test_embed_returns_the_stored_vectors(toy: Any, client: TestClient) -> None:
    content = toy.draw_image("gan_a", 7)
    answer = client.post("/v1/embed", files=files(content, b"no image")).json()
    assert answer["space"] == toy.encoder.space.to_dict()
    assert answer["answers"][1].keys() == {"image", "error"}
    [position] = toy.store.snapshot().find(["gan_a/img 7.png"])
    stored = toy.store.snapshot().vectors([position])[0]
    np.testing.assert_allclose(answer["answers"][0]["vector"], stored, atol=5e-4)  # stored as float16
    np.testing.assert_allclose(
        answer["answers"][0]["vector"], toy.encoder.encode([toy.decode(content).pixels])[0], atol=1e-7
    )


def test_openai_embeddings_as_floats_or_base64(toy: Any, client: TestClient) -> None:
    content = toy.draw_image("gan_a", 7)
    [embedded] = client.post("/v1/embed", content=content).json()["answers"]
    bare = base64.b64encode(content).decode()
    answer = client.post(
        "/v1/embeddings", json={"input": [data_url(content), bare], "model": "any", "user": "me"}
    ).json()
    assert (answer["object"], answer["model"], answer["usage"]["total_tokens"]) == ("list", "plain", 0)
    assert [(row["object"], row["index"]) for row in answer["data"]] == [("embedding", 0), ("embedding", 1)]
    assert answer["data"][0]["embedding"] == answer["data"][1]["embedding"] == embedded["vector"]
    packed = client.post("/v1/embeddings", json={"input": bare, "encoding_format": "base64"}).json()
    unpacked = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(unpacked, embedded["vector"], atol=1e-7)


def test_openai_embeddings_name_the_bad_input(toy: Any, client: TestClient) -> None:
    good = data_url(toy.draw_image("gan_a", 7))
    refused = client.post("/v1/embeddings", json={"input": [good, data_url(b"no image")]})
    assert problem(refused) == (422, "bad-image")
    assert refused.json()["detail"].startswith("input 1: ")
    for nothing in ("https://example.org/a.png", "file:///etc/passwd", "not base64!"):
        assert problem(client.post("/v1/embeddings", json={"input": nothing})) == (422, "invalid")
    assert problem(client.post("/v1/embeddings", json={"input": []})) == (422, "no-image")


# --- search


def test_search_by_image_vector_and_key_agree(toy: Any, client: TestClient) -> None:
    content = toy.draw_image("gan_a", 7)
    [embedded] = client.post("/v1/embed", content=content).json()["answers"]
    queries: list[dict[str, Any]] = [
        {"image": data_url(content)},
        {"vector": embedded["vector"]},
        {"vector": [1e300 * x for x in embedded["vector"]]},
        {"key": "gan_a/img 7.png"},
    ]
    answers = [client.post("/v1/search", json={**query, "k": 5}).json()["rows"] for query in queries]
    keys = [[row["key"] for row in rows] for rows in answers]
    assert keys[0] == keys[1] == keys[2] == keys[3]
    assert len(keys[0]) == 5
    assert keys[0][0] == "gan_a/img 7.png"
    assert answers[0][0] == {
        "key": "gan_a/img 7.png",
        "similarity": pytest.approx(1, abs=1e-3),
        "label": "fake",
        "source": "gan_a",
        "generator": "gan_a",
        "category": "bars",
        "path": "",
    }


@pytest.mark.parametrize(
    ("query_filter", "sources"),
    [
        ({"labels": ["real"]}, {"camera_a", "camera_b"}),
        ({"sources": ["gan_b", "camera_a"]}, {"gan_b", "camera_a"}),
        ({"generators": ["gan_c"]}, {"gan_c"}),
        ({"labels": ["fake"], "but_sources": ["gan_a"]}, {"gan_b", "gan_c"}),
        ({"categories": ["bars"]}, {"camera_a", "camera_b", "gan_a", "gan_b", "gan_c"}),
        ({"categories": ["cats"]}, set()),
        ({"labels": ["unknown"]}, set()),
    ],
)
def test_search_with_filter(client: TestClient, query_filter: Any, sources: set[str]) -> None:
    rows = client.post("/v1/search", json={"key": "gan_a/img 7.png", "k": 1000, **query_filter}).json()["rows"]
    assert {row["source"] for row in rows} == sources
    assert len(rows) == 60 * len(sources)
    assert [row["similarity"] for row in rows] == sorted((row["similarity"] for row in rows), reverse=True)


def test_search_by_text(toy: Any, client: TestClient) -> None:
    assert problem(client.post("/v1/search", json={"text": "a dog"})) == (422, "invalid")

    class Reads:
        space, has_text, encode = toy.encoder.space, True, staticmethod(toy.encoder.encode)

        def encode_texts(self, texts: Any) -> Any:
            assert list(texts) == ["a dog"]
            return toy.store.snapshot().vectors([42])

    with client_of(toy, encoder=Reads()) as reading:
        [row] = reading.post("/v1/search", json={"text": "a dog", "k": 1}).json()["rows"]
        [same] = reading.post("/knn-service", json={"text": "a dog", "num_images": 1}).json()
    assert row["key"] == same["key"] == str(toy.store.snapshot().column("keys")[42])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (422, "invalid")),
        ({"key": "gan_a/img 7.png", "text": "both"}, (422, "invalid")),
        ({"key": "gan_a/no such.png"}, (404, "not-found")),
        ({"vector": [1.0, 2.0]}, (422, "invalid")),
        ({"vector": [0.0] * 192}, (422, "invalid")),
        ({"vector": ["a"] * 192}, (422, "invalid")),
        ({"key": "gan_a/img 7.png", "k": 1001}, (422, "invalid")),
        ({"key": "gan_a/img 7.png", "sorces": ["gan_a"]}, (422, "invalid")),
        ({"key": "gan_a/img 7.png", "sources": ["\ud800"]}, (422, "invalid")),
        ({"key": "gan_a/img 7.png", "but_sources": ["\ud800"]}, (422, "invalid")),
        ({"image": "https://example.org/a.png"}, (422, "invalid")),
        ({"image": data_url(b"no image")}, (422, "bad-image")),
    ],
)
def test_invalid_search_is_refused(client: TestClient, body: Any, expected: Any) -> None:
    sent = client.post("/v1/search", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert problem(sent) == expected


# --- clip-retrieval's client


def clip_client() -> Any:
    """The published client; only its one file is loaded, because its package has many dependencies."""
    pytest.importorskip("requests", reason="clip-retrieval's client needs requests, which is not installed")
    root = Path(__file__).parents[2]
    client_file = next(root.glob(".peers/lib/python3*/site-packages/clip_retrieval/clip_client.py"), None)
    if client_file is None:
        pytest.skip("clip-retrieval is not installed; `make peers` installs it")
    spec = importlib.util.spec_from_file_location("published_clip_client", client_file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_clip_client_works_unchanged(toy: Any, tmp_path: Path) -> None:
    published = clip_client()
    (tmp_path / "query.png").write_bytes(toy.draw_image("gan_a", 7))
    snapshot = toy.store.snapshot()
    with toy.served() as url:
        asking = published.ClipClient(url=f"{url}/knn-service", indice_name="any", num_images=5)
        by_image = asking.query(image=str(tmp_path / "query.png"))
        by_vector = asking.query(embedding_input=snapshot.vectors([127])[0].tolist())
        refused = asking.query(image="http://example.org/a.png")
        thumbnail = published.requests.get(by_image[0]["url"], timeout=10)
    assert len(by_image) == 5
    assert (by_image[0]["key"], by_image[0]["caption"]) == ("gan_a/img 7.png", "fake, gan_a, bars")
    assert [one["id"] for one in by_image] == [one["id"] for one in by_vector]
    assert [snapshot.positions_of(np.array([one["id"]]))[0] for one in by_image] == [
        snapshot.find([one["key"]])[0] for one in by_image
    ]
    assert refused["status"] == 422
    assert "fetches no URLs" in refused["detail"]
    assert thumbnail.headers["content-type"] == "image/jpeg"


def test_knn_deduplicates_and_shortens_rows(toy: Any, tmp_path: Path) -> None:
    store = toy.copy(tmp_path / "store")
    snapshot = store.snapshot()
    with store.writer() as writer:
        rows = Rows.make(["copy/1", "copy/2"], [1, 1], sources=["copy"] * 2)
        writer.append(Block(store.snapshot().space, rows, snapshot.vectors([127, 127])))
    ask = {"embedding_input": snapshot.vectors([127])[0].tolist(), "num_images": 2, "num_result_ids": 4}
    with client_of(toy, store=store) as client:
        all_of_them = client.post("/knn-service", content=json.dumps({**ask, "deduplicate": False})).json()
        fresh = client.post("/knn-service", content=json.dumps({**ask, "deduplicate": True})).json()
        assert problem(client.post("/knn-service", json={**ask, "modality": "text"})) == (422, "invalid")
        assert problem(client.post("/knn-service", json={})) == (422, "invalid")
    assert {one["key"] for one in all_of_them[:2]} < {"gan_a/img 7.png", "copy/1", "copy/2"}
    assert [one.keys() == {"id", "similarity"} for one in all_of_them] == [False, False, True, True]
    assert [one["id"] for one in fresh] == [all_of_them[0]["id"], all_of_them[3]["id"]]


# --- stored rows


def test_store_statistics_hide_its_path(toy: Any, client: TestClient) -> None:
    answer = client.get("/v1/store").json()
    assert (answer["rows"], answer["labels"]) == (300, {"real": 120, "fake": 180, "unknown": 0})
    assert (answer["ready"], answer["why"], answer["writes"], answer["limits"]["images"]) == (True, "", False, 64)
    assert str(toy.store.folder.parent) not in json.dumps(answer)
    with client_of(toy, token="secret", notice="a stand-in") as other:
        assert answer["notice"].startswith("Known limits: ")
        expected = answer | {"writes": True, "notice": f"a stand-in {answer['notice']}"}
        assert other.get("/v1/store").json() == expected


def test_thumbnails_by_key_but_not_by_path(toy: Any, client: TestClient) -> None:
    thumbnail = client.get("/v1/thumbnails/gan_a/img 7.png")
    assert thumbnail.headers["content-type"] == "image/jpeg"
    assert thumbnail.content == toy.store.snapshot().thumbnail(int(toy.store.snapshot().find(["gan_a/img 7.png"])[0]))
    head_file = toy.store.folder / "heads" / "default" / "head.json"
    for path in (
        str(head_file),
        "../heads/default/head.json",
        "..%2F..%2Fheads%2Fdefault%2Fhead.json",
        "....//head.json",
        "gan_a/%2e%2e/gan_a/img 7.png",
        "%00",
        "file:///etc/passwd",
        "",
    ):
        refused = client.get(f"http://127.0.0.1/v1/thumbnails/{path}")
        assert problem(refused) == (404, "not-found")
    for path in ("/etc/passwd", "/static/page.js", "/heads/default/head.json", "/../etc/passwd", "/v1/thumbnails"):
        assert problem(client.get(path)) == (404, "not-found")


def test_metrics(toy: Any) -> None:
    with client_of(toy) as client:
        client.post("/v1/query", files=files(toy.draw_image("gan_a", 1, seed=4), b"no image"))
        client.get("/v1/thumbnails/none")
        client.request("BREW", "/coffee")
        text = client.get("/metrics").text
    for line in (
        'clipfake_requests_total{method="POST",route="/v1/query",status="200"} 1.0',
        'clipfake_requests_total{method="GET",route="/v1/thumbnails/{key:path}",status="404"} 1.0',
        'clipfake_requests_total{method="other",route="other",status="404"} 1.0',
        'clipfake_request_seconds_count{route="/v1/query"} 1.0',
        "clipfake_batch_images_sum 1.0",
        "clipfake_waiting_images 0.0",
        'clipfake_verdicts_total{verdict="fake"} 1.0',
        'clipfake_problems_total{kind="bad-image"} 1.0',
        "clipfake_bank_rows 300.0",
        *(f'clipfake_stage_seconds_count{{stage="{stage}"}} 1.0' for stage in ("read", "wait", "encode", "judge")),
    ):
        assert line in text.splitlines()


# --- changes while the service runs


def test_bank_add_and_remove_apply_to_the_next_query(toy: Any, tmp_path: Path) -> None:
    store = toy.copy(tmp_path / "store")
    content, other = toy.draw_image("gan_b", 5, seed=6), toy.draw_image("gan_b", 6, seed=6)
    saved_anew = io.BytesIO()
    Image.open(io.BytesIO(other)).save(saved_anew, "JPEG")

    def query(client: TestClient) -> Any:
        return client.post("/v1/query", files=files(content, saved_anew.getvalue())).json()

    with client_of(toy, store=store, token="secret") as client:
        before = query(client)
        form = {"source": "new", "label": "fake"}
        added = client.post("/v1/bank", files=files(content, other, b"no image"), data=form, headers=TOKEN).json()
        assert (added["added"], added["known"], added["replaced"]) == (2, 0, 0)
        assert [one["image"] for one in added["refused"]] == ["2.png"]
        after = query(client)
        assert after["snapshot"] == added["snapshot"] > before["snapshot"] == added["before"]
        assert (before["answers"][0]["known"], after["answers"][0]["known"]) == ("", "new/0.png")
        assert (before["answers"][1]["known"], after["answers"][1]["known"]) == ("", "new/1.png")
        assert client.get("/v1/thumbnails/new/0.png").headers["content-type"] == "image/jpeg"
        again = client.post("/v1/bank", files=files(content, content), data=form, headers=TOKEN)
        assert problem(client.post("/v1/bank", files=files(content)[:1] * 2, headers=TOKEN)) == (422, "invalid")
        assert (again.json()["added"], again.json()["known"], again.json()["replaced"]) == (0, 1, 1)
        removed = client.delete("/v1/bank/new", headers=TOKEN).json()
        assert removed["removed"] == 2
        assert query(client)["answers"] == before["answers"]
        assert problem(client.delete("/v1/bank/new", headers=TOKEN)) == (404, "not-found")
    ids, then = store.snapshot().ids.tolist(), toy.store.snapshot().ids.tolist()
    assert ids == then
    store.undo(removed["before"])
    assert set(store.snapshot().column("sources").tolist()) - set(toy.store.snapshot().column("sources").tolist()) == {
        "new"
    }


@pytest.mark.parametrize(
    ("form", "images"),
    [
        ({"label": "fake"}, [b"1"]),
        ({"source": "a/b", "label": "fake"}, [b"1"]),
        ({"source": "", "label": "fake"}, [b"1"]),
        ({"source": "a\nb", "label": "fake"}, [b"1"]),
        ({"source": "new", "label": "unknown"}, [b"1"]),
        ({"source": "new", "label": "fake"}, [b"no image"]),
    ],
)
def test_refused_bank_request_changes_nothing(toy: Any, form: Any, images: Any) -> None:
    before = toy.store.snapshot().number
    with client_of(toy, token="secret") as client:
        assert client.post("/v1/bank", files=files(*images), data=form, headers=TOKEN).status_code == 422
        twice = [("images", ("a.png", toy.draw_image("gan_a", n, seed=9))) for n in (1, 2)]
        refused = client.post("/v1/bank", files=twice, data={"source": "new", "label": "real"}, headers=TOKEN)
        assert problem(refused) == (422, "invalid")
        assert problem(client.post("/v1/bank", json={}, headers=TOKEN)) == (415, "wrong-media")
    assert toy.store.snapshot().number == before


def test_locked_store_sends_retry_after(toy: Any, tmp_path: Path) -> None:
    store = toy.copy(tmp_path / "store")
    form = {"source": "new", "label": "fake"}
    with client_of(toy, store=store, token="secret") as client, store.writer():
        refused = client.post("/v1/bank", files=files(toy.draw_image("gan_a", 1, seed=9)), data=form, headers=TOKEN)
    assert problem(refused) == (503, "locked")
    assert refused.headers["retry-after"] == "5"
    assert str(tmp_path) not in refused.text


def test_rows_of_another_process_apply_to_the_next_query(toy: Any, tmp_path: Path) -> None:
    store = toy.copy(tmp_path / "store")
    content = toy.draw_image("gan_a", 7)
    with client_of(toy, store=store) as client:
        first = client.post("/v1/query", content=content).json()
        store.delete(Filter(key=["gan_a/img 7.png"]))
        second = client.post("/v1/query", content=content).json()
    assert first["snapshot"] < second["snapshot"] == store.snapshot().number
    assert (first["answers"][0]["known"], second["answers"][0]["known"]) == ("gan_a/img 7.png", "")


def test_retrained_head_applies_to_the_next_query(toy: Any, tmp_path: Path) -> None:
    store = toy.copy(tmp_path / "store")
    heads, aside = store.folder / "heads", tmp_path / "heads"
    heads.rename(aside)
    content = toy.draw_image("gan_a", 7)
    with client_of(toy, store=store) as client:
        assert problem(client.post("/v1/query", content=content)) == (409, "cannot-judge")
        assert problem(client.get("/readyz")) == (503, "not-ready")
        assert client.post("/v1/embed", content=content).status_code == 200
        assert client.post("/v1/search", json={"key": "gan_a/img 7.png"}).status_code == 200
        shutil.copytree(aside, heads)
        assert client.get("/readyz").json() == {"status": "ready"}
        answer = client.post("/v1/query", content=content).json()["answers"][0]
        [calibration] = (heads / "default").glob("calibration-*.json")
        fitted = calibration.read_text()
        calibration.unlink()
        assert problem(client.post("/v1/query", content=content)) == (409, "cannot-judge")
        calibration.write_text(fitted)
        assert client.post("/v1/query", content=content).json()["answers"][0] == answer


class Away:
    """A search back end whose errors contain an address that clients must not see."""

    def __init__(self) -> None:
        self.fails: dict[str, Exception | None] = {"opening": None, "searching": None}

    def __call__(self, snapshot: Any) -> Any:
        if self.fails["opening"]:
            raise self.fails["opening"]
        self.snapshot = snapshot
        return self

    def search(self, *queries: Any) -> Any:
        if self.fails["searching"]:
            raise self.fails["searching"]
        return self.snapshot.search(*queries)


INSIDE = "the collection clipfake at http://node1:6333 or in /srv/edge"


@pytest.mark.parametrize("when", ["opening", "searching"])
@pytest.mark.parametrize(
    ("failure", "status_and_kind"),
    [
        (BackendUnavailable(INSIDE), (503, "engine-down")),
        (BackendTimeout(INSIDE), (504, "engine-slow")),
        (BackendError(INSIDE), (502, "engine-failed")),
        (BackendDamaged(INSIDE), (502, "engine-failed")),
        (Locked(INSIDE), (503, "engine-down")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value[1],
)
def test_backend_failure_hides_its_address(
    toy: Any,
    when: str,
    failure: Exception,
    status_and_kind: tuple[int, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(search_backend, "PAUSE_SECONDS", 0.0)
    away, content = Away(), toy.draw_image("gan_a", 7)
    away.fails[when] = failure
    with client_of(toy, searcher_for=away) as client:
        answers = [client.post("/v1/query", content=content) for _ in range(2)]
        assert [problem(one) for one in answers] == [status_and_kind, status_and_kind]
        assert all(("Retry-After" in one.headers) == (status_and_kind[0] != 502) for one in answers)
        if when == "searching":
            answers += [client.post("/v1/search", json={"key": "gan_a/img 7.png"})]
            assert problem(answers[-1]) == status_and_kind
        else:  # the store cannot judge, but the shards can be searched
            answers += [client.get("/readyz"), client.get("/v1/store")]
            assert problem(answers[-2]) == (503, "not-ready")
        assert not [one.text for one in answers if "node1" in one.text or "/srv" in one.text]
        assert [one.message for one in caplog.records if INSIDE in one.message] == [
            f"the search back end fails: {INSIDE}"  # logged once for several requests
        ]
        away.fails[when] = None
        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.post("/v1/query", content=content).status_code == 200
        assert caplog.messages[-1] == "the search back end works again"


def test_backend_that_is_down_is_not_retried_at_once(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each request would hold a thread until its own timeout."""
    now = 100.0
    monkeypatch.setattr(search_backend, "monotonic", lambda: now)
    away, content = Away(), toy.draw_image("gan_a", 7)
    with client_of(toy, searcher_for=away) as client:
        assert client.post("/v1/query", content=content).status_code == 200
        away.fails["searching"] = BackendTimeout("60 s")
        refused = client.post("/v1/query", content=content)
        assert (*problem(refused), refused.headers["Retry-After"]) == (504, "engine-slow", "5")
        away.fails["searching"] = None
        now += search_backend.PAUSE_SECONDS - 1
        refused = client.post("/v1/query", content=content)
        assert (*problem(refused), refused.headers["Retry-After"]) == (504, "engine-slow", "1")
        now += 1
        assert client.post("/v1/query", content=content).status_code == 200


def test_more_copies_than_the_queue_are_refused(toy: Any) -> None:
    limits = Limits(images=4, waiting=12)
    with client_of(toy, limits=limits, degraded=lambda pixels: dict.fromkeys("abcd", pixels)) as client:
        asking = files(*[toy.draw_image("gan_a", i) for i in range(3)])
        assert problem(client.post("/v1/query", files=asking, params={"steady": True})) == (413, "too-many")
        assert client.post("/v1/query", files=asking[:2], params={"steady": True}).status_code == 200


def test_source_is_removed_by_its_exact_name_only(toy: Any, tmp_path: Path) -> None:
    store = toy.copy(tmp_path / "store")
    with client_of(toy, store=store, token="secret") as client:
        assert problem(client.delete("/v1/bank/gan_a%00", headers=TOKEN)) == (404, "not-found")
        found = client.post("/v1/search", json={"key": "gan_a/img 7.png", "sources": ["gan_a\0"]})
        assert found.json()["rows"] == []
    assert len(store.snapshot()) == 300


def test_source_with_a_slash_can_be_removed(toy: Any, tmp_path: Path) -> None:
    store = toy.copy(tmp_path / "store")
    with store.writer() as writer:
        rows = Rows.make(["tree/a/1"], [1], sources=["tree/a"])
        writer.append(Block(store.snapshot().space, rows, store.snapshot().vectors([0])))
    with client_of(toy, store=store, token="secret") as client:
        for name in ("tree/a", "tree%2Fa"):
            response = client.delete(f"/v1/bank/{name}", headers=TOKEN)
            assert response.status_code == (200 if name == "tree/a" else 404), response.text
    assert len(store.snapshot()) == 300


def test_similarity_is_at_most_one(toy: Any, client: TestClient) -> None:
    """In half precision some stored vectors are slightly longer than 1."""
    vectors = toy.store.snapshot().vectors()
    longest = int((vectors**2).sum(1).argmax())
    assert (vectors[longest] ** 2).sum() > 1 + 1e-6
    found = client.post("/v1/search", json={"key": str(toy.store.snapshot().column("keys")[longest]), "k": 3}).json()
    assert found["rows"][0]["similarity"] == 1.0
    [verdict] = VectorDetector.load(toy.store).judge(["x"], vectors[[longest]])
    assert max(one.similarity for found in verdict.neighbors.values() for one in found) == 1.0


# --- stores that cannot judge


def test_empty_store_says_what_to_do_and_can_be_filled(toy: Any, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "private" / "store", toy.encoder.space)
    content = toy.draw_image("gan_a", 7)
    with client_of(toy, store=store, token="secret") as client:
        refused = client.post("/v1/query", content=content)
        assert problem(refused) == (409, "cannot-judge")
        assert "clipfake train" in refused.json()["detail"]
        assert problem(client.get("/v1/map")) == (409, "cannot-judge")
        [one] = client.post("/v1/embed", content=content).json()["answers"]
        assert client.post("/v1/search", json={"vector": one["vector"]}).json()["rows"] == []
        assert client.post("/knn-service", json={"embedding_input": one["vector"], "deduplicate": True}).json() == []
        answer = client.get("/v1/store").json()
        assert (answer["rows"], answer["ready"]) == (0, False)
        assert "private" not in refused.text + json.dumps(answer) + client.get("/readyz").text
        added = client.post("/v1/bank", files=files(content), data={"source": "s", "label": "real"}, headers=TOKEN)
        assert added.json()["added"] == 1
        assert len(client.post("/v1/search", json={"vector": one["vector"]}).json()["rows"]) == 1


def test_store_of_one_class_names_the_missing_one(toy: Any, tmp_path: Path) -> None:
    store = toy.copy(tmp_path / "store")
    store.delete(Filter(label=[1]))
    with client_of(toy, store=store) as client:
        refused = client.post("/v1/query", content=toy.draw_image("gan_a", 7))
        assert problem(refused) == (409, "cannot-judge")
        assert "no fake rows" in refused.json()["detail"]
        assert client.get("/healthz").status_code == 200


def test_app_refuses_a_store_of_another_encoder(toy: Any, tmp_path: Path) -> None:
    from clipfake.errors import SpaceMismatch
    from clipfake.store.space import Space

    store = Store.create(tmp_path / "store", Space("another", "f" * 64, 192))
    with pytest.raises(SpaceMismatch, match="another"):
        toy.app(store=store)


# --- authorization


def test_writing_needs_the_token(toy: Any) -> None:
    for path, method in (("/v1/bank", "POST"), ("/v1/bank/gan_a", "DELETE")):
        with client_of(toy) as client:
            assert problem(client.request(method, path, headers=TOKEN)) == (403, "writes-off")
        with client_of(toy, token="secret") as client:
            for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
                refused = client.request(method, path, headers=wrong)
                assert problem(refused) == (401, "token-required")
                assert refused.headers["www-authenticate"] == "Bearer"
    assert toy.store.snapshot().number == 1


def test_mounted_app_needs_the_token(toy: Any) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    with TestClient(Starlette(routes=[Mount("/x", toy.app(token="secret"))]), base_url="http://127.0.0.1") as client:
        assert problem(client.delete("/x/v1/bank/gan_a")) == (401, "token-required")


def test_public_service_needs_the_token_except_page_and_health(toy: Any) -> None:
    with pytest.raises(ValueError, match="token"):
        toy.app(public=True)
    with TestClient(toy.app(public=True, token="sécret"), base_url="https://desk.example") as client:
        for path in ("/", "/healthz", "/readyz", "/openapi.json"):
            assert client.get(path).status_code == 200
        for path in (
            "/v1/store",
            "/v1/map",
            "/v1/thumbnails/gan_a/img 7.png",
            "/metrics",
            "/none",
            "/v1/%2e%2e/healthz",
        ):
            assert problem(client.get(path)) == (401, "token-required")
        with_token = {"Authorization": "bearer sécret".encode()}
        assert client.get("/v1/store", headers=with_token).status_code == 200  # type: ignore[arg-type]


def test_local_service_checks_the_host_header(toy: Any) -> None:
    with TestClient(toy.app(), base_url="http://127.0.0.1") as client:
        for name in (
            "127.0.0.1:8000",
            "localhost",
            "localhost:1",
            "[::1]:8000",
            "[::1]",
            "LOCALHOST:8000",
            "localhost.",
        ):
            assert client.get("/healthz", headers={"Host": name}).status_code == 200
        for name in (
            *("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "localhost..", ".", "", ":8000"),
            *(
                "[::1",
                "[::1]evil.example",
                "localhost:evil",
                "localhost:80:80",
                "localhost@evil",
                "127.0.0.2",
                "0.0.0.0",
            ),
        ):
            assert problem(client.get("/healthz", headers={"Host": name})) == (421, "wrong-host")


def test_no_cross_origin_access(client: TestClient) -> None:
    response = client.get("/v1/store", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in response.headers
    assert response.headers["cross-origin-resource-policy"] == "same-origin"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert problem(client.options("/v1/bank", headers={"Origin": "https://evil.example"})) == (405, "wrong-method")


def test_head_is_get_without_a_body(client: TestClient) -> None:
    paths = (
        "/",
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/v1/store",
        "/v1/map",
        "/v1/thumbnails/gan_a/img 1.png",
    )
    for path in (*paths, "/v1/thumbnails/none", "/nothing", "/v1/query"):  # refusals have the same headers too
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"")
        changing = {"content-length"} if path in ("/metrics", "/readyz") else set()
        assert {k: v for k, v in head.headers.items() if k not in changing} == {
            k: v for k, v in got.headers.items() if k not in changing
        }
        assert head.headers["content-length"] != "0"


def test_head_obeys_the_token(toy: Any) -> None:
    with client_of(toy, public=True, token="secret") as client:
        assert [client.head(path).status_code for path in ("/healthz", "/v1/store")] == [200, 401]
        assert client.head("/v1/store", headers=TOKEN).status_code == 200


def test_head_is_allowed_where_get_is(client: TestClient) -> None:
    refused = client.delete("/healthz")
    assert problem(refused) == (405, "wrong-method")
    assert refused.headers["allow"] == "GET, HEAD"
    assert client.get("/v1/query").headers["allow"] == "POST"
    assert client.options("/v1/query").headers["allow"] == "POST"


def test_final_slash_of_a_route_is_ignored(toy: Any, client: TestClient) -> None:
    assert client.get("/healthz/").json() == {"status": "ok"}
    assert client.post("/v1/embed/", content=toy.draw_image("gan_a", 7), headers=AS_PNG).status_code == 200
    assert problem(client.get("/healthz//")) == (404, "not-found")
    assert problem(client.get("/v1/thumbnails/gan_a/img 1.png/")) == (404, "not-found")  # another key
    with client_of(toy, public=True, token="secret") as guarded:
        assert guarded.get("/v1/store/").status_code == 401


def test_content_type_in_any_case_and_with_parameters(toy: Any, client: TestClient) -> None:
    content = toy.draw_image("gan_a", 7)
    for kind in ("image/PNG", "IMAGE/png; q=1", "Application/Octet-Stream"):
        assert client.post("/v1/embed", content=content, headers={"Content-Type": kind}).status_code == 200
    body = json.dumps({"key": "gan_a/img 7.png", "k": 1}).encode()
    for kind in ("application/json; charset=utf-8", "APPLICATION/JSON;charset=UTF-8", "application/vnd.api+json"):
        assert client.post("/v1/search", content=body, headers={"Content-Type": kind}).status_code == 200
    assert client.post("/v1/search", content=b"\xef\xbb\xbf" + body, headers=AS_JSON).status_code == 200


def test_compressed_body_is_refused_by_name(toy: Any, client: TestClient) -> None:
    body = gzip.compress(toy.draw_image("gan_a", 7))
    refused = client.post("/v1/embed", content=body, headers={**AS_PNG, "Content-Encoding": "gzip"})
    assert problem(refused) == (415, "wrong-media")
    assert "Content-Encoding: gzip" in refused.json()["detail"]
    assert refused.headers["accept-encoding"] == "identity"
    plain = client.post(
        "/v1/embed", content=toy.draw_image("gan_a", 7), headers={**AS_PNG, "Content-Encoding": "Identity"}
    )
    assert plain.status_code == 200


def test_empty_body_and_percent_encoded_path(client: TestClient) -> None:
    for path, headers in (("/v1/query", AS_PNG), ("/v1/search", AS_JSON)):
        refused = client.post(path, content=b"", headers=headers)
        assert refused.status_code == 422 and refused.headers["content-type"] == "application/problem+json"
    assert client.get("/v1/thumbnails/%67an_a%2Fimg%201.png").headers["content-type"] == "image/jpeg"


def test_image_field_of_a_form_has_any_name(toy: Any, client: TestClient) -> None:
    for name in ("image", "file", "images[]"):
        answer = client.post("/v1/embed", files=[(name, ("a.png", toy.draw_image("gan_a", 7)))])
        assert [image["image"] for image in answer.json()["answers"]] == ["a.png"]
    unbounded = client.post("/v1/embed", content=b"--x", headers={"Content-Type": "multipart/form-data"})
    assert problem(unbounded) == (400, "bad-request")


@pytest.mark.parametrize("encode", [base64.encodebytes, base64.urlsafe_b64encode], ids=["lines", "url-safe"])
def test_base64_variants_in_every_json_route(toy: Any, client: TestClient, encode: Any) -> None:
    text = encode(toy.draw_image("gan_a", 7)).decode().rstrip("=\n")
    for image in (text, f"data:image/png;base64,{text}"):
        for body in (
            json.dumps({"image": image, "k": 1}),
            f'{{"image": "{image}", "k": 1}}',
        ):  # line breaks as they are
            found = client.post("/v1/search", content=body, headers=AS_JSON)
            assert found.json()["rows"][0]["key"] == "gan_a/img 7.png"
        assert client.post("/v1/embeddings", json={"input": image}).status_code == 200
        assert client.post("/knn-service", json={"image": image}).json()[0]["key"] == "gan_a/img 7.png"


# --- the page for engineers


@pytest.fixture(scope="module")
def operations(client: TestClient) -> set[tuple[str, str]]:
    paths = client.get("/openapi.json").json()["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


def test_documentation_lists_every_route(operations: set[tuple[str, str]]) -> None:
    rows = [line.split("|")[1].strip(" `") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    fields = {tuple(row.split(" ")) for row in rows if row.split(" ")[0] in ("GET", "POST", "DELETE")}
    assert fields == operations | {("GET", "/")}


def test_documentation_lists_problems_limits_and_metrics(toy: Any, client: TestClient) -> None:
    text = PAGE.read_text()
    fields = {line.split("|")[1].strip(" `"): line.split("|")[2].strip() for line in text.splitlines() if "|" in line}
    for kind, (status, _) in KINDS.items():
        assert fields.get(kind) == str(status)
    for limit in client.get("/v1/store").json()["limits"]:
        assert limit in fields
    for line in client.get("/metrics").text.splitlines():
        if line.startswith("# HELP") and not line.split()[2].endswith("_created"):
            assert line.split()[2].removesuffix("_total") in text


def test_steady_can_make_a_verdict_unsure(toy: Any) -> None:
    from clipfake.indexer.degradations import DEGRADATIONS, degraded_by_name

    image = toy.draw_image("gan_a", 80)
    with client_of(toy, degraded=degraded_by_name) as client:
        plain = client.post("/v1/query", content=image, headers=AS_PNG).json()["answers"][0]
        steady = client.post("/v1/query?steady=true", content=image, headers=AS_PNG).json()["answers"][0]
        copies = [
            client.post("/v1/query?changes=false", content=encoded(copy), headers=AS_PNG).json()["answers"][0]
            for copy in degraded_by_name(toy.decode(image).pixels).values()
        ]
    assert plain["views"] == []
    assert [view["what"] for view in steady["views"]] == list(DEGRADATIONS)
    assert [view["verdict"] for view in steady["views"]] == [copy["verdict"] for copy in copies]
    survives = all(view["verdict"] == plain["verdict"] for view in steady["views"])
    assert steady["verdict"] == (plain["verdict"] if survives else "unsure")
    with client_of(toy) as client:
        assert problem(client.post("/v1/query?steady=true", content=image, headers=AS_PNG)) == (422, "invalid")


def encoded(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
