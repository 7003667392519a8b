"""Calibration on unseen rows and left-out sources: head and bank have seen no judged row, its file or its source."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.detector.calibration import Calibration, Platt, WeightedScores
from clipfake.detector.evidence import Bank
from clipfake.detector.metrics import measure
from clipfake.detector.training import calibrate as module
from clipfake.detector.training.calibrate import (
    SET_SHARE,
    CalibrationReport,
    SignalTable,
    calibrate,
    row_folds,
    source_folds,
)
from clipfake.detector.training.coverage import CoverageReport, SourceCoverage
from clipfake.detector.training.train import TrainOptions, train
from clipfake.detector.training.triplet import TripletOptions
from clipfake.store.records import Block, Rows, names
from clipfake.store.snapshot import Snapshot
from clipfake.store.space import Space
from clipfake.store.store import Store
from hypothesis import given, settings
from hypothesis import strategies as st

DIM = 10
SPACE = Space("toy", "0" * 64, dim=DIM)
OPTIONS = TrainOptions(classifier="triplet-svm", triplet=TripletOptions(epochs=1), baselines=(), recipe="grouped")
SOURCES = {"real a": 160, "real b": 80, "real c": 60, "gan a": 120, "gan b": 60, "gan c": 40, "gan d": 40, "gan e": 20}
TRAINED, CHOSE, TESTED = 0, 1, 2


def snapshot_of(folder: Path, sources: dict[str, int]) -> Snapshot:
    """Every fifth file is stored twice, and some rows have no label."""
    rng = np.random.default_rng(0)
    source = np.repeat(list(sources), list(sources.values()))
    labels = np.array([int(name.startswith("gan")) for name in source])
    vectors = rng.standard_normal((len(source), DIM))
    vectors[:, 0] += 2.5 * labels
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    digests = np.frombuffer(rng.bytes(16 * len(source)), "V16")
    store = Store.create(folder / "s", SPACE)
    with store.writer() as writer:
        for copy, selected in enumerate((slice(None), slice(None, None, 5))):
            count = len(labels[selected])
            rows = Rows.make(
                [f"{copy}/{i}" for i in range(count)],
                np.where(np.arange(count) % 50 == 49, -1, labels[selected]),
                sources=source[selected].tolist(),
                generators=names([name if name.startswith("gan") else "" for name in source[selected].tolist()]),
                digests=digests[selected],
            )
            writer.append(Block(SPACE, rows, vectors[selected]))
    return store.snapshot()


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return snapshot_of(tmp_path_factory.mktemp("heldout"), SOURCES)


def test_held_out_rows_are_unseen_by_head_and_bank(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error rates for seen and for unseen sources depend on this."""
    trained: list[set[int]] = []
    judged: list[tuple[set[int], set[int], set[int], bool]] = []
    fit, read = module.fit_head, SignalTable.read.__func__  # type: ignore[attr-defined]

    def fitted(rows: Any, *arguments: Any, **options: Any) -> Any:
        trained.append({*rows.train.positions.tolist(), *rows.validation.positions.tolist()})
        return fit(rows, *arguments, **options)

    def recorded(cls: type[SignalTable], head: Any, bank: Bank, positions: Any, *, unseen: bool = False) -> SignalTable:
        of_head = trained[-1] if trained else set[int]()
        judged.append((of_head, set(np.flatnonzero(bank.members).tolist()), set(positions.tolist()), unseen))
        return read(cls, head, bank, positions, unseen=unseen)  # type: ignore[no-any-return]

    head = train(snapshot, OPTIONS).head
    parts = head.split.parts_of(snapshot.column("keys"))
    monkeypatch.setattr(module, "fit_head", fitted)
    monkeypatch.setattr(SignalTable, "read", classmethod(recorded))
    calibrated = calibrate(snapshot, head, OPTIONS)

    digests, sources, labels = (snapshot.column(name) for name in ("digests", "sources", "labels"))
    (_, bank, tested, _), *folds = judged
    assert all(parts[row] == TRAINED for row in bank) and all(parts[row] == TESTED for row in tested)
    assert len(tested) == calibrated.test.n == (parts == TESTED).sum()
    assert [unseen for *_, unseen in folds] == [False] * 5 + [True] * 4
    for of_head, bank, rows, unseen in folds:
        assert of_head and bank and rows
        seen = of_head | bank
        assert not {digests[row].tobytes() for row in seen} & {digests[row].tobytes() for row in rows}
        if unseen:
            assert not {sources[row] for row in seen} & {sources[row] for row in rows}
        assert all(parts[row] == TRAINED for row in bank)
        assert all(parts[row] in (TRAINED, CHOSE) for row in of_head | rows)
    pool = set(np.flatnonzero((parts == TRAINED) | (parts == CHOSE)).tolist())
    for kind in (False, True):
        rows_of_kind = [row for *_, rows, unseen in folds if unseen == kind for row in rows]
        assert len(rows_of_kind) == len(set(rows_of_kind))
        assert set(rows_of_kind) == {row for row in pool if labels[row] >= 0}
    assert calibrated.unseen is not None and calibrated.unseen.n == len(pool)


def test_folds_hold_whole_sources_of_both_classes(snapshot: Snapshot) -> None:
    labels, sources = snapshot.column("labels"), snapshot.column("sources")
    parts = np.where(labels >= 0, np.arange(len(snapshot)) % 4, -1).astype(np.int8)  # 3 is not a part of the split
    folds = source_folds(snapshot, parts)
    pool = (parts == TRAINED) | (parts == CHOSE)
    assert ((folds >= 0) == pool).all() and (folds[~pool] == -2).all()
    of_source = {name: set(folds[pool & (sources == name)].tolist()) for name in SOURCES}
    assert all(len(folds_of_source) == 1 for folds_of_source in of_source.values())
    # the largest first, each into the smallest fold of its class: a to d in one each, e with c or d
    assert len({fold for name in "abcd" for fold in of_source[f"gan {name}"]}) == 4
    assert of_source["gan e"] <= of_source["gan c"] | of_source["gan d"]
    assert [of_source[f"real {name}"] for name in "abc"] == [{0}, {1}, {2}]


@pytest.mark.parametrize(
    ("sources", "folds"),
    [
        (("real a", "gan a"), {"real a": -1, "gan a": -1}),
        (("real a", "gan a", "gan b"), {"real a": -1, "gan a": 0, "gan b": 1}),
        (("real a", "real b", "gan a"), {"real a": 0, "real b": 1, "gan a": -1}),
        (("real a", "real b", "gan a", "gan b"), {"real a": 0, "real b": 1, "gan a": 2, "gan b": 3}),
    ],
)
def test_few_sources_are_left_out_one_class_at_a_time(
    tmp_path: Path, sources: tuple[str, ...], folds: dict[str, int]
) -> None:
    snapshot = snapshot_of(tmp_path, {name: SOURCES[name] for name in sources})
    found = source_folds(snapshot, np.where(snapshot.column("labels") >= 0, TRAINED, -1).astype(np.int8))
    for name, fold in folds.items():
        assert set(found[(snapshot.column("sources") == name) & (snapshot.column("labels") >= 0)].tolist()) == {fold}


def test_row_folds_are_equal_parts_of_each_class(snapshot: Snapshot) -> None:
    labels = snapshot.column("labels")
    parts = np.where(labels >= 0, TRAINED, -1).astype(np.int8)
    folds = row_folds(snapshot, parts, seed=0)
    assert (folds[labels < 0] == -2).all()
    for label in (0, 1):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.min() > 0.8 * counts.mean()
    assert (row_folds(snapshot, parts, seed=0) == folds).all()
    assert (row_folds(snapshot, parts, seed=1) != folds).any()


def table_of(rows: list[tuple[str, int, bool, float]]) -> SignalTable:
    """A table of rows of (source, label, unseen, signal)."""
    sources, labels, unseen, signal = zip(*rows, strict=True)
    score = np.array(signal)
    return SignalTable(score, score, score, np.array(labels), names(list(sources)), np.array(unseen))


def test_left_out_sources_have_their_share_of_the_weight() -> None:
    rng = np.random.default_rng(0)
    rows = [("real a", 0, False, rng.normal()) for _ in range(40)]
    rows += [("gan a", 1, False, rng.normal()) for _ in range(40)]
    rows += [("real b", 0, True, 10 + rng.normal()) for _ in range(5)]
    rows += [("real c", 0, True, 20 + rng.normal()) for _ in range(20)]
    calibration = table_of(rows).calibrated()
    weights = dict.fromkeys(("seen", "b", "c"), 0.0)
    assert len(calibration.real.scores) == 65 and len(calibration.fake.scores) == 40
    order = np.argsort([row[3] for row in rows if row[1] == 0], kind="stable")
    if calibration.weights == (0.0, 0.0):  # the misleading signal is ignored: all scores are equal
        order = np.arange(65)
    kinds = np.array(["seen"] * 40 + ["b"] * 5 + ["c"] * 20)[order]
    for kind in weights:
        weights[kind] = float(calibration.real.weights[kinds == kind].sum())
    assert weights == pytest.approx({"seen": 1 - SET_SHARE, "b": SET_SHARE / 2, "c": SET_SHARE / 2})
    assert calibration.fake.weights == pytest.approx(1 / 40)  # no fake source was left out


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=40),
    st.sampled_from([0.01, 0.05, 0.2]),
)
def test_coverage_report_equals_counting_row_by_row(rows: list[tuple[bool, bool, bool]], nominal: float) -> None:
    labels = np.array([int(fake) for fake, *_ in rows])
    report = CoverageReport.measure(labels, np.array([row[1:] for row in rows]), nominal, 100)

    def share(of: list[bool]) -> float | None:
        return sum(of) / len(of) if of else None

    missed = [(is_fake, not (can_be_fake if is_fake else can_be_real)) for is_fake, can_be_real, can_be_fake in rows]
    answers = [not (fake if is_fake else real) for is_fake, real, fake in rows if real != fake]
    assert (report.n, report.real, report.fake) == (len(rows), int((labels == 0).sum()), int((labels == 1).sum()))
    assert report.answered == pytest.approx(len(answers) / len(rows))
    assert report.wrong == share(answers)
    assert report.real_excluded == share([wrong for is_fake, wrong in missed if not is_fake])
    assert report.fake_excluded == share([wrong for is_fake, wrong in missed if is_fake])
    assert ("does not hold" in report.sentence()) == report.broken


@pytest.mark.parametrize(("missed", "broken"), [(50, False), (63, False), (66, True)])
def test_broken_means_more_errors_than_chance_explains(missed: int, broken: bool) -> None:
    """5 % of 1000 rows are 50, with two standard deviations of 14."""
    labels = np.repeat([0, 1], 1000)
    for label, others in ((0, 1), (1, 0)):
        possible = np.ones((2000, 2), bool)
        possible[np.flatnonzero(labels == label)[:missed], label] = False
        assert CoverageReport.measure(labels, possible, 0.05, 10**9).broken == broken
        assert not CoverageReport.measure(
            labels, possible, 0.05, 10
        ).broken  # a calibration on ten rows may deviate more
        assert possible[:, others].all()


def report_of(rows: int, *sources: SourceCoverage, stored: tuple[int, int] = (5, 5)) -> CalibrationReport:
    """A report on a calibration with so many rows of each class, and on these left-out sources."""
    held = WeightedScores.make(np.arange(float(rows)))
    line = Platt(1, 0)
    calibration = Calibration(line, line, (1.0, 0.0), 0.0, held, held, np.linspace(0, 1, 1001), "ab" * 16)
    seen = CoverageReport(10, 5, 5, rows, 0.05, 0.0, None, 0.0, 0.0)
    unseen = CoverageReport(10, 5, 5, rows, 0.05, 0.0, None, 0.0, 0.0, sources) if sources else None
    stored_by_class = dict(zip(("real", "fake"), stored, strict=True))
    signals = table_of([("real a", 0, False, 0.0), ("gan a", 1, False, 1.0)])
    return CalibrationReport(calibration, measure(np.arange(2), np.arange(2.0)), seen, unseen, stored_by_class, signals)


@pytest.mark.parametrize("rows", range(2, 19))
def test_proposed_error_rate_gives_answers(rows: int) -> None:
    report = report_of(rows)
    sentence = report.sentences[1]
    proposed = float(sentence.partition("accept an error rate of ")[2].partition("%")[0]) / 100
    assert not report.calibration.prediction_sets(np.array([-1e9]), proposed)[0, 1]
    assert proposed == pytest.approx(1 / (rows + 1), abs=1e-4)


def source(name: str, label: str, excluded: float, auc: float = 0.9) -> SourceCoverage:
    return SourceCoverage(name, label, 1000, auc, 0.5, excluded)


def test_real_sources_never_seen_are_reported_with_their_rate() -> None:
    reals = [source("a", "real", 0.3), source("b", "real", 0.1), source("c", "real", 0.02)]
    fakes = [source(f"gan {i}", "fake", 0.01, auc) for i, auc in enumerate((0.9, 0.4, 0.8))]
    report = report_of(1000, *reals, *fakes)
    inverted, fake, real = report.sentences[-3:]
    assert inverted == "Worse than chance when left out: gan 1 (AUC 0.40)."
    assert "ruled out for 1.0%" in fake and "does not hold" not in fake
    assert real == (
        "Real sources never seen (3 left out): 50% of their rows got an answer; real was ruled out for 14.0% "
        "(nominal 5%), most of a: 30%; the nominal error rate does not hold for them."
    )
    assert report.notice == (
        "Known limits: for sources that are not stored, real is wrongly ruled out for 14% of the images "
        "(at worst 30%); the nominal rate is 5%."
    )


def test_nothing_is_noticed_where_the_nominal_rate_holds() -> None:
    sources = [source(f"{label} {i}", label, 0.04) for label in ("real", "fake") for i in range(3)]
    assert report_of(1000, *sources).notice == ""


@pytest.mark.parametrize(("excluded", "rows", "above"), [(0.08, 40, True), (0.07, 40, False), (0.06, 5000, True)])
def test_few_rows_do_not_show_that_the_rate_holds(excluded: float, rows: int, above: bool) -> None:
    sources = [SourceCoverage(f"{i}", "real", rows, 0.9, 0.5, excluded) for i in range(3)]
    fakes = [source(f"gan {i}", "fake", 0.01) for i in range(3)]
    assert ("real is wrongly ruled out" in report_of(5000, *sources, *fakes).notice) == above


def test_rate_is_not_known_where_nothing_is_answered() -> None:
    sources = [SourceCoverage(f"{i}", "real", 40, 0.9, 0.0, 0.0) for i in range(3)]
    report = report_of(1000, *sources)
    assert "not known how often real is wrongly ruled out" in report.notice
    assert "none of their rows got an answer" in report.sentences[-1]


def test_source_of_few_rows_is_not_called_the_worst() -> None:
    sources = [
        SourceCoverage(f"{i}", "real", n, auc, 0.5, rate)
        for i, (n, auc, rate) in enumerate([(1, 0.1, 1.0), (40, 0.8, 0.3), (40, 0.9, 0.2)])
    ]
    report = report_of(1000, *sources)
    assert "(at worst 30%)" in report.notice and "most of 1: 30%" in report.sentences[-1]
    assert not report.inverted


@pytest.mark.parametrize(("reals", "count"), [(1, "1 real source is stored"), (2, "2 real sources are stored")])
def test_two_real_sources_are_too_few_to_know(reals: int, count: str) -> None:
    fakes = [source(f"gan {i}", "fake", 0.04) for i in range(3)]
    left_out = [source(f"real {i}", "real", 0.0) for i in range(reals if reals > 1 else 0)]
    report = report_of(1000, *left_out, *fakes, stored=(reals, 3))
    assert f"Real sources never seen: {count}, too few to know how often" in report.sentences[-1]
    assert f"not known how often real is wrongly ruled out (stored real sources: {reals})" in report.notice


def test_sources_of_too_few_images_are_not_called_too_few() -> None:
    report = report_of(1000, stored=(3, 6))  # nothing could be left out
    for sentence, count in zip(report.sentences[-2:], ("6 fake sources", "3 real sources"), strict=True):
        assert f"{count} are stored, with too few images to leave some out" in sentence
        assert "at least" not in sentence


def test_sentence_names_at_most_ten_sources_worse_than_chance() -> None:
    reals = [source(f"photographer {i:02d}", "real", 0.0, auc=0.1 + i / 1000) for i in range(45)]
    [inverted] = [line for line in report_of(1000, *reals).sentences if line.startswith("Worse than chance")]
    assert inverted.count("photographer") == 10
    assert "photographer 09" in inverted and inverted.endswith(" and 35 more.")


def test_no_source_is_the_worst_where_nothing_was_ruled_out() -> None:
    reals = [source(f"real {i}", "real", 0.0) for i in range(3)]
    assert report_of(1000, *reals).sentences[-1].endswith("real was ruled out for 0.0% (nominal 5%).")
