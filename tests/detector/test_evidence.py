"""Evidence against a reference that applies its options row by row in integer arithmetic."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from clipfake.detector.evidence import OVERSAMPLING, Bank, EvidenceOptions
from clipfake.store.records import Block, Rows
from clipfake.store.search.matches import Matches
from clipfake.store.space import Space
from clipfake.store.store import Store
from hypothesis import given, settings
from hypothesis import strategies as st

DIM = 6
SPACE = Space("toy", "0" * 64, dim=DIM)
UNKNOWN = 0  # the digest of a file whose bytes are unknown


@dataclass(frozen=True)
class Row:
    """One stored row or query."""

    vector: tuple[int, ...]  # in units of 1/2: four are ±1, so that products are exact and many are equal
    label: int
    source: int
    digest: int

    @property
    def bytes(self) -> bytes:
        return bytes([self.digest] * 16)


vectors = st.tuples(
    st.lists(st.integers(0, DIM - 1), min_size=4, max_size=4, unique=True), st.lists(st.booleans(), min_size=4)
).map(lambda rows: tuple((1 if rows[1][rows[0].index(i)] else -1) if i in rows[0] else 0 for i in range(DIM)))
rows = st.builds(Row, vectors, st.integers(-1, 1), st.integers(0, 3), st.integers(0, 5))
banks = st.lists(rows, min_size=2, max_size=40).filter(lambda stored: {row.label for row in stored} >= {0, 1})
evidence_options = st.builds(EvidenceOptions, k=st.integers(1, 6), per_source=st.integers(1, 4))


def fetching_all(options: EvidenceOptions, rows: Sequence[Row]) -> EvidenceOptions:
    """The options with k large enough to make all rows candidates; else any of equally near rows may be left out."""
    most = max(sum(row.label == label for row in rows) for label in (0, 1))
    return replace(options, k=max(options.k, -(-most // OVERSAMPLING)))


def stored(rows: Sequence[Row], folder: Path) -> Store:
    store = Store.create(folder, SPACE)
    columns = Rows.make(
        keys=[f"{i}" for i in range(len(rows))],
        labels=[row.label for row in rows],
        sources=[f"source {row.source}" for row in rows],
        digests=np.frombuffer(b"".join(row.bytes for row in rows), "V16"),
    )
    with store.writer() as writer:
        writer.append(Block(SPACE, columns, np.array([row.vector for row in rows], np.float32) / 2))
    return store


def similarity(row: Row, other: Row) -> int:
    """Cosine similarity in units of 1/4."""
    return sum(a * b for a, b in zip(row.vector, other.vector, strict=True))


def is_copy(row: Row, other: Row) -> bool:
    return row.vector == other.vector or (row.digest == other.digest != UNKNOWN)


def expected_neighbors(rows: Sequence[Row], query: Row, label: int, options: EvidenceOptions) -> list[int]:
    """Positions of the neighbours of one class, nearest first."""
    members = [i for i, row in enumerate(rows) if row.label == label]
    members = [i for i in members if not (rows[i].digest == query.digest != UNKNOWN)]
    members.sort(key=lambda i: (-similarity(rows[i], query), i))
    unique = [i for n, i in enumerate(members) if not any(is_copy(rows[i], rows[j]) for j in members[:n])]
    near = unique[: 2 * options.k]  # farther rows never count
    within_cap = [
        i for n, i in enumerate(near) if sum(rows[j].source == rows[i].source for j in near[:n]) < options.per_source
    ]
    neighbors = [*within_cap, *(i for i in near if i not in within_cap)][: options.k]
    return sorted(neighbors, key=near.index)


def positions(matches: Matches, query: int) -> list[int]:
    present = matches.rows[query] >= 0
    assert (np.isnan(matches.similarity[query]) == ~present).all()
    assert not present[present.sum() :].any(), "a gap among the neighbours"
    return [int(row) for row in matches.rows[query][present]]


@settings(max_examples=40, deadline=None)
@given(banks, st.lists(rows, min_size=1, max_size=4), evidence_options)
def test_neighbors_equal_a_row_by_row_reference(
    stored_rows: list[Row], query_rows: list[Row], options: EvidenceOptions
) -> None:
    options = fetching_all(options, stored_rows)
    with tempfile.TemporaryDirectory() as folder:
        bank = Bank.from_snapshot(stored(stored_rows, Path(folder) / "s").snapshot(), options)
        queries = np.array([row.vector for row in query_rows], np.float32) / 2
        evidence = bank.evidence(queries, np.frombuffer(b"".join(row.bytes for row in query_rows), "V16"))
        for query, query_row in enumerate(query_rows):
            expected = {label: expected_neighbors(stored_rows, query_row, label, options) for label in (0, 1)}
            assert positions(evidence.real, query) == expected[0]
            assert positions(evidence.fake, query) == expected[1]
            near = {label: [similarity(stored_rows[i], query_row) / 4 for i in expected[label]] for label in (0, 1)}
            differences = [fake - real for real, fake in zip(near[0], near[1], strict=False)]  # as many of each class
            weights = [1 / (n + 1) for n in range(len(differences))]
            signal = np.average(differences, weights=weights) if differences else 0.0
            assert evidence.signal[query] == pytest.approx(signal, abs=1e-6)
            nearest = max(
                (similarity(stored_rows[rows[0]], query_row) / 4 for rows in expected.values() if rows), default=-1.0
            )
            assert evidence.nearest[query] == pytest.approx(nearest, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(banks, rows, evidence_options, st.integers(0, 3))
def test_leaving_out_a_source_equals_never_indexing_it(
    stored_rows: list[Row], query_row: Row, options: EvidenceOptions, source: int
) -> None:
    remaining = [row for row in stored_rows if row.source != source]
    if not {row.label for row in remaining} >= {0, 1}:
        return
    options = fetching_all(options, stored_rows)
    with tempfile.TemporaryDirectory() as folder:
        bank = Bank.from_snapshot(stored(stored_rows, Path(folder) / "s").snapshot(), options)
        query, digest = np.array([query_row.vector], np.float32) / 2, np.frombuffer(query_row.bytes, "V16")
        keys = [i for i, row in enumerate(stored_rows) if row.source != source]
        for label in (0, 1):
            expected = [keys[i] for i in expected_neighbors(remaining, query_row, label, options)]
            evidence = bank.without(f"source {source}").evidence(query, digest)
            assert positions((evidence.real, evidence.fake)[label], 0) == expected
            candidates = bank.candidates(query, digest, [label])[label]  # all of so few rows are candidates
            if f"source {source}" in bank.source_names:
                candidates = candidates.without(bank.source_names.index(f"source {source}"))
            assert positions(candidates.select(options), 0) == expected


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)  # type: ignore[no-any-return]


@pytest.mark.parametrize("copies", [1, 4, 30])
def test_neighbors_among_copies_are_the_nearest_distinct_images(copies: int, tmp_path: Path) -> None:
    """Reference: a float64 product with all rows. There are more copies than the first search fetches."""
    rng = np.random.default_rng(copies)
    images = 1200 // copies
    image = rng.permutation(np.repeat(np.arange(images), copies))
    labels = (image % 3 == 0).astype(int)
    space = Space("toy", "0" * 64, dim=24)
    store = Store.create(tmp_path / "s", space)
    keys = [f"{i}" for i in range(len(image))]
    sources = [f"s{p % 7}" for p in image]
    with store.writer(rows_per_shard=500) as writer:
        writer.append(
            Block(space, Rows.make(keys, labels, sources=sources), unit(rng.normal(size=(images, 24)))[image])
        )
    snapshot, options = store.snapshot(), EvidenceOptions(k=9, per_source=3)
    bank, queries = Bank.from_snapshot(snapshot, options), unit(rng.normal(size=(12, 24)))
    evidence = bank.evidence(queries)
    similarities = queries.astype(np.float64) @ snapshot.vectors().astype(np.float64).T
    for label, matches in ((0, evidence.real), (1, evidence.fake)):
        for query, near in enumerate(similarities):
            order = [i for i in np.argsort(-near, kind="stable") if labels[i] == label]
            unique = list(dict.fromkeys(int(image[i]) for i in order))[:18]
            within_cap = [p for n, p in enumerate(unique) if sum(q % 7 == p % 7 for q in unique[:n]) < 3]
            kept = sorted([*within_cap, *(p for p in unique if p not in within_cap)][:9], key=unique.index)
            rows = positions(matches, query)
            assert [int(image[row]) for row in rows] == kept
            assert np.allclose(matches.similarity[query][: len(rows)], near[rows], atol=1e-5)


def test_single_fake_row_is_the_only_fake_neighbor(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    space = Space("toy", "0" * 64, dim=16)
    store = Store.create(tmp_path / "s", space)
    vectors = unit(rng.normal(size=(10_001, 16)))
    rows = Rows.make([f"{i}" for i in range(10_001)], [0] * 10_000 + [1], sources=["s"] * 10_001)
    with store.writer() as writer:
        writer.append(Block(space, rows, vectors))
    evidence = Bank.from_snapshot(store.snapshot()).evidence(vectors[-1:])
    assert positions(evidence.fake, 0) == [10_000]
    assert len(positions(evidence.real, 0)) == 9  # no other source is stored
    assert evidence.signal[0] > 0
    assert evidence.nearest[0] == pytest.approx(1, abs=1e-3)


def test_find_distinguishes_digests_with_equal_first_halves(tmp_path: Path) -> None:
    digests = [b"a" * 8 + bytes([i] * 8) for i in range(20)] + [b"b" * 16, bytes(16)]
    store = Store.create(tmp_path / "s", SPACE)
    columns = Rows.make(
        [f"{i}" for i in range(22)], [0, 1] * 11, digests=np.frombuffer(b"".join(digests), "V16"), sources=["s"] * 22
    )
    with store.writer() as writer:
        writer.append(Block(SPACE, columns, unit(np.random.default_rng(0).normal(size=(22, DIM)))))
    bank = Bank.from_snapshot(store.snapshot())
    assert [bank.find(digest).tolist() for digest in digests] == [*([i] for i in range(21)), []]  # zeros: unknown
    for absent in (b"a" * 8 + b"c" * 8, b"a" * 16, b"z" * 16, b"\0" * 8 + b"a" * 8):
        assert len(bank.find(absent)) == 0
