"""A file that is cut short while it is open is a typed error, and never the end of the process by a signal.

Each test runs in a child process, whose exit code is negative if a signal ended it.
"""

import errno
import logging
import multiprocessing
import os
import random
import resource
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.core.npy_file import open_npy, read_npy
from clipfake.core.row_file import RowFile
from clipfake.errors import BackendDamaged, Damaged, SourceError, StoreError, Unreadable
from clipfake.store.concatenated import ConcatenatedSnapshot
from clipfake.store.exchange.export_rows import export_rows
from clipfake.store.exchange.import_rows import ImportDefaults, ImportFolder
from clipfake.store.maintenance.build_index import build_index
from clipfake.store.maintenance.near_duplicates import all_pairs
from clipfake.store.named_vectors import named_vectors_writer
from clipfake.store.search import ann_index, cell_file
from clipfake.store.search.exact import ExactSearch
from clipfake.store.store import Store

ROWS, DIM = 3000, 64
TIMEOUT = 300  # seconds, for a slow machine


def in_child(program: Callable[..., None], *arguments: Any) -> int | None:
    """Exit code of a function in a process of its own; negative if a signal ended it."""
    process = multiprocessing.get_context("spawn").Process(target=program, args=arguments)
    process.start()
    process.join(TIMEOUT)
    return process.exitcode


def filled(folder: Path, *, rows: int = ROWS, rows_per_shard: int = 1500) -> Store:
    store = Store.create(folder, space(DIM))
    with store.writer(rows_per_shard=rows_per_shard) as writer:
        for block in synthetic(rows, DIM, size=rows_per_shard):
            writer.append(block)
    return store


def lengths(path: Path) -> list[int]:
    size = path.stat().st_size
    return [0, 1, 4095, 4096, 8192, size // 2, size - 4097, size - 65_536, size // 3 * 2]


@contextmanager
def cut(path: Path, length: int) -> Iterator[None]:
    """Cut a file, as `cp` or `rsync --inplace` do, and write the rest again at the end of the block."""
    content = path.read_bytes()
    os.truncate(path, max(length, 0))
    yield
    with path.open("ab") as file:
        file.write(content[max(length, 0) :])


def require_error(read: Callable[[], Any], path: Path, error: type[Exception], where: list[int] | None = None) -> None:
    """Require that reading raises the error at each length of the file, and works again afterwards."""
    expected = read()
    for length in where or lengths(path):
        with cut(path, length), pytest.raises(error, match=path.name):
            read()
        assert np.array_equal(read(), expected)
    backup = path.with_name("backup")
    backup.write_bytes(path.read_bytes())
    os.truncate(path, 4096)
    backup.rename(path)  # a new file at the path
    assert np.array_equal(read(), expected)


def cut_shard(folder: Path) -> None:
    snapshot = filled(folder).snapshot()
    path = folder / "shards/000002.h5"
    last = np.arange(ROWS // 2, ROWS)
    short = [0, 4096, 8192, path.stat().st_size // 3]  # the vectors are in the first half of the file
    for positions in (None, last, np.random.default_rng(0).permutation(last)):
        require_error(lambda p=positions: snapshot.vectors(p), path, Damaged, short)  # type: ignore[misc]
    first = snapshot.vectors(np.arange(ROWS // 2))
    with cut(path, 4096):
        assert np.array_equal(snapshot.vectors(np.arange(ROWS // 2)), first)  # the other shard


def cut_named_vectors(folder: Path) -> None:
    store = filled(folder)
    with named_vectors_writer(folder, "other", space(DIM)) as writer:
        writer.put(np.arange(ROWS), writer.snapshot.vectors())
    view = ConcatenatedSnapshot(store.snapshot(), ["other"])
    [path] = (folder / "columns/other").glob("000002-*.f2")
    require_error(view.vectors, path, Damaged)


def cut_index(folder: Path) -> None:
    store = filled(folder)
    build_index(store, "plain")
    ann_index.exact_is_cheaper = lambda *_: False
    cell_file.most_kept = lambda: 0
    snapshot = store.snapshot()
    queries = snapshot.vectors(np.arange(5))
    exact, found = snapshot.search(queries, 3, recall=1), snapshot.search(queries, 3)
    [path] = (folder / "indexes").glob("knn-*/1.faiss")
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    ann_index.LOG.addHandler(handler)
    for length in (0, 4096, path.stat().st_size // 3):
        with cut(path, length):
            for _ in range(2):
                assert np.array_equal(snapshot.search(queries, 3).rows, exact.rows)
        assert np.array_equal(snapshot.search(queries, 3).rows, found.rows)
    assert len(messages) == 3 and "1.faiss was cut short" in messages[0]  # once for each cut
    for name in ("1.ids.npy", "1.cells.npy", "1.faiss", "index.json"):
        with cut(path.with_name(name), 30):
            assert np.array_equal(store.snapshot().search(queries, 3).rows, exact.rows)


def cut_import(folder: Path) -> None:
    export_rows(filled(folder / "s").snapshot(), folder / "exported", layout="numpy")
    path = folder / "exported/vectors.npy"
    opened = ImportFolder.open(folder / "exported")

    def read() -> Any:
        return np.concatenate([block.vectors for block in opened.blocks(opened.space or space(DIM), ImportDefaults())])

    require_error(read, path, SourceError)
    blocks = opened.blocks(opened.space or space(DIM), ImportDefaults())
    content = open_npy(path, SourceError)
    assert isinstance(content, RowFile)
    assert content[:1].shape == (1, DIM)
    with cut(path, 1000), pytest.raises(SourceError, match="cut short"):
        content[:1000]
    assert len(next(iter(blocks)))


def cut_work_files(folder: Path) -> None:
    snapshot = filled(folder / "s").snapshot()
    for name in ("rows.npy", "similarity.npy"):
        path = folder / name / name

        def shorten(done: int, rows: int, path: Path = path) -> None:
            os.truncate(path, 4096 if done < 2000 else 100)

        with pytest.raises(StoreError, match=rf"{name} was cut short.*remove the folder"):
            all_pairs(snapshot, path.parent, 4, on_progress=shorten, block_rows=1000)
        with pytest.raises(StoreError, match=rf"{name} cannot be read \(truncated"):
            all_pairs(snapshot, path.parent, 4)


def cut_at_random(folder: Path) -> None:
    """Search while another thread cuts a shard and an index and restores them."""
    store = filled(folder)
    build_index(store, "plain")
    ann_index.exact_is_cheaper = lambda *_: False
    cell_file.most_kept = lambda: 0
    snapshot = store.snapshot()
    exact = ExactSearch(snapshot, kept_bytes=0)  # reads the shards at each search
    queries = snapshot.vectors(np.arange(8))
    expected, near = exact.search(snapshot, queries, 5), snapshot.search(queries, 5)
    over = threading.Event()

    def attack() -> None:
        chance = random.Random(0)
        paths = [*folder.glob("shards/*.h5"), *folder.glob("indexes/*/*.faiss")]
        while not over.is_set():
            path = chance.choice(paths)
            with cut(path, chance.randrange(path.stat().st_size)):
                over.wait(chance.random() / 100)

    attacker = threading.Thread(target=attack)
    attacker.start()
    outcomes = {"right": 0, "error": 0}
    try:
        for _ in range(300):
            try:
                assert np.array_equal(exact.search(snapshot, queries, 5).rows, expected.rows)
                rows = snapshot.search(queries, 5).rows
                assert np.array_equal(rows, near.rows) or np.array_equal(rows[:, 0], np.arange(8))
                outcomes["right"] += 1
            except Damaged:
                outcomes["error"] += 1
    finally:
        over.set()
        attacker.join()
    assert outcomes["error"]
    assert np.array_equal(exact.search(snapshot, queries, 5).rows, expected.rows)


def cut_edge(folder: Path) -> None:
    from clipfake.store.backends.base import BackendFilter
    from clipfake.store.backends.push import PushOptions, push
    from clipfake.store.backends.qdrant import open_backend
    from clipfake.store.filter import Filter

    snapshot = filled(folder / "s").snapshot()
    backend = open_backend(folder / "edge")
    push(snapshot, backend, PushOptions(queries=0))
    queries = snapshot.vectors(np.arange(4))
    backend.search(queries, 5, BackendFilter(Filter()), None)
    for path in sorted(path for path in (folder / "edge").rglob("*") if path.is_file()):
        os.truncate(path, 0)
    with pytest.raises(BackendDamaged, match="ended by SIGBUS"):
        backend.search(queries, 5, BackendFilter(Filter()), None)
    with pytest.raises(BackendDamaged, match="delete the folder"):
        backend.search(queries, 5, BackendFilter(Filter()), None)
    backend.close()
    push(snapshot, open_backend(folder / "anew"), PushOptions(queries=0))


@pytest.mark.parametrize(
    "program",
    [cut_shard, cut_named_vectors, cut_index, cut_import, cut_work_files, cut_at_random, cut_edge],
    ids=lambda program: program.__name__,
)
def test_cut_file_is_a_typed_error(tmp_path: Path, program: Callable[[Path], None]) -> None:
    if program is cut_edge:
        pytest.importorskip("qdrant_edge", reason="the extra `qdrant` is not installed")
    assert in_child(program, tmp_path) == 0


def fill_the_disk(folder: Path, store: Path) -> None:
    from clipfake.store.backends.push import PushOptions, push
    from clipfake.store.backends.qdrant import open_backend
    from clipfake.store.backends.remote_search import RemoteStore

    snapshot = Store.open(store).snapshot()
    backend = open_backend(folder / "edge")
    with pytest.raises(StoreError):
        push(snapshot, backend, PushOptions(queries=0))
    backend.close()
    with pytest.raises(StoreError):
        RemoteStore(open_backend(folder / "edge"))


@pytest.mark.parametrize("megabytes", [1, 4, 8])
def test_full_disk_during_a_push_is_a_typed_error(tmp_path: Path, megabytes: int) -> None:
    pytest.importorskip("qdrant_edge", reason="the extra `qdrant` is not installed")
    filled(tmp_path / "s", rows=6000)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(disk)]
    if subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        assert in_child(fill_the_disk, disk, tmp_path / "s") == 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_failing_disk_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = filled(tmp_path / "s").snapshot()
    snapshot.vectors()

    def failing(*_: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", failing)
    monkeypatch.setattr(os, "pread", failing)
    for positions in (None, np.array([5, 900])):
        with pytest.raises(Unreadable, match=r"000001\.h5 cannot be read now"):
            snapshot.vectors(positions)


def use_few_descriptors(folder: Path) -> None:
    snapshot = filled(folder, rows=1200, rows_per_shard=10).snapshot()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    in_use = os.open(os.devnull, os.O_RDONLY)  # the number of the next descriptor
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * in_use + 20, hard))
    for _ in range(2):
        assert snapshot.vectors().shape == (1200, DIM)
    assert np.array_equal(snapshot.vectors()[::7], snapshot.vectors(np.arange(0, 1200, 7)))


def test_store_of_more_shards_than_descriptors_is_read(tmp_path: Path) -> None:
    assert in_child(use_few_descriptors, tmp_path / "s") == 0


def test_rows_of_a_file_are_those_of_the_array(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.standard_normal((3000, 48)).astype(np.float16)
    path = tmp_path / "rows"
    path.write_bytes(b"before" + array.tobytes())
    file = RowFile(path, np.float16, array.shape, offset=6, error=Damaged)
    for _ in range(100):
        rows = rng.integers(0, 3000, rng.integers(1, 2500))
        for selection in (rows, np.sort(rows), np.unique(rows), rng.random(3000) < rng.random()):
            assert np.array_equal(file[selection], array[selection])
            count = len(array[selection])
            slots, target, expected = rng.permutation(4000)[:count], np.zeros((4000, 48)), np.zeros((4000, 48))
            if selection.dtype != np.bool_:
                file.copy_to(target, slots, selection)
                expected[slots] = array[selection]
                assert np.array_equal(target, expected)
        start, stop = np.sort(rng.integers(0, 3001, 2)).tolist()
        for step in (1, 7, -1):
            assert np.array_equal(file[start:stop:step], array[start:stop:step])
        for dtype in (np.float16, np.float32):
            target = np.zeros((4000, 48), dtype)
            file.copy_to(target, slice(500, 500 + stop - start), slice(start, stop))
            assert np.array_equal(target[500 : 500 + stop - start], array[start:stop])
    assert np.array_equal(file[-1], array[-1])
    with pytest.raises(IndexError):
        file[np.array([0, 3000])]


def test_file_replaced_while_it_was_closed_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    np.zeros((10, 4), np.float32).tofile(path)
    file = RowFile(path, np.float32, (10, 4), error=Damaged)
    np.ones((10, 4), np.float32).tofile(tmp_path / "new")
    (tmp_path / "new").rename(path)
    assert not file[:].any()  # it is open
    file.close()
    with pytest.raises(Damaged, match="replaced by another file"):
        file[:]


@pytest.mark.parametrize("kept", [0, 50_000, 10**9])
@pytest.mark.parametrize("kind", ["plain", "quantized"])
def test_index_read_in_parts_finds_the_same(
    tmp_path: Path, kind: ann_index.Kind, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path / "s")
    build_index(store, kind)
    monkeypatch.setattr(cell_file, "most_kept", lambda: kept)
    snapshot = store.snapshot()
    [folder] = ann_index.folders(store.folder)
    queries = snapshot.vectors(np.arange(0, ROWS, 100))
    found = []
    for mapped in (True, False):
        labels = ann_index.open_index(folder, snapshot.space, mapped=mapped).labels
        found += [[cells.search(queries, 10, rows) for rows in (1, 300, ROWS)] for _, cells, _ in labels]
    half = len(found) // 2
    for of_file, of_memory in zip(found[:half], found[half:], strict=True):
        for one, other in zip(of_file, of_memory, strict=True):
            assert [set(row) for row in one.tolist()] == [set(row) for row in other.tolist()]


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_files_are_read_as_numpy_reads_them(tmp_path: Path, order: Any) -> None:
    for dtype in ("<f2", ">f4", "<i8"):
        array = np.asarray(np.arange(60).reshape(20, 3), dtype, order=order)
        np.save(tmp_path / "a.npy", array)
        assert np.array_equal(read_npy(tmp_path / "a.npy", SourceError), array)
        assert np.array_equal(open_npy(tmp_path / "a.npy", SourceError)[3:7], array[3:7])


def test_npy_files_of_objects_and_short_ones_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([object()]), allow_pickle=True)
    np.save(tmp_path / "short.npy", np.zeros((100, 100)))
    os.truncate(tmp_path / "short.npy", 5000)
    np.save(tmp_path / "one.npy", np.float32(3))
    (tmp_path / "text.npy").write_text("dear all")
    for name, message in (("objects", "objects"), ("short", "truncated"), ("one", "one value"), ("text", "magic")):
        with pytest.raises(ValueError, match=message):
            open_npy(tmp_path / f"{name}.npy", SourceError)
