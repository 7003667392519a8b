"""The report of a trained head: one self-contained HTML page, and each figure as PNG, SVG and CSV.

Results on unseen generators come first, then the baselines and the reliability of verdicts; training comes last.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from ..core.atomic_files import read_json, write_text
from ..core.escaping import escape
from ..detector.calibration import probability
from ..detector.detector import VectorDetector
from ..detector.evaluation.leave_one_out import Kind as HeadKind
from ..detector.evaluation.leave_one_out import LeaveOneOut, leave_one_out
from ..detector.evaluation.view_gains import ViewGain, view_gains
from ..detector.split import PARTS
from ..detector.training.baseline_names import baseline_name
from ..detector.training.examples import subsample
from ..detector.training.train import decision_values
from ..detector.training.triplet import distances, draw
from ..errors import HeadError, NotEnoughRows
from . import metric_figures, training_figures
from .evaluation_tables import leave_one_out_figure
from .figure import FULL, HALF, ReportFigure
from .phrasing import CAVEAT
from .training_summary import MODES, describe_training_rows

KINDS: tuple[HeadKind, ...] = ("ridge", "knn")
MAX_DRAWN = 4_000  # rows of each part of the split that are drawn
MEASURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "ap": "average precision",
    "eer": "EER",
    "tpr_at_fpr_1": "TPR at 1% FPR",
    "tpr_at_fpr_5": "TPR at 5% FPR",
    "accuracy_at_validation": "accuracy at the validation threshold",
    "accuracy_oracle": "accuracy at the oracle threshold (an upper bound, not a result)",
}
DETAILED_MEASURES = {  # name.class: a measure of one class
    **MEASURES,
    **{f"precision.{c}": f"precision, {c}" for c in ("real", "fake", "macro")},
    **{f"recall.{c}": f"recall, {c}" for c in ("real", "fake", "macro")},
    **{f"f1.{c}": f"F1, {c}" for c in ("real", "fake", "macro")},
    "brier": "Brier score",
    "ece": "expected calibration error",
}


@dataclass(frozen=True)
class HeadResults:
    """Everything that the report shows of a head."""

    detector: VectorDetector
    training: dict[str, Any]  # the report.json that training wrote
    unseen: Sequence[LeaveOneOut]
    gains: Sequence[ViewGain] = ()  # of the store's named vectors


class Cell(NamedTuple):
    """A value of a table with its interval, "" if it has none."""

    value: str
    interval: str = ""


@dataclass(frozen=True)
class ReportTable:
    """A table of the page; `rows` are titles with their cells."""

    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    caption: str = ""
    note: str = ""
    dense: bool = False


@dataclass(frozen=True)
class PageFigure:
    """A figure as the page embeds it."""

    name: str
    title: str
    caption: str
    svg: str  # base64
    half: bool  # narrow enough to stand beside another one
    width: str  # percent of the space it has
    min_width: str  # rem

    @classmethod
    def of(cls, figure: ReportFigure) -> PageFigure:
        inches = figure.figure.get_figwidth()
        half = inches <= HALF
        width = min(100.0, 100 * inches / (HALF if half else FULL))
        svg = base64.b64encode(figure.image("svg")).decode()
        return cls(figure.name, figure.title, figure.caption, svg, half, f"{width:.1f}", f"{4.6 * inches:.0f}")


@dataclass(frozen=True)
class Section:
    """A section of the page: figures, tables, then further figures."""

    title: str
    figures_above: Sequence[PageFigure] = ()
    tables: Sequence[ReportTable] = ()
    figures_below: Sequence[PageFigure] = ()

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def write_report(
    detector: VectorDetector, folder: Path, out: Path, *, title: str = "clipfake", notice: str = ""
) -> list[Path]:
    """Write the page, and a folder beside it with each figure as PNG, SVG and CSV.

    Parameters
    ----------
    folder : the head's folder, with the report.json that training wrote
    out : the page; the folder of the figures has the same name without its ending, or with "-figures" if it has none
    notice : a sentence shown above all results

    Returns
    -------
    list of Path
        The page and the files of the figures.

    Raises
    ------
    HeadError
        If report.json is missing or not readable.
    """
    try:
        training = read_json(folder / "report.json")
    except (OSError, ValueError) as e:
        raise HeadError(f"{folder} has no report of its training ({e}); run `clipfake train --from-store` again") from e
    gains = view_gains(detector.snapshot, seed=detector.head.split.seed)
    results = HeadResults(detector, training, evaluate_unseen(detector), gains)
    figures = {figure.name: figure for figure in draw_figures(results)}
    figure_folder = out.with_suffix("") if out.suffix else out.with_name(f"{out.name}-figures")
    written = [path for figure in figures.values() for path in figure.save(figure_folder)]
    write_text(out, render_page(results, figures, title=title, notice=notice, figure_folder=figure_folder.name))
    return [out, *written]


def evaluate_unseen(detector: VectorDetector) -> list[LeaveOneOut]:
    """Leave-one-out results of a linear head and of the neighbour rule; empty if there are too few sources."""
    with suppress(NotEnoughRows):
        return [leave_one_out(detector.snapshot, kind, seed=detector.head.split.seed) for kind in KINDS]
    return []


def draw_figures(results: HeadResults) -> Iterator[ReportFigure]:
    """Every figure of the report, as far as there is data for it."""
    training, snapshot, head = results.training, results.detector.snapshot, results.detector.head
    yield training_figures.class_distribution(*(snapshot.column(name) for name in ("sources", "targets", "labels")))
    with_triplets = bool(training["epochs"])
    if with_triplets:
        yield training_figures.loss_curves(training["epochs"])
    labels, parts = snapshot.column("labels"), head.split.parts_of(snapshot.column("keys"))
    rows = {}
    for name, part in PARTS.items():
        positions = np.flatnonzero(parts == part)
        rows[name] = subsample(positions, labels[positions], MAX_DRAWN, 0)
    projected = {name: head.transform(snapshot.vectors(positions)) for name, positions in rows.items()}
    if with_triplets:
        triplet_distances = {}
        for name, points in projected.items():
            triplets = draw(labels[rows[name]], np.zeros(len(points), np.int64), "real", np.random.default_rng(0))
            triplet_distances[name] = distances(points, triplets)
        yield training_figures.distance_histograms(triplet_distances)
    yield metric_figures.confusion_matrices(training["head"])
    centre = projected["train"].mean(0)
    axes = np.linalg.eigh(np.cov((projected["train"] - centre).T))[1][:, :-3:-1].T
    yield training_figures.pca_scatter(
        {name: ((points - centre) @ axes.T, labels[rows[name]]) for name, points in projected.items()}
    )
    if head.projection.kind != "identity":
        raw = snapshot.vectors(rows["train"])
        yield training_figures.explained_variance(_variance_shares(raw), _variance_shares(projected["train"]))
    yield metric_figures.measure_bars({**_own_tests(training), **_baseline_tests(training)})
    yield metric_figures.metric_bars(training["head"])
    scored = {name: (labels[positions], decision_values(head, snapshot, positions)) for name, positions in rows.items()}
    yield metric_figures.roc_curves(scored)
    test = rows["test"]
    bank = results.detector.bank.where(parts == PARTS["train"])
    evidence = bank.evidence(snapshot.vectors(test), snapshot.column("digests")[test])
    probabilities = probability(results.detector.calibration.decision_function(scored["test"][1], evidence.signal))
    yield metric_figures.reliability(labels[test], probabilities)
    yield from map(leave_one_out_figure, results.unseen)


def _own_tests(training: Mapping[str, Any]) -> dict[str, Any]:
    return {"head + neighbours": training["detector"]["test"], "head": training["head"]["test"]}


def _baseline_tests(training: Mapping[str, Any]) -> dict[str, Any]:
    return {baseline_name(name).title: result["test"] for name, result in training["baselines"].items()}


def _variance_shares(vectors: Any) -> Any:
    """Share of the variance of (n, dim) rows in each principal component, largest first."""
    values = np.linalg.eigvalsh(np.cov(np.asarray(vectors, np.float64).T))[::-1]
    values = np.clip(values, 0, None)
    return values / values.sum()


def render_page(
    results: HeadResults, figures: Mapping[str, ReportFigure], *, title: str, notice: str, figure_folder: str
) -> str:
    """The page as HTML with all figures embedded.

    Parameters
    ----------
    figure_folder : name of the folder that has the figures as files
    """
    training = results.training
    sentences = [*(result.sentence for result in results.unseen), *(gain.sentence for gain in results.gains)]
    sections = list(page_sections(training, figures))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # names of sources and stores are somebody else's text
        finalize=lambda value: escape(value) if type(value) is str else value,  # what the page's own macros made stays
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        notice=notice,
        sentences=[*sentences, *training["sentences"], *training["detector"]["sentences"]],
        caveat=CAVEAT,
        sections=[section for section in sections if section.figures_above or section.tables or section.figures_below],
        facts=[
            *_facts(results),
            ("figures", f"as PNG, SVG and CSV in the folder {figure_folder}/"),
        ],
    )


def _facts(results: HeadResults) -> list[tuple[str, str]]:
    """What the head was trained with."""
    head, split = results.detector.head, results.training["split"]
    return [
        ("encoder", str(head.space)),
        ("classifier", head.title),
        ("rows", ", ".join(f"{split[part]:,} {part}" for part in PARTS)),
        ("split", f"{split['recipe']}, seed {split['seed']}, digest {split['digest'][:12]}"),
        ("snapshot", f"{results.training['snapshot']} of the store"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in head.versions.items())),
    ]


def page_sections(training: Mapping[str, Any], figures: Mapping[str, ReportFigure]) -> Iterator[Section]:
    """The sections of the page in their order; one without figures and tables is empty."""

    def select(*names: str) -> list[PageFigure]:
        return [PageFigure.of(figures[name]) for name in names if name in figures]

    yield Section("Unseen generators and sources", select("leave_one_out", "leave_one_out_knn"))
    baselines = []
    if training["baselines"]:
        tests = {**_own_tests(training), **_baseline_tests(training)}
        rows = [(name, [measure_cell(values, each) for each in MEASURES]) for name, values in tests.items()]
        note = f"The baselines were {describe_training_rows(training['baselines'])}."
        baselines = [ReportTable(list(MEASURES.values()), rows, "test rows", note, dense=True)]
    if choice := training.get("choice"):
        baselines.append(_choice_table(choice))
    yield Section("Head and baselines", select("measures"), baselines)
    coverage = list(_calibration_tables(training["detector"]))
    yield Section("Reliability of verdicts", (), coverage, select("reliability", "roc"))
    parts = {f"head, {part}": training["head"][part] for part in PARTS}
    parts["head + neighbours, test"] = training["detector"]["test"]
    tables = [_measures_table("with 95% intervals", parts, DETAILED_MEASURES)]
    if modes := training.get("categories"):
        by_mode = {f"category {MODES[mode]}": values for mode, values in modes.items()}
        tables.append(_measures_table("test rows, by source of the category", by_mode, MEASURES))
    yield Section("Measures", (), tables, select("metrics", "confusion"))
    yield Section("Data and training", select("classes", "loss", "distances", "pca", "variance"))


def _choice_table(choice: Mapping[str, Any]) -> ReportTable:
    """Mean AUC of each classifier on left-out sources of the training rows."""
    rows = []
    for result in choice["results"]:
        measured = {"auc": result["auc"], "intervals": {"auc": result["interval"]}}
        rows.append((result["classifier"], [measure_cell(measured, "auc", interval=True)]))
    return ReportTable(["mean AUC on left-out sources"], rows, "choice of the classifier", choice["sentence"])


def _calibration_tables(result: Mapping[str, Any]) -> Iterator[ReportTable]:
    """The nominal error rate beside the measured ones: of test rows of seen sources, and of each left-out source."""
    seen = result["seen"]
    shares = [_percent(seen[key]) for key in ("answered", "wrong", "nominal", "real_excluded", "fake_excluded")]
    header = (
        "rows",
        "answered real or fake",
        "answers that are wrong",
        "nominal error rate",
        "real rows with real excluded",
        "fake rows with fake excluded",
    )
    values = [Cell(value) for value in (f"{seen['n']:,}", *shares)]
    yield ReportTable(header, [("seen sources", values)], dense=True)
    left_out = [
        (
            f"{source['name']} ({source['label']})",
            [
                Cell(f"{source['n']:,}"),
                Cell("–" if source["auc"] is None else f"{source['auc']:.3f}"),
                Cell(_percent(source["answered"])),
                Cell(_percent(source["excluded"])),
            ],
        )
        for of_class in result["classes"]
        for source in of_class["sources"]
    ]
    if left_out:
        measures = ("rows", "AUC", "answered real or fake", "true class excluded")
        caption = "each source when it is left out of head, bank and calibration"
        yield ReportTable(measures, left_out, caption, dense=True)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _measures_table(caption: str, columns: Mapping[str, Mapping[str, Any]], measures: Mapping[str, str]) -> ReportTable:
    """A row for each measure, a column for each set of results, with intervals."""
    rows = [
        (title, [measure_cell(values, measure, interval=True) for values in columns.values()])
        for measure, title in measures.items()
    ]
    return ReportTable(list(columns), rows, caption)


def measure_cell(values: Mapping[str, Any], measure: str, *, interval: bool = False) -> Cell:
    """A measure, with its interval if it has one.

    >>> measure_cell({"auc": 0.75, "intervals": {"auc": (0.7, 0.8)}}, "auc", interval=True)
    Cell(value='0.750', interval='0.700–0.800')
    """
    name, _, label = measure.partition(".")
    value = values[name][label] if label else values[name]
    bounds = (values.get("intervals") or {}).get(measure.replace(".", "_")) if interval else None
    return Cell("–" if value is None else f"{value:.3f}", f"{bounds[0]:.3f}–{bounds[1]:.3f}" if bounds else "")
