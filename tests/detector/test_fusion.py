"""Fusion of detectors' scores: order alone counts, nothing is inverted, and no row is scored by its own label."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from clipfake.cli import main
from clipfake.detector.comparison import auc_difference
from clipfake.detector.fusion.curves import CURVES, Curve, monotone_logistic
from clipfake.detector.fusion.fusion import Fusion, fuse
from clipfake.detector.fusion.score_table import ScoreTable
from clipfake.detector.metrics import auc
from clipfake.errors import BadBlock, ClipfakeError, InvalidOption, NotEnoughRows, SourceError
from sklearn.linear_model import LogisticRegression

DEEPSAFE = Path(__file__).parents[3] / "shared" / "data" / "foreign" / "deepsafe_scores.csv"
Table = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]


def scores_table(rows: int = 2000, seed: int = 0) -> Table:
    """Two good detectors, one of them saturated at 0 and 1, and one that misleads."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % 2
    good, saturated, misleading = rng.normal(size=(3, rows)) + labels * np.array([[1.0], [1.0], [-0.5]])
    return np.column_stack([good, np.clip(saturated, 0, 1), misleading]), labels


@pytest.mark.parametrize("curve", CURVES)
def test_fusion_ranks_better_than_its_best_signal(curve: Curve) -> None:
    signals, labels = scores_table()
    report = fuse(signals, labels, ["good", "saturated", "misleading"], curve=curve).report
    assert report.best == "good"
    assert report.gain_interval[0] > 0
    assert report.gain == pytest.approx(report.auc - (report.signals["good"].auc or 0))
    assert report.signals["misleading"].weight < 0.02 < report.signals["saturated"].weight


@pytest.mark.parametrize("error", [0.05, 0.2])
def test_prediction_sets_hold_at_the_nominal_rate(error: float) -> None:
    report = fuse(*scores_table(12_000), error=error, curve="line").report
    assert report.real_excluded == pytest.approx(error, abs=0.01)
    assert report.fake_excluded == pytest.approx(error, abs=0.01)
    assert report.answered < 1


@pytest.mark.parametrize("curve", CURVES)
def test_only_the_order_of_the_scores_counts(curve: Curve) -> None:
    signals, labels = scores_table(400)
    stretched = np.column_stack([np.exp(50 * signals[:, 0]), 3 * signals[:, 1] - 7, np.arctan(signals[:, 2])])
    assert np.allclose(
        fuse(signals, labels, curve=curve).scores, fuse(stretched, labels, curve=curve).scores, atol=1e-6
    )


@pytest.mark.parametrize("curve", CURVES)
def test_a_higher_signal_never_lowers_the_score(curve: Curve) -> None:
    fusion = Fusion.fit(*scores_table(400), curve=curve)
    steps = np.linspace(-9, 9, 500)
    for signal in range(3):
        rows = np.zeros((500, 3))
        rows[:, signal] = steps
        assert (np.diff(fusion.decision_function(rows)) >= 0).all()


def test_no_row_is_scored_by_its_own_label() -> None:
    rng = np.random.default_rng(0)
    noise, labels = rng.normal(size=(200, 40)), np.arange(200) % 2
    of_own_rows = auc(labels, Fusion.fit(noise, labels).decision_function(noise)) or 0
    assert of_own_rows > 0.7  # it has learned the noise
    fused = fuse(noise, labels)
    assert fused.report.auc == pytest.approx(0.5, abs=0.12)
    assert auc(labels, fused.scores) == fused.report.auc


def test_missing_signals_add_nothing() -> None:
    signals, labels = scores_table(600)
    signals[::3, 0] = np.nan
    signals[7] = np.nan
    fusion = Fusion.fit(signals, labels)
    contributions, scores = fusion.contributions(signals), fusion.decision_function(signals)
    assert (contributions[::3, 0] == 0).all()
    whole = ~np.isnan(signals).all(1)
    assert np.allclose(scores[whole], contributions[whole].sum(1) + fusion.curves.offset)
    assert np.isnan(scores[7])
    assert fusion.prediction_sets(scores, 0.5)[7].all()
    assert fuse(signals, labels).report.signals["0"].missing == pytest.approx(1 / 3, abs=0.01)


def test_infinite_scores_are_the_ends_of_the_order() -> None:
    signals, labels = scores_table(600)
    ends = signals.copy()
    ends[signals[:, 1] == 0, 1], ends[signals[:, 1] == 1, 1] = -np.inf, np.inf
    assert np.allclose(fuse(signals, labels).scores, fuse(ends, labels).scores)


def test_monotone_logistic_regression_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = (np.arange(900) % 3 == 0).astype(int)
    features = rng.normal(size=(900, 3)) + labels[:, None] * [1.0, 0.5, 0.2]
    model = LogisticRegression(class_weight="balanced", C=1.0, tol=1e-8).fit(features, labels)
    weights, offset = monotone_logistic(features, labels)
    assert weights == pytest.approx(model.coef_[0], abs=1e-3)
    assert offset == pytest.approx(model.intercept_[0], abs=1e-3)
    against, _ = monotone_logistic(features * [1, 1, -1], labels)
    assert against[2] == 0


def test_auc_difference_is_paired() -> None:
    signals, labels = scores_table(300)
    good, saturated, _ = signals.T
    difference, (low, high) = auc_difference(labels, good, saturated)
    assert difference == pytest.approx((auc(labels, good) or 0) - (auc(labels, saturated) or 0))
    assert low < difference < high
    assert auc_difference(labels, good, 2 * good) == (0, (0, 0))


@pytest.mark.parametrize(
    ("signals", "labels", "error"),
    [
        (np.zeros((30, 2)), np.arange(29) % 2, BadBlock),
        (np.zeros(30), np.arange(30) % 2, BadBlock),
        (np.zeros((30, 2)), np.arange(30) % 3, BadBlock),
        (np.full((30, 2), np.nan), np.arange(30) % 2, NotEnoughRows),
        (np.zeros((30, 2)), np.zeros(30, int), NotEnoughRows),
        (np.zeros((18, 2)), np.arange(18) % 2, NotEnoughRows),
    ],
)
def test_unusable_tables_are_refused(signals: Any, labels: Any, error: type[ClipfakeError]) -> None:
    with pytest.raises(error):
        Fusion.fit(signals, labels)


def test_rows_are_counted_before_they_are_halved() -> None:
    with pytest.raises(NotEnoughRows, match="at least 20 real and 20 fake rows"):
        fuse(*scores_table(38))
    assert fuse(*scores_table(40)).report.n == 40


def test_signal_that_a_half_lacks_has_no_weight() -> None:
    signals, labels = scores_table(40)
    signals[1:, 1] = np.nan
    assert np.isfinite(fuse(signals, labels).scores).all()


def test_unknown_curve_is_refused() -> None:
    with pytest.raises(InvalidOption, match="line, piecewise or auto"):
        Fusion.fit(*scores_table(), curve="wavy")  # type: ignore[arg-type]


def test_another_number_of_signals_is_refused() -> None:
    fusion = Fusion.fit(*scores_table(100))
    with pytest.raises(BadBlock, match="3 signals"):
        fusion.decision_function(np.zeros((4, 2)))


def write_table(path: Path, rows: int = 200, **columns: list[Any]) -> Path:
    signals, labels = scores_table(rows)
    table = {"image": [f"{i}.jpg" for i in range(rows)], "a": signals[:, 0].tolist(), "b": signals[:, 1].tolist()}
    table |= {"truth": labels.tolist()} | columns
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([table.keys(), *zip(*table.values(), strict=True)])
    return path


def test_command_fuses_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = ["fake" if i % 2 else "real" for i in range(195)] + [""] * 5
    table = write_table(tmp_path / "scores.csv", truth=truth, number=list(range(200)))
    out = tmp_path / "fused.csv"
    with pytest.raises(SystemExit) as ended:
        main(["fuse", str(table), "--label", "truth", "--out", str(out), "--json"])
    printed = capsys.readouterr()
    assert ended.value.code == 0
    report = json.loads(printed.out)
    assert (report["n"], report["real"], report["fake"]) == (195, 98, 97)
    assert set(report["signals"]) == {"a", "b"}
    assert "number" in printed.err  # row numbers are no scores
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"{i}.jpg" for i in range(200)]
    assert {row["fused_answer"] for row in rows} <= {"real", "fake", "unsure"}
    assert all(0 < float(row["fused_probability"]) < 1 for row in rows[195:])  # judged although not labelled
    labelled = np.array([float(row["fused_score"]) for row in rows[:195]])
    assert auc(np.arange(195) % 2, labelled) == pytest.approx(report["auc"], abs=1e-3)


def test_cells_are_written_as_they_were_read(tmp_path: Path) -> None:
    identifiers, scores = [f"{i:05d}" for i in range(199)] + ["NA"], [f"{i / 200:.3f}0" for i in range(200)]
    table = write_table(tmp_path / "scores.csv", rows=200, id=identifiers, a=scores, big=["1e400"] * 199 + [""])
    with pytest.raises(SystemExit) as ended:
        main(["fuse", str(table), "--label", "truth", "--signals", "a,b", "--out", str(tmp_path / "fused.csv")])
    assert ended.value.code == 0
    with table.open(newline="") as before, (tmp_path / "fused.csv").open(newline="") as after:
        assert [row[:-3] for row in csv.reader(after)] == list(csv.reader(before))


def test_command_prints_a_table_of_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path / "scores.csv")
    with pytest.raises(SystemExit):
        main(["fuse", str(table), "--label", "truth", "--signals", "a, b", "--error", "10%"])
    printed = capsys.readouterr().out
    assert "weight" in printed
    assert "nominal 10%" in printed


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, ("--label", "label"), "no column label; its columns are image, a, b, truth"),
        ({}, ("--label", "truth", "--signals", "a,c"), "no column c"),
        ({"b": ["x"] * 200}, ("--label", "truth", "--signals", "a,b"), "'x' in the column b, row 1, is not a number"),
        ({"truth": [2] * 200}, ("--label", "truth"), "'2' in the column truth, row 1, is no label"),
        ({"truth": [1] * 200}, ("--label", "truth"), "found 0 real and 200 fake"),
        ({"a": ["x"] * 200, "b": [""] * 200}, ("--label", "truth"), "the signal b has no score in any row"),
        ({"fused_score": [1.5] * 200}, ("--label", "truth"), "the column fused_score of an earlier fusion"),
    ],
)
def test_command_says_what_is_wrong(
    columns: dict[str, Any], options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "scores.csv", **columns)
    with pytest.raises(SystemExit) as ended:
        main(["fuse", str(table), *options])
    assert ended.value.code == 1
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"\xff\xfe\x00", b'a,b\n"1,2'):
        (tmp_path / "scores.csv").write_bytes(content)
        with pytest.raises(SourceError, match=r"scores\.csv"):
            ScoreTable.read(tmp_path / "scores.csv", "a")


@pytest.mark.slow
@pytest.mark.skipif(not DEEPSAFE.is_file(), reason="the shared data is not beside this checkout")
def test_fusion_of_published_detectors_beats_the_best_one() -> None:
    table = ScoreTable.read(DEEPSAFE, "ground_truth")
    report = fuse(table.signals, table.labels, table.names, curve="line").report
    assert (report.n, len(table.names)) == (20_000, 7)
    assert report.auc > 0.78 > (report.signals[report.best].auc or 0)
    assert report.gain_interval[0] > 0.01
    assert max(abs(report.real_excluded - 0.05), abs(report.fake_excluded - 0.05)) < 0.01
