"""Fit a patch head to stored patches: every patch has the label of its image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from ...store.named_vectors import NamedVectors, open_named_vectors, vector_names
from ...store.records import FAKE, Ints, Names, distinct
from ...store.search.matches import Positions
from ...store.snapshot import Snapshot
from ..training.examples import subsample
from .patch_head import TOKENS, PatchHead, PatchNetwork, neighborhood_means, split_patches
from .planted import Patches, PlantedTest, measure_planted, plant

HIDDEN = (128, 64)
EPOCHS, BATCH, RATE, DECAY, DROPOUT = 6, 512, 2e-3, 1e-3, 0.3
MOST_ROWS = {"train": 8_000, "validation": 1_000, "test": 2_000}  # images of each part that are read
PATCHES_OF_IMAGE = 25  # drawn for each image and epoch: neighbouring means are much alike
FOLDS = 3  # of sources, in the test on sources that are left out; as many of each class are needed

Parts = Mapping[str, Positions]


def patches_in(snapshot: Snapshot) -> NamedVectors | None:
    """The stored patches of a store, None if it has none; raises StoreError if they cannot be read."""
    if TOKENS not in vector_names(snapshot.folder):
        return None
    column = open_named_vectors(snapshot.folder, TOKENS)
    return column if column.view is not None and column.view.rows else None


def train_patch_head(
    snapshot: Snapshot, parts: Parts, seed: int, on_progress: Callable[[str], None] | None = None
) -> PatchHead | None:
    """Fit a patch head to the stored patches of a snapshot; None if it has none, or none of a class. Reads no image.

    The network is fitted to the training rows and calibrated on the validation rows. The planted test is made on the
    test rows, and again with networks that have not seen the sources of the planted halves.

    Parameters
    ----------
    parts : positions of the "train", "validation" and "test" rows

    Raises
    ------
    StoreError, Damaged
        The patches cannot be read.
    """
    column = patches_in(snapshot)
    if column is None or column.view is None:
        return None
    read = read_parts(snapshot, parts, seed)
    if any(len(np.unique(rows.labels)) < 2 for rows in read.values()):
        return None
    if on_progress:
        on_progress("patches")
    network = calibrated(fit_network(read["train"].patches, read["train"].labels, seed), read["validation"])
    rng, test = np.random.default_rng([seed, 7]), read["test"]
    stored = measure_planted(*plant(network.decision_function, test.patches, test.labels, rng))
    left_out = _on_left_out_sources(read["train"], seed, on_progress)
    return PatchHead(column.space, column.view.rows, column.view.columns, network, stored, left_out)


def read_parts(snapshot: Snapshot, parts: Parts, seed: int) -> dict[str, PatchRows]:
    """Read the patches of the rows of each part, `MOST_ROWS` at most; raises StoreError if there are none."""
    column = open_named_vectors(snapshot.folder, TOKENS)
    return {name: PatchRows.read(snapshot, column, rows, MOST_ROWS[name], seed) for name, rows in parts.items()}


class PatchRows:
    """Patches of labelled rows in memory."""

    def __init__(self, patches: Patches, labels: Ints, sources: Names) -> None:
        self.patches, self.labels, self.sources = patches, labels, sources

    @classmethod
    def read(cls, snapshot: Snapshot, column: NamedVectors, rows: Positions, most: int, seed: int) -> PatchRows:
        """Read at most `most` of these rows, those of each class in proportion, leaving out rows without patches."""
        assert column.view is not None
        rows = subsample(rows, snapshot.column("labels")[rows], most, seed)
        vectors = column.vectors(snapshot, rows)
        has = np.isfinite(vectors).all(1)
        labels, sources = snapshot.column("labels")[rows][has], snapshot.column("sources")[rows][has]
        return cls(split_patches(vectors[has], column.view.rows, column.view.columns), labels, sources)

    def take(self, rows: npt.NDArray[np.bool_]) -> PatchRows:
        return PatchRows(self.patches[rows], self.labels[rows], self.sources[rows])


def fit_network(patches: Patches, labels: Ints, seed: int) -> PatchNetwork:
    """Fit a perceptron to (n, rows, columns, dim) patches by their images' (n,) labels; both classes weigh the same.

    Deterministic on one machine.
    """
    import torch

    means = neighborhood_means(patches).reshape(len(patches), -1, patches.shape[-1])
    center, scale = means.mean((0, 1)), means.std((0, 1)) + 1e-6
    inputs = torch.from_numpy(np.ascontiguousarray((means - center) / scale))
    targets = torch.from_numpy((labels == FAKE).astype(np.float32))
    weights = torch.where(targets == 1, 0.5 / targets.mean(), 0.5 / (1 - targets.mean()))
    rng = np.random.default_rng([seed, 8])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = (inputs.shape[-1], *HIDDEN)
        hidden: list[torch.nn.Module] = []
        for i, (size, outputs) in enumerate(zip(sizes, HIDDEN, strict=False)):
            hidden += [torch.nn.Linear(size, outputs), torch.nn.ReLU(), *([] if i else [torch.nn.Dropout(DROPOUT)])]
        model = torch.nn.Sequential(*hidden, torch.nn.Linear(HIDDEN[-1], 1))
        optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
        for _ in range(EPOCHS):
            for image, patch in _drawn(len(inputs), inputs.shape[1], rng):
                optimizer.zero_grad()
                logits = model(inputs[image, patch])[:, 0]
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets[image], weights[image])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    linear = [module for module in model if isinstance(module, torch.nn.Linear)]
    layers = [(one.weight.detach().numpy().T.copy(), one.bias.detach().numpy().copy()) for one in linear]
    first, biases = layers[0]
    first = first / scale[:, None]
    layers[0] = (first, biases - center @ first)
    return PatchNetwork(tuple((weight.astype(np.float32), bias.astype(np.float32)) for weight, bias in layers))


def _drawn(images: int, patches: int, rng: np.random.Generator) -> Iterator[tuple[Ints, Ints]]:
    """Yield batches of (image, patch) positions that draw a part of the patches of each image."""
    drawn = min(PATCHES_OF_IMAGE, patches)
    patch = rng.permuted(np.tile(np.arange(patches), (images, 1)), axis=1)[:, :drawn]
    image = np.repeat(np.arange(images), drawn)
    order = rng.permutation(len(image))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        yield image[batch], patch.ravel()[batch]


def calibrated(network: PatchNetwork, held_out: PatchRows) -> PatchNetwork:
    """Scale the outputs of a network to log-odds of single patches, both classes equally frequent."""
    from sklearn.linear_model import LogisticRegression

    maps = network.decision_function(held_out.patches)
    labels = np.repeat(held_out.labels == FAKE, maps[0].size)
    curve = LogisticRegression(C=1e6, class_weight="balanced").fit(maps.reshape(-1, 1), labels)
    slope, intercept = float(curve.coef_[0, 0]), float(curve.intercept_[0])
    return network.scaled(slope, intercept) if slope > 0 else network


def _on_left_out_sources(rows: PatchRows, seed: int, on_progress: Callable[[str], None] | None) -> PlantedTest | None:
    """The planted test on training rows, scored by networks that have seen neither source; None for too few sources."""
    folds = source_folds(rows.labels, rows.sources, seed)
    if folds is None:
        return None
    planted = []
    for fold in range(FOLDS):
        if on_progress:
            on_progress(f"patches of left-out sources, {fold + 1} of {FOLDS}")
        kept, left = rows.take(folds != fold), rows.take(folds == fold)
        network = fit_network(kept.patches, kept.labels, seed)
        planted.append(plant(network.decision_function, left.patches, left.labels, np.random.default_rng([seed, 9])))
    maps, parts = (np.concatenate(arrays) for arrays in zip(*planted, strict=True))
    return measure_planted(maps, parts)


def source_folds(labels: Ints, sources: Names, seed: int) -> Ints | None:
    """(rows,) number of the fold in which a row's source is left out; None unless each class has FOLDS sources.

    Sources with rows of both classes are left out with the class of most of their rows.
    """
    names, index, _ = distinct(sources)
    fake_share = np.bincount(index, labels == FAKE) / np.bincount(index)
    fold_of = np.zeros(len(names), np.int64)
    rng = np.random.default_rng([seed, 10])
    for fakes in (False, True):
        of_class = rng.permutation(np.flatnonzero((fake_share > 0.5) == fakes))
        if len(of_class) < FOLDS:
            return None
        fold_of[of_class] = np.arange(len(of_class)) % FOLDS
    folds: Ints = fold_of[index]
    both = all(len(np.unique(labels[(folds == fold) == inside])) == 2 for fold in range(FOLDS) for inside in (0, 1))
    return folds if both else None
