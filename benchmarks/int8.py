"""Cost of reduced precision: the same images embedded in float32, bf16 and int8, and the same heads trained on each.

Quantized vectors are an embedding space of their own, so each precision has its own store, heads and neighbours. The
results of each: images per core-second of the encoder, cosines with float32, test accuracy and AUC of the head and of
the baselines (same split), and how many of an image's nine nearest training rows are the same as in float32. Use the
encoder and the kind of images you intend to work with: the results hold for those.

    python -m clipfake.benchmarks.int8 --images ../shared/data/minifact/* \\
        --encoder ../shared/encoders/mobilenet-v1-imagenet
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..detector.training.train import TrainOptions, make_split, train
from ..errors import EncoderError
from ..indexer.decoding.image import decode
from ..indexer.encoders.load import OPENVINO, load_encoder
from ..indexer.index import IndexOptions, index
from ..store.records import TextIndex
from ..store.search.matches import Positions, nearest
from ..store.snapshot import Snapshot
from ..store.store import Store
from .common import command
from .parity import agreement

BASELINES = ("linear_probe", "nearest_9", "rbf_svm")
NEIGHBOURS = 9
PLAIN = "float32"


def run(
    images: Sequence[str | Path],
    encoder: str,
    *,
    precision: str = "float32,bf16,int8",
    limit: int | None = 64,
    repeats: int = 3,
    threads: int | None = None,
    device: str = OPENVINO,
) -> dict[str, Any]:
    """Measure each precision: `images_per_core_second`, `agreement`, `test` (head, baselines), `same_neighbours`.

    Parameters
    ----------
    limit : number of images whose encoding is timed; heads are trained on all images
    """
    if threads:
        torch.set_num_threads(threads)
    names = [PLAIN, *(name for name in precision.split(",") if name != PLAIN)]
    result: dict[str, Any] = {"encoder": encoder, "cpu": torch.backends.cpu.get_cpu_capability()}
    with tempfile.TemporaryDirectory() as folder:
        stored: dict[str, Snapshot] = {}
        loaded = {}
        for name in names:
            try:
                loaded[name] = load_encoder(encoder, device=device, precision=name)
            except EncoderError as e:  # no bf16 in this CPU
                result[name] = {"why": str(e)}
                continue
            store = Store.create(Path(folder) / name, loaded[name].space)
            index(list(images), store, loaded[name], IndexOptions(text=False))
            stored[name] = store.snapshot()
        reference = stored[PLAIN]
        result["images"] = len(reference)
        rates = _rates(
            loaded, [decode(path.read_bytes()).pixels for path in command.image_paths(images, limit)], repeats
        )
        keys, reference_vectors = reference.column("keys"), reference.vectors()
        for name, snapshot in stored.items():
            order = TextIndex(snapshot.column("keys")).find(keys)  # match rows by key: each store has its own order
            result[name] = {
                "space": snapshot.space.fingerprint[:12],
                "images_per_core_second": round(rates[name], 1),
                "over_float32": round(rates[name] / rates[PLAIN], 2),
                "agreement": agreement(snapshot.vectors(order), reference_vectors),
                "test": _heads(snapshot),
                "same_neighbours": round(_same_neighbours(reference, snapshot, order), 4),
            }
    return result


def _rates(loaded: dict[str, Any], pixels: Sequence[Any], repeats: int) -> dict[str, float]:
    """Images per core-second of each encoder, medians of interleaved repeats."""
    samples: dict[str, list[float]] = {name: [] for name in loaded}
    for turn in range(repeats + 1):
        for name, encoder in loaded.items():
            began = time.process_time()
            encoder.encode(pixels)
            if turn:  # the first one compiles
                samples[name].append(len(pixels) / (time.process_time() - began))
    return {name: float(np.median(rates)) for name, rates in samples.items()}


def _heads(snapshot: Snapshot) -> dict[str, dict[str, float | None]]:
    """Accuracy and AUC of the head and of each baseline on the test rows."""
    trained = train(snapshot, TrainOptions(classifier="triplet-svm", baselines=BASELINES))
    tests = {"head": trained.metrics["test"], **{name: b.metrics["test"] for name, b in trained.baselines.items()}}
    return {name: {"accuracy": metrics.accuracy, "auc": metrics.auc} for name, metrics in tests.items()}


def _same_neighbours(reference: Snapshot, other: Snapshot, order: Positions) -> float:
    """Mean share of a test image's nearest training images in `reference` that are among its nearest in `other`.

    Parameters
    ----------
    order : (rows,) position in `other` of each row of `reference`
    """
    _, parts = make_split(reference, TrainOptions())
    test, train_rows = parts["test"], parts["train"]
    neighbors = [
        nearest(vectors[test], vectors[train_rows], train_rows, NEIGHBOURS).rows
        for vectors in (reference.vectors(), other.vectors(order))
    ]
    shared = [
        len(np.intersect1d(a[a >= 0], b[b >= 0])) / max(int((a >= 0).sum()), 1) for a, b in zip(*neighbors, strict=True)
    ]
    return float(np.mean(shared))


if __name__ == "__main__":
    command.main(run, __doc__ or "", precisions="float32,bf16,int8", limit=64, device=OPENVINO)
