"""Many concurrent clients of all routes, while rows are added and removed: each gets the answers it would get alone."""

import asyncio
import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
import httpx
from clipfake.detector.detector import QueryOptions, VectorDetector
from conftest import SOURCES, Toy, draw_image

CLIENTS, TURNS, IMAGES = 24, 8, 10
TOKEN = {"Authorization": "Bearer secret"}
KINDS = ("query", "several", "embed", "openai", "search", "knn", "again", "thumbnail", "broken")


def test_concurrent_clients_get_the_same_answers(toy: Toy, tmp_path: Path) -> None:
    store = toy.copy(tmp_path / "store")
    images = [draw_image(list(SOURCES)[i % len(SOURCES)], i, seed=i % 2) for i in range(IMAGES)]
    decoded = [toy.decode(image) for image in images]
    vectors = toy.encoder.encode([image.pixels for image in decoded])
    detector = VectorDetector.load(store)
    alone = [
        json.loads(json.dumps(detector.judge_one("", vector, image.digest, QueryOptions()).to_dict()))
        for vector, image in zip(vectors, decoded, strict=True)
    ]
    nearest = [
        detector.snapshot.column("keys")[row].tolist() for row in detector.snapshot.search(vectors, 5, recall=1).rows
    ]
    shown = detector.snapshot.thumbnail(7)
    key = str(detector.snapshot.column("keys")[7])
    queries: Counter[str] = Counter()

    def as_alone(value: Any, i: int) -> None:
        near = {kind: [row.pop("similarity") for row in value["neighbors"][kind]] for kind in ("real", "fake")}
        expected = json.loads(json.dumps(alone[i]))
        for kind, similarities in near.items():
            assert similarities == pytest.approx(
                [row.pop("similarity") for row in expected["neighbors"][kind]], abs=1e-5
            )
        for name in ("score", "probability"):  # the batch size changes the last digit
            assert value.pop(name) == pytest.approx(expected.pop(name), abs=2e-3)
        assert value.pop("signals") == pytest.approx(expected.pop("signals"), abs=2e-3)
        assert value.pop("percentile") == pytest.approx(expected.pop("percentile"), abs=0.5)
        for fields in (value, expected):
            del fields["image"], fields["changes"]
        assert value == expected

    async def ask(client: httpx.AsyncClient, kind: str, i: int) -> None:
        text = base64.b64encode(images[i]).decode()
        if kind in ("query", "several"):
            numbers = [i] if kind == "query" else [i, (i + 3) % IMAGES, (i + 5) % IMAGES]
            response = await client.post("/v1/query", files=[("images", (f"{j}.png", images[j])) for j in numbers])
            for j, answer in zip(numbers, response.raise_for_status().json()["answers"], strict=True):
                as_alone(answer, j)
        elif kind == "embed":
            response = await client.post("/v1/embed", content=images[i], headers={"Content-Type": "image/png"})
            assert np.allclose(response.json()["answers"][0]["vector"], vectors[i], atol=1e-5)
        elif kind == "openai":
            response = await client.post("/v1/embeddings", json={"input": text})
            assert np.allclose(response.json()["data"][0]["embedding"], vectors[i], atol=1e-5)
        elif kind == "search":
            response = await client.post("/v1/search", json={"image": text, "k": 5})
            assert [row["key"] for row in response.json()["rows"]] == nearest[i]
        elif kind == "knn":
            response = await client.post("/knn-service", json={"image": text, "num_images": 5})
            assert [row["key"] for row in response.json()] == nearest[i]
        elif kind == "again":  # add an image that is stored already: the writer changes nothing
            form = {"source": "gan_a", "label": "fake"}
            sent = [("images", ("img 7.png", draw_image("gan_a", 7)))]
            response = await client.post("/v1/bank", headers=TOKEN, data=form, files=sent)
            assert (response.json()["known"], response.json()["added"]) == (1, 0)
        elif kind == "thumbnail":
            assert (await client.get(f"/v1/thumbnails/{key}")).content == shown
        else:
            response = await client.post("/v1/query", content=b"no image", headers={"Content-Type": "image/png"})
            assert response.status_code == 422
        queries[kind] += 1

    async def all_of_them(url: str) -> None:
        async def client(number: int) -> None:
            rng = np.random.default_rng(number)
            async with httpx.AsyncClient(base_url=url, timeout=120) as http:
                for _ in range(TURNS):
                    await ask(http, str(rng.choice(KINDS)), int(rng.integers(IMAGES)))

        await asyncio.gather(*(client(number) for number in range(CLIENTS)))

    with toy.served(store=store, token="secret") as url:
        asyncio.run(all_of_them(url))
        figures = httpx.get(f"{url}/metrics").text
    assert sum(queries.values()) == CLIENTS * TURNS
    assert set(queries) == set(KINDS)
    assert 'status="5' not in figures
    assert "clipfake_waiting_images 0.0" in figures
