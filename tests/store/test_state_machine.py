"""After any sequence of changes, a store has the rows that a dictionary would have."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.benchmarks.common.synthetic_rows import space
from clipfake.errors import NoStore
from clipfake.store.filter import Filter
from clipfake.store.maintenance.build_index import build_index
from clipfake.store.maintenance.compact import compact
from clipfake.store.maintenance.verify import verify
from clipfake.store.named_vectors import named_vectors_writer, open_named_vectors, vector_names
from clipfake.store.records import Block, Rows
from clipfake.store.search.matches import nearest
from clipfake.store.snapshot import Snapshot
from clipfake.store.space import Space
from clipfake.store.store import Store
from fault_injection import Killed, failing
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

DIM = 4
SPACE = space(DIM)
OTHER = Space("other", "d" * 64, 2, normalised=False)
SOURCES = ("camera", "gan", "diffusion")
CATEGORIES = ("cat", "dog")

Row = tuple[int, str, str, bytes, tuple[float, ...], bytes]  # label, source, category, digest, vector, thumbnail
Model = dict[str, Row]  # by key


def row(number: int, version: int) -> tuple[str, Row]:
    """Key and row of a synthetic file; another version of it has another digest and vector."""
    source = SOURCES[number % 3]
    vector = np.random.default_rng([number, version]).normal(size=DIM)
    vector = (vector / np.linalg.norm(vector)).astype(np.float16)
    digest = np.random.default_rng([9, number, version]).bytes(16)
    result = (int(source != "camera"), source, CATEGORIES[number % 2], digest, tuple(vector.tolist()), bytes([number]))
    return f"{source}/{number}", result


def block(numbers: list[int], version: int) -> Block:
    rows = dict(row(number, version) for number in numbers)
    labels, sources, categories, digests, vectors, thumbnails = zip(*rows.values(), strict=True)
    columns: dict[str, Any] = {"sources": sources, "categories": categories}
    metadata = Rows.make(list(rows), labels, digests=np.frombuffer(b"".join(digests), "V16"), **columns)
    texts = {name: np.full(DIM, i + 1, np.float32) for i, name in enumerate(CATEGORIES)}
    return Block(SPACE, metadata, np.array(vectors, np.float32), tuple(thumbnails), texts)


def other_vectors(snapshot: Snapshot) -> np.ndarray:
    """(rows, 2) vectors of another encoder, derived from each row's digest."""
    halves = np.frombuffer(snapshot.column("digests").tobytes(), np.uint8).reshape(len(snapshot), 16)
    return halves[:, :2].astype(np.float32) + 1


def contents(snapshot: Snapshot) -> Model:
    """All rows of a snapshot."""
    rows, thumbnails = snapshot.rows, snapshot.thumbnails(np.arange(len(snapshot)))
    columns = [rows.labels, rows.sources, rows.categories]
    digests = [digest.tobytes() for digest in rows.digests]
    vectors = [tuple(vector) for vector in snapshot.vectors().tolist()]
    values = zip(*(column.tolist() for column in columns), digests, vectors, thumbnails, strict=True)
    return dict(zip(rows.keys.tolist(), values, strict=True))


class StoreModel(RuleBasedStateMachine):
    """A store compared with a dictionary, with its history, an index, named vectors and a reader of an old snapshot."""

    @initialize(numbers=st.lists(st.integers(0, 39), min_size=5, max_size=20, unique=True))
    def begin(self, numbers: list[int]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="clipfake-model-"))
        self.store = Store.create(self.folder / "s", SPACE)
        self.model: Model = {}
        self.history: dict[int, Model] = {0: {}}  # by snapshot
        self.reader: tuple[Snapshot, Model] | None = None
        self.append(numbers, 0, 8)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def record(self) -> None:
        """Record the model as the content of the newest snapshot."""
        self.history[self.store.snapshots()[-1].number] = dict(self.model)

    @rule(
        numbers=st.lists(st.integers(0, 39), min_size=1, max_size=12, unique=True),
        version=st.integers(0, 2),
        rows_per_shard=st.sampled_from([3, 8, 100]),
    )
    def append(self, numbers: list[int], version: int, rows_per_shard: int) -> None:
        new = dict(row(number, version) for number in numbers)
        with self.store.writer(rows_per_shard=rows_per_shard) as writer:
            counts = writer.append(block(numbers, version))
        unchanged = {key for key in new if self.model.get(key) == new[key]}
        replaced = {key for key in new if key in self.model} - unchanged
        assert (counts.known, counts.replaced, counts.added) == (
            len(unchanged),
            len(replaced),
            len(new) - len(unchanged | replaced),
        )
        self.model |= new
        self.record()

    @rule(by=st.sampled_from([*SOURCES, *CATEGORIES, 0, 1]))
    def delete_some(self, by: str | int) -> None:
        which = Filter(label=[by]) if isinstance(by, int) else Filter(**{_column(by): [by]})
        gone = {key for key, row in self.model.items() if by in row[:3]}
        assert self.store.delete(which).rows == len(gone)
        self.model = {key: row for key, row in self.model.items() if key not in gone}
        self.record()

    @rule(numbers=st.lists(st.integers(0, 39), min_size=1, max_size=5))
    def delete_keys(self, numbers: list[int]) -> None:
        keys = {row(number, 0)[0] for number in numbers}
        assert self.store.delete(Filter(key=sorted(keys))).rows == len(keys & self.model.keys())
        self.model = {key: row for key, row in self.model.items() if key not in keys}
        self.record()

    @rule(back=st.integers(0, 10))
    def undo(self, back: int) -> None:
        number = self.store.snapshots()[-1 - back % len(self.store.snapshots())].number
        self.store.undo(number)
        self.model = dict(self.history[number])
        self.record()

    @rule(rows_per_shard=st.sampled_from([4, 16, 100]))
    def compact_shards(self, rows_per_shard: int) -> None:
        compact(self.store, rows_per_shard=rows_per_shard)
        remaining = {manifest.number for manifest in self.store.snapshots()}
        for number in set(self.history) - remaining:
            with pytest.raises(NoStore):
                self.store.undo(number)
        self.record()

    @rule(anew=st.booleans())
    def index(self, anew: bool) -> None:
        build_index(self.store, "plain", anew=anew)

    @rule(part=st.sampled_from([1, 2, 3]))
    def fill_column(self, part: int) -> None:
        """Add a named vector to every n-th row; for n = 1 no row is missing one afterwards."""
        with named_vectors_writer(self.store.folder, "other", OTHER) as writer:
            positions = np.arange(0, len(writer.snapshot), part)
            writer.put(positions, other_vectors(writer.snapshot)[positions])
        if part == 1:
            assert not open_named_vectors(self.store.folder, "other").missing(self.store.snapshot()).any()

    @rule(
        numbers=st.lists(st.integers(0, 39), min_size=1, max_size=8, unique=True),
        fail_at=st.integers(1, 60),
        change=st.sampled_from(["append", "delete", "undo", "index", "compact"]),
    )
    def crash(self, numbers: list[int], fail_at: int, change: str) -> None:
        """Kill the process during a change: the store is as before or as after it."""
        after = dict(self.model)
        back = self.store.snapshots()[0].number
        with failing(fail_at, kill=True), suppress(Killed):
            if change == "append":
                after |= dict(row(number, 3) for number in numbers)
                with self.store.writer() as writer:
                    writer.append(block(numbers, 3))
            elif change == "delete":
                after = {key: row for key, row in after.items() if row[1] != "gan"}
                self.store.delete(Filter(source=["gan"]))
            elif change == "undo":
                after = dict(self.history[back])
                self.store.undo(back)
            elif change == "index":
                build_index(self.store, "plain", anew=True)
            else:
                compact(self.store, rows_per_shard=10)
        self.store = Store.open(self.store.folder)
        read = contents(self.store.snapshot())
        assert read in (self.model, after)
        self.model = read
        self.record()

    @rule()
    def reopen(self) -> None:
        self.store = Store.open(self.store.folder)

    @rule()
    def hold(self) -> None:
        """A reader opens the current snapshot, reads a part of it and keeps it."""
        snapshot = self.store.snapshot()
        snapshot.column("labels")
        self.reader = snapshot, dict(self.model)

    @precondition(lambda self: self.reader)
    @rule()
    def release(self) -> None:
        self.reader = None

    @rule(seed=st.integers(0, 99), k=st.integers(1, 12), by=st.sampled_from([None, "gan", "dog"]))
    def search(self, seed: int, k: int, by: str | None) -> None:
        snapshot = self.store.snapshot()
        queries = np.random.default_rng(seed).normal(size=(2, DIM)).astype(np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        where = None if by is None else Filter(**{_column(by): [by]}).mask(snapshot)
        positions = np.arange(len(snapshot)) if where is None else np.flatnonzero(where)
        true = nearest(queries, snapshot.vectors(positions), positions, k)
        exact = snapshot.search(queries, k, where, recall=1)
        assert np.allclose(exact.similarity, true.similarity, atol=1e-5, equal_nan=True)
        found = snapshot.search(queries, k, where)
        assert ((found.rows >= 0).sum(1) == min(k, len(positions))).all()
        assert np.isin(found.rows[found.rows >= 0], positions).all()

    @invariant()
    def it_equals_the_model(self) -> None:
        if not hasattr(self, "store"):
            return
        snapshot = self.store.snapshot()
        assert contents(snapshot) == self.model
        keys = [f"{source}/{number}" for number in range(0, 40, 7) for source in SOURCES]
        positions = {key: position for position, key in enumerate(snapshot.column("keys").tolist())}
        assert snapshot.find(keys).tolist() == [positions.get(key, -1) for key in keys]
        assert snapshot.texts.keys() >= {row[2] for row in self.model.values()}

    @invariant()
    def no_file_is_damaged(self) -> None:
        if hasattr(self, "store"):
            assert verify(self.store.folder).problems == ()

    @invariant()
    def rows_have_their_own_vectors(self) -> None:
        if hasattr(self, "store") and vector_names(self.store.folder):
            snapshot = self.store.snapshot()
            column = open_named_vectors(self.store.folder, "other")
            present = ~column.missing(snapshot)
            assert np.array_equal(column.vectors(snapshot, np.flatnonzero(present)), other_vectors(snapshot)[present])

    @invariant()
    def the_reader_sees_no_change(self) -> None:
        if getattr(self, "reader", None):
            snapshot, model = self.reader  # type: ignore[misc]
            assert contents(snapshot) == model


def _column(value: str) -> str:
    return "source" if value in SOURCES else "category"


QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


class TestStoreModel(StoreModel.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(
        max_examples=8, stateful_step_count=15, deadline=None, derandomize=True, suppress_health_check=QUIET
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)  # takes minutes, and longer beside other tests
class TestStoreModelAtLength(StoreModel.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(max_examples=45, stateful_step_count=40, deadline=None, suppress_health_check=QUIET)
