"""Whatever happens to a store's files, committed data is read back unchanged or its damage is reported."""

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.errors import ClipfakeError, NoStore
from clipfake.store.maintenance.build_index import build_index
from clipfake.store.maintenance.repair import repair
from clipfake.store.maintenance.verify import verify
from clipfake.store.records import Block, Rows
from clipfake.store.store import Store

ROWS, DIM = 700, 8
FILES = [
    "snapshots/000000.json",
    "snapshots/000002.json",
    "snapshots/000003.json",
    "shards/000001.h5",
    "shards/000002.h5",
    "deleted/000001-000003.u4",
    "indexes/knn-000003/index.json",
    "indexes/knn-000003/0.faiss",
    "indexes/knn-000003/1.ids.npy",
    "indexes/knn-000003/1.cells.npy",
]


def blocks() -> list[Block]:
    result = []
    for block in synthetic(ROWS, DIM, seed=4, size=400):
        thumbnails = tuple(key.encode() for key in block.rows.keys)
        texts = {name: np.ones(DIM, np.float32) for name in block.rows.categories}
        result.append(Block(block.space, block.rows, block.vectors, thumbnails, texts))
    return result


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 400 and 300 rows with thumbnails and texts, rows 100 to 149 deleted, and an index."""
    folder = tmp_path_factory.mktemp("whole") / "s"
    store = Store.create(folder, space(DIM))
    with store.writer(rows_per_shard=400) as writer:
        for block in blocks():
            writer.append(block)
    with store.writer() as writer:
        writer.delete((np.arange(ROWS) >= 100) & (np.arange(ROWS) < 150))
    build_index(store, "plain")
    assert sorted(path for path in FILES if not (folder / path).is_file()) == []
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "s")
    return tmp_path / "s"


def contents(folder: Path) -> dict[str, Any]:
    """Everything the store holds of its rows, by key; texts under the key ""."""
    snapshot = Store.open(folder).snapshot()
    rows, vectors = snapshot.rows, snapshot.vectors()
    columns = [getattr(rows, f.name).tolist() for f in fields(Rows)]
    thumbnails = [snapshot.thumbnail(i) if i % 60 == 0 else b"" for i in range(len(snapshot))]
    values = zip(*columns, vectors.tolist(), thumbnails, strict=True)
    return dict(zip(rows.keys.tolist(), values, strict=True)) | {"": {k: v.tolist() for k, v in snapshot.texts.items()}}


def harmless_or_reported(folder: Path, path: str, original: dict[str, Any]) -> bool:
    """Return True if the damage was reported; fails if it was neither reported nor harmless."""
    health = verify(folder)
    reported_path = path.rsplit("/", 1)[0] if path.startswith("indexes/") else path
    if not health.sound:
        assert reported_path in {problem.path for problem in health.problems}
        return True
    assert contents(folder) == original
    return False


def test_sound_store_has_no_problems(whole: Path) -> None:
    health = verify(whole)
    assert (health.problems, health.notes, health.rows) == ((), (), ROWS - 50)
    assert repair(whole).actions == ()


def test_empty_folder_is_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(NoStore):
        verify(tmp_path)
    with pytest.raises(NoStore):
        repair(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", FILES)
def test_flipped_bits_are_harmless_or_reported(folder: Path, path: str) -> None:
    original, content = contents(folder), (folder / path).read_bytes()
    rng = np.random.default_rng(len(content))
    reported = 0
    for offset in rng.integers(0, len(content), 6).tolist():
        altered = bytearray(content)
        altered[offset] ^= 1 << int(rng.integers(8))
        (folder / path).write_bytes(altered)
        reported += harmless_or_reported(folder, path, original)
    assert reported > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)  # of 1,500 bytes each
@pytest.mark.parametrize("path", FILES)
def test_every_flipped_byte_is_harmless_or_reported(folder: Path, path: str) -> None:
    original, content = contents(folder), (folder / path).read_bytes()
    for offset in range(0, len(content), max(1, len(content) // 1500)):
        altered = bytearray(content)
        altered[offset] ^= 255
        (folder / path).write_bytes(altered)
        harmless_or_reported(folder, path, original)


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("keep", [0.5, *(pytest.param(keep, marks=pytest.mark.slow) for keep in (0.0, -1))])
def test_truncated_files_are_reported_and_repaired(folder: Path, path: str, keep: float) -> None:
    original, content = contents(folder), (folder / path).read_bytes()
    (folder / path).write_bytes(content[:-1] if keep < 0 else content[: int(keep * len(content))])
    if not harmless_or_reported(folder, path, original):
        return  # the last byte of a manifest is a line break
    check_repair(folder, path, original)


@pytest.mark.parametrize("path", FILES)
def test_missing_files_are_reported_and_repaired(folder: Path, path: str) -> None:
    original = contents(folder)
    (folder / path).unlink()
    if path.startswith("snapshots/"):  # the store is then at an older snapshot, and reports it
        assert verify(folder).snapshot == (2 if "3" in path else 3)
        return
    assert harmless_or_reported(folder, path, original)
    check_repair(folder, path, original)


def check_repair(folder: Path, path: str, original: dict[str, Any]) -> None:
    """After a repair the store is sound, and only the contents of the damaged file may be missing."""
    report = repair(folder)
    assert report.actions
    assert verify(folder).problems == ()
    remaining = contents(folder)
    lost = {key for key in original if key not in remaining}
    if path == "shards/000002.h5":
        assert report.lost == 300
        assert lost == {key for key in original if key and int(key[-13:-4]) >= 400}
    elif path == "shards/000001.h5":
        assert report.lost == 350
        assert lost == {key for key in original if key and int(key[-13:-4]) < 400}
    else:
        assert (report.lost, lost) == (0, set())
    extra = {key for key in remaining if key not in original}
    if path.startswith("deleted/"):
        assert len(extra) == 50  # deleted rows came back, and the report says so
        assert any("50 deleted rows" in action.what for action in report.actions)
    else:
        assert extra == set()
    assert all(remaining[key][:-1] == original[key][:-1] for key in remaining if key in original and key)
    with Store.open(folder).writer() as writer:  # appending again restores the lost rows
        for block in blocks():
            writer.append(block)
    assert contents(folder).keys() >= original.keys()


def flip_bit(folder: Path, dataset: str, offset: int) -> None:
    """Flip a bit in a dataset of the second shard, at a byte offset within it."""
    path = folder / "shards/000002.h5"
    with h5py.File(path) as file:
        offset += file[dataset].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset] ^= 16
    path.write_bytes(content)


def test_only_rows_with_damaged_vectors_are_dropped(folder: Path) -> None:
    flip_bit(folder, "vectors", 290 * DIM * 2)
    [problem] = verify(folder).problems
    assert (problem.path, problem.rows, problem.lost) == ("shards/000002.h5", ((256, 300),), 44)
    report = repair(folder)
    assert (report.lost, report.rows) == (44, ROWS - 50 - 44)
    assert verify(folder).sound
    assert len(contents(folder)) == ROWS - 50 - 44 + 1


@pytest.mark.parametrize("dataset", ["thumbnails/bytes", "texts/vectors"])
def test_damaged_thumbnails_and_texts_cost_no_row(folder: Path, dataset: str) -> None:
    flip_bit(folder, dataset, 5)
    [problem] = verify(folder).problems
    assert (problem.path, problem.lost) == ("shards/000002.h5", 0)
    report = repair(folder)
    assert (report.lost, report.rows) == (0, ROWS - 50)
    assert verify(folder).sound


def test_repair_handles_damaged_vectors_and_thumbnails(folder: Path) -> None:
    original = contents(folder)
    flip_bit(folder, "thumbnails/bytes", 5)
    flip_bit(folder, "vectors", 290 * DIM * 2)
    problems = verify(folder).problems
    assert [(problem.path, problem.lost) for problem in problems] == [("shards/000002.h5", 0), ("shards/000002.h5", 44)]
    report = repair(folder)
    assert (report.lost, report.rows) == (44, ROWS - 50 - 44)
    assert verify(folder).sound
    remaining = contents(folder)
    assert all(remaining[key][:-1] == original[key][:-1] for key in remaining if key)


def test_damaged_thumbnail_is_not_returned(folder: Path) -> None:
    flip_bit(folder, "thumbnails/bytes", 5)
    with pytest.raises(ClipfakeError, match=r"000002\.h5"):
        Store.open(folder).snapshot().thumbnail(400 - 50)  # the first row of the second shard


def test_repair_restores_a_store_without_manifests(folder: Path) -> None:
    original = contents(folder)
    for path in (folder / "snapshots").iterdir():
        path.write_text("{")
    report = repair(folder)
    assert (report.rows, report.lost) == (ROWS - 50, 0)
    assert contents(folder) == original


def test_rows_replaced_in_a_lost_snapshot_stay_replaced(folder: Path) -> None:
    [first, _] = blocks()
    changed = Rows(**{**vars(first.rows.take(slice(0, 5))), "digests": np.zeros(5, "V16")})
    with Store.open(folder).writer() as writer:
        writer.append(Block(first.space, changed, -first.vectors[:5]))
    original = contents(folder)
    (folder / "snapshots/000004.json").write_text("")
    (folder / "deleted/000001-000004.u4").unlink()
    assert repair(folder).lost == 0
    assert contents(folder) == original


def test_leftovers_are_notes_not_damage(folder: Path) -> None:
    (folder / "shards/000009.h5").write_bytes(b"never committed")
    (folder / "shards/000010.h5.7.tmp").touch()
    health = verify(folder)
    assert health.sound
    assert [note.path for note in health.notes] == ["shards/000009.h5", "shards/000010.h5.7.tmp"]


def test_files_that_are_not_verified_are_not_counted(folder: Path) -> None:
    before = verify(folder)
    (folder / "heads" / "default").mkdir(parents=True)
    (folder / "heads" / "default" / "head.json").write_text("altered")
    assert verify(folder) == before
    others = {"lock", "indexes/lock", "heads/default/head.json"}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert before.files == len(files - others) == len(files) - 3
    assert before.sound


def test_stale_index_is_a_note(folder: Path) -> None:
    with Store.open(folder).writer() as writer:
        writer.delete(np.arange(ROWS - 50) == 3)
    health = verify(folder)
    assert (health.sound, [note.path for note in health.notes]) == (True, ["indexes/knn-000003"])


def test_duplicate_keys_are_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [first, _] = blocks()
    with Store.open(folder).writer() as writer:
        monkeypatch.setattr(writer, "find", lambda keys, hashes: np.full(len(keys), -1))
        writer.append(first.take(slice(0, 3)))
    [problem] = verify(folder).problems
    assert "3 duplicate keys" in problem.what
