"""The figures of the report, also with very long source names."""

from typing import Any

import numpy as np
import pytest
from clipfake.detector.split import PARTS
from clipfake.show import evaluation_figures, metric_figures, training_figures
from clipfake.show.figure import FULL, HALF, NAME_LENGTH, ReportFigure, shorten_middle
from matplotlib.backends.backend_agg import FigureCanvasAgg

LONG = [f"{'a_very_long_name_of_a_generator_' * 2}{i}" for i in range(9)]
SHORT = ["pro_gan", "sd"]
EDGE = 0.03  # inches of tolerance for the width of a line


def draw_all(names: list[str]) -> list[ReportFigure]:
    """Every figure of the report, from random results for these sources."""
    rng = np.random.default_rng(0)
    sources = np.array([*names, *names])
    labels = rng.permutation(np.tile([0, 1], len(names)))
    metrics: dict[str, Any] = {
        "n": 1171,
        "accuracy": 0.5,
        "balanced_accuracy": 0.5,
        **{name: {"macro": 0.5} for name in ("precision", "recall", "f1")},
        "auc": 0.41,
        "ap": None,
        "intervals": {"auc": (0.2, 0.6)},
        "confusion": {"tn": 1_234_567, "fp": 0, "fn": 1, "tp": 1_234_567},
    }
    parts = dict.fromkeys(PARTS, metrics)
    window = {"auc": 0.4, "past_auc": 1.0, "accuracy": 0.5, "date": "2024-01-01", "generators": 3, "n": 9}
    scores = rng.normal(size=len(labels))
    epoch = ("loss", "active_loss", "active_share", "validation_loss", "positive_distance", "negative_distance")
    values = rng.random((len(names), len(names)))
    return [
        training_figures.class_distribution(sources, np.where(labels == 1, np.arange(len(labels)) % 6 + 1, 0), labels),
        training_figures.loss_curves([{"epoch": 1, "effective_rank": 2.0, **dict.fromkeys(epoch, 0.1)}]),
        training_figures.distance_histograms({part: (rng.random(9), rng.random(9)) for part in PARTS}),
        metric_figures.confusion_matrices(parts),
        training_figures.pca_scatter({part: (rng.random((len(labels), 2)), labels) for part in PARTS}),
        training_figures.explained_variance(np.full(128, 1 / 128), np.full(128, 1 / 128)),
        metric_figures.measure_bars(dict.fromkeys(("head + neighbours", "head", "SVM on vectors"), metrics)),
        metric_figures.metric_bars(parts),
        metric_figures.roc_curves(dict.fromkeys(PARTS, (labels, scores))),
        metric_figures.reliability(labels, rng.random(len(labels))),
        evaluation_figures.heat_map("leave_one_out", "Leave one out", "caption", names, names, values),
        evaluation_figures.temporal_holdout_lines([{**window, "sources": [name, "and", "others"]} for name in names]),
    ]


@pytest.mark.parametrize("names", [LONG, SHORT], ids=["long", "short"])
def test_figure_text_is_not_cut_off(names: list[str]) -> None:
    for figure in draw_all(names):
        canvas = FigureCanvasAgg(figure.figure)
        canvas.draw()  # type: ignore[no-untyped-call]
        box = figure.figure.get_tightbbox(canvas.get_renderer())  # type: ignore[no-untyped-call]  # inches
        width, height = figure.figure.get_size_inches()
        assert box.x0 > -EDGE and box.x1 < width + EDGE, (figure.name, box)
        assert box.y0 > -EDGE and box.y1 < height + EDGE, (figure.name, box)


def test_figures_fit_the_report_side_by_side() -> None:
    assert all(figure.figure.get_figwidth() in (FULL, HALF) for figure in draw_all(SHORT)[:-2])


def test_shortened_names_stay_distinct() -> None:
    names = ["short", *(f"{'x' * 40}{i}" for i in range(5)), *(f"{i}{'y' * 40}" for i in range(5))]
    assert len({shorten_middle(name) for name in names}) == len(names)
    assert all(len(shorten_middle(name)) <= NAME_LENGTH for name in names)


def test_roc_curve_starts_and_ends_in_a_corner() -> None:
    labels, scores = np.array([0, 1, 1, 0]), np.array([0.1, 0.9, 0.4, 0.6])
    figure = metric_figures.roc_curves({"test": (labels, scores)})
    [line, _] = figure.figure.axes[0].get_lines()
    xy = np.asarray(line.get_xydata())
    assert (*xy[0], *xy[-1]) == (0, 0, 1, 1)
    assert line.get_label() == "test, AUC 0.750"


def test_captions_give_the_number_of_rows() -> None:
    captions = {figure.name: figure.caption for figure in draw_all(SHORT)}
    assert "9 train, 9 validation and 9 test triplets" in captions["distances"]
    assert "4 train, 4 validation and 4 test rows" in captions["roc"]
    assert captions["measures"].startswith("Over 1,171 test rows")
    assert captions["reliability"].startswith("4 test rows")
