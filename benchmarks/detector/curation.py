"""Banks of few chosen rows (`clipfake store curate`) beside whole and random ones, on sources left out of both.

Sources are left out in five folds, two generators and one real source in each; the bank is chosen from the other
sources. Every left-out generator is compared with the left-out real source ("both unseen"), and with rows of all real
sources that are not in the bank either ("generator unseen"). Measured are the rule of the neighbours (nine of each
class, weights 1/n) and an RBF SVM fitted on the bank. Intervals (95 %) are those of 2,000 resamples of the left-out
sources.

The methods choose within each source, and each class and source has the same share, except for "random". "k-centre" is
the greedy choice of the farthest row (Gonzalez 1985), "k-means" takes the row nearest to each mean.

    python -m clipfake.benchmarks.detector.curation --store mystore
    python -m clipfake.benchmarks.detector.curation --synthetic 200000 --sizes 10000
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...detector.metrics import auc
from ...detector.svm import rbf_kernel
from ...detector.training.classifiers import SVM_C
from ...detector.training.svm_training import scale_gamma
from ...store.maintenance.curate import SourceGroup, curate, quotas, source_groups
from ...store.maintenance.facility_location import facility_location
from ...store.records import FAKE, REAL
from ...store.store import Store
from ..common import command
from ..common.synthetic_rows import space, synthetic
from ..throughput import machine

FOLDS = 5
HELD_OUT = 0.3  # share of each real source's rows that is in no bank
K = 9  # neighbours of each class
ITERATIONS = 10  # of k-means
RESAMPLES = 2000

Positions = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Pair = tuple[int, str, str]  # rotation, generator, real source, "" for rows of the seen ones
Results = dict[tuple[str, str, str, int], dict[Pair, list[float]]]  # by protocol, head, method, size


def k_centre(vectors: Floats, most: int, rng: np.random.Generator) -> Positions:
    chosen = [int((vectors @ vectors.mean(0)).argmax())]
    nearest = vectors @ vectors[chosen[0]]
    while len(chosen) < most:
        chosen.append(int(nearest.argmin()))
        np.maximum(nearest, vectors @ vectors[chosen[-1]], out=nearest)
    return np.array(chosen)


def k_means(vectors: Floats, most: int, rng: np.random.Generator) -> Positions:
    from sklearn.cluster import KMeans

    model = KMeans(most, n_init=1, max_iter=ITERATIONS, random_state=int(rng.integers(1 << 31))).fit(vectors)
    return np.unique(((vectors**2).sum(1)[:, None] - 2 * vectors @ model.cluster_centers_.T).argmin(0))


METHODS: dict[str, Callable[[Floats, int, np.random.Generator], Positions]] = {
    "random by source": lambda vectors, most, rng: rng.permutation(len(vectors))[:most],
    "k-centre": k_centre,
    "k-means": k_means,
    "facility location": lambda vectors, most, rng: facility_location(vectors, most),
}


class Bench:
    """The rows of a store in memory, with all similarities."""

    def __init__(self, store: Store) -> None:
        snapshot = store.snapshot()
        self.labels, self.vectors = snapshot.column("labels"), snapshot.vectors()
        self.vectors /= np.linalg.norm(self.vectors, axis=1, keepdims=True)
        self.groups = source_groups(snapshot)
        self.similarity = self.vectors @ self.vectors.T
        gamma = scale_gamma(self.vectors)
        self.kernel = rbf_kernel(self.vectors, self.vectors, gamma, np.float32)

    def neighbors(self, bank: Positions, queries: Positions) -> npt.NDArray[np.float64]:
        """(queries,) signal of the nearest rows of a bank."""
        means = []
        for label in (FAKE, REAL):
            similarity = self.similarity[np.ix_(queries, bank[self.labels[bank] == label])]
            k = min(K, similarity.shape[1])
            nearest = -np.sort(-np.partition(similarity, -k, axis=1)[:, -k:], axis=1)
            means.append(np.average(nearest, axis=1, weights=1 / np.arange(1, k + 1)))
        return np.asarray(means[0] - means[1], np.float64)

    def svm(self, bank: Positions, queries: Positions) -> npt.NDArray[np.float64]:
        """(queries,) decision values of an SVM that was fitted on a bank."""
        from sklearn.svm import SVC

        svc = SVC(C=SVM_C, kernel="precomputed").fit(self.kernel[np.ix_(bank, bank)], self.labels[bank])
        return np.asarray(self.kernel[np.ix_(queries, bank[svc.support_])] @ svc.dual_coef_[0])

    def measure(self, sizes: Sequence[int], rotations: int) -> Results:
        """AUC of every pair in every fold, with banks of all sizes and methods."""
        results: Results = defaultdict(lambda: defaultdict(list))
        reals, fakes = ([group for group in self.groups if group.label == label] for label in (REAL, FAKE))
        for rotation in range(rotations):
            rng = np.random.default_rng(rotation)
            real_folds, fake_folds = (np.array_split(rng.permutation(len(own)), FOLDS) for own in (reals, fakes))
            held = [rng.permutation(g.positions)[: int(HELD_OUT * len(g.positions))] for g in reals]
            for fold in range(FOLDS):
                left_out = [fakes[i] for i in fake_folds[fold]]
                unseen = [reals[i] for i in real_folds[fold]]
                seen = np.concatenate(held)
                for protocol, of_class in (
                    ("both unseen", unseen),
                    ("generator unseen", [SourceGroup(REAL, "", seen)]),
                ):
                    away = np.concatenate([group.positions for group in (*left_out, *of_class)])
                    pool = [replace(g, positions=np.setdiff1d(g.positions, away)) for g in self.groups]
                    pool = [group for group in pool if len(group.positions)]
                    pairs = [(generator, real) for generator in left_out for real in of_class]
                    for method, size, bank in self._banks(pool, sizes, rng):
                        for head, score in (("neighbours", self.neighbors), ("SVM", self.svm)):
                            scores = np.zeros(len(self.labels))
                            scores[away] = score(bank, away)
                            for generator, real in pairs:
                                rows = np.concatenate([real.positions, generator.positions])
                                pair = (rotation, generator.source, real.source)
                                area = auc(self.labels[rows], scores[rows]) or 0.0
                                results[protocol, head, method, size][pair].append(area)
        return results

    def _banks(
        self, pool: Sequence[SourceGroup], sizes: Sequence[int], rng: np.random.Generator
    ) -> list[tuple[str, int, Positions]]:
        everything = np.concatenate([group.positions for group in pool])
        banks = [("all rows", 0, np.sort(everything))]
        for size in sizes:
            banks.append(("random", size, np.sort(rng.permutation(everything)[:size])))
            for name, choose in METHODS.items():
                chosen = []
                for group, quota in zip(pool, quotas(pool, size), strict=True):
                    chosen.append(group.positions[choose(self.vectors[group.positions], quota, rng)])
                banks.append((name, size, np.sort(np.concatenate(chosen))))
        return banks


def run(store: Store, sizes: Sequence[int], rotations: int = 2) -> dict[str, Any]:
    """Mean AUC of each bank, and its difference from the whole one and from a random one of its size."""
    bench = Bench(store)
    results = bench.measure(sizes, rotations)
    rows = len(bench.labels)
    report: dict[str, Any] = {"machine": machine(), "store": store.folder.name, "rows": rows, "rotations": rotations}
    for (protocol, head, method, size), by_pair in results.items():
        pairs = sorted(by_pair)
        means = np.array([np.mean(by_pair[pair]) for pair in pairs])
        row: dict[str, Any] = {"auc": round(float(means.mean()), 4)}
        others = {"from all rows": ("all rows", 0), "from random": ("random", size)} if size else {}
        for name, other in others.items():
            difference = means - np.array([np.mean(results[protocol, head, *other][pair]) for pair in pairs])
            row[name] = [round(float(difference.mean()), 4), *interval(difference, pairs)]
        report.setdefault(protocol, {}).setdefault(head, {})[f"{size or rows} {method}"] = row
    return report


def interval(difference: npt.NDArray[np.float64], pairs: Sequence[Pair]) -> list[float]:
    """95 % interval of a mean over pairs, by resampling generators and real sources."""
    rng, draws = np.random.default_rng(0), []
    codes = [np.unique([pair[side] for pair in pairs], return_inverse=True)[1] for side in (1, 2)]
    for _ in range(RESAMPLES):
        counts = [rng.multinomial(n, np.full(n, 1 / n))[own] for own in codes if (n := int(own.max()) + 1)]
        weights = counts[0] * counts[1]
        if weights.any():
            draws.append(np.average(difference, weights=weights))
    return [round(float(edge), 4) for edge in np.quantile(draws, [0.025, 0.975])]


def cost(rows: int, kept: int) -> dict[str, Any]:
    """Seconds and memory of `store curate` on synthetic 512-d rows of 25 sources."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "store", space(512))
        with store.writer("synthetic") as writer:
            for block in synthetic(rows, 512):
                writer.append(block)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began, began_cpu = time.perf_counter(), time.process_time()
        curate(store, Path(folder) / "small", kept)
        return {
            "machine": machine(),
            "rows": rows,
            "kept": kept,
            "seconds": round(time.perf_counter() - began, 1),
            "cpu_seconds": round(time.process_time() - began_cpu, 1),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "peak_mb_before": before // 1024,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--synthetic", type=int, default=200_000, help="number of synthetic rows, without --store")
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 1000, 2000])
    parser.add_argument("--rotations", type=int, default=2, help="how often the sources are divided into folds")
    options = parser.parse_args()
    if options.store:
        command.print_result(run(Store.open(options.store), options.sizes, options.rotations))
    else:
        command.print_result(cost(options.synthetic, options.sizes[0]))


if __name__ == "__main__":
    main()
