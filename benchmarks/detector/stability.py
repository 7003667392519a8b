"""What `query --check-stability` gains: accuracy of the answers with and without it, per degradation and strength.

Sources of both classes are left out of head, calibration and bank, a fold each, and some of their images are judged
with their degraded copies. A rule withdraws an answer (*unsure*) if a copy

    differs   gets another one, *unsure* included
    opposite  gets the opposite one
    sign      has a score on the other side of 0

`by_score` is the accuracy if as many answers of smallest absolute score are withdrawn instead, which costs no copy at
all: a degradation earns its cost if it does better. Intervals are 95 %, from 2,000 bootstrap samples of the images.
Copies are encoded once, into --cache: 750 images in nine ways take twenty minutes on one busy core, the rest of the run
ten, most of them for training.

    python -m clipfake.benchmarks.detector.stability --store mystore --cache scratch

MobileNet vectors of minifact and morefact, rule `differs`, nominal error rates 5, 10 and 20 %:

    copies                 withdrawn        their accuracy   accuracy of the rest   by_score
    none                                                     .844  .845  .781
    jpeg 60                42   47   43     .71  .77  .65    .866  .856  .792       .862  .850  .792
    webp 50                65   74   69     .72  .80  .67    .879  .856  .798       .879  .847  .813
    scale 0.5              18   20   37     .56  .75  .54    .863  .850  .799       .844  .845  .789
    blur 0.005             21   26   36     .62  .77  .58    .861  .850  .795       .846  .842  .789
    blur 0.01              55   56   68     .75  .73  .68    .867  .864  .796       .867  .846  .813
    jpeg 60 + scale 0.5    48   58   72     .71  .78  .61    .871  .857  .807       .862  .845  .814
    shipped                94  117  125     .74  .76  .64    .892  .881  .824       .892  .863  .816

The four shipped copies together gain 1.5 to 8.2, 1.1 to 6.3 and 2.2 to 6.7 points, and each withdraws answers of its
own that are less accurate than what is kept. A blur of 0.005 withdraws almost nothing that half the size does not, and
what it does was right (7 of 8). No copy beats withdrawal by score by more than chance. The opposite answer occurs for
0, 1 and 13 of 288, 394 and 539 answers, so a rule that counts only it would gain next to nothing: *unsure* counts.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from ...detector.detector import QueryOptions, VectorDetector
from ...detector.training.calibrate import calibrate
from ...detector.training.train import TrainOptions, train
from ...indexer.decoding.image import pixels_of
from ...indexer.degradations import Degrade, blurred, recompressed, resized
from ...indexer.encoder_spec import EncoderSpec
from ...store.filter import Filter
from ...store.records import FAKE, LABEL_NUMBERS, REAL, Vectors
from ...store.search.matches import Positions
from ...store.snapshot import Snapshot
from ...store.store import Store
from ..common import command

CANDIDATES: dict[str, Degrade] = {
    "jpeg 60": recompressed("JPEG", 60),
    "jpeg 30": recompressed("JPEG", 30),
    "webp 50": recompressed("WEBP", 50),
    "webp 20": recompressed("WEBP", 20),
    "scale 0.75": resized(0.75),
    "scale 0.5": resized(0.5),
    "scale 0.35": resized(0.35),
    "blur 0.005": blurred(0.005),
    "blur 0.01": blurred(0.01),
}
SHIPPED = ("jpeg 60", "webp 50", "scale 0.5", "blur 0.01")  # as in indexer/degradations.py
SETS: dict[str, tuple[str, ...]] = {
    "jpeg 60 + scale 0.5": ("jpeg 60", "scale 0.5"),
    "shipped": SHIPPED,
    "shipped, blur 0.005": ("jpeg 60", "webp 50", "scale 0.5", "blur 0.005"),
    "all": tuple(CANDIDATES),
}
PER_SOURCE = 50  # images of each source
ERRORS = (0.05, 0.1, 0.2)  # nominal error rates: how often the detector answers changes with them
AT_ONCE = 64  # images encoded at a time
SAMPLES = 2000  # of the bootstrap
Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class JudgedViews:
    """Answers and scores of images and their copies; view 0 is the image itself."""

    labels: npt.NDArray[np.int8]  # (images,)
    scores: npt.NDArray[np.float64]  # (images, views)
    answers: npt.NDArray[np.int8]  # (errors, images, views) 0 real, 1 fake, -1 unsure

    def withdrawn(self, rule: str, views: Sequence[int], error: int) -> Masks:
        """(images,) which answers a rule withdraws, by some of the views."""
        own, copies = self.answers[error, :, :1], self.answers[error][:, list(views)]
        if rule == "differs":
            changed = copies != own
        elif rule == "opposite":
            changed = copies == 1 - own
        else:
            changed = (self.scores[:, list(views)] > 0) != (self.scores[:, :1] > 0)
        return np.asarray(changed.any(1) & (own[:, 0] >= 0))


def run(store: Store, cache: Path, *, per_source: int = PER_SOURCE, seed: int = 0) -> dict[str, Any]:
    """By nominal error rate, rule and degradation: answers, accuracy with and without, and of what was withdrawn."""
    snapshot = store.snapshot()
    rows = sample(snapshot, per_source, seed)
    views = encoded_views(snapshot, rows, cache)
    judged = judge_left_out(store, rows, views, seed)
    np.savez(cache / "judged.npz", labels=judged.labels, scores=judged.scores, answers=judged.answers)
    names = list(CANDIDATES)
    sets = {**{name: (name,) for name in names}, **SETS}
    result: dict[str, Any] = {"store": store.folder.name, "images": len(rows), "per_source": per_source}
    for i, error in enumerate(ERRORS):
        own = judged.answers[i, :, 0]
        result[f"error {error:g}"] = {
            "answered": round(float((own >= 0).mean()), 4),
            "accuracy": _accuracy(judged.labels, own, own >= 0),
            **{
                rule: {
                    name: gain(judged, judged.withdrawn(rule, [1 + names.index(v) for v in of_set], i), i, seed)
                    for name, of_set in sets.items()
                }
                for rule in ("differs", "opposite", "sign")
            },
            "alone": {name: alone(judged, name, i) for name in names},
        }
    return result


def sample(snapshot: Snapshot, per_source: int, seed: int) -> Positions:
    """Positions of up to `per_source` labelled rows of each source, ascending."""
    sources, rng = np.array(snapshot.column("sources").tolist()), np.random.default_rng(seed)
    labelled = snapshot.column("labels") >= 0
    chosen = [rng.permutation(np.flatnonzero((sources == s) & labelled))[:per_source] for s in sorted(set(sources))]
    return np.sort(np.concatenate(chosen))


def encoded_views(snapshot: Snapshot, rows: Positions, cache: Path) -> Vectors:
    """(images, views, dim) unit vectors of the stored images and of their copies, which are encoded once."""
    keys, paths = snapshot.column("keys")[rows].tolist(), snapshot.column("paths")[rows].tolist()
    encoder = EncoderSpec.of_space(snapshot.space, "cpu", "auto").load()
    cache.mkdir(parents=True, exist_ok=True)
    views = [snapshot.vectors(rows)]
    for name, degrade in CANDIDATES.items():
        path = cache / f"{name.replace(' ', '-')}.npz"
        cached = dict(np.load(path)) if path.exists() else {"keys": np.array([])}
        if cached["keys"].tolist() != keys:
            parts = []
            for start in range(0, len(paths), AT_ONCE):
                copies = [pixels_of(degrade(Pillow.open(p).convert("RGB"))) for p in paths[start : start + AT_ONCE]]
                parts.append(encoder.encode([encoder.shrink(pixels) for pixels in copies]))
            vectors = np.concatenate(parts).astype(np.float32)
            cached = {"keys": np.array(keys), "vectors": vectors / np.linalg.norm(vectors, axis=1, keepdims=True)}
            np.savez(path, **cached)
        views.append(cached["vectors"])
    return np.stack(views, 1)


def folds(snapshot: Snapshot) -> Iterator[tuple[str, ...]]:
    """The sources of each fold: one real source, and generators in turn, so that each source is in one fold."""
    sources, labels = np.array(snapshot.column("sources").tolist()), snapshot.column("labels")
    reals, fakes = (sorted(set(sources[labels == label].tolist())) for label in (REAL, FAKE))
    for i, real in enumerate(reals):
        yield (real, *fakes[i :: len(reals)])


def judge_left_out(store: Store, rows: Positions, views: Vectors, seed: int) -> JudgedViews:
    """Judge each image and its copies by a detector without its source."""
    snapshot = store.snapshot()
    sources, digests = np.array(snapshot.column("sources").tolist())[rows], snapshot.column("digests")[rows]
    scores = np.zeros(views.shape[:2])
    answers = np.full((len(ERRORS), *views.shape[:2]), -1, np.int8)
    for left_out in folds(snapshot):
        images = np.flatnonzero(np.isin(sources, left_out))
        with tempfile.TemporaryDirectory() as folder:
            detector = _detector_without(store, left_out, Path(folder) / "store", seed)
            for view in range(views.shape[1]):
                for i, error in enumerate(ERRORS):
                    options = QueryOptions(error=error, changes=False)
                    names = [str(image) for image in images]
                    verdicts = detector.judge(names, views[images, view], digests[images], options)
                    scores[images, view] = [verdict.score for verdict in verdicts]
                    answers[i, images, view] = [
                        -1 if verdict.verdict == "unsure" else LABEL_NUMBERS[verdict.verdict] for verdict in verdicts
                    ]
    return JudgedViews(snapshot.column("labels")[rows], scores, answers)


def _detector_without(store: Store, sources: Sequence[str], folder: Path, seed: int) -> VectorDetector:
    """Train and calibrate a detector on a copy of the store without some sources."""
    shutil.copytree(store.folder, folder)
    copy = Store.open(folder)
    copy.delete(Filter(source=sources), "left out")
    snapshot, options = copy.snapshot(), TrainOptions(seed=seed, baselines=())
    head = train(snapshot, options).head
    calibration = calibrate(snapshot, head, options).calibration
    return VectorDetector.from_trained(snapshot, head, calibration)


def alone(judged: JudgedViews, name: str, error: int) -> dict[str, Any]:
    """The answers that a degradation withdraws and none of the (other) shipped ones does: what it adds to them."""
    views = {view: 1 + list(CANDIDATES).index(view) for view in CANDIDATES}
    others = [views[view] for view in SHIPPED if view != name]
    added = judged.withdrawn("differs", [views[name]], error) & ~judged.withdrawn("differs", others, error)
    return {"withdrawn": int(added.sum()), "accuracy": _accuracy(judged.labels, judged.answers[error, :, 0], added)}


def gain(judged: JudgedViews, withdrawn: Masks, error: int, seed: int) -> dict[str, Any]:
    """Accuracy of the answers that are kept, of those withdrawn, and if withdrawn by score; intervals are 95 %."""
    own = judged.answers[error, :, 0]
    answered = own >= 0
    kept = answered & ~withdrawn
    least_sure = np.zeros(len(own), bool)
    order = np.flatnonzero(answered)[np.argsort(np.abs(judged.scores[answered, 0]), kind="stable")]
    least_sure[order[: int(withdrawn.sum())]] = True
    by_score = answered & ~least_sure
    correct = own == judged.labels
    draws = np.random.default_rng(seed).integers(0, len(own), (SAMPLES, len(own)))

    def difference(first: Masks, second: Masks) -> list[float]:
        shares = [(correct & of)[draws].sum(1) / np.maximum(of[draws].sum(1), 1) for of in (first, second)]
        return [round(float(q), 4) for q in np.quantile(shares[0] - shares[1], [0.025, 0.975])]

    return {
        "withdrawn": int(withdrawn.sum()),
        "answered": round(float(kept.mean()), 4),
        "accuracy": _accuracy(judged.labels, own, kept),
        "gain_interval": difference(kept, answered),
        "accuracy_of_withdrawn": _accuracy(judged.labels, own, withdrawn),
        "by_score": _accuracy(judged.labels, own, by_score),
        "over_by_score_interval": difference(kept, by_score),
    }


def _accuracy(labels: npt.NDArray[np.int8], answers: npt.NDArray[np.int8], where: Masks) -> float | None:
    return round(float((answers == labels)[where].mean()), 4) if where.any() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True, help="store whose images are where they were indexed")
    parser.add_argument("--cache", type=Path, required=True, help="scratch folder for vectors of the copies")
    parser.add_argument("--per-source", type=int, default=PER_SOURCE, help="images of each source")
    arguments = parser.parse_args()
    command.print_result(run(Store.open(arguments.store), arguments.cache, per_source=arguments.per_source))


if __name__ == "__main__":
    main()
