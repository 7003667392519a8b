"""A link in a stranger's store leads no write or removal outside, and files of anyone else are never removed."""

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.detector.head import REPLACED_FILES
from clipfake.errors import Linked, NotAStore
from clipfake.indexer.shard_inbox import StagedWriter, commit
from clipfake.store.filter import Filter
from clipfake.store.maintenance.build_index import build_index
from clipfake.store.maintenance.compact import compact
from clipfake.store.maintenance.near_duplicates import all_pairs
from clipfake.store.maintenance.repair import repair
from clipfake.store.maintenance.verify import verify
from clipfake.store.named_vectors import named_vectors_writer
from clipfake.store.rooms import ROOMS, SHARDS, remove_files
from clipfake.store.store import Store

DIM = 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 rows in 3 shards, some of them deleted, with named vectors, an index, a head and an inbox."""
    folder = tmp_path_factory.mktemp("whole") / "s"
    store = Store.create(folder, space(DIM))
    with store.writer(rows_per_shard=20) as writer:
        for block in synthetic(60, DIM, size=20):
            writer.append(block)
    with named_vectors_writer(folder, "other", space(DIM)) as vectors:
        vectors.put(np.arange(60), vectors.snapshot.vectors())
    with store.writer() as writer:
        writer.delete(np.arange(60) < 5)
    build_index(store, "plain")
    (folder / "heads" / "default").mkdir(parents=True)
    (folder / "heads" / "default" / "head.json").write_text("{}")
    for room in ("incoming", "quarantine/shards"):
        (folder / room).mkdir(parents=True)
    (folder / "quarantine.json").write_text("{}")
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "s")


def more(store: Store) -> None:
    with store.writer() as writer:
        writer.append(next(iter(synthetic(20, DIM, seed=7))))


def fill(store: Store) -> None:
    with named_vectors_writer(store.folder, "other", space(DIM)) as writer:
        writer.put(np.arange(len(writer.snapshot)), writer.snapshot.vectors())


CHANGES: dict[str, Callable[[Store], object]] = {
    "append": more,
    "delete": lambda store: store.delete(Filter(label=[1])),
    "undo": lambda store: store.undo(0),
    "compact": lambda store: compact(store, grace=timedelta(0)),
    "repair": lambda store: repair(store.folder),
    "index": lambda store: build_index(store, "plain", anew=True),
    "add vectors": fill,
    "adopt": lambda store: commit(store),
    "inbox": lambda store: StagedWriter(store, 1).append(next(iter(synthetic(20, DIM, seed=7)))),
    "open": lambda store: Store.open(store.folder),
    "create": lambda store: Store.create(store.folder, space(DIM)),
    "read": lambda store: store.snapshot(),
}
LINKED = [
    *ROOMS,
    *("columns/other", "heads/default", "indexes/knn-000004", "quarantine/shards"),
    *("lock", "indexes/lock", "quarantine.json", "snapshots/000004.json", "shards/000001.h5"),
    *("deleted/000001-000004.u4", "columns/other/column.json", "heads/default/head.json"),
    *("indexes/knn-000004/index.json", "indexes/knn-000009.0a.tmp", "incoming/a.h5", "lock.held"),
]


def linked_store(folder: Path, name: str) -> Path:
    """Replace a folder or file of the store by a link to another one outside, which holds files of the same names."""
    outside = folder.parent / "outside"
    path = folder / name
    if path.is_dir():
        path.rename(outside)
        path.symlink_to("../" * name.count("/") + "../outside")
        (outside / "thesis.docx").write_text("precious")
        (outside / "000099.h5").write_text("precious")
        (outside / "000099-000001.u4").write_text("precious")
        (outside / "head-0123456789abcdef.safetensors").write_text("precious")
    else:
        outside.mkdir()
        if path.exists():
            path.rename(outside / path.name)
        (outside / path.name).touch()
        path.symlink_to(outside / path.name)
    return outside


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", LINKED)
def test_links_in_a_store_are_refused_and_named(folder: Path, name: str) -> None:
    outside = linked_store(folder, name)
    before = content_of(outside)
    health = verify(folder)
    assert [problem.path for problem in health.problems] == [name]
    for change in CHANGES.values():
        with pytest.raises(Linked, match=rf"{name} is a symbolic link.*replace the link"):
            change(Store(folder))
    assert content_of(outside) == before
    assert (folder / name).is_symlink()


@pytest.mark.parametrize("change", CHANGES)
def test_store_reached_by_a_link_is_used(folder: Path, tmp_path: Path, change: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    CHANGES[change](Store(link))
    assert verify(link).sound
    assert link.is_symlink()


FOREIGN = [
    *("shards/thesis.docx", "shards/000001.h5.bak", "shards/notes.h5", "shards/000077.h5.txt", "shards/x.tmp"),
    *("deleted/thesis.docx", "deleted/old.u4", "snapshots/notes.json", "snapshots/²²²²²².json", "snapshots/x.tmp"),
    *("columns/other/thesis.docx", "columns/other/a.f2", "indexes/knn-000004/thesis.docx"),
    *("shards/folder/x", "deleted/folder/x", "columns/other/folder/x"),
]


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_anyone_else_are_left_and_noted(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("precious")
    health = verify(folder)
    assert health.sound
    assert any(name.startswith(note.path) and "not a file of clipfake's" in note.what for note in health.notes)
    for change in CHANGES.values():
        change(Store(folder))
    assert [path.read_text() for path in folder.rglob((folder / name).name)] == ["precious"]
    assert verify(folder).sound


def test_damaged_index_with_foreign_files_keeps_them(folder: Path) -> None:
    (folder / "indexes/knn-000004/index.json").write_text("{")
    (folder / "indexes/knn-000004/thesis.docx").write_text("precious")
    repair(folder)
    assert [path.name for path in (folder / "indexes/knn-000004").iterdir()] == ["thesis.docx"]


def test_own_leftovers_are_removed(folder: Path) -> None:
    for name in (
        "shards/000077.h5",
        "deleted/000077-000001.u4",
        "shards/000078.h5.0a1b2c.tmp",
        "snapshots/000009.json.0a.tmp",
    ):
        (folder / name).write_text("left over")
    more(Store(folder))
    assert not [path for path in folder.rglob("*") if path.is_file() and path.read_bytes() == b"left over"]


@pytest.mark.parametrize("link", [os.link, shutil.copy], ids=["hard link", "copy"])
def test_lock_that_is_another_file_is_not_emptied(folder: Path, tmp_path: Path, link: Callable[..., object]) -> None:
    thesis = tmp_path / "thesis.docx"
    thesis.write_text("precious")
    (folder / "lock").unlink()
    link(thesis, folder / "lock")
    with pytest.raises(NotAStore, match="lock is not the lock file of a store"):
        more(Store(folder))
    assert (thesis.read_text(), (folder / "lock").read_text()) == ("precious", "precious")


@pytest.mark.parametrize("name", ["rows.npy", "similarity.npy", "pairs.json"])
def test_links_in_a_result_of_near_duplicates_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "thesis.docx").write_text("precious")
    (tmp_path / "pairs" / name).symlink_to(tmp_path / "thesis.docx")
    with pytest.raises(Linked, match=f"{name} is a symbolic link"):
        all_pairs(Store(folder).snapshot(), tmp_path / "pairs", 3)
    assert (tmp_path / "thesis.docx").read_text() == "precious"


def test_saving_a_head_removes_only_earlier_heads(tmp_path: Path) -> None:
    names = [
        "head-notes.safetensors",
        "calibration-of-my-scale.json",
        "calibration.json",
        f"head-{'0' * 16}.safetensors",
    ]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / f"head-{'1' * 16}.safetensors").symlink_to(tmp_path / names[0])
    remove_files(tmp_path.parent, tmp_path.name, own=REPLACED_FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [names[1], f"head-{'1' * 16}.safetensors", names[0]]


def test_link_that_appears_later_is_not_followed(tmp_path: Path) -> None:
    """Between the check of a store and a removal, a folder may be exchanged for a link."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "000001.h5").touch()
    (tmp_path / "shards").symlink_to(outside)

    remove_files(tmp_path, "shards", own=SHARDS)
    assert (outside / "000001.h5").exists()
