"""Writing, reading, deleting and searching rows of a store."""

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from clipfake.errors import BadBlock, Damaged, Locked, NoStore, NotAStore, SpaceMismatch
from clipfake.store.filter import Filter
from clipfake.store.key_index import KeyIndex
from clipfake.store.records import FAKE, REAL, Block, Rows, invalid_rows, names, to_float16
from clipfake.store.shard import Shard, write_shard
from clipfake.store.space import Space
from clipfake.store.store import Store
from clipfake.store.writer import AppendCounts
from hypothesis import given, settings
from hypothesis import strategies as st

SPACE = Space("toy", "f" * 64, dim=4)


def block(*keys: str, label: int = REAL, digest: int = 1, space: Space = SPACE) -> Block:
    """Rows whose vectors follow from their keys."""
    vectors = np.array([np.random.default_rng(list(key.encode())).normal(size=space.dim) for key in keys])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    digests = np.full((len(keys), 16), digest, np.uint8).view("V16").reshape(-1)
    sources = [key.split("/")[0] for key in keys]
    rows = Rows.make(keys, [label] * len(keys), digests=digests, sources=sources, categories=["cat"] * len(keys))
    thumbnails = tuple(key.encode() for key in keys)
    return Block(space, rows, vectors.astype(np.float32), thumbnails, {"cat": np.ones(space.dim, np.float32)})


def stored(folder: Path, *blocks: Block, **options: float) -> Store:
    store = Store.create(folder, SPACE)
    with store.writer(**options) as writer:  # type: ignore[arg-type]
        for added in blocks:
            writer.append(added)
    return store


def test_written_rows_are_read_back(tmp_path: Path) -> None:
    expected = block("a/1.jpg", "b/é ü.png", label=FAKE)
    snapshot = stored(tmp_path / "s", expected).snapshot()
    for name in vars(expected.rows):
        assert getattr(snapshot.rows, name).tolist() == getattr(expected.rows, name).tolist(), name
    assert np.allclose(snapshot.vectors(), expected.vectors, atol=1e-3)
    assert [snapshot.thumbnail(i) for i in range(2)] == list(expected.thumbnails)
    assert snapshot.texts["cat"].tolist() == [1, 1, 1, 1]


def test_appending_the_same_rows_twice_is_a_no_op(tmp_path: Path) -> None:
    store = stored(tmp_path / "s", block("a/1", "a/2"))
    before = store.snapshot().number
    with store.writer() as writer:
        assert writer.append(block("a/2", "a/1")) == AppendCounts(known=2)
    assert (store.snapshot().number, len(store.snapshot())) == (before, 2)


def test_changed_file_replaces_its_row(tmp_path: Path) -> None:
    store = stored(tmp_path / "s", block("a/1", "a/2"))
    before = (tmp_path / "s/shards/000001.h5").read_bytes()
    with store.writer() as writer:
        assert writer.append(block("a/1", "a/3", digest=2)) == AppendCounts(added=1, replaced=1)
    assert store.snapshot().rows.keys.tolist() == ["a/2", "a/1", "a/3"]
    assert (tmp_path / "s/shards/000001.h5").read_bytes() == before


def test_rows_are_found_by_key_and_deleted_by_mask(tmp_path: Path) -> None:
    store = stored(tmp_path / "s", block("a/1", "b/1"), block("a/2"), rows_per_shard=2)
    with store.writer() as writer:
        assert writer.find(["a/2", "zzz", "a/1"]).tolist() == [2, -1, 0]
        assert writer.delete(writer.snapshot.rows.sources == "a") == 2
    snapshot = store.snapshot()
    assert snapshot.rows.keys.tolist() == ["b/1"]
    assert np.allclose(snapshot.vectors(), block("b/1").vectors, atol=1e-3)


def test_deleted_row_can_be_added_again(tmp_path: Path) -> None:
    store = stored(tmp_path / "s", block("a/1"))
    with store.writer() as writer:
        writer.delete(np.array([True]))
    with store.writer() as writer:
        assert writer.append(block("a/1")).added == 1
    assert store.snapshot().rows.keys.tolist() == ["a/1"]


def test_reader_sees_one_snapshot_during_writes(tmp_path: Path) -> None:
    store = stored(tmp_path / "s", block("a/1"))
    reader = store.snapshot()
    with store.writer() as writer:
        writer.delete(np.array([True]))
        writer.append(block("a/9"))
    assert reader.rows.keys.tolist() == ["a/1"]
    assert len(reader.vectors()) == 1


def test_outdated_mask_deletes_nothing(tmp_path: Path) -> None:
    store = stored(tmp_path / "s", block("a/1", "a/2"))
    with store.writer() as writer:
        where = writer.snapshot.column("keys") == "a/1"
        writer.append(block("a/3"))
        with pytest.raises(BadBlock, match=r"pass a bool array of shape \(3,\)"):
            writer.delete(where)
    assert store.snapshot().rows.keys.tolist() == ["a/1", "a/2", "a/3"]


def test_undo_restores_an_earlier_snapshot(tmp_path: Path) -> None:
    store = stored(tmp_path / "s", block("a/1"))
    number = store.snapshot().number
    with store.writer() as writer:
        writer.delete(np.array([True]))
    assert len(store.snapshot()) == 0
    assert store.undo(number).rows.keys.tolist() == ["a/1"]


def test_two_writers_exclude_each_other(tmp_path: Path) -> None:
    store = stored(tmp_path / "s")
    with store.writer(), pytest.raises(Locked, match="is being written by process"), store.writer():
        pass


def test_each_writer_leaves_one_snapshot(tmp_path: Path) -> None:
    store = stored(tmp_path / "s", *(block(f"a/{i}") for i in range(5)), rows_per_shard=1)
    assert [len(store.snapshot(m.number)) for m in store.snapshots()] == [0, 5]


def test_rows_appended_before_an_error_are_kept(tmp_path: Path) -> None:
    store = stored(tmp_path / "s")
    with pytest.raises(ZeroDivisionError), store.writer() as writer:
        writer.append(block("a/1"))
        raise ZeroDivisionError
    assert store.snapshot().rows.keys.tolist() == ["a/1"]


def test_search_finds_the_nearest_allowed_rows(tmp_path: Path) -> None:
    added = block(*(f"a/{i}" for i in range(50)))
    snapshot = stored(tmp_path / "s", added, rows_per_shard=7).snapshot()
    where = np.arange(50) % 3 == 0
    matches = snapshot.search(added.vectors[:5], k=4, where=where)
    truth = np.argsort(-np.where(where, snapshot.vectors()[:5] @ snapshot.vectors().T, -9), axis=1)[:, :4]
    assert matches.rows.tolist() == truth.tolist()
    assert (np.diff(matches.similarity, axis=1) <= 0).all()


def test_missing_neighbours_are_minus_one(tmp_path: Path) -> None:
    matches = stored(tmp_path / "s", block("a/1")).snapshot().search(block("a/1").vectors, k=3)
    assert matches.rows.tolist() == [[0, -1, -1]]
    assert np.isnan(matches.similarity[0, 1:]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_zero_and_non_finite_vectors_are_refused(tmp_path: Path, value: float) -> None:
    bad = block("a/1", "a/2")
    bad.vectors[1] = value
    with pytest.raises(BadBlock, match="a/2"):
        stored(tmp_path / "s", bad)
    assert len(Store.open(tmp_path / "s").snapshot()) == 0


@pytest.mark.parametrize("limit", [0, 2**-25, 2**-24, 65504, 65520, np.inf, np.nan])
def test_float32_vectors_are_refused_as_their_float16_would_be(limit: float) -> None:
    single = np.float32(limit)
    near_limit = np.array([single, np.nextafter(single, np.float32(0)), np.nextafter(single, np.float32(1e9))])
    vectors = np.zeros((6, 3), np.float32)
    vectors[:, 1] = np.concatenate([near_limit, -near_limit])
    expected = invalid_rows(to_float16(vectors)).tolist()
    assert invalid_rows(vectors).tolist() == invalid_rows(vectors.astype(np.float64)).tolist() == expected
    half = to_float16(vectors).astype(np.float32)
    assert expected == np.flatnonzero(~np.isfinite(half).all(1) | ~half.any(1)).tolist()


def test_repeated_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadBlock, match="a/1 was appended twice"):
        stored(tmp_path / "s", block("a/1"), block("a/1"))


def test_spaces_do_not_mix(tmp_path: Path) -> None:
    other = Space("other", "0" * 64, dim=4)
    stored(tmp_path / "s")
    with pytest.raises(SpaceMismatch, match="toy"):
        Store.create(tmp_path / "s", other)
    with pytest.raises(SpaceMismatch, match="other"):
        stored(tmp_path / "s", block("a/1", space=other))


def test_empty_or_foreign_folder_is_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(NoStore, match="clipfake index"):
        Store.open(tmp_path)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(NotAStore, match="is not a store"):
        Store.create(tmp_path, SPACE)


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "foreign", "newer"])
def test_damaged_shard_is_reported(tmp_path: Path, damage: str) -> None:
    store = stored(tmp_path / "s", block("a/1", "a/2"))
    path = tmp_path / "s/shards/000001.h5"
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[content.index(b"a/1a/2")] ^= 1
        path.write_bytes(content)
    else:
        with h5py.File(path, "a") as file:
            file.attrs["format" if damage == "foreign" else "version"] = "x" if damage == "foreign" else 99
    with pytest.raises((Damaged, NotAStore), match=r"000001\.h5"):
        _ = store.snapshot().rows


def test_altered_manifest_is_refused(tmp_path: Path) -> None:
    store = stored(tmp_path / "s", block("a/1"))
    path = max((tmp_path / "s/snapshots").glob("*.json"))
    content = json.loads(path.read_text())
    content["parts"][0]["rows"] = 7
    path.write_text(json.dumps(content))
    with pytest.raises(Damaged, match="altered"):
        store.snapshot()


def test_keys_with_equal_hashes_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def same(keys: list[str]) -> np.ndarray:
        return np.zeros(len(keys), np.uint64)

    monkeypatch.setattr("clipfake.store.writer.hash_keys", same)
    monkeypatch.setattr("clipfake.store.snapshot.hash_keys", same)
    store = stored(tmp_path / "s", block("a/1", "a/2"), block("a/3"), rows_per_shard=1)
    with store.writer() as writer:
        assert writer.append(block("a/4", "a/2")) == AppendCounts(added=1, known=1)
        assert writer.append(block("a/1", digest=2)) == AppendCounts(replaced=1)
    assert store.snapshot().find(["a/1", "a/2", "a/3", "a/4", "a/5"]).tolist() == [3, 0, 1, 2, -1]


@given(st.lists(st.lists(st.integers(0, 9), max_size=20), max_size=12))
def test_key_index_finds_ids_added_in_any_order(batches: list[list[int]]) -> None:
    keys, ids = KeyIndex(), iter(range(1000))
    truth = []
    for batch in batches:
        added = [(h, next(ids)) for h in batch]
        keys.add(np.array(batch, np.uint64), np.array([i for _, i in added], np.int64))
        truth += added
    queried, found_ids = keys.candidates(np.arange(10, dtype=np.uint64))
    assert sorted(zip(queried.tolist(), found_ids.tolist(), strict=True)) == sorted(truth)


def test_blocks_together_are_the_whole_store(tmp_path: Path) -> None:
    snapshot = stored(
        tmp_path / "s", *(block(*(f"{s}/{i}" for i in range(9))) for s in "ab"), rows_per_shard=7
    ).snapshot()
    where = np.arange(18) % 4 > 0
    blocks = list(snapshot.blocks(5, where))
    assert [len(b) for b in blocks] == [5, 5, 3]
    assert [key for b in blocks for key in b.rows.keys.tolist()] == snapshot.rows.keys[where].tolist()
    assert np.array_equal(np.concatenate([b.vectors for b in blocks]), snapshot.vectors(where))
    backwards = next(snapshot.blocks(18, np.arange(18)[::-1]))
    assert backwards.rows.keys.tolist() == snapshot.rows.keys.tolist()[::-1]


def test_referenced_snapshot_keeps_its_files(tmp_path: Path) -> None:
    store = stored(tmp_path / "s", block("a/1", "a/2"))
    with store.writer() as writer:
        writer.append(block("a/3"))
        writer.seal()
        held = store.snapshot()
        writer.delete(np.array([True, False, True]))
    with store.writer() as writer:
        writer.append(block("a/4"))
    assert held.rows.keys.tolist() == ["a/1", "a/2", "a/3"]
    assert held.number in [m.number for m in store.snapshots()]


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    store = stored(tmp_path / "s", block("a/1"))
    (tmp_path / "s/shards/000002.h5").write_bytes(b"sealed but never committed")
    (tmp_path / "s/shards/000003.h5.77.tmp").write_bytes(b"half")
    with store.writer() as writer:
        writer.append(block("a/2"))
    assert sorted(p.name for p in (tmp_path / "s/shards").iterdir()) == ["000001.h5", "000002.h5"]
    assert len(store.snapshot()) == 2


TEXTS = st.text("ab\0 é", max_size=3)


@settings(max_examples=300)
@given(st.lists(TEXTS, min_size=1, max_size=12), st.lists(TEXTS | st.just("\ud800"), min_size=1, max_size=4))
def test_filter_matches_values_exactly(stored: list[str], selected: list[str]) -> None:
    """A NUL at the end of a value counts, although numpy would drop it."""

    class Rows(list[str]):
        def column(self, name: str) -> Any:
            return names(self)

    allowed = Filter(source=selected).mask(Rows(stored))  # type: ignore[arg-type]
    assert allowed.tolist() == [word in selected for word in stored]
    excluded = Filter(exclude_source=selected).mask(Rows(stored))  # type: ignore[arg-type]
    assert excluded.tolist() == [word not in selected for word in stored]


@pytest.fixture(scope="module")
def thumbnail_shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    """A shard of 100 rows with thumbnails of different lengths, every seventh row without one."""
    vectors = np.eye(100, dtype=np.float32)
    rows = Rows.make([str(i) for i in range(100)], [REAL] * 100)
    thumbnails = tuple(bytes([i]) * (i % 7 * 5) for i in range(100))
    path = tmp_path_factory.mktemp("thumbnails") / "000001.h5"
    write_shard(path, Block(Space("toy", "0" * 64, 100), rows, vectors, thumbnails))
    return Shard(path)


@given(st.lists(st.integers(0, 99), max_size=30), st.booleans())
def test_some_thumbnails_are_read_without_reading_all(
    thumbnail_shard: Shard, rows: list[int], before_digests: bool
) -> None:
    shard = Shard(thumbnail_shard.path)
    if before_digests:  # as in shards of older releases
        del shard.header.checksums["thumbnails/digests"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipfake.store.shard.ROWS_READ", 32)
        if not before_digests:
            patch.setattr(Shard, "check", lambda *_: pytest.fail("all thumbnails were read"))
        thumbnails = shard.thumbnails_of(np.array(rows, np.int64))
    assert thumbnails == [thumbnail_shard.thumbnails()[row] for row in rows]


def test_damaged_thumbnail_affects_only_its_group(thumbnail_shard: Shard, tmp_path: Path) -> None:
    path = tmp_path / "000001.h5"
    shutil.copy(thumbnail_shard.path, path)
    with h5py.File(path, "r+") as file:
        file["thumbnails/bytes"][int(file["thumbnails/ends"][40]) - 1] ^= 1
    shard, hidden = Shard(path), []
    for row in range(100):
        try:
            assert shard.thumbnails_of(np.array([row])) == [thumbnail_shard.thumbnails()[row]]
        except Damaged as e:
            assert "thumbnails/bytes was altered" in str(e)
            hidden.append(row)
    assert hidden == list(range(32, 48))
