"""Sources, generators and categories with names of 1 to 300 bytes: nothing depends on how long a name is.

numpy 2.4.6 finds wrong positions among strings of variable length, mostly among those of 16 bytes and more.
"""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from clipfake.detector.projection import FUSIONS
from clipfake.detector.split import choose
from clipfake.detector.training.baselines import BASELINES
from clipfake.detector.training.examples import Examples
from clipfake.detector.training.train import TrainOptions, train
from clipfake.detector.training.triplet import Match, TripletOptions, match_numbers
from clipfake.detector.vocabulary import Vocabulary
from clipfake.store.filter import Filter
from clipfake.store.records import FAKE, REAL, Block, Rows, TextIndex, distinct, names
from clipfake.store.space import Space
from clipfake.store.store import Store

DIM = 12
SPACE = Space("toy", "0" * 64, dim=DIM)
SCRIPTS = {
    "latin": "a category with a long name ",
    "greek": "κατηγορία ",
    "cyrillic": "категория ",
    "chinese": "类别图片",
    "thai": "หมวดหมู่",
    "emoji": "🐈🐕",
}
LENGTHS = (1, 2, 7, 8, 14, 15, 16, 17, 31, 32, 33, 63, 64, 100, 127, 128, 200, 255, 256, 300)


def make_names(script: str, size: int, count: int = 20) -> list[str]:
    """Different names of at most `size` bytes, as near to it as their characters allow, in ascending order."""
    letters = SCRIPTS[script]
    numbers = [chr(ord("a") + i) for i in range(count)]
    stem = (letters * size).encode()[: size - 1].decode(errors="ignore")
    return [stem + number for number in numbers]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_name_is_found_among_the_others(script: str) -> None:
    for size in LENGTHS:
        known = make_names(script, size)
        order = np.random.default_rng(size).permutation(len(known))
        shuffled = names(known)[order]
        assert TextIndex(known).find(shuffled).tolist() == order.tolist()
        assert TextIndex(names(known)).find([*known[:2], known[0] + "x"]).tolist() == [0, 1, -1]
        values, codes, counts = distinct(names([*known, *known[::-1]]))
        assert (values.tolist(), counts.tolist()) == (sorted(known), [2] * len(known))
        assert values[codes].tolist() == [*known, *known[::-1]]


@pytest.mark.parametrize("script", SCRIPTS)
def test_category_baseline_knows_every_category(script: str) -> None:
    for size in LENGTHS:
        known = make_names(script, size)
        labels = np.array(([REAL] * 10 + [FAKE] * 10) * 5)
        examples = Examples.from_arrays(np.zeros((100, DIM)), labels, categories=names(known * 5))
        queries = Examples.from_arrays(np.zeros((21, DIM)), np.zeros(21, int), categories=names([*known[::-1], "?"]))
        scores = BASELINES["category_only"](examples, examples, 0)(queries)
        assert scores == pytest.approx([np.log(6)] * 10 + [-np.log(6)] * 10 + [0])
        assert len(set(match_numbers(examples, "category").tolist())) == 20


@pytest.mark.parametrize("script", SCRIPTS)
def test_text_vector_of_every_category_is_its_own(script: str) -> None:
    for size in LENGTHS:
        known = make_names(script, size)
        vocabulary = Vocabulary.from_texts(dict(zip(known, np.eye(20, dtype=np.float32), strict=True)))
        given = [*known[::-1], ""]
        found = vocabulary.text_vectors(np.eye(21, 20, k=0, dtype=np.float32), "given", given)
        assert found.argmax(1).tolist() == [*range(19, -1, -1), 0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_sources_are_chosen_by_their_whole_names(script: str) -> None:
    for size in LENGTHS:
        known = make_names(script, size)
        chosen = choose(np.arange(20) % 2, names(known), only=[known[3], known[17]])
        assert chosen.tolist() == [3, 17]


def labelled_store(folder: Path, categories: list[str], sources: list[str]) -> Store:
    """A store of 240 rows and text vectors; equal vectors, labels and keys whatever the names are."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 240)
    vectors = rng.standard_normal((2, DIM))[labels] + rng.standard_normal((240, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0].astype(np.float32)
    category_of, source_of = rng.integers(0, len(categories), 240), rng.integers(0, len(sources), 240)
    rows = Rows.make(
        [f"s/{i}" for i in range(240)],
        labels,
        sources=[sources[i] for i in source_of],
        generators=[sources[i] if label else "" for i, label in zip(source_of, labels, strict=True)],
        categories=[categories[i] for i in category_of],
    )
    store = Store.create(folder, SPACE)
    with store.writer() as writer:
        writer.append(Block(SPACE, rows, vectors, texts=dict(zip(categories, texts, strict=False))))
    return store


@pytest.mark.parametrize("kind", FUSIONS)
@pytest.mark.parametrize("match", get_args(Match))
def test_long_categories_train_the_same_head_as_short_ones(tmp_path: Path, kind: str, match: Match) -> None:
    short = labelled_store(tmp_path / "short", list("abcdefg"), list("pqr"))
    long_names = make_names("latin", 120, 7), make_names("chinese", 60, 3)
    long = labelled_store(tmp_path / "long", *long_names)
    options = TrainOptions(kind=kind, triplet=TripletOptions(epochs=2, match=match), baselines=("category_only",))
    results = [train(store.snapshot(), options) for store in (short, long)]
    scores = [
        result.head.decision_function(
            store.snapshot().vectors(), mode="given", categories=store.snapshot().column("categories")
        )
        for result, store in zip(results, (short, long), strict=True)
    ]
    assert np.array_equal(scores[0], scores[1])
    assert results[0].metrics["test"] == results[1].metrics["test"]
    first, second = (result.baselines["category_only"].test_scores for result in results)
    assert np.array_equal(first, second)
    selected = [Filter(category=category).mask(long.snapshot()).sum() for category in long_names[0]]
    assert sum(selected) == 240 and min(selected) > 0


def test_one_long_category_beside_empty_ones_can_be_trained(tmp_path: Path) -> None:
    store = labelled_store(tmp_path / "s", ["", "", "a category whose name is long enough for the heap"], ["s"])
    result = train(
        store.snapshot(),
        TrainOptions(classifier="triplet-svm", triplet=TripletOptions(epochs=1), baselines=("category_only",)),
    )
    assert np.isfinite(result.baselines["category_only"].test_scores).all()
