"""Who testifies, against the rules gone through one row after another in whole numbers."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from clipfake.detector.evidence import FETCHED, Bank, EvidenceOptions
from clipfake.store.records import Block, Rows
from clipfake.store.search.matches import Matches
from clipfake.store.space import Space
from clipfake.store.store import Store
from hypothesis import given, settings
from hypothesis import strategies as st

DIM = 6
SPACE = Space("toy", "0" * 64, dim=DIM)
UNKNOWN = 0  # the digest of a file that nobody has read


@dataclass(frozen=True)
class Row:
    """One stored row, or a question."""

    vector: tuple[int, ...]  # in halves: four of ±1, so that every product is exact and many are equal
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
rules = st.builds(EvidenceOptions, k=st.integers(1, 6), per_source=st.integers(1, 4))


def of_so_many(rules: EvidenceOptions, rows: Sequence[Row]) -> EvidenceOptions:
    """With as many witnesses as let all rows be fetched: of equally near ones any may be left behind."""
    most = max(sum(row.label == label for row in rows) for label in (0, 1))
    return replace(rules, k=max(rules.k, -(-most // FETCHED)))


def stored(rows: Sequence[Row], folder: Path) -> Store:
    made = Store.create(folder, SPACE)
    columns = Rows.make(
        keys=[f"{i}" for i in range(len(rows))],
        labels=[row.label for row in rows],
        sources=[f"source {row.source}" for row in rows],
        digests=np.frombuffer(b"".join(row.bytes for row in rows), "V16"),
    )
    with made.writer() as writer:
        writer.append(Block(SPACE, columns, np.array([row.vector for row in rows], np.float32) / 2))
    return made


def nearness(one: Row, other: Row) -> int:
    """Their cosine, in quarters."""
    return sum(a * b for a, b in zip(one.vector, other.vector, strict=True))


def alike(one: Row, other: Row) -> bool:
    return one.vector == other.vector or (one.digest == other.digest != UNKNOWN)


def plainly(rows: Sequence[Row], query: Row, label: int, rules: EvidenceOptions) -> list[int]:
    """Positions of the witnesses of one class, nearest first."""
    members = [i for i, row in enumerate(rows) if row.label == label]
    members = [i for i in members if not (rows[i].digest == query.digest != UNKNOWN)]
    members.sort(key=lambda i: (-nearness(rows[i], query), i))
    fresh = [i for n, i in enumerate(members) if not any(alike(rows[i], rows[j]) for j in members[:n])]
    witnesses: list[int] = []
    for n, i in enumerate(fresh[: 2 * rules.k]):  # no farther, whoever may not speak
        crowd = sum(rows[j].source == rows[i].source for j in fresh[:n])
        if crowd < rules.per_source and len(witnesses) < rules.k:
            witnesses.append(i)
    return witnesses


def told_of(matches: Matches, query: int) -> list[int]:
    there = matches.rows[query] >= 0
    assert (np.isnan(matches.similarity[query]) == ~there).all()
    assert not there[there.sum() :].any(), "a gap among the witnesses"
    return [int(row) for row in matches.rows[query][there]]


@settings(max_examples=40, deadline=None)
@given(banks, st.lists(rows, min_size=1, max_size=4), rules)
def test_witnesses_are_those_of_the_rules_applied_row_by_row(
    stored_rows: list[Row], query_rows: list[Row], rules: EvidenceOptions
) -> None:
    rules = of_so_many(rules, stored_rows)
    with tempfile.TemporaryDirectory() as folder:
        bank = Bank.from_snapshot(stored(stored_rows, Path(folder) / "s").snapshot(), rules)
        queries = np.array([row.vector for row in query_rows], np.float32) / 2
        found = bank.evidence(queries, np.frombuffer(b"".join(row.bytes for row in query_rows), "V16"))
        for query, one in enumerate(query_rows):
            expected = {label: plainly(stored_rows, one, label, rules) for label in (0, 1)}
            assert told_of(found.real, query) == expected[0]
            assert told_of(found.fake, query) == expected[1]
            means = {
                label: np.mean([nearness(stored_rows[i], one) / 4 for i in rows])
                for label, rows in expected.items()
                if rows
            }
            signal = means[1] - means[0] if len(means) == 2 else 0.0
            assert found.signal[query] == pytest.approx(signal, abs=1e-6)
            nearest = max((nearness(stored_rows[rows[0]], one) / 4 for rows in expected.values() if rows), default=-1.0)
            assert found.nearest[query] == pytest.approx(nearest, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(banks, rows, rules, st.integers(0, 3))
def test_leaving_a_source_out_is_as_if_it_had_never_been_indexed(
    stored_rows: list[Row], query_row: Row, rules: EvidenceOptions, source: int
) -> None:
    left = [row for row in stored_rows if row.source != source]
    if not {row.label for row in left} >= {0, 1}:
        return
    rules = of_so_many(rules, stored_rows)
    with tempfile.TemporaryDirectory() as folder:
        bank = Bank.from_snapshot(stored(stored_rows, Path(folder) / "s").snapshot(), rules)
        query, digest = np.array([query_row.vector], np.float32) / 2, np.frombuffer(query_row.bytes, "V16")
        keys = [i for i, row in enumerate(stored_rows) if row.source != source]
        for label in (0, 1):
            expected = [keys[i] for i in plainly(left, query_row, label, rules)]
            evidence = bank.without(f"source {source}").evidence(query, digest)
            assert told_of((evidence.real, evidence.fake)[label], 0) == expected
            candidates = bank.candidates(query, digest, [label])[label]  # all of so few rows are candidates
            if f"source {source}" in bank.names:
                candidates = candidates.without(bank.names.index(f"source {source}"))
            assert told_of(candidates.witnesses(rules), 0) == expected


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)  # type: ignore[no-any-return]


@pytest.mark.parametrize("copies", [1, 4, 30])
def test_among_many_rows_with_copies_the_witnesses_are_the_nearest_different_pictures(
    copies: int, tmp_path: Path
) -> None:
    """Where more rows are copies than are fetched at first, against a float64 product of all with all."""
    rng = np.random.default_rng(copies)
    pictures = 1200 // copies
    picture = rng.permutation(np.repeat(np.arange(pictures), copies))
    labels = (picture % 3 == 0).astype(int)
    space = Space("toy", "0" * 64, dim=24)
    store = Store.create(tmp_path / "s", space)
    keys = [f"{i}" for i in range(len(picture))]
    sources = [f"s{p % 7}" for p in picture]
    with store.writer(rows_per_shard=500) as writer:
        writer.append(
            Block(space, Rows.make(keys, labels, sources=sources), unit(rng.normal(size=(pictures, 24)))[picture])
        )
    snapshot, rules = store.snapshot(), EvidenceOptions(k=9, per_source=3)
    bank, queries = Bank.from_snapshot(snapshot, rules), unit(rng.normal(size=(12, 24)))
    found = bank.evidence(queries)
    similarity = queries.astype(np.float64) @ snapshot.vectors().astype(np.float64).T
    for label, matches in ((0, found.real), (1, found.fake)):
        for query, near in enumerate(similarity):
            order = [i for i in np.argsort(-near, kind="stable") if labels[i] == label]
            fresh = list(dict.fromkeys(int(picture[i]) for i in order))[:18]
            kept = [p for n, p in enumerate(fresh) if sum(q % 7 == p % 7 for q in fresh[:n]) < 3][:9]
            rows = told_of(matches, query)
            assert [int(picture[row]) for row in rows] == kept
            assert np.allclose(matches.similarity[query][: len(rows)], near[rows], atol=1e-5)


def test_one_fake_among_ten_thousand_real_rows_speaks_alone_for_its_class(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    space = Space("toy", "0" * 64, dim=16)
    store = Store.create(tmp_path / "s", space)
    vectors = unit(rng.normal(size=(10_001, 16)))
    rows = Rows.make([f"{i}" for i in range(10_001)], [0] * 10_000 + [1], sources=["s"] * 10_001)
    with store.writer() as writer:
        writer.append(Block(space, rows, vectors))
    evidence = Bank.from_snapshot(store.snapshot()).evidence(vectors[-1:])
    assert told_of(evidence.fake, 0) == [10_000]
    assert len(told_of(evidence.real, 0)) == 5  # of one source
    assert evidence.signal[0] > 0
    assert evidence.nearest[0] == pytest.approx(1, abs=1e-3)


def test_a_file_is_found_by_its_digest_also_where_others_begin_alike(tmp_path: Path) -> None:
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
