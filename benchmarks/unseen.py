"""Verdicts on sources that nothing was trained on, beside plain classifiers on the same vectors.

Every source, real or generated, is left out once: a detector is trained and calibrated on the others as `clipfake
train` does, and judges its rows. The same is done with groups of sources of both classes. All choices were made with
the groups; the verdicts on single sources are the result. Probabilities of the plain classifiers are calibrated on the
validation rows (Platt), so that all are compared at their best.

    python -m clipfake.benchmarks.unseen --store mystore
    python -m clipfake.benchmarks.unseen --store mystore --vectors main,layers
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..detector.calibration import Calibration, Platt, probability
from ..detector.evidence import Bank
from ..detector.metrics import auc, auc_interval, expected_calibration_error, wilson
from ..detector.split import TEST, TRAIN, VALIDATION
from ..detector.training.baselines import BASELINES
from ..detector.training.calibrate import CLASSES, SignalTable, calibrate, source_names
from ..detector.training.examples import Examples
from ..detector.training.train import TrainOptions, train
from ..store.concatenated import concatenated_snapshot
from ..store.records import FAKE, REAL, Names, TextIndex
from ..store.snapshot import Snapshot
from ..store.store import Store
from .common import command
from .throughput import machine

ERROR = 0.05  # nominal error rate
SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)  # of the left-out sources in a calibration
COVERAGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
PEERS = {"logistic regression": "linear_probe", "RBF SVM": "rbf_svm", "9 nearest neighbours": "nearest_9"}
# Groups of minifact and morefact in which other sources with similar images remain; `--groups` names others.
GROUPS = (
    ("bsds500", "glid3", "sd15"),
    ("imagenet_sample", "latent_diffusion", "sd14"),
    ("unsplash_faces", "dalle_mini", "simulacra", "disco"),
    ("open_real_faces", "stylegan2"),
    ("unsplash_faces", "face_swap"),
    ("web_art_real", "web_art_ai"),
)

Scores = npt.NDArray[np.float64]  # (rows,)
Progress = Callable[[str], None]


@dataclass(frozen=True)
class LeftOutScores:
    """The left-out rows of one or several sources, scored by models that were fitted without them."""

    sources: Names  # (rows,)
    labels: npt.NDArray[np.int8]  # (rows,)
    scores: Mapping[str, Scores]  # log-likelihood ratios by model; "clipfake" is the detector
    possible: npt.NDArray[np.bool_]  # (rows, 2) prediction sets of the detector
    seen: Mapping[str, Scores]  # the same scores of the test rows of the other sources
    seen_labels: npt.NDArray[np.int8]
    by_share: Mapping[float, tuple[Scores, npt.NDArray[np.bool_]]]  # scores and sets by the weight of left-out sources

    @property
    def weights(self) -> Scores:
        """(rows,) weights that are the same for every source of a class, and for both classes."""
        return equal_weights(self.sources, self.labels)


def equal_weights(sources: Names, labels: npt.NDArray[np.int8]) -> Scores:
    """(rows,) weights with the sum 1 that are the same for every source of a class, and for the classes present."""
    weights = np.zeros(len(labels))
    for label in np.unique(labels):
        names = sorted(set(sources[labels == label].tolist()))
        for name in names:
            of_source = (labels == label) & (sources == name)
            weights[of_source] = 1 / of_source.sum() / len(names)
    return np.asarray(weights / weights.sum())


def leave_out(snapshot: Snapshot, left_out: Sequence[str], options: TrainOptions) -> LeftOutScores:
    """Train a detector and the plain classifiers without some sources, and score the rows of these."""
    names, labels = source_names(snapshot), snapshot.column("labels")
    sources = snapshot.column("sources")
    left = TextIndex(list(left_out)).find(names) >= 0
    others = sorted(set(sources[~left & (labels >= 0)].tolist()))
    options = replace(options, sources=others, baselines=())
    head = train(snapshot, options).head
    report = calibrate(snapshot, head, options, error=ERROR)
    parts = head.split.parts_of(snapshot.column("keys"))
    bank = Bank.from_snapshot(snapshot, where=parts == TRAIN)
    judged = np.flatnonzero(left & (labels >= 0))
    tested = np.flatnonzero(parts == TEST)
    unseen, seen = SignalTable.read(head, bank, judged), SignalTable.read(head, bank, tested)

    def scores_of(calibration: Calibration, table: SignalTable) -> Scores:
        return calibration.decision_function(table.svm, table.neighbors)

    by_share = {}
    for share in SHARES:
        calibration = report.signals.calibrated(share, share)
        scores = scores_of(calibration, unseen)
        by_share[share] = scores, calibration.prediction_sets(scores, ERROR)
    own = scores_of(report.calibration, unseen)
    all_scores, all_seen = {"clipfake": own}, {"clipfake": scores_of(report.calibration, seen)}
    fitted_on, chosen_on, held, out = (
        Examples.from_snapshot(snapshot, rows)
        for rows in (np.flatnonzero(parts == TRAIN), np.flatnonzero(parts == VALIDATION), tested, judged)
    )
    for name, baseline in PEERS.items():
        scorer = BASELINES[baseline](fitted_on, chosen_on, options.seed)
        line = Platt.fit(scorer(chosen_on), chosen_on.labels)
        all_scores[name], all_seen[name] = line(scorer(out)), line(scorer(held))
    return LeftOutScores(
        names[judged],
        labels[judged],
        all_scores,
        report.calibration.prediction_sets(own, ERROR),
        all_seen,
        labels[tested],
        by_share,
    )


def risk_at(confidence: Scores, wrong: npt.NDArray[np.bool_], weights: Scores) -> list[float]:
    """Share of wrong answers among the most confident, at each of `COVERAGES`."""
    order = np.argsort(-confidence, kind="stable")
    covered = np.cumsum(weights[order]) / weights.sum()
    risk = np.cumsum((wrong * weights)[order]) / np.cumsum(weights[order])
    positions = np.maximum(np.searchsorted(covered, np.array(COVERAGES) + 1e-9) - 1, 0)
    return [float(value) for value in risk[positions]]


def area_under_risk(confidence: Scores, wrong: npt.NDArray[np.bool_], weights: Scores) -> float:
    """Area under the risk-coverage curve (Geifman & El-Yaniv 2017)."""
    order = np.argsort(-confidence, kind="stable")
    risk = np.cumsum((wrong * weights)[order]) / np.cumsum(weights[order])
    return float((risk * weights[order]).sum() / weights.sum())


def cllr(scores: Scores, labels: npt.NDArray[np.int8], weights: Scores) -> float:
    """Cost of log-likelihood ratios in bits, 1 for one that says nothing (Brümmer & du Preez 2006)."""
    costs = [
        np.average(np.logaddexp(0, sign * scores[labels == label]), weights=weights[labels == label])
        for label, sign in ((REAL, 1), (FAKE, -1))
    ]
    return float(np.mean(costs) / np.log(2))


def ranking(scores: Scores, labels: npt.NDArray[np.int8], weights: Scores) -> dict[str, Any]:
    """Quality of scores as an order, as confidence and as probabilities; every source counts the same."""
    wrong, confidence = (scores > 0) != (labels == FAKE), np.abs(scores)
    drawn = np.random.default_rng(0).choice(len(labels), 50_000, p=weights)  # ECE has no weights
    risks = risk_at(confidence, wrong, weights)
    return {
        "aurc": round(area_under_risk(confidence, wrong, weights), 4),
        "risk_at_30": round(risks[COVERAGES.index(0.3)], 4),
        "ece": round(expected_calibration_error(labels[drawn], probability(scores[drawn])) or 0.0, 4),
        "cllr": round(cllr(scores, labels, weights), 4),
        "risk_by_coverage": [round(risk, 4) for risk in risks],
    }


def source_result(result: LeftOutScores, name: str, label: int) -> dict[str, Any]:
    """The verdicts on the rows of one source, and the AUC of every model against the seen rows of the other class."""
    rows = (result.sources == name) & (result.labels == label)
    possible = result.possible[rows]
    answered, excluded = possible.sum(1) == 1, ~possible[:, label]
    truth = np.concatenate([np.full(rows.sum(), label), np.full((result.seen_labels != label).sum(), 1 - label)])
    areas = {}
    for model, scores in result.scores.items():
        both = np.concatenate([scores[rows], result.seen[model][result.seen_labels != label]])
        areas[model] = round(auc(truth, both) or 0.0, 4)
        if model == "clipfake":
            interval = auc_interval(truth, both) or (0.0, 1.0)
    return {
        "label": CLASSES[label],
        "n": int(rows.sum()),
        "auc": areas,
        "auc_interval": [round(edge, 4) for edge in interval],
        "real": round(float((answered & possible[:, REAL]).mean()), 4),
        "fake": round(float((answered & possible[:, FAKE]).mean()), 4),
        "unsure": round(float(1 - answered.mean()), 4),
        "wrong_of_answers": round(float(excluded[answered].mean()), 4) if answered.any() else None,
        "truth_excluded": round(float(excluded.mean()), 4),
        "truth_excluded_interval": [round(edge, 4) for edge in wilson(int(excluded.sum()), int(rows.sum())) or ()],
    }


def summary(results: Sequence[LeftOutScores]) -> dict[str, Any]:
    """All left-out sources together, each counting the same, by model."""
    labels, sources = (np.concatenate([getattr(r, name) for r in results]) for name in ("labels", "sources"))
    weights = equal_weights(sources, labels)
    return {
        model: ranking(np.concatenate([r.scores[model] for r in results]), labels, weights)
        for model in results[0].scores
    }


def share_table(results: Sequence[LeftOutScores]) -> dict[str, Any]:
    """Mean over the groups by the share that left-out sources have in the calibration."""
    table = {}
    for share in SHARES:
        figures = []
        for result in results:
            (scores, possible), weights = result.by_share[share], result.weights
            answered = possible.sum(1) == 1
            excluded = ~possible[np.arange(len(scores)), result.labels]
            of_real = result.labels == REAL
            figures.append(
                {
                    "cllr": cllr(scores, result.labels, weights),
                    "ece": ranking(scores, result.labels, weights)["ece"],
                    "answered": float(weights[answered].sum()),
                    "real_excluded": float(excluded[of_real].mean()),
                    "fake_excluded": float(excluded[~of_real].mean()),
                }
            )
        table[f"{share}"] = {name: round(float(np.mean([f[name] for f in figures])), 4) for name in figures[0]}
    return table


def run(
    snapshot: Snapshot,
    *,
    classifier: str = "auto",
    groups: Iterable[Sequence[str]] = GROUPS,
    seed: int = 0,
    on_progress: Progress = lambda step: None,
) -> dict[str, Any]:
    """Leave every source out, then every group of sources, and measure the verdicts on them."""
    options = TrainOptions(classifier=classifier, seed=seed)
    names, labels = source_names(snapshot), snapshot.column("labels")
    stored = {label: sorted(set(names[labels == label].tolist())) for label in CLASSES}
    result: dict[str, Any] = {
        "machine": machine(),
        "rows": len(snapshot),
        "vectors": list(snapshot.vector_names),
        "classifier": classifier,
        "sources": {},
    }
    singles = []
    for label, of_class in stored.items():
        for name in of_class if len(of_class) > 1 else ():
            on_progress(f"without {name}")
            singles.append(leave_out(snapshot, [name], options))
            result["sources"][name] = source_result(singles[-1], name, label)
    reals, fakes = ([s for s in result["sources"].values() if s["label"] == label] for label in ("real", "fake"))
    result["mean_auc"] = {
        model: round(float(np.mean([source["auc"][model] for source in result["sources"].values()])), 4)
        for model in singles[0].scores
    }
    for class_name, rates in (("real", reals), ("fake", fakes)):
        if rates:
            result[f"{class_name}_mean_auc"] = {
                model: round(float(np.mean([source["auc"][model] for source in rates])), 4) for model in rates[0]["auc"]
            }
            result[f"{class_name}_excluded_mean"] = round(float(np.mean([s["truth_excluded"] for s in rates])), 4)
            result[f"{class_name}_excluded_worst"] = max(s["truth_excluded"] for s in rates)
    result["answered"] = round(float(np.mean([1 - s["unsure"] for s in result["sources"].values()])), 4)
    result["one source left out"] = summary(singles)
    known = set(names.tolist())
    grouped = []
    result["groups"] = {}
    for group in groups:
        if not known.issuperset(group):
            continue
        on_progress(f"without {', '.join(group)}")
        grouped.append(leave_out(snapshot, group, options))
        last = grouped[-1]
        result["groups"]["+".join(group)] = {
            "auc": {m: round(auc(last.labels, scores) or 0.0, 4) for m, scores in last.scores.items()},
            "answered": round(float((last.possible.sum(1) == 1).mean()), 4),
            "excluded": {
                name: source_result(last, name, int(last.labels[last.sources == name][0]))["truth_excluded"]
                for name in group
            },
            **summary([last]),
        }
    if grouped:
        result["share of left-out sources in the calibration"] = share_table(grouped)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--classifier", default="auto")
    parser.add_argument("--vectors", default="main", metavar="NAMES", help="stored vectors, as of `clipfake train`")
    parser.add_argument("--groups", nargs="*", metavar="A,B,C", help="groups of sources that are left out together")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    groups = GROUPS if options.groups is None else tuple(tuple(group.split(",")) for group in options.groups)
    result = run(
        concatenated_snapshot(Store.open(options.store).snapshot(), options.vectors.split(",")),
        classifier=options.classifier,
        groups=groups,
        seed=options.seed,
        on_progress=lambda step: print(step, file=sys.stderr, flush=True),
    )
    command.print_result(result)


if __name__ == "__main__":
    main()
