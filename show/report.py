"""The report of a trained head: one page that needs nothing else, and the picture and table behind each figure."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..detector.calibration import probability
from ..detector.detector import Detector
from ..detector.examples import thinned
from ..detector.split import PARTS
from ..detector.train import score_rows
from ..detector.triplet import distances, draw
from ..store.durable import write_text, written_aside
from ..store.errors import HeadError
from . import figures
from .figures import Picture

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
    measured |= {name.replace("_", " "): told["test"] for name, told in report["baselines"].items()}
    yield figures.measure_bars(measured)
    scored = {name: (labels[positions], score_rows(head, snapshot, positions)) for name, positions in rows.items()}
    yield figures.roc_curves(scored)
    test = rows["test"]
    known = detector.bank.where(parts == PARTS["train"])
    evidence = known.evidence(snapshot.vectors(test), snapshot.column("digests")[test])
    said = probability(detector.calibration.score(scored["test"][1], evidence.signal))
    yield figures.reliability(labels[test], said)


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
    header = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in columns)
    lines = "".join(
        f"<tr><th scope=row>{words}</th>{''.join(f'<td>{_number(told[name])}</td>' for told in columns.values())}</tr>"
        for name, words in MEASURES.items()
    )
    shown = "".join(_figure(picture) for picture in pictures)
    return _PAGE.format(
        title=html.escape(title),
        notice=f"<p class=notice>{html.escape(notice)}</p>" if notice else "",
        facts="".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts),
        sentences="".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences),
        header=header,
        lines=lines,
        figures=shown,
    )


def _figure(picture: Picture) -> str:
    drawn = base64.b64encode(picture.image("svg")).decode()
    title, caption = html.escape(picture.title), html.escape(picture.caption)
    image = f'<img alt="{caption}" src="data:image/svg+xml;base64,{drawn}">'
    return f'<figure id="{picture.name}"><h2>{title}</h2>{image}<figcaption>{caption}</figcaption></figure>'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


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
  figure {{ margin: 2.4rem 0; break-inside: avoid; }} img {{ max-width: 100%; height: auto; }}
  figcaption {{ color: #626973; font-size: .9rem; margin-top: .4rem; }}
  @media print {{ body {{ padding: 0; }} }}
</style>
<h1>{title}</h1>
{notice}
<ul>{sentences}</ul>
<dl>{facts}</dl>
<div class="wide"><table><thead><tr><th></th>{header}</tr></thead><tbody>{lines}</tbody></table></div>
{figures}
</html>
"""
