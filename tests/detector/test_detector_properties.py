"""Properties of every verdict, tested with small random banks and queries."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.detector.calibration import Calibration
from clipfake.detector.detector import QueryOptions, VectorDetector
from clipfake.detector.evidence import Bank
from clipfake.detector.head import Head
from clipfake.detector.projection import Projection
from clipfake.detector.split import Split
from clipfake.detector.svm import Svm
from clipfake.detector.verdict import Verdict
from clipfake.errors import BadBlock
from clipfake.store.records import LABELS, Block, Rows
from clipfake.store.space import Space
from clipfake.store.store import Store
from hypothesis import assume, given, settings
from hypothesis import strategies as st

DIM = 8
SPACE = Space("toy", "0" * 64, dim=DIM)
seeds = st.integers(0, 2**32 - 1)
errors = st.sampled_from([0.001, 0.03, 0.05, 0.1, 0.2, 0.35, 0.5])


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)  # type: ignore[no-any-return]


def random_vectors(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors; fakes lean along the first axis, but the classes overlap."""
    vectors = rng.standard_normal((len(labels), DIM))
    vectors[:, 0] += 2.5 * labels
    return unit(vectors)


def block(seed: int) -> Block:
    """Up to sixty rows of two cameras and three generators, some without a label."""
    rng = np.random.default_rng(seed)
    source = np.concatenate([[0, 2], rng.integers(0, 5, rng.integers(0, 59))])
    labels = (source > 1).astype(int)
    stored = np.where(rng.random(len(source)) < 0.1, -1, labels)
    stored[:2] = labels[:2]
    rows = Rows.make(
        keys=[f"{i}" for i in range(len(source))],
        labels=stored,
        sources=[f"source {one}" for one in source],
        generators=[f"gan {one}" if one > 1 else "" for one in source],
        digests=np.frombuffer(rng.bytes(16 * len(source)), "V16"),
    )
    return Block(SPACE, rows, random_vectors(labels, rng))


def detector(store: Store, seed: int) -> VectorDetector:
    """A head of a few random support vectors, calibrated with the bank on random rows."""
    rng = np.random.default_rng([seed, 1])
    labels = np.repeat([0, 1], rng.integers(10, 60, 2))
    known = random_vectors(labels, rng)
    projection = Projection.initialize("linear", known, dim=DIM, seed=seed)
    classifier = Svm(projection(known[:: len(known) // 9]), 2.0 * labels[:: len(known) // 9] - 1, 0.1, 1.0)
    split = Split.make([f"{i}" for i in range(40)], np.arange(40) % 2)
    head = Head(SPACE, 1, split, projection, classifier, versions={})
    bank = Bank.from_snapshot(store.snapshot())
    evidence, fresh = bank.evidence(known), random_vectors(labels, rng)
    result = (head.decision_function(fresh), evidence.signal, evidence.nearest)
    return VectorDetector(head, bank, replace(Calibration.fit(*result, labels), head=head.digest))


@contextmanager
def random_queries(seed: int, *blocks: Block) -> Iterator[VectorDetector]:
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "s", SPACE)
        with store.writer() as writer:
            for each in blocks or [block(seed)]:
                writer.append(each)
        yield detector(store, seed)


def query_vectors(seed: int, number: int = 8) -> np.ndarray:
    rng = np.random.default_rng([seed, 2])
    return random_vectors(rng.random(number), rng)


def judged(detector: VectorDetector, seed: int, **options: Any) -> list[Verdict]:
    vectors = query_vectors(seed)
    return detector.judge([f"{i}" for i in range(len(vectors))], vectors, options=QueryOptions(**options))


def assert_same(verdicts: list[Verdict], others: list[Verdict]) -> None:
    """Compare verdicts up to rounding and the positions of neighbours in the store."""
    for verdict, other in zip(verdicts, others, strict=True):
        approximate = {"score", "probability", "percentile", "signals", "neighbors", "changes"}
        fields, other_fields = ({k: v for k, v in vars(v).items() if k not in approximate} for v in (verdict, other))
        assert fields == other_fields
        for name in ("score", "probability", "percentile", "signals"):
            assert getattr(verdict, name) == pytest.approx(getattr(other, name), abs=1e-4)
        for label in ("real", "fake"):
            assert [n.key for n in verdict.neighbors[label]] == [n.key for n in other.neighbors[label]]
        assert [(c.what, c.verdict) for c in verdict.changes] == [(c.what, c.verdict) for c in other.changes]


@settings(max_examples=15, deadline=None)
@given(seeds, errors, st.floats(0.001, 0.999))
def test_verdict_agrees_with_score_prediction_set_and_neighbors(seed: int, error: float, prior: float) -> None:
    with random_queries(seed) as detector:
        scores = detector.decision_function(query_vectors(seed))
        possible = detector.calibration.prediction_sets(scores, error)
        for verdict, score, in_set in zip(
            judged(detector, seed, error=error, prior=prior), scores, possible, strict=True
        ):
            assert verdict.score == pytest.approx(score, abs=1e-6)
            names = tuple(name for name, included in zip(("real", "fake"), in_set, strict=True) if included)
            assert verdict.possible == names
            resembles_bank = verdict.percentile >= 1
            assert verdict.verdict == (names[0] if len(names) == 1 and resembles_bank else "unsure")
            assert verdict.probability == pytest.approx(detector.calibration.fake_probability(score, prior))
            assert (verdict.generator != "") == (verdict.verdict == "fake")
            if verdict.verdict != "unsure":
                other = {"fake": "real", "real": "fake"}[verdict.verdict]
                assert verdict.reasons[0] == f"{other} is ruled out at an error rate of {100 * error:g}%"
            svm, nearest = verdict.signals["svm"], verdict.signals["neighbors"]
            assert verdict.conflict == (svm * nearest < 0 and abs(svm) >= 1 and abs(nearest) >= 1)
            assert verdict.conflict == any("disagree" in reason for reason in verdict.reasons)
            similarities = [n.similarity for neighbors in verdict.neighbors.values() for n in neighbors[:1]]
            assert verdict.percentile == pytest.approx(
                detector.calibration.percentile(np.array([max(similarities)]))[0], abs=0.2
            )
            for label, neighbors in verdict.neighbors.items():
                assert 1 <= len(neighbors) <= 9
                assert [n.similarity for n in neighbors] == sorted((n.similarity for n in neighbors), reverse=True)
                assert all((n.source > "source 1") == (label == "fake") for n in neighbors)
            assert all(change.verdict != verdict.verdict for change in verdict.changes)


@settings(max_examples=8, deadline=None)
@given(seeds)
def test_prior_changes_only_the_probability(seed: int) -> None:
    with random_queries(seed) as detector:
        rare, common = (judged(detector, seed, prior=prior) for prior in (0.01, 0.9))
        for one, other in zip(rare, common, strict=True):
            assert one.probability < other.probability
            assert replace(one, probability=0, prior=0) == replace(other, probability=0, prior=0)


@settings(max_examples=8, deadline=None)
@given(seeds)
def test_lower_error_rate_only_adds_unsure(seed: int) -> None:
    """Only an image with an empty prediction set can get an answer at a lower rate, as its set then grows."""
    with random_queries(seed) as detector:
        by_rate = [judged(detector, seed, error=error, changes=False) for error in (0.5, 0.3, 0.2, 0.1, 0.05, 0.01)]
        for of_image in zip(*by_rate, strict=True):
            for wider, narrower in pairwise(of_image):
                assert set(wider.possible) <= set(narrower.possible)
                if wider.possible:
                    assert narrower.verdict in (wider.verdict, "unsure")
            assert len({v.verdict for v in of_image} - {"unsure"}) <= 1
            assert len({(v.score, v.probability, v.percentile) for v in of_image}) == 1


@settings(max_examples=8, deadline=None)
@given(seeds)
def test_order_of_stored_rows_does_not_matter(seed: int) -> None:
    rows = block(seed)
    order = np.random.default_rng(seed).permutation(len(rows.rows))
    with random_queries(seed, rows) as one, random_queries(seed, rows.take(order)) as other:
        assert_same(judged(one, seed), judged(other, seed))


@settings(max_examples=8, deadline=None)
@given(seeds, st.booleans(), st.integers(1, 60))
def test_copy_of_stored_image_changes_nothing(seed: int, same_file: bool, copies: int) -> None:
    """Copies have the same bytes, or the same vector under another digest."""
    rows, rng = block(seed), np.random.default_rng([seed, 3])
    copied = rng.integers(0, len(rows.rows), copies)
    copy_block = rows.take(copied)
    keys = np.array([f"copy {i}" for i in range(copies)], rows.rows.keys.dtype)
    digests = copy_block.rows.digests if same_file else np.frombuffer(rng.bytes(16 * copies), "V16")
    copy_block = replace(copy_block, rows=replace(copy_block.rows, keys=keys, digests=digests))
    with random_queries(seed, rows) as one, random_queries(seed, rows, copy_block) as other:
        # without thumbnails, rows that are near are named as perhaps copies, each by itself
        assert_same(*([replace(verdict, stored=()) for verdict in judged(each, seed)] for each in (one, other)))


@settings(max_examples=8, deadline=None)
@given(seeds)
def test_batch_gives_the_same_verdicts_as_single_images(seed: int) -> None:
    with random_queries(seed) as detector:
        alone = [detector.judge_one(f"{i}", vector) for i, vector in enumerate(query_vectors(seed))]
        assert_same(judged(detector, seed), alone)


@settings(max_examples=8, deadline=None)
@given(seeds)
def test_stored_file_is_named_but_is_no_evidence(seed: int) -> None:
    rows = block(seed)
    own = int(np.random.default_rng(seed).integers(0, len(rows.rows)))
    others = np.flatnonzero(np.arange(len(rows.rows)) != own)
    assume({*rows.rows.labels[others].tolist()} >= {0, 1})
    with random_queries(seed, rows) as one, random_queries(seed, rows.take(others)) as other:
        other = replace(one, bank=other.bank)
        vector, digest = one.snapshot.vectors([own])[0], rows.rows.digests[own].tobytes()
        with_file, without_file = one.judge_one("x", vector, digest), other.judge_one("x", vector, digest)
        assert (with_file.known, without_file.known) == (rows.rows.keys[own], "")
        # the label of the stored file is the verdict; what the signals say is as without it
        label = LABELS[int(rows.rows.labels[own])]
        assert with_file.settled == (label != "unknown")
        if with_file.settled:
            assert with_file.verdict == label
        decided = {name: getattr(without_file, name) for name in ("verdict", "reasons", "changes", "generator")}
        assert_same([replace(with_file, stored=(), **decided)], [without_file])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_non_finite_vector_is_rejected(wrong: float) -> None:
    vectors = query_vectors(0)
    vectors[3, 2] = wrong
    with random_queries(0) as detector:
        with pytest.raises(BadBlock, match="vector 3 of 8 holds NaN or infinity"):
            detector.judge([f"{i}" for i in range(8)], vectors)
        with pytest.raises(BadBlock, match="encode its image again"):
            detector.decision_function(vectors)


def test_name_without_vector_is_rejected() -> None:
    names, vectors, digests = [f"{i}" for i in range(8)], query_vectors(0), np.zeros(7, "V16")
    with random_queries(0) as detector:
        for given_names, given_digests, message in (
            (names[:7], None, "7 names for 8 vectors; give"),
            ([*names, "one more"], None, "9 names for 8 vectors; give"),
            (names, digests, "8 names for 8 vectors and 7 digests; give"),
        ):
            with pytest.raises(BadBlock, match=message):
                detector.judge(given_names, vectors, given_digests)
