"""Fusion of published detectors' scores: AUC on held-out halves beside the best signal and the plain mean.

The table is that of `clipfake fuse`. Each half of its rows is scored by a fusion fitted on the other, once per seed;
`few` fits on few rows and measures on all others. `linear` is a logistic regression without the sign constraint and
`boosted` a gradient boosting of scikit-learn, which may invert a detector: what the constraint costs.

    python -m clipfake.benchmarks.detector.fusion ../shared/data/foreign/deepsafe_scores.csv --label ground_truth
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ...detector.fusion.curves import CURVES, Labels, Signals
from ...detector.fusion.fusion import Fusion, fuse, stratified_folds
from ...detector.fusion.score_table import ScoreTable
from ...detector.metrics import auc
from ..common import command

SEEDS = 3
FEW = (100, 300, 1000)  # rows that the fusion is fitted on
ERRORS = (0.01, 0.05, 0.1, 0.2)


def run(table: Path, label: str, *, seeds: int = SEEDS) -> dict[str, Any]:
    """AUC of signals, plain mean, fusion and unconstrained models; coverage of the fusion by nominal error rate."""
    scores = ScoreTable.read(table, label)
    signals, labels = scores.signals, scores.labels
    signals, labels = signals[labels >= 0], labels[labels >= 0]
    fused = [fuse(signals, labels, scores.names, seed=seed).report for seed in range(seeds)]
    result: dict[str, Any] = {"table": table.name, "rows": len(labels), "report": fused[0].to_dict()}
    result["auc"] = {
        "best signal": fused[0].signals[fused[0].best].auc,
        "plain mean": auc(labels, np.nanmean(signals, axis=1)),
        "fusion": float(np.mean([report.auc for report in fused])),
        **_by_curve(signals, labels),
        **_unconstrained(signals, labels),
    }
    result["coverage"] = _coverage(signals, labels, seeds)
    result["few"] = {str(n): _fitted_on(n, signals, labels) for n in FEW if n < len(labels) // 2}
    return {name: _rounded(value) for name, value in result.items()}


def _by_curve(signals: Signals, labels: Labels) -> dict[str, float]:
    return {f"fusion, {curve}": fuse(signals, labels, curve=curve).report.auc for curve in CURVES}


def _unconstrained(signals: Signals, labels: Labels) -> dict[str, float | None]:
    """AUC on held-out halves of models that may invert a signal."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import QuantileTransformer

    halves = stratified_folds(labels, 2, 0)
    filled = np.where(np.isnan(signals), np.nanmedian(signals, axis=0), signals)
    aucs: dict[str, float | None] = {}
    normal = QuantileTransformer(n_quantiles=min(1000, len(labels) // 2), output_distribution="normal")
    for name, model in (
        ("linear", make_pipeline(normal, LogisticRegression())),
        ("boosted", HistGradientBoostingClassifier(random_state=0)),
    ):
        scores = np.zeros(len(labels))
        for half in (0, 1):
            model.fit(filled[halves != half], labels[halves != half])
            scores[halves == half] = model.decision_function(filled[halves == half])
        aucs[name] = auc(labels, scores)
    return aucs


def _coverage(signals: Signals, labels: Labels, seeds: int) -> dict[str, dict[str, float]]:
    """By nominal error rate: share of each class whose truth was ruled out, of answers, and of wrong answers."""
    measured: dict[float, list[list[float]]] = {error: [] for error in ERRORS}
    for seed in range(seeds):
        halves = stratified_folds(labels, 2, seed)
        for half in (0, 1):
            fusion = Fusion.fit(signals[halves != half], labels[halves != half], curve="line", seed=seed)
            scores, truth = fusion.decision_function(signals[halves == half]), labels[halves == half]
            for error in ERRORS:
                possible = fusion.prediction_sets(scores, error)
                excluded, answered = ~possible[np.arange(len(truth)), truth], possible.sum(1) == 1
                wrong = float(excluded[answered].mean()) if answered.any() else 0.0
                by_class = [float(excluded[truth == label].mean()) for label in (0, 1)]
                measured[error].append([*by_class, float(answered.mean()), wrong])
    names = ("real_excluded", "fake_excluded", "answered", "wrong")
    return {f"{error:.0%}": dict(zip(names, np.mean(rows, 0), strict=True)) for error, rows in measured.items()}


def _fitted_on(n: int, signals: Signals, labels: Labels, draws: int = 10) -> dict[str, Any]:
    """Mean over random draws: AUC of a fusion fitted on n rows, of the signal that was best on them, and coverage."""
    outcomes = []
    for draw in range(draws):
        order = np.random.default_rng([n, draw]).permutation(len(labels))
        fitted, rest = order[:n], order[n:]
        fusion = Fusion.fit(signals[fitted], labels[fitted], seed=draw)
        best = int(np.argmax([auc(labels[fitted], column) or 0.0 for column in signals[fitted].T]))
        scores = fusion.decision_function(signals[rest])
        excluded = ~fusion.prediction_sets(scores, 0.05)[np.arange(len(rest)), labels[rest]]
        aucs = [auc(labels[rest], values) or 0.0 for values in (scores, signals[rest, best])]
        outcomes.append([*aucs, float(excluded.mean())])
    names = ("auc", "auc_of_chosen_signal", "excluded")
    spread = {f"{name}_sd": value for name, value in zip(names, np.std(outcomes, axis=0, ddof=1), strict=True)}
    return dict(zip(names, np.mean(outcomes, axis=0), strict=True)) | spread


def _rounded(value: Any) -> Any:
    """Round the numbers of nested dicts and lists to four decimals."""
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return round(float(value), 4) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="CSV with a column per detector")
    parser.add_argument("--label", required=True, help="column of the truth: 0 or real, 1 or fake")
    arguments = parser.parse_args()
    command.print_result(run(arguments.table, arguments.label))


if __name__ == "__main__":
    main()
