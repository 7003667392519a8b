"""The report of a trained head: one page that needs nothing else, and the picture and table behind each figure.

What was never seen comes first, then the baselines, then how far a verdict can be trusted; how it was made is last.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..core.atomic_files import read_json, write_text
from ..detector.calibration import probability
from ..detector.detector import VectorDetector
from ..detector.evaluation.leave_one_out import Kind as AtlasKind
from ..detector.evaluation.leave_one_out import LeaveOneOut, leave_one_out
from ..detector.split import PARTS
from ..detector.training.examples import thinned
from ..detector.training.train import score_rows
from ..detector.training.triplet import distances, draw
from ..errors import HeadError, NotEnoughRows
from . import metric_figures, training_figures
from .evaluation_tables import atlas_picture
from .figure import FULL, HALF, ReportFigure
from .phrasing import CAVEAT
from .training_summary import MODES, learned_from, spoken

KINDS: tuple[AtlasKind, ...] = ("ridge", "knn")
SHOWN = 4_000  # rows of a part that are drawn, at most
MEASURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "ap": "average precision",
    "eer": "EER",
    "tpr_at_fpr_1": "TPR at 1% FPR",
    "tpr_at_fpr_5": "TPR at 5% FPR",
    "accuracy_at_validation": "accuracy at the validation threshold",
    "accuracy_oracle": "accuracy at the oracle threshold (a bound, not a result)",
}
MORE = {  # a dot goes into a measure's classes
    **MEASURES,
    **{f"precision.{c}": f"precision, {c}" for c in ("real", "fake", "macro")},
    **{f"recall.{c}": f"recall, {c}" for c in ("real", "fake", "macro")},
    **{f"f1.{c}": f"F1, {c}" for c in ("real", "fake", "macro")},
    "brier": "Brier score",
    "ece": "expected calibration error",
}


def write_report(
    detector: VectorDetector, folder: Path, out: Path, *, title: str = "clipfake", notice: str = ""
) -> list[Path]:
    """Write the page, and beside it a folder with PNG, SVG and CSV of each figure; returns what was written.

    Parameters
    ----------
    folder : of the head, with the report.json that training left there
    out : of the page; the figures go to a folder of the same name without its ending
    """
    try:
        report = read_json(folder / "report.json")
    except (OSError, ValueError) as e:
        raise HeadError(f"{folder} has no report of its training ({e}); run `clipfake train --from-store` again") from e
    atlases = left_out(detector)
    pictures = {picture.name: picture for picture in draw_all(detector, report, atlases)}
    beside = out.with_suffix("")
    written = [path for picture in pictures.values() for path in picture.save(beside)]
    write_text(out, page(title, notice, report, pictures, detector, atlases, beside.name))
    return [out, *written]


def left_out(detector: VectorDetector) -> list[LeaveOneOut]:
    """A linear head and the neighbour rule on what they have never seen; none where there is nothing to leave out."""
    with suppress(NotEnoughRows):
        return [leave_one_out(detector.snapshot, kind, seed=detector.head.split.seed) for kind in KINDS]
    return []


def draw_all(
    detector: VectorDetector, report: dict[str, Any], atlases: Sequence[LeaveOneOut]
) -> Iterator[ReportFigure]:
    """Every figure there are numbers for."""
    snapshot, head = detector.snapshot, detector.head
    yield training_figures.class_distribution(*(snapshot.column(name) for name in ("sources", "targets", "labels")))
    yield training_figures.loss_curves(report["epochs"])
    labels, parts = snapshot.column("labels"), head.split.of(snapshot.column("keys"))
    rows = {}
    for name, part in PARTS.items():
        positions = np.flatnonzero(parts == part)
        rows[name] = thinned(positions, labels[positions], SHOWN, 0)
    projected = {name: head.transform(snapshot.vectors(positions)) for name, positions in rows.items()}
    apart = {}
    for name, points in projected.items():
        some = draw(labels[rows[name]], np.zeros(len(points), np.int64), "real", np.random.default_rng(0))
        apart[name] = distances(points, some)
    yield training_figures.distance_histograms(apart)
    yield metric_figures.confusion_matrices(report["head"])
    centre = projected["train"].mean(0)
    axes = np.linalg.svd(projected["train"] - centre, full_matrices=False)[2][:2]
    yield training_figures.pca_scatter(
        {name: ((p - centre) @ axes.T, labels[rows[name]]) for name, p in projected.items()}
    )
    yield training_figures.explained_variance(_shares(snapshot.vectors(rows["train"])), _shares(projected["train"]))
    measured = {"head + neighbours": report["detector"]["test"], "head": report["head"]["test"]}
    measured |= {spoken(name): baseline["test"] for name, baseline in report["baselines"].items()}
    yield metric_figures.measure_bars(measured)
    yield metric_figures.metric_bars(report["head"])
    scored = {name: (labels[positions], score_rows(head, snapshot, positions)) for name, positions in rows.items()}
    yield metric_figures.roc_curves(scored)
    test = rows["test"]
    known = detector.bank.where(parts == PARTS["train"])
    evidence = known.evidence(snapshot.vectors(test), snapshot.column("digests")[test])
    probabilities = probability(detector.calibration.decision_function(scored["test"][1], evidence.signal))
    yield metric_figures.reliability(labels[test], probabilities)
    yield from map(atlas_picture, atlases)


def _shares(vectors: Any) -> Any:
    """Of the variance of (n, dim) rows, by principal component."""
    values = np.linalg.eigvalsh(np.cov(np.asarray(vectors, np.float64).T))[::-1]
    values = np.clip(values, 0, None)
    return values / values.sum()


def page(
    title: str,
    notice: str,
    report: dict[str, Any],
    pictures: Mapping[str, ReportFigure],
    detector: VectorDetector,
    atlases: Sequence[LeaveOneOut],
    beside: str,
) -> str:
    """The page as HTML, its pictures inside it; `beside` is the folder that has them as files."""
    space, split = detector.head.space, report["split"]
    facts = [
        ("encoder", str(space)),
        ("rows", ", ".join(f"{split[part]:,} {part}" for part in PARTS)),
        ("split", f"{split['recipe']}, seed {split['seed']}, digest {split['digest'][:12]}"),
        ("snapshot", f"{report['snapshot']} of the store"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in detector.head.versions.items())),
        ("figures", f"as PNG, SVG and CSV in the folder {beside}/"),
    ]
    sentences = [*(one.sentence for one in atlases), *report["sentences"], *report["detector"]["sentences"]]
    parts = {f"head, {part}": report["head"][part] for part in PARTS}
    measures = _table("with 95% intervals", {**parts, "head + neighbours, test": report["detector"]["test"]}, MORE)
    by_mode = {f"category {MODES[mode]}": measures for mode, measures in (report.get("categories") or {}).items()}
    categories = _table("test rows, by where the category comes from", by_mode, MEASURES) if by_mode else ""
    baselines = ""
    if report["baselines"]:
        ours = {"head + neighbours": report["detector"]["test"], "head": report["head"]["test"]}
        others = {spoken(name): measures["test"] for name, measures in report["baselines"].items()}
        note = html.escape(f"The baselines {learned_from(report['baselines'])}.")
        baselines = _table("test rows", {**ours, **others}, MEASURES, across=False) + f"<p class=note>{note}</p>"
    sections = {
        "Never seen": _figures(pictures, "atlas", "atlas-knn"),
        "Head and baselines": _figures(pictures, "measures") + baselines,
        "How far a verdict can be trusted": _promises(report["detector"]) + _figures(pictures, "reliability", "roc"),
        "Measures": measures + categories + _figures(pictures, "metrics", "confusion"),
        "How it was made": _figures(pictures, "classes", "loss", "distances", "pca", "variance"),
    }
    kept = {name: content for name, content in sections.items() if content}
    return _PAGE.format(
        title=html.escape(title),
        notice=f"<p class=notice>{html.escape(notice)}</p>" if notice else "",
        facts="".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts),
        sentences="".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences),
        caveat=html.escape(CAVEAT),
        contents="".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in kept),
        sections="".join(f'<section id="{_anchor(name)}"><h2>{name}</h2>{it}</section>' for name, it in kept.items()),
    )


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _promises(report: Mapping[str, Any]) -> str:
    """What was promised beside what came of it, for generators that were seen and for ones that were not."""
    rows = ""
    for name, words in (("seen", "generators that were seen"), ("unseen", "generators never seen")):
        if not (found := report.get(name)):
            continue
        shares = [_share(found[key]) for key in ("answered", "wrong", "real_excluded", "fake_excluded")]
        worst = f"{html.escape(found['worst'])} {_share(found['worst_excluded'])}" if found.get("worst") else "–"
        cells = [f"{found['n']:,}", shares[0], shares[1], _share(found["nominal"]), *shares[2:], worst]
        rows += f"<tr><th scope=row>{words}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    top = (
        "rows",
        "answered real or fake",
        "of these wrong",
        "promised: truth ruled out at most",
        "truth ruled out, real rows",
        "truth ruled out, fake rows",
        "of the worst generator",
    )
    head = "".join(f"<th scope=col>{word}</th>" for word in top)
    table = f"<table class=dense><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="wide">{table}</div>' if rows else ""


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _table(
    title: str, columns: Mapping[str, Mapping[str, Any]], measures: Mapping[str, str], *, across: bool = True
) -> str:
    """Measures down and what was measured across, or the other way round and without intervals."""
    cells = {(name, one): _cell(column, one, spans=across) for name, column in columns.items() for one in measures}
    words: Mapping[str, str] = {name: html.escape(name) for name in columns}
    down, top = (measures, words) if across else (words, measures)
    header = "".join(f"<th scope=col>{word}</th>" for word in top.values())
    lines = ""
    for one, word in down.items():
        row = "".join(f"<td>{cells[(other, one) if across else (one, other)]}</td>" for other in top)
        lines += f"<tr><th scope=row>{word}</th>{row}</tr>"
    head = f"<thead><tr><th></th>{header}</tr></thead>"
    shape = "" if across else " class=dense"
    caption = f"<caption>{html.escape(title)}</caption>"
    return f'<div class="wide"><table{shape}>{caption}{head}<tbody>{lines}</tbody></table></div>'


def _cell(report: Mapping[str, Any], measure: str, *, spans: bool) -> str:
    """A measure, and its interval where it has one."""
    name, _, of_class = measure.partition(".")
    value = report[name][of_class] if of_class else report[name]
    text = "–" if value is None else f"{value:.3f}"
    span = (report.get("intervals") or {}).get(measure.replace(".", "_")) if spans else None
    return f"{text} <small>{span[0]:.3f}–{span[1]:.3f}</small>" if span else text


def _figures(pictures: Mapping[str, ReportFigure], *names: str) -> str:
    """Those of these figures that there are; two halves stand side by side."""
    shown = "".join(_figure(pictures[name]) for name in names if name in pictures)
    return f"<div class=figures>{shown}</div>" if shown else ""


def _figure(picture: ReportFigure) -> str:
    drawn = base64.b64encode(picture.image("svg")).decode()
    title, caption = html.escape(picture.title), html.escape(picture.caption)
    inches = picture.figure.get_figwidth()
    half = inches <= HALF
    wide = min(100.0, 100 * inches / (HALF if half else FULL))
    size = (
        f"width:{wide:.1f}%;min-width:{4.6 * inches:.0f}rem"  # on a phone it is scrolled rather than too small to read
    )
    image = f'<img alt="{title}. {caption}" style="{size}" src="data:image/svg+xml;base64,{drawn}">'
    shape = " class=half" if half else ""
    drawing = f"<div class=drawing>{image}</div>"
    return f'<figure id="{picture.name}"{shape}><h3>{title}</h3>{drawing}<figcaption>{caption}</figcaption></figure>'


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  body {{ font: 16px/1.55 system-ui, sans-serif; color: #22262c; background: #fff; margin: 0 auto; max-width: 62rem;
         padding: 2.5rem 1.25rem 4rem; }}
  h1 {{ font-size: 1.7rem; line-height: 1.25; margin: 0 0 .8rem; overflow-wrap: anywhere; }}
  h2 {{ font-size: 1.3rem; margin: 0 0 .8rem; padding-top: 1.6rem; border-top: 1px solid #d8dde3; }}
  h3 {{ font-size: 1rem; margin: 0 0 .4rem; }}
  .notice {{ border-left: 4px solid #b58a12; padding: .4rem .9rem; background: #fdf6df; }}
  ul {{ padding-left: 1.2rem; }} li {{ margin-bottom: .35rem; }}
  nav {{ display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin: 1.4rem 0 2rem; }} a {{ color: #1d5a9e; }}
  dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; font-size: .92rem; }}
  dt {{ color: #56616d; }} dd {{ margin: 0; overflow-wrap: anywhere; }}
  section {{ margin-top: 2rem; }}
  .wide {{ overflow-x: auto; margin: .4rem 0 1.6rem; }}
  table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
  caption {{ text-align: left; color: #56616d; padding-bottom: .3rem; }}
  th, td {{ text-align: right; padding: .28rem 0 .28rem 1.3rem; border-bottom: 1px solid #e4e7eb; }}
  th, td {{ white-space: nowrap; }}
  th {{ font-weight: 500; }}
  th[scope=row], th:first-child {{ text-align: left; white-space: normal; padding-left: 0; min-width: 8rem; }}
  small {{ color: #56616d; margin-left: .2rem; }} .note, .caveat {{ color: #56616d; font-size: .9rem; }}
  .note {{ margin-top: -1rem; }}
  .dense th[scope=col] {{ white-space: normal; vertical-align: bottom; max-width: 8rem; }}
  .dense th, .dense td {{ padding-left: .9rem; }} .dense th:first-child {{ padding-left: 0; }}
  .figures {{ display: flex; flex-wrap: wrap; gap: 1.8rem 2.8%; align-items: flex-start; margin: 1rem 0 1.6rem; }}
  figure {{ margin: 0; flex: 0 0 100%; min-width: 0; break-inside: avoid; }}
  .half {{ flex: 1 1 20rem; }} .drawing {{ overflow-x: auto; }} img {{ height: auto; display: block; }}
  figcaption {{ color: #56616d; font-size: .9rem; margin-top: .4rem; max-width: 46rem; }}
  @media print {{
    body {{ padding: 0; max-width: none; font-size: 10.5pt; }} nav {{ display: none; }}
    h2, h3 {{ break-after: avoid; }} tr {{ break-inside: avoid; }}
    .figures {{ display: block; }} figure {{ margin-bottom: 1.2rem; }}
    .half {{ display: inline-block; width: 48%; vertical-align: top; }} .half + .half {{ margin-left: 3%; }}
    .wide, .drawing {{ overflow: visible; }} img {{ max-width: 100%; min-width: 0 !important; }}
    table {{ font-size: 8pt; }} th, td {{ padding-left: .7rem; }} .dense th, .dense td {{ padding-left: .5rem; }}
  }}
</style>
<h1>{title}</h1>
{notice}
<ul>{sentences}</ul>
<p class=caveat>{caveat}</p>
<nav aria-label="Contents">{contents}</nav>
{sections}
<section><h2>What it was made with</h2><dl>{facts}</dl></section>
</html>
"""
