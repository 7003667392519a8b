"""A power failure keeps what was flushed, and any part of what was not: no store is damaged, no committed row is lost.

The changes of folder entries are recorded, with the flushes between them. At each moment, the entries that were not
flushed may be on the disk or not, each independently of the others.
"""

import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space, synthetic
from clipfake.store.filter import Filter
from clipfake.store.maintenance.build_index import build_index
from clipfake.store.maintenance.compact import compact
from clipfake.store.maintenance.repair import repair
from clipfake.store.maintenance.verify import verify
from clipfake.store.named_vectors import named_vectors_writer
from clipfake.store.store import Store

DIM = 4
BLOCKS = list(synthetic(60, DIM, seed=1, size=20))
NOW = timedelta(0)

Entries = dict[str, bytes]  # file, relative to the store -> content
Step = list[tuple[str, bytes | None]]  # contents of files, None for one that goes; on the disk as a whole or not


class Disk:
    """Records how the files of a folder change, and which changes were flushed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.durable: Entries = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        self.pending: list[Step] = []  # not flushed
        self.flushed_files: dict[int, bytes] = {}  # by inode
        self.moments: list[tuple[Entries, list[Step]]] = []

    def name(self, path: Any, dir_fd: int | None = None) -> str | None:
        if dir_fd is not None:
            path = Path(f"/proc/self/fd/{dir_fd}").readlink() / path
        path = Path(path)
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else None

    def record(self, *entries: tuple[str | None, bytes | None]) -> None:
        step = [(name, content) for name, content in entries if name and not name.endswith("lock")]
        if step:
            self.pending.append(step)
            self.moments.append((dict(self.durable), list(self.pending)))

    def flush(self, folder: str) -> None:
        """The entries of a folder, and all that happened to the same files before, are on the disk."""
        remaining = []
        for step in self.pending:
            if any(str(Path(name).parent) == (folder or ".") for name, _ in step):
                _apply(self.durable, step)
            else:
                remaining.append(step)
        self.pending = remaining
        self.moments.append((dict(self.durable), list(self.pending)))


def _apply(entries: Entries, step: Step) -> None:
    for name, content in step:
        if content is None:
            entries.pop(name, None)
        else:
            entries[name] = content


@contextmanager
def recorded(root: Path) -> Iterator[Disk]:
    disk = Disk(root)
    unlink = os.unlink

    def content(path: Any) -> bytes:
        """What a power failure leaves of a file: all of it if it was flushed, else half."""
        written = Path(path).read_bytes()
        return written if disk.flushed_files.get(Path(path).stat().st_ino) == written else written[: len(written) // 2]

    def moved(real: Any, removes: bool) -> Any:
        def move(source: Any, target: Any, **options: Any) -> None:
            old, new = disk.name(source), disk.name(target)
            steps: list[tuple[str | None, bytes | None]]
            if Path(source).is_dir():
                files = [p for p in Path(source).rglob("*") if p.is_file()]
                steps = [(f"{old}/{p.relative_to(source)}", None) for p in files]
                steps += [(f"{new}/{p.relative_to(source)}", content(p)) for p in files]
            else:
                steps = [(old, None)] if removes else []
                steps.append((new, content(source)))
            real(source, target, **options)
            disk.record(*steps)

        return move

    def unlinked(path: Any, *, dir_fd: int | None = None) -> None:
        name = disk.name(path, dir_fd)
        unlink(path, dir_fd=dir_fd)
        disk.record((name, None))

    def flushed(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if path.is_dir() and path.is_relative_to(root):
            disk.flush("" if path == root else str(path.relative_to(root)))
        elif path.is_file():
            disk.flushed_files[os.fstat(handle).st_ino] = path.read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", moved(os.rename, True))
        patch.setattr(os, "replace", moved(os.replace, True))
        patch.setattr(os, "link", moved(os.link, False))
        patch.setattr(os, "unlink", unlinked)
        patch.setattr(os, "fsync", flushed)
        yield disk


def outcomes(disk: Disk, seed: int) -> Iterator[Entries]:
    """The possible contents of the disk after a power failure at each moment, each once."""
    rng, seen = random.Random(seed), set()
    for durable, pending in disk.moments:
        choices: list[tuple[bool, ...]] = list(itertools.product((False, True), repeat=min(len(pending), 6)))
        if len(pending) > 6:
            single = [tuple(i == j for i in range(len(pending))) for j in range(len(pending))]
            choices = [*single, *(tuple(not taken for taken in one) for one in single)]
            choices += [tuple(rng.random() < 0.5 for _ in pending) for _ in range(20)]
            choices += [tuple(i < j for i in range(len(pending))) for j in range(len(pending) + 1)]
        for choice in choices:
            entries = dict(durable)
            for taken, step in zip(choice, pending, strict=True):
                if taken:
                    _apply(entries, step)
            key = frozenset((name, hash(content)) for name, content in entries.items())
            if key not in seen:
                seen.add(key)
                yield entries


def prepared(folder: Path) -> Store:
    """40 rows in two shards, 5 of them deleted, with named vectors and an index."""
    store = Store.create(folder, space(DIM))
    with store.writer(rows_per_shard=20) as writer:
        for block in BLOCKS[:2]:
            writer.append(block)
    with named_vectors_writer(folder, "other", space(DIM)) as vectors:
        vectors.put(np.arange(40), vectors.snapshot.vectors())
    with store.writer() as writer:
        writer.delete(np.arange(40) < 5)
    build_index(store, "plain")
    return store


def torn(folder: Path) -> Store:
    """As a copy that was made during a compaction, which `repair` can make whole."""
    store = prepared(folder)
    whole = {path: path.read_bytes() for path in (folder / "shards").iterdir()}
    compact(store, grace=NOW)
    for path in (folder / "shards").iterdir():
        path.unlink()
    for path, content in whole.items():
        path.write_bytes(content)
    return store


def append(store: Store) -> None:
    with store.writer(rows_per_shard=10) as writer:
        writer.append(BLOCKS[2].take(slice(0, 10)))
        writer.append(BLOCKS[2].take(slice(10, 20)))


def tidied(store: Store) -> None:
    """A compaction that keeps earlier snapshots, and a writer that removes them."""
    compact(store, grace=timedelta(microseconds=1))
    with store.writer() as writer:
        writer.delete(np.arange(35) < 3)


def fill(store: Store) -> None:
    with named_vectors_writer(store.folder, "other", space(DIM)) as vectors:
        vectors.put(np.arange(10), vectors.snapshot.vectors()[:10] * 2)


CHANGES: dict[str, Callable[[Store], object]] = {
    "compact": lambda store: compact(store, grace=NOW),
    "compact with grace": tidied,
    "append": append,
    "delete": lambda store: store.delete(Filter(label=[1])),
    "undo": lambda store: store.undo(2),
    "index": lambda store: build_index(store, "plain", anew=True),
    "delete and index": lambda store: (store.delete(Filter(label=[1])), build_index(store, "plain")),
    "named vectors": fill,
    "repair": lambda store: repair(store.folder),
}


def keys(folder: Path) -> frozenset[str]:
    return frozenset(Store(folder).snapshot().column("keys").tolist())


@pytest.mark.parametrize(
    "change", [pytest.param(name, marks=() if name == "compact" else pytest.mark.slow) for name in CHANGES]
)
def test_power_failure_leaves_a_sound_store(tmp_path: Path, change: str) -> None:
    store = torn(tmp_path / "s") if change == "repair" else prepared(tmp_path / "s")
    before = frozenset() if change == "repair" else keys(store.folder)
    with recorded(store.folder) as disk:
        CHANGES[change](store)
    after = keys(store.folder)
    count = 0
    for entries in outcomes(disk, seed=len(change)):
        folder = tmp_path / "after"
        for name, content in entries.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        if change == "repair":
            repair(folder)
        health = verify(folder)
        assert health.sound, (count, health.problems)
        found = keys(folder)
        if change in ("append", "compact with grace"):  # several commits
            assert before & after <= found <= before | after
        else:
            assert found in ({after} if change == "repair" else {before, after})
        shutil.rmtree(folder)
        count += 1
    assert count > 5
