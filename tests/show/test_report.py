"""The page of a head: text from a store is escaped, empty sections are left out."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any, cast

import numpy as np
from clipfake.detector.detector import VectorDetector
from clipfake.detector.split import PARTS
from clipfake.show import evaluation_figures, metric_figures
from clipfake.show.figure import ReportFigure
from clipfake.show.report import HeadResults, render_page

MARKUP = '<script>alert("&")</script>'


@dataclass
class FakeHead:
    space: str = MARKUP
    title: str = "a head"
    versions: dict[str, str] = field(default_factory=lambda: {"torch": MARKUP})


@dataclass
class FakeDetector:
    head: FakeHead = field(default_factory=FakeHead)


class Page(HTMLParser):
    """Tags, text and `alt` attributes of a page."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.alt: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.alt += [value or "" for name, value in attrs if name == "alt"]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def training_report(baselines: dict[str, Any]) -> dict[str, Any]:
    classes = {"real": 0.5, "fake": 0.5, "macro": 0.5}
    names = ("accuracy", "balanced_accuracy", "auc", "ap", "eer", "tpr_at_fpr_1", "tpr_at_fpr_5", "brier", "ece")
    metrics: dict[str, Any] = {
        **dict.fromkeys(names, 0.5),
        "accuracy_at_validation": None,
        "accuracy_oracle": 0.5,
        "n": 9,
    }
    metrics |= dict.fromkeys(("precision", "recall", "f1"), classes) | {"intervals": {"accuracy": (0.25, 0.75)}}
    measured: dict[str, Any] = {
        "n": 9,
        "answered": 0.5,
        "wrong": 0.1,
        "real_excluded": 0.1,
        "fake_excluded": 0.1,
        "nominal": 0.05,
    }
    source = {"name": MARKUP, "label": "real", "n": 9, "auc": 0.5, "answered": 0.5, "excluded": 0.5}
    return {
        "head": dict.fromkeys(PARTS, metrics),
        "detector": {"test": metrics, "sentences": [], "seen": measured, "classes": [{"sources": [source]}]},
        "baselines": {name: {"test": metrics, "fitted_on": 9, **more} for name, more in baselines.items()},
        "categories": {},
        "sentences": [f"Worst is {MARKUP}."],
        "split": {**dict.fromkeys(PARTS, 3), "recipe": MARKUP, "seed": 0, "digest": "0" * 64},
        "snapshot": 1,
    }


def render(figures: list[ReportFigure], baselines: dict[str, Any], notice: str = MARKUP) -> str:
    results = HeadResults(cast("VectorDetector", FakeDetector()), training_report(baselines), [])
    by_name = {figure.name: figure for figure in figures}
    return render_page(results, by_name, title=MARKUP, notice=notice, figure_folder=MARKUP)


def test_text_from_a_store_is_escaped() -> None:
    heat_map = evaluation_figures.heat_map("leave_one_out", MARKUP, MARKUP, [MARKUP], [MARKUP], np.array([[0.5]]))
    content = render([heat_map], {MARKUP: {"note": MARKUP}})
    page = Page(content)
    assert "script" not in page.tags
    # title and heading, notice, sentence, figure, baseline, its note, left-out source, split, encoder, library, folder
    assert sum(MARKUP in text for text in page.text) == 13
    assert page.alt == [f"{MARKUP}. {MARKUP}"]


def test_sections_without_content_are_left_out() -> None:
    page = render([], {}, notice="")
    assert "Unseen generators and sources" not in page and "Head and baselines" not in page
    assert "<p class=notice>" not in page
    assert page.count("<section") == 3  # reliability, measures, provenance


def test_values_stand_beside_their_intervals() -> None:
    page = render([], {"linear_probe": {}})
    assert "<td>0.500 <small>0.250–0.750</small></td>" in page
    assert "<td>–</td>" in page  # not every measure exists for every result
    assert "The baselines were trained on 9 rows." in page


def test_narrow_figures_stand_side_by_side() -> None:
    labels = np.array([0, 1, 1, 0])
    figures = [
        metric_figures.reliability(labels, np.array([0.1, 0.9, 0.4, 0.6])),
        metric_figures.roc_curves({"test": (labels, np.array([0.1, 0.9, 0.4, 0.6]))}),
    ]
    page = render(figures, {})
    assert page.count("class=half><h3>") == 2
    assert page.count('src="data:image/svg+xml;base64,') == 2
