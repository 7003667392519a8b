"""Maps of patches: how well they find a swapped half of an image, in stored patches and in encoded images.

Half of a held-out real image is swapped for that of a held-out generated one. "auc" is that of the mean of the fake
half's patches against the mean of the real half's, over the halves of all planted images; "within" is the share of the
images whose fake half has the higher mean. A control puts halves of two images of the same class together: its AUC says
how well the difference of the halves tells planted images from such ones. The maps of a control are put together from
those of whole images.

    clipfake evaluate --planted default --store mystore    # adds the figures of encoded images
    python -m clipfake.benchmarks.detector.planted --store mystore
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ...detector.detector import VectorDetector
from ...detector.head import DEFAULT
from ...detector.metrics import auc
from ...detector.patches.patch_training import fit_network, read_parts
from ...detector.patches.planted import Maps, PlantedTest, compose, draw_pairs, halves, measure_planted, plant
from ...detector.split import PARTS
from ...errors import HeadError
from ...store.records import FAKE
from ...store.store import Store
from ..common import command
from ..throughput import machine


def run(store: Path, head: str = DEFAULT, *, seed: int = 0) -> dict[str, Any]:
    """Figures of a trained head's maps: in stored patches, on images, of the control, and by left-out source."""
    detector = VectorDetector.load(Store.open(store), head)
    snapshot, patches = Store.open(store).snapshot(), detector.patches
    if patches is None:
        raise HeadError(f"the head {head} of {store} scores no patches; add the view tokens and train again")
    split = detector.head.split.parts_of(snapshot.column("keys"))
    parts = {part: np.flatnonzero(split == number) for part, number in PARTS.items()}
    read = read_parts(snapshot, parts, seed)
    test = read["test"]
    rng = np.random.default_rng(seed)
    result: dict[str, Any] = {"machine": machine(), "store": store.name, "rows": len(snapshot), "seed": seed}
    result["halves"] = [
        {"halves": name, **figures.to_dict()}
        for name, figures in (("stored", patches.stored), ("images", patches.pixels), ("left out", patches.left_out))
        if figures
    ]
    result["control"] = _control(patches.network.decision_function(test.patches), test.labels, rng)
    rows = []
    known = read["train"]
    for name in sorted(set(known.sources.tolist())):
        of_source = np.array([source == name for source in known.sources.tolist()])
        network = fit_network(known.patches[~of_source], known.labels[~of_source], seed)
        label = known.labels[of_source][0]
        chosen = known.take(of_source), test.take(test.labels != label)
        mixed = [np.concatenate(arrays) for arrays in zip(*((one.patches, one.labels) for one in chosen), strict=True)]
        figures = measure_planted(*plant(network.decision_function, mixed[0], mixed[1], rng))
        rows.append({"source": name, "label": "fake" if label == FAKE else "real", **_figures(figures)})
    result["left_out_sources"] = rows
    return result


def _figures(test: PlantedTest | None) -> dict[str, Any]:
    return {} if test is None else test.to_dict()


def _control(maps: Maps, labels: np.ndarray[Any, Any], rng: np.random.Generator) -> dict[str, Any]:
    """AUC with which the difference of the halves tells planted images from two halves of one class."""

    def differences(first: Any, second: Any) -> Any:
        sides = (np.arange(len(first)) % 4).astype(np.int8)
        parts = halves((maps.shape[1], maps.shape[2]), sides)
        mixed = compose(maps[first][..., None], maps[second][..., None], parts)[..., 0]
        one, other = (np.nanmean(np.where(parts == part, mixed, np.nan), axis=(1, 2)) for part in (1, 0))
        return np.abs(one - other)

    real, fake, _ = draw_pairs(labels, rng, len(labels))
    planted = differences(real, fake)
    alike = np.concatenate([differences(rows, np.roll(rows, 1)) for rows in (real, fake)])
    is_planted = np.repeat([1, 0], [len(planted), len(alike)])
    return {"images": len(planted), "unmixed": len(alike), "auc": auc(is_planted, np.concatenate([planted, alike]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--head", default=DEFAULT)
    parser.add_argument("--seed", type=int, default=0)
    command.print_result(run(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
