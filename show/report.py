"""The report of a trained head: one page that needs nothing else, and the picture and table behind each figure."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..detector.atlas import atlas
from ..detector.calibration import probability
from ..detector.detector import Detector
from ..detector.examples import thinned
from ..detector.split import PARTS
from ..detector.train import score_rows
from ..detector.triplet import distances, draw
from ..store.durable import write_text, written_aside
from ..store.errors import HeadError, NotEnoughRows
from . import figures
from .atlas import atlas_picture
from .figures import Picture
from .training import learned_from, spoken

NARROW = 5  # inches: two such figures stand side by side
SHOWN = 4_000  # rows of a part that are drawn, at most
MEASURES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "ap": "average precision",
    "eer": "EER",
    "tpr_at_fpr_1": "TPR at 1 % FPR",
    "tpr_at_fpr_5": "TPR at 5 % FPR",
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
    detector: Detector, folder: Path, out: Path, *, title: str = "clipfake", notice: str = ""
) -> list[Path]:
    """Write the page, and beside it a folder with PNG, SVG and CSV of each figure; returns what was written.

    Parameters
    ----------
    folder : of the head, with the report.json that training left there
    out : of the page; the figures go to a folder of the same name without its ending
    """
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise HeadError(f"{folder} has no report of its training ({e}); run `clipfake train --from-store` again") from e
    pictures = list(draw_all(detector, report))
    beside = out.with_suffix("")
    written = []
    for picture in pictures:
        for kind in ("png", "svg"):
            with written_aside(beside / f"{picture.name}.{kind}") as temporary:
                temporary.write_bytes(picture.image(kind))
        write_text(beside / f"{picture.name}.csv", picture.csv())
        written += [beside / f"{picture.name}.{kind}" for kind in ("png", "svg", "csv")]
    write_text(out, page(title, notice, report, pictures, detector))
    return [out, *written]


def draw_all(detector: Detector, report: dict[str, Any]) -> Iterator[Picture]:
    """Every figure there are numbers for."""
    snapshot, head = detector.snapshot, detector.head
    yield figures.class_distribution(*(snapshot.column(name) for name in ("sources", "targets", "labels")))
    yield figures.loss_curves(report["epochs"])
    labels, parts = snapshot.column("labels"), head.split.of(snapshot.column("keys"))
    rows = {}
    for name, part in PARTS.items():
        positions = np.flatnonzero(parts == part)
        rows[name] = thinned(positions, labels[positions], SHOWN, 0)
    projected = {name: head.project(snapshot.vectors(positions)) for name, positions in rows.items()}
    apart = {}
    for name, points in projected.items():
        some = draw(labels[rows[name]], np.zeros(len(points), np.int64), "real", np.random.default_rng(0))
        apart[name] = distances(points, some)
    yield figures.distance_histograms(apart)
    yield figures.confusion_matrices(report["head"])
    centre = projected["train"].mean(0)
    axes = np.linalg.svd(projected["train"] - centre, full_matrices=False)[2][:2]
    yield figures.pca_scatter({name: ((p - centre) @ axes.T, labels[rows[name]]) for name, p in projected.items()})
    yield figures.explained_variance(_shares(snapshot.vectors(rows["train"])), _shares(projected["train"]))
    measured = {"head + neighbours": report["detector"]["test"], "head": report["head"]["test"]}
    measured |= {spoken(name): told["test"] for name, told in report["baselines"].items()}
    yield figures.measure_bars(measured)
    yield figures.metric_bars(report["head"])
    scored = {name: (labels[positions], score_rows(head, snapshot, positions)) for name, positions in rows.items()}
    yield figures.roc_curves(scored)
    test = rows["test"]
    known = detector.bank.where(parts == PARTS["train"])
    evidence = known.evidence(snapshot.vectors(test), snapshot.column("digests")[test])
    said = probability(detector.calibration.score(scored["test"][1], evidence.signal))
    yield figures.reliability(labels[test], said)
    # With one generator or one real source there is nothing to leave out, and no figure.
    with suppress(NotEnoughRows):
        yield atlas_picture(atlas(snapshot, seed=head.split.seed))


def _shares(vectors: Any) -> Any:
    """Of the variance of (n, dim) rows, by principal component."""
    values = np.linalg.eigvalsh(np.cov(np.asarray(vectors, np.float64).T))[::-1]
    values = np.clip(values, 0, None)
    return values / values.sum()


def page(title: str, notice: str, report: dict[str, Any], pictures: list[Picture], detector: Detector) -> str:
    """The page as HTML, its pictures inside it."""
    space, split = detector.head.space, report["split"]
    facts = [
        ("encoder", str(space)),
        ("rows", ", ".join(f"{split[part]:,} {part}" for part in PARTS)),
        ("split", f"{split['recipe']}, seed {split['seed']}, digest {split['digest'][:12]}"),
        ("snapshot", f"{report['snapshot']} of the store"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in detector.head.versions.items())),
    ]
    sentences = [*report["sentences"], *report["detector"]["sentences"]]
    columns = {
        **{f"head, {part}": report["head"][part] for part in PARTS},
        "detector, test": report["detector"]["test"],
    }
    tables = [_table("Measures, with 95 % intervals", columns, MORE)]
    if report.get("categories"):
        by_mode = {f"category {mode}": told for mode, told in report["categories"].items()}
        tables.append(_table("Test rows, by where the category comes from", by_mode, MEASURES))
    if report["baselines"]:
        others = {spoken(name): told["test"] for name, told in report["baselines"].items()}
        note = f"Baselines {learned_from(report['baselines'])}"
        tables.append(_table("Baselines, test rows", others, MEASURES, across=False))
        tables.append(f"<p class=note>{html.escape(note)}.</p>")
    shown = "".join(_figure(picture) for picture in pictures)
    return _PAGE.format(
        title=html.escape(title),
        notice=f"<p class=notice>{html.escape(notice)}</p>" if notice else "",
        facts="".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts),
        sentences="".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences),
        tables="".join(tables),
        figures=shown,
    )


def _table(
    title: str, columns: Mapping[str, Mapping[str, Any]], measures: Mapping[str, str], *, across: bool = True
) -> str:
    """Measures down and what was measured across, or the other way round and without intervals."""
    cells = {(name, one): _cell(told, one, spans=across) for name, told in columns.items() for one in measures}
    words: Mapping[str, str] = {name: html.escape(name) for name in columns}
    down, top = (measures, words) if across else (words, measures)
    header = "".join(f"<th scope=col>{word}</th>" for word in top.values())
    lines = ""
    for one, word in down.items():
        row = "".join(f"<td>{cells[(other, one) if across else (one, other)]}</td>" for other in top)
        lines += f"<tr><th scope=row>{word}</th>{row}</tr>"
    head = f"<thead><tr><th></th>{header}</tr></thead>"
    shape = "" if across else " class=dense"
    return f'<h2>{html.escape(title)}</h2><div class="wide"><table{shape}>{head}<tbody>{lines}</tbody></table></div>'


def _cell(told: Mapping[str, Any], measure: str, *, spans: bool) -> str:
    """A measure, and its interval where it has one."""
    name, _, of_class = measure.partition(".")
    value = told[name][of_class] if of_class else told[name]
    said = "–" if value is None else f"{value:.3f}"
    span = (told.get("intervals") or {}).get(measure.replace(".", "_")) if spans else None
    return f"{said} <small>{span[0]:.3f}–{span[1]:.3f}</small>" if span else said


def _figure(picture: Picture) -> str:
    drawn = base64.b64encode(picture.image("svg")).decode()
    title, caption = html.escape(picture.title), html.escape(picture.caption)
    image = f'<img alt="{caption}" src="data:image/svg+xml;base64,{drawn}">'
    shape = " class=narrow" if picture.figure.get_figwidth() < NARROW else ""
    return f'<figure id="{picture.name}"{shape}><h2>{title}</h2>{image}<figcaption>{caption}</figcaption></figure>'


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  body {{ font: 16px/1.55 system-ui, sans-serif; color: #22262c; background: #fff; margin: 0 auto; max-width: 62rem;
         padding: 2.5rem 1.25rem 4rem; }}
  h1 {{ font-size: 1.7rem; margin: 0 0 .5rem; }}
  h2 {{ font-size: 1.1rem; margin: 0 0 .6rem; }}
  .notice {{ border-left: 4px solid #c8501e; padding: .4rem .9rem; background: #fbf3ee; }}
  dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; font-size: .92rem; }}
  dt {{ color: #626973; }} dd {{ margin: 0; overflow-wrap: anywhere; }}
  .wide {{ overflow-x: auto; }}
  table {{ border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; margin: 1rem 0 2rem; }}
  th, td {{ text-align: right; padding: .3rem .8rem; border-bottom: 1px solid #e4e7eb; white-space: nowrap; }}
  th[scope=row], th:first-child {{ text-align: left; font-weight: 500; white-space: normal; }}
  small {{ color: #626973; }} .note {{ color: #626973; font-size: .9rem; margin-top: -1.4rem; }}
  .dense th[scope=col] {{ white-space: normal; vertical-align: bottom; font-weight: 500; }}
  .dense th[scope=row] {{ white-space: nowrap; }}
  .dense th, .dense td {{ padding: .25rem .5rem; }}
  .figures {{ display: flex; flex-wrap: wrap; column-gap: 2%; align-items: flex-start; }}
  figure {{ margin: 1.6rem 0; flex: 1 1 100%; break-inside: avoid; }}
  .narrow {{ flex: 0 1 48%; }} img {{ max-width: 100%; height: auto; }}
  figcaption {{ color: #626973; font-size: .9rem; margin-top: .4rem; }}
  @media print {{ body {{ padding: 0; }} }}
</style>
<h1>{title}</h1>
{notice}
<ul>{sentences}</ul>
<dl>{facts}</dl>
{tables}
<div class="figures">{figures}</div>
</html>
"""
