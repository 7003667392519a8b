"""Many machines: the same rows, each once, whoever dies. A unit's work is plain Python and tested without Ray."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from clipfake.indexer.encoder import PlainEncoder
from clipfake.indexer.entry import Entry
from clipfake.indexer.incoming import commit
from clipfake.indexer.index import IndexOptions, index
from clipfake.indexer.ray import EncoderName, Unit, Worker, index_with_ray
from clipfake.indexer.report import IndexReport
from clipfake.store.errors import MissingExtra
from clipfake.store.store import Store
from PIL import Image as Pillow


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (6, 6, 3), np.uint8)
        Pillow.fromarray(noise).resize((24, 24)).save(folder / f"{i:04d}.png")
    return folder


def store_at(folder: Path) -> Store:
    return Store.create(folder, PlainEncoder().space)


def contents(store: Store) -> dict[str, bytes]:
    snapshot = store.snapshot()
    rows, vectors = snapshot.rows, snapshot.vectors()
    assert len(set(rows.keys.tolist())) == len(snapshot), "a key stands twice"
    return {key: rows.digests[i].tobytes() + vectors[i].tobytes() for i, key in enumerate(rows.keys.tolist())}


def test_a_unit_is_named_by_what_is_in_it() -> None:
    entries = [Entry("a/1", "/x"), Entry("a/2", "/y")]
    assert Unit.of(entries).id == Unit.of([Entry("a/1", "/moved"), Entry("a/2", "/too")]).id
    assert Unit.of(entries).id != Unit.of(entries[:1]).id


def test_a_unit_that_is_done_twice_is_there_once(tmp_path: Path) -> None:
    folder, store = pictures(tmp_path / "p", 4), store_at(tmp_path / "s")
    (folder / "bad.jpg").write_text("no image")
    worker = Worker(EncoderName("plain"), store.folder, IndexOptions(threads=1))
    unit = Unit.of([Entry(f"p/{path.name}", str(path)) for path in sorted(folder.iterdir())])
    first, second = worker.work(unit), worker.work(unit)
    assert first.shard == second.shard == f"{unit.id}.h5"
    assert [entry.key for entry, _ in first.refused] == ["p/bad.jpg"]
    assert commit(store)
    assert len(contents(store)) == 4


def test_a_unit_of_bad_images_alone_has_no_shard(tmp_path: Path) -> None:
    worker = Worker(EncoderName("plain"), tmp_path, IndexOptions(threads=1))
    receipt = worker.work(Unit.of([Entry("a", str(tmp_path / "nowhere.jpg"))]))
    assert receipt.shard == ""
    assert len(receipt.refused) == 1


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"clipfake\[ray\]"):
        index_with_ray([tmp_path], store_at(tmp_path / "s"), EncoderName("plain"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_on_a_real_ray_with_a_worker_killed_every_row_is_there_once(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    folder, store = pictures(tmp_path / "p", 300), store_at(tmp_path / "s")
    (folder / "bad.jpg").write_text("no image")
    killed: list[int] = []

    def kill_one(report: IndexReport) -> None:
        if not killed and report.added >= 40:
            killed.append(int(report.workers[0].split()[-1]))
            os.kill(killed[0], signal.SIGKILL)

    options = IndexOptions(rows_per_shard=10, threads=1)
    report = index_with_ray([folder], store, EncoderName("plain"), options, kill_one, workers=2)
    assert killed
    assert len(set(report.workers)) == 2
    assert (report.added, report.known, [key for key, _ in report.skipped]) == (300, 0, ["p/bad.jpg"])
    whole = store_at(tmp_path / "whole")
    index([folder], whole, PlainEncoder())
    assert contents(store) == contents(whole)
    assert list((tmp_path / "s/incoming").iterdir()) == []
