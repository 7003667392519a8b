"""Calibration on held-out generators: neither head nor bank has seen a judged row, its file or its generator."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipfake.detector.calibration import Calibration, Platt
from clipfake.detector.evidence import Bank
from clipfake.detector.metrics import measure
from clipfake.detector.training import calibrate as heldout
from clipfake.detector.training.calibrate import (
    CalibrationReport,
    CoverageReport,
    SignalTable,
    calibrate,
    generator_folds,
)
from clipfake.detector.training.train import TrainOptions, train
from clipfake.detector.training.triplet import TripletOptions
from clipfake.store.records import Block, Rows, TextIndex, names
from clipfake.store.snapshot import Snapshot
from clipfake.store.space import Space
from clipfake.store.store import Store
from hypothesis import given, settings
from hypothesis import strategies as st

DIM = 10
SPACE = Space("toy", "0" * 64, dim=DIM)
OPTIONS = TrainOptions(classifier="triplet-svm", triplet=TripletOptions(epochs=1), baselines=(), recipe="grouped")
MAKERS = {"": 300, "gan a": 120, "gan b": 60, "gan c": 40, "gan d": 40, "gan e": 20}  # generator -> number of rows
TRAINED, CHOSE, TESTED = 0, 1, 2


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Every fifth file is stored twice, and some rows have no label."""
    rng = np.random.default_rng(0)
    generators = np.repeat(list(MAKERS), list(MAKERS.values()))
    labels = (generators != "").astype(int)
    vectors = rng.standard_normal((len(generators), DIM))
    vectors[:, 0] += 2.5 * labels
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    digests = np.frombuffer(rng.bytes(16 * len(generators)), "V16")
    store = Store.create(tmp_path_factory.mktemp("heldout") / "s", SPACE)
    with store.writer() as writer:
        for copy, selected in enumerate((slice(None), slice(None, None, 5))):
            count = len(labels[selected])
            rows = Rows.make(
                [f"{copy}/{i}" for i in range(count)],
                np.where(np.arange(count) % 50 == 49, -1, labels[selected]),
                sources=[f"s {generator}" for generator in generators[selected]],
                generators=names(generators[selected].tolist()),
                digests=digests[selected],
            )
            writer.append(Block(SPACE, rows, vectors[selected]))
    return store.snapshot()


def test_held_out_rows_are_unseen_by_head_and_bank(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error rate for unseen generators depends on this."""
    trained: list[set[int]] = []
    judged: list[tuple[set[int], set[int], set[int]]] = []
    fit, read = heldout.fit_head, SignalTable.read.__func__  # type: ignore[attr-defined]

    def fitted(rows: Any, *arguments: Any, **options: Any) -> Any:
        trained.append({*rows.train.positions.tolist(), *rows.validation.positions.tolist()})
        return fit(rows, *arguments, **options)

    def recorded(cls: type[SignalTable], head: Any, bank: Bank, positions: Any, fold: int = 0) -> SignalTable:
        of_head = trained[-1] if trained else set[int]()
        judged.append((of_head, set(np.flatnonzero(bank.members).tolist()), set(positions.tolist())))
        return read(cls, head, bank, positions, fold)  # type: ignore[no-any-return]

    head = train(snapshot, OPTIONS).head
    parts = head.split.parts_of(snapshot.column("keys"))
    monkeypatch.setattr(heldout, "fit_head", fitted)
    monkeypatch.setattr(SignalTable, "read", classmethod(recorded))
    calibrated = calibrate(snapshot, head, OPTIONS)

    digests, makers = snapshot.column("digests"), snapshot.column("generators")
    (_, bank, tested), *folds = judged
    assert all(parts[row] == TRAINED for row in bank) and all(parts[row] == TESTED for row in tested)
    assert len(tested) == calibrated.test.n == (parts == TESTED).sum()
    assert len(folds) == 4
    for of_head, bank, rows in folds:
        assert of_head and bank and rows
        seen = of_head | bank
        assert not {digests[row].tobytes() for row in seen} & {digests[row].tobytes() for row in rows}
        assert not {makers[row] for row in seen} & {makers[row] for row in rows} - {""}
        assert all(parts[row] == TRAINED for row in bank)
        assert all(parts[row] in (TRAINED, CHOSE) for row in of_head | rows)
        assert {int(snapshot.column("labels")[row]) for row in rows} == {0, 1}
    all_judged = [row for *_, rows in folds for row in rows]
    assert len(all_judged) == len(set(all_judged)) == ((parts == TRAINED) | (parts == CHOSE)).sum()
    assert calibrated.unseen is not None and calibrated.unseen.n == len(all_judged)


def test_folds_hold_whole_generators_and_are_balanced(snapshot: Snapshot) -> None:
    labels, makers = snapshot.column("labels"), snapshot.column("generators")
    parts = np.where(labels >= 0, np.arange(len(snapshot)) % 4, -1).astype(np.int8)  # 3 is not a part of the split
    folds = generator_folds(snapshot, parts, seed=0)
    assert folds is not None
    pool = (parts == TRAINED) | (parts == CHOSE)
    assert ((folds >= 0) == pool).all()
    of_maker = {maker: set(folds[pool & (makers == maker)].tolist()) for maker in MAKERS if maker}
    assert all(len(folds_of_maker) == 1 for folds_of_maker in of_maker.values())
    # the largest first, each into the smallest fold: a to d in one each, e with c or d
    assert len({fold for maker in "abcd" for fold in of_maker[f"gan {maker}"]}) == 4
    assert of_maker["gan e"] <= of_maker["gan c"] | of_maker["gan d"]
    real = np.bincount(folds[pool & (labels == 0)], minlength=4)
    assert real.min() > 0.5 * real.mean()
    assert (generator_folds(snapshot, parts, seed=0) == folds).all()  # type: ignore[union-attr]
    assert (generator_folds(snapshot, parts, seed=1) != folds).any()  # type: ignore[union-attr]


def test_two_generators_are_too_few_for_folds(snapshot: Snapshot) -> None:
    for kept, number in ((("", "gan a", "gan b"), None), (("", "gan a", "gan b", "gan c"), 3)):
        parts = np.where((TextIndex(list(kept)).find(snapshot.column("generators")) >= 0), 0, -1).astype(np.int8)
        folds = generator_folds(snapshot, parts, seed=0)
        assert (None if folds is None else int(folds.max()) + 1) == number


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.booleans(), st.booleans()), min_size=1, max_size=40),
    st.sampled_from([0.01, 0.05, 0.2]),
)
def test_coverage_report_equals_counting_row_by_row(rows: list[tuple[str, bool, bool]], nominal: float) -> None:
    labels = np.array([int(maker != "") for maker, *_ in rows])
    possible = np.array([value[1:] for value in rows])
    signals = SignalTable(*[np.zeros(len(rows))] * 3, labels, names([row[0] for row in rows]), np.zeros(len(rows), int))  # type: ignore[arg-type, call-arg]
    report = CoverageReport.measure(signals, possible, nominal, 100)

    def share(of: list[bool]) -> float | None:
        return sum(of) / len(of) if of else None

    missed = [(maker, not (can_be_fake if maker else can_be_real)) for maker, can_be_real, can_be_fake in rows]
    answers = [not (fake if maker else real) for maker, real, fake in rows if real != fake]
    assert (report.n, report.real, report.fake) == (len(rows), int((labels == 0).sum()), int((labels == 1).sum()))
    assert report.answered == pytest.approx(len(answers) / len(rows))
    assert report.wrong == share(answers)
    assert report.real_excluded == share([wrong for maker, wrong in missed if not maker])
    assert report.fake_excluded == share([wrong for maker, wrong in missed if maker])
    by_maker = {name: share([wrong for maker, wrong in missed if maker == name]) for name in ("a", "b")}
    known = {name: rate for name, rate in by_maker.items() if rate is not None}
    assert report.worst_excluded == (max(known.values()) if known else None)
    assert (report.worst in known and known[report.worst] == report.worst_excluded) if known else report.worst == ""
    sentence = report.sentence("Here")
    assert ("does not hold" in sentence) == report.broken
    assert (f"worst generator is {report.worst}:" in sentence) == (bool(known) and max(known.values()) > 2 * nominal)


@pytest.mark.parametrize(("missed", "broken"), [(50, False), (63, False), (66, True)])
def test_broken_means_more_errors_than_chance_explains(missed: int, broken: bool) -> None:
    """5 % of 1000 rows are 50, with two standard deviations of 14."""
    labels = np.repeat([0, 1], 1000)
    for label, others in ((0, 1), (1, 0)):
        possible = np.ones((2000, 2), bool)
        possible[np.flatnonzero(labels == label)[:missed], label] = False
        signals = SignalTable(*[np.zeros(2000)] * 3, labels, names([""] * 2000), np.zeros(2000, int))  # type: ignore[arg-type, call-arg]
        assert CoverageReport.measure(signals, possible, 0.05, 10**9).broken == broken
        assert not CoverageReport.measure(
            signals, possible, 0.05, 10
        ).broken  # a calibration on ten rows may deviate more
        assert possible[:, others].all()


@pytest.mark.parametrize("rows", range(2, 19))
def test_proposed_error_rate_gives_answers(rows: int, tmp_path: Path) -> None:
    held = np.arange(float(rows))
    calibration = Calibration(
        Platt(1, 0), Platt(1, 0), (1.0, 0.0), 0.0, held, held, np.linspace(0, 1, 1001), "rows", "ab" * 16
    )
    no_answers = CoverageReport(10, 5, 5, rows, 0.05, 0.0, None, 0.0, 0.0)
    _, sentence = CalibrationReport(calibration, measure(np.arange(2), np.arange(2.0)), no_answers, None).sentences
    proposed = float(sentence.partition("accept an error rate of ")[2].partition("%")[0]) / 100
    assert not calibration.prediction_sets(np.array([-1e9]), proposed)[0, 1]
    assert proposed == pytest.approx(1 / (rows + 1), abs=1e-4)
