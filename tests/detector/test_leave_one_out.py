"""Leave-one-out equals refitting without the sources, and reveals a generator unlike all others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.detector.evaluation.leave_one_out import TITLES, K, LeaveOneOut, held_out, leave_one_out
from clipfake.detector.evaluation.ridge import RidgeSums, by_source, ridge, with_constant
from clipfake.detector.metrics import auc
from clipfake.detector.training.baselines import neighbor_rule
from clipfake.detector.training.classifiers import fit_classifier
from clipfake.detector.training.examples import Examples
from clipfake.errors import HeadError, NotEnoughRows
from clipfake.show.evaluation_tables import leave_one_out_figure, leave_one_out_json, write_leave_one_out
from clipfake.store.records import Block, Rows, TextIndex
from clipfake.store.space import Space
from clipfake.store.store import Store

SPACE = Space("toy", "0" * 64, dim=10)
SOURCES = {"camera_a": 0, "camera_b": 0, "mixed": 0, "gan_a": 1, "gan_b": 1, "strange": 1}


def random_vectors(source: str, number: int) -> np.ndarray:
    """Fakes have one direction in common, except those of `strange`."""
    rng = np.random.default_rng(list(SOURCES).index(source))
    vectors = rng.standard_normal((number, 10))
    vectors[:, 3 if source == "strange" else 0] += 3.0 * SOURCES[source]
    vectors[:, 5 + list(SOURCES).index(source) % 4] += 0.5
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)  # type: ignore[no-any-return]


def stored(folder: Path, sources: list[str]) -> Store:
    store = Store.create(folder, SPACE)
    with store.writer() as writer:
        for source in sources:
            rows = Rows.make([f"{source}/{i}" for i in range(200)], [SOURCES[source]] * 200, sources=[source] * 200)
            writer.append(Block(SPACE, rows, random_vectors(source, 200)))
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return stored(tmp_path_factory.mktemp("atlas") / "s", list(SOURCES))


@pytest.fixture(scope="module")
def result(store: Store) -> LeaveOneOut:
    return leave_one_out(store.snapshot())


def test_subtracted_sums_equal_sums_without() -> None:
    real, fake, other_fake = random_vectors("camera_a", 300), random_vectors("gan_a", 300), random_vectors("gan_b", 200)
    subtracted = ridge(
        RidgeSums.from_vectors(real),
        RidgeSums.from_vectors(np.concatenate([fake, other_fake])) - RidgeSums.from_vectors(other_fake),
    )
    assert np.allclose(subtracted, ridge(RidgeSums.from_vectors(real), RidgeSums.from_vectors(fake)), atol=1e-10)


def test_pairs_equal_a_refitted_ridge_head(store: Store, result: LeaveOneOut) -> None:
    snapshot = store.snapshot()
    labels, sources = snapshot.column("labels"), snapshot.column("sources")
    held = held_out(by_source(snapshot)[0], 0)
    assert (by_source(snapshot)[0] >= 0).all()
    for cell in result.cells:
        queries = TextIndex((cell.generator, cell.real)).find(sources) >= 0
        trained = ~queries & ~np.isin(np.arange(len(snapshot)), held)
        head = ridge(*(RidgeSums.from_vectors(snapshot.vectors(trained & (labels == label))) for label in (0, 1)))
        scores = (with_constant(snapshot.vectors(queries)) @ head).astype(np.float32).astype(np.float64)
        assert abs((auc(labels[queries], scores) or 0) - cell.auc) < 1e-6
        assert cell.n == 400


def test_generator_unlike_all_others_scores_worst(result: LeaveOneOut) -> None:
    by_generator = dict(zip(result.generators, result.table().mean(1), strict=True))
    assert by_generator["strange"] < 0.65
    assert min(by_generator["gan_a"], by_generator["gan_b"]) > 0.85
    assert result.random_auc > 0.85
    assert result.optimism > 0.03
    assert "strange" in result.sentence


def test_oracle_is_at_least_the_accuracy(result: LeaveOneOut) -> None:
    assert len(result.cells) == 9
    assert all(cell.oracle >= cell.accuracy for cell in result.cells)


def test_one_generator_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughRows, match="two generators and two real sources, found 1 and 2"):
        leave_one_out(stored(tmp_path / "s", ["camera_a", "camera_b", "gan_a"]).snapshot())


@pytest.mark.parametrize("head", ["ridge", "knn", "logistic", "pca-svm"])
def test_sources_of_a_single_row_are_scored(tmp_path: Path, head: Any) -> None:
    store = stored(tmp_path / "s", ["camera_a", "gan_a"])
    with store.writer() as writer:
        for source in ("camera_b", "gan_b"):
            rows = Rows.make([f"{source}/0"], [SOURCES[source]], sources=[source])
            writer.append(Block(SPACE, rows, random_vectors(source, 1)))
    result = leave_one_out(store.snapshot(), head)
    assert [(cell.generator, cell.real, cell.n) for cell in result.cells] == [
        ("gan_a", "camera_a", 400),
        ("gan_a", "camera_b", 201),
        ("gan_b", "camera_a", 201),
        ("gan_b", "camera_b", 2),
    ]
    assert np.isfinite([(cell.auc, cell.accuracy, cell.oracle) for cell in result.cells]).all()
    assert result.cells[3].accuracy >= 0.5


def test_threshold_is_not_shifted_by_the_larger_class(tmp_path: Path) -> None:
    """The threshold is chosen by balanced accuracy, like the accuracy that is reported."""
    store = Store.create(tmp_path / "s", SPACE)
    rng = np.random.default_rng(0)
    with store.writer() as writer:
        for source, label in SOURCES.items():
            number = 900 if label else 60
            vectors = rng.standard_normal((number, 10))
            vectors[:, 0] += 1.2 * label
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            rows = Rows.make([f"{source}/{i}" for i in range(number)], [label] * number, sources=[source] * number)
            writer.append(Block(SPACE, rows, vectors.astype(np.float32)))
    result = leave_one_out(store.snapshot())
    assert result.mean_auc > 0.75
    assert np.mean([cell.accuracy for cell in result.cells]) > 0.66


def test_leave_one_out_is_reproducible(store: Store, result: LeaveOneOut) -> None:
    assert leave_one_out(store.snapshot()).to_dict() == result.to_dict()


@pytest.mark.parametrize("oversampling", [1, 3])
def test_pairs_equal_a_bank_without_their_sources(
    store: Store, tmp_path: Path, oversampling: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few rows fetched, all of them may be of the left-out source, so that the search is repeated."""
    monkeypatch.setattr("clipfake.detector.evaluation.leave_one_out.OVERSAMPLING", oversampling)
    snapshot = store.snapshot()
    result = leave_one_out(snapshot, "knn")
    labels, sources = snapshot.column("labels"), snapshot.column("sources")
    held = held_out(by_source(snapshot)[0], 0)
    for cell in result.cells[::4]:
        kept = TextIndex((cell.generator, cell.real)).find(sources) < 0
        kept[held] = False
        rebuilt = Store.create(tmp_path / f"{cell.generator}-{cell.real}", SPACE)
        with rebuilt.writer() as writer:
            for block in snapshot.blocks(where=kept):
                writer.append(block)
        bank = rebuilt.snapshot()
        rule = neighbor_rule(K)(
            Examples.from_snapshot(bank, np.arange(len(bank))), Examples.from_snapshot(bank, np.arange(1)), 0
        )
        queries = np.flatnonzero(TextIndex((cell.generator, cell.real)).find(sources) >= 0)
        scores = rule(Examples.from_snapshot(snapshot, queries))
        assert abs((auc(labels[queries], scores) or 0) - cell.auc) < 1e-4  # equal scores may be ordered either way
        assert cell.n == len(queries) == 400


@pytest.mark.parametrize("head", ["triplet-svm", "rbf-svm", "pca-svm", "logistic"])
def test_pairs_equal_a_classifier_fitted_without_them(store: Store, head: Any) -> None:
    snapshot = store.snapshot()
    result = leave_one_out(snapshot, head)
    assert result.random_auc > 0.85
    assert TITLES[result.head] in result.sentence
    labels, sources = snapshot.column("labels"), snapshot.column("sources")
    held = held_out(by_source(snapshot)[0], 0)
    whole = fit_classifier(head, rows_at(snapshot, np.setdiff1d(np.arange(1200), held)), rows_at(snapshot, held))
    for cell in result.cells[::8]:
        queries = TextIndex((cell.generator, cell.real)).find(sources) >= 0
        trained = np.setdiff1d(np.flatnonzero(~queries), held)
        fitted = fit_classifier(head, rows_at(snapshot, trained), rows_at(snapshot, held[~queries[held]]), c=whole.c)
        scores = fitted.decision_function(rows_at(snapshot, np.flatnonzero(queries)))
        assert auc(labels[queries], scores) == pytest.approx(cell.auc)
        assert cell.n == 400


def rows_at(snapshot: Any, positions: np.ndarray) -> Examples:
    return Examples.from_snapshot(snapshot, positions)


def test_oversampling_does_not_change_the_result(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    result = leave_one_out(store.snapshot(), "knn")
    monkeypatch.setattr("clipfake.detector.evaluation.leave_one_out.OVERSAMPLING", 1)
    again = leave_one_out(store.snapshot(), "knn")
    assert np.allclose(result.table(), again.table(), atol=1e-4)
    assert result.random_auc == pytest.approx(again.random_auc, abs=1e-4)
    assert result.random_auc > 0.85
    assert "nearest-neighbour rule" in result.sentence


def test_unknown_head_is_rejected(store: Store) -> None:
    with pytest.raises(HeadError, match="ridge, knn"):
        leave_one_out(store.snapshot(), "tree")  # type: ignore[arg-type]


def test_both_heads_are_in_one_json_and_one_table(store: Store, result: LeaveOneOut, tmp_path: Path) -> None:
    both = [result, leave_one_out(store.snapshot(), "knn")]
    content = leave_one_out_json(both)
    assert {head: len([c for c in content["cells"] if c["head"] == head]) for head in content["heads"]} == {
        "ridge": 9,
        "knn": 9,
    }
    assert content["optimism"] == content["heads"]["ridge"]["optimism"] == round(result.optimism, 4)
    written = {path.name: path for path in write_leave_one_out(both, tmp_path)}
    assert set(written) == {f"leave_one_out{name}" for name in (".png", ".svg", "_knn.png", "_knn.svg", ".csv")}
    lines = written["leave_one_out.csv"].read_text().splitlines()
    assert len(lines) == 1 + 18
    assert lines[0].startswith("head,generator,real")


def test_heat_map_caption_states_the_optimism(result: LeaveOneOut) -> None:
    figure = leave_one_out_figure(result)
    assert result.sentence in figure.caption
    assert {row[:2] for row in figure.rows} == {(cell.generator, cell.real) for cell in result.cells}
