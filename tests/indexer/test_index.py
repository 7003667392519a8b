"""Indexing stores every image once, also after earlier or interrupted runs."""

from pathlib import Path

import numpy as np
import pytest
from clipfake.indexer.embedding import embed_images
from clipfake.indexer.encoders.base import PlainEncoder
from clipfake.indexer.encoders.load import load_encoder
from clipfake.indexer.index import IndexOptions, index, plan
from clipfake.indexer.sources.folders import expand
from clipfake.simulated.images import SOURCES, simulated, write_sample
from clipfake.simulated.notice import is_standin
from clipfake.simulated.standin_encoder import build_standin
from clipfake.store.store import Store


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_sample(tmp_path_factory.mktemp("sample"), images_per_source=3)


def store_at(folder: Path) -> Store:
    return Store.create(folder, PlainEncoder().space)


def test_sample_depends_only_on_the_seed() -> None:
    assert simulated(3, 1) == simulated(3, 1)
    assert simulated(3, 1) != simulated(3, 1, seed=1)


def test_sample_is_stored_with_its_metadata(sample: list[Path], tmp_path: Path) -> None:
    store = store_at(tmp_path / "s")
    report = index(expand(sample), store, PlainEncoder(), IndexOptions(batch_size=4))
    rows = store.snapshot().rows
    assert report.added == len(rows) == 3 * len(SOURCES)
    assert set(rows.categories.tolist()) == {"clouds", "leaves", "pebbles"}
    assert {s: int(t) for s, t in zip(rows.sources, rows.targets, strict=True)} == {s.name: s.target for s in SOURCES}
    assert ((rows.targets > 0) == (rows.labels == 1)).all()
    assert (rows.widths == 200).all()
    assert (rows.qualities >= 65).all()
    assert store.snapshot().thumbnail(0)[:2] == b"\xff\xd8"


def test_rerun_replaces_only_changed_files(sample: list[Path], tmp_path: Path) -> None:
    store = store_at(tmp_path / "s")
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.jpg").write_bytes(simulated(0, i))
    index([folder], store, PlainEncoder())
    again = index([folder], store, PlainEncoder())
    assert (again.added, again.known) == (0, 4)
    (folder / "2.jpg").write_bytes(simulated(1, 9))
    changed = index([folder], store, PlainEncoder())
    assert (changed.replaced, changed.known, len(store.snapshot())) == (1, 3, 4)


def test_bad_images_are_listed_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p/a.jpg").write_bytes(simulated(0, 0))
    (tmp_path / "p/b.jpg").write_bytes(simulated(0, 1)[:500])
    (tmp_path / "p/c.jpg").write_text("no image")
    store = store_at(tmp_path / "s")
    report = index([tmp_path / "p"], store, PlainEncoder())
    assert report.added == len(store.snapshot()) == 1
    assert [key for key, _ in report.skipped] == ["p/b.jpg", "p/c.jpg"]


def test_interrupted_run_is_resumed(sample: list[Path], tmp_path: Path) -> None:
    class StopsAfterTwo(PlainEncoder):
        left = 2

        def encode(self, images):  # type: ignore[no-untyped-def]
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().encode(images)

    store = store_at(tmp_path / "s")
    first = index(expand(sample), store, StopsAfterTwo(), IndexOptions(batch_size=4))
    assert first.interrupted
    assert len(store.snapshot()) == first.added == 8
    second = index(expand(sample), store, PlainEncoder(), IndexOptions(batch_size=4))
    assert (second.known, second.added) == (8, 3 * len(SOURCES) - 8)
    once = store_at(tmp_path / "once")
    index(expand(sample), once, PlainEncoder())
    assert sorted(store.snapshot().rows.keys.tolist()) == sorted(once.snapshot().rows.keys.tolist())


def test_plan_counts_without_opening_images(sample: list[Path]) -> None:
    assert sum(plan(expand(sample)).sources.values()) == 3 * len(SOURCES)
    assert sum(plan(expand(sample), limit=5).sources.values()) == 5


def test_embed_images_returns_vector_or_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(simulated(0, 0))
    good, bad = embed_images(PlainEncoder(), [tmp_path / "a.jpg", tmp_path / "b.jpg"])
    assert good.vector is not None and good.vector.shape == (192,)
    assert bad.vector is None and "cannot be read" in bad.error


def test_standin_encoder_loads_like_any_clip(tmp_path: Path) -> None:
    first, second = build_standin(tmp_path / "a"), build_standin(tmp_path / "b")
    assert is_standin(str(first))
    encoder, twin = load_encoder(str(first)), load_encoder(str(second))
    other = load_encoder(str(build_standin(tmp_path / "c", seed=1)))
    assert encoder.space.same(twin.space)
    assert not encoder.space.same(other.space)
    words = encoder.encode_texts(["leaves", "clouds"])
    assert words.shape == (2, encoder.space.dim)
    assert np.abs(words[0] - words[1]).max() > 1e-3
