"""A head that scores patches: a small network over an image's stored patches, and whether its maps may be shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.atomic_files import require_readable, written_aside
from ...core.reading import read_bounded
from ...core.sealed_json import SealedJson, checksum
from ...errors import HeadError, SpaceMismatch
from ...store.records import Vectors
from ...store.rooms import own_files, remove_files
from ...store.space import Space
from .patch_map import WHOLE, Area, PatchMap
from .planted import Maps, Patches, PlantedTest

TOKENS = "tokens"  # name of the view with the patches of each image
LIST = "patches.json"
OWN_FILES = re.compile(r"patches-[0-9a-f]{16}\.safetensors|patches\.json")
FILE = SealedJson("clipfake patch head", 1, "patch head", HeadError, "train the head again")
ARRAYS_LIMIT = 1 << 28  # bytes of its arrays
LEAST_AUC = 0.9  # of the planted test, for a map to be shown
# What the AUC in stored patches is lowered by, which have not seen the other half of a planted image. With MobileNet's
# patches it was .015 above the AUC on images (benchmarks.detector.planted), with those of its last block .07.
STORED_EXCESS = 0.05
MEASURE = "clipfake evaluate --planted HEAD"  # makes the planted test on images
HINT = "A hint where to look, not a proof; the verdict does not use it."

Layer = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]  # (inputs, outputs) weights, (outputs,) biases


@dataclass(frozen=True)
class PatchNetwork:
    """A multilayer perceptron over the mean of each patch and its eight neighbours."""

    layers: tuple[Layer, ...]  # ReLU between them; the last has one output, the log-odds

    def decision_function(self, patches: Patches) -> Maps:
        """(n, rows, columns) log-odds of (n, rows, columns, dim) patches, above 0 leans fake."""
        values = neighborhood_means(patches)
        for weights, biases in self.layers[:-1]:
            values = np.maximum(values @ weights + biases, 0)
        weights, biases = self.layers[-1]
        return np.asarray((values @ weights + biases)[..., 0], np.float32)

    def scaled(self, slope: float, intercept: float) -> PatchNetwork:
        """The network whose log-odds are slope * log-odds + intercept."""
        *hidden, (weights, biases) = self.layers
        last = (np.float32(slope) * weights, np.float32(slope) * biases + np.float32(intercept))
        return PatchNetwork((*hidden, last))

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the arrays to save, by name."""
        return {
            f"{kind}.{i}": array
            for i, layer in enumerate(self.layers)
            for kind, array in zip(("weights", "biases"), layer, strict=True)
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], dim: int) -> PatchNetwork:
        """Convert back what `arrays` returns; raises ValueError for arrays that do not fit patches of `dim` numbers."""
        layers = tuple((arrays[f"weights.{i}"], arrays[f"biases.{i}"]) for i in range(len(arrays) // 2))
        inputs = dim
        for i, (weights, biases) in enumerate(layers):
            outputs = len(biases) if i < len(layers) - 1 else 1
            if weights.shape != (inputs, outputs) or biases.shape != (outputs,):
                raise ValueError(f"layer {i} has weights of shape {weights.shape}, expected {(inputs, outputs)}")
            for array in (weights, biases):
                if array.dtype != np.float32 or not np.isfinite(array).all():
                    raise ValueError(f"layer {i} must hold finite float32 numbers, found {array.dtype}")
            inputs = outputs
        if not layers:
            raise ValueError("there are no layers")
        return cls(layers)


@dataclass(frozen=True)
class PatchHead:
    """Scores the patches of an image. Its maps are shown only if planted halves were found well enough."""

    space: Space  # of the stored patches: the view `tokens`
    rows: int
    columns: int
    network: PatchNetwork
    stored: PlantedTest | None  # of held-out rows, planted in stored patches; None if there were too few rows
    left_out: PlantedTest | None = None  # the same for sources that the network has not seen
    pixels: PlantedTest | None = None  # of planted images, where the files could be read

    @cached_property
    def digest(self) -> str:
        """Hex BLAKE2b-128 of its arrays."""
        return checksum(b"".join(array.tobytes() for _, array in sorted(self.network.arrays().items())))

    @property
    def auc(self) -> float | None:
        """AUC of the planted test: of planted images if it was measured, else of stored patches less their excess."""
        if self.pixels is not None:
            return self.pixels.auc
        return None if self.stored is None else self.stored.auc - STORED_EXCESS

    @property
    def shown(self) -> bool:
        """Whether maps may be shown."""
        return self.auc is not None and self.auc >= LEAST_AUC

    @cached_property
    def note(self) -> str:
        """Sentences for people beside a map, or in its place the reason why none is shown."""
        if self.auc is None:
            return (
                "No map of the patches is shown, because too few images were held out for the planted test "
                "(half an image swapped)."
            )
        what = f"swapped halves of images are found with AUC {_two_places(self.auc)}"
        how = "" if self.pixels is not None else ", estimated from stored patches"
        if not self.shown:
            return f"No map of the patches is shown, because {what}{how}; it takes {LEAST_AUC}."
        unseen = ""
        if self.left_out is not None:
            unseen = f" For sources that the head has not seen, it is {_two_places(self.left_out.auc)} (chance is 0.5)."
        return f"{HINT} In a test, {what}{how}.{unseen}"

    @property
    def summary(self) -> str:
        """What was measured, as one sentence for the summary of training."""
        if self.stored is None:
            return self.note
        low, high = self.stored.interval
        text = (
            f"Maps of the patches: swapped halves of {self.stored.images} images of known sources are found with AUC "
            f"{self.stored.auc:.3f} ({low:.3f} to {high:.3f}) in stored patches"
        )
        if self.left_out is not None:
            text += f", of left-out sources with {self.left_out.auc:.3f}"
        if self.pixels is not None:
            text += f"; in {self.pixels.images} planted images with {self.pixels.auc:.3f}"
        elif not self.shown:
            text += (
                f"; {STORED_EXCESS} less must be {LEAST_AUC} for maps to be shown. `{MEASURE}` measures it on images"
            )
        return f"{text}."

    def decision_function(self, vectors: Vectors) -> Maps:
        """(n, rows, columns) log-odds of (n, rows * columns * dim) stored patches; raises SpaceMismatch."""
        return self.network.decision_function(self.patches_of(vectors))

    def patches_of(self, vectors: Vectors) -> Patches:
        """(n, rows, columns, dim) float32 patches of (n, rows * columns * dim) stored ones; raises SpaceMismatch."""
        vectors = np.atleast_2d(vectors)
        if vectors.shape[1] != self.space.dim:
            raise SpaceMismatch(f"found patches of {vectors.shape[1]} numbers an image, the head reads {self.space}")
        return split_patches(vectors, self.rows, self.columns)

    def map_of(self, vector: Vectors, area: Area = WHOLE) -> PatchMap:
        """The map of one image, from its (rows * columns * dim,) patches; without values if none may be shown."""
        values: tuple[tuple[float, ...], ...] = ()
        if self.shown:
            [scores] = self.decision_function(vector)
            values = tuple(tuple(map(float, row)) for row in scores)
        return PatchMap(self.rows, self.columns, values, self.auc, self.note, area)

    @property
    def without_values(self) -> PatchMap:
        """The map of an image where none may be shown: only the reason."""
        return PatchMap(self.rows, self.columns, (), self.auc, self.note)

    def to_dict(self) -> dict[str, Any]:
        """Convert everything but the arrays to plain types."""
        tests = {name: getattr(self, name) for name in ("stored", "left_out", "pixels")}
        planted = {name: test.to_dict() if test else None for name, test in tests.items()}
        grid = {"rows": self.rows, "columns": self.columns}
        return {"space": self.space.to_dict(), **grid, "planted": planted, "shown": self.shown, "note": self.note}

    def save(self, folder: Path) -> None:
        """Write the arrays and `patches.json`, which names them, into the folder of a head; raises StoreError."""
        from safetensors.numpy import save

        content = save({name: np.ascontiguousarray(array) for name, array in self.network.arrays().items()})
        digest = checksum(content)
        arrays = folder / f"patches-{digest[:16]}.safetensors"
        with written_aside(arrays, pending=True) as temporary:
            temporary.write_bytes(content)
        FILE.write(folder / LIST, {"arrays": arrays.name, "digest_of_arrays": digest, **self.to_dict()})
        remove_patch_head(folder, but=(LIST, arrays.name))

    @classmethod
    def load(cls, folder: Path) -> PatchHead | None:
        """Load the patch head in the folder of a head; None if there is none.

        Raises
        ------
        HeadError
            It is damaged, or this release does not know its format.
        Unreadable
            One of its files cannot be read now.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        if not (folder / LIST).exists():
            return None
        with FILE.reading(folder / LIST) as fields:
            path = folder / Path(fields["arrays"]).name
            try:
                content = read_bounded(path, ARRAYS_LIMIT)
            except OSError as e:
                require_readable(path, e)
                raise HeadError(f"{path} cannot be read ({e.strerror}); {FILE.advice}") from e
            if checksum(content) != fields["digest_of_arrays"]:
                raise HeadError(f"{path} was altered (checksum differs); {FILE.advice}")
            space, rows, columns = Space.from_dict(fields["space"]), int(fields["rows"]), int(fields["columns"])
            if min(rows, columns) < 1 or space.dim % (rows * columns):
                raise ValueError(f"{space.dim} numbers are no {rows} x {columns} patches")
            try:
                network = PatchNetwork.from_arrays(load(content), space.dim // (rows * columns))
            except SafetensorError as e:
                raise ValueError(str(e)) from e
            tests = {
                name: PlantedTest.from_dict(fields["planted"][name]) if fields["planted"][name] else None
                for name in ("stored", "left_out", "pixels")
            }
            return cls(space, rows, columns, network, **tests)


def remove_patch_head(folder: Path, but: tuple[str, ...] = ()) -> None:
    """Remove the files of a patch head from the folder of a head, except those named."""
    listed = [name for name in own_files(folder.parent, folder.name, own=OWN_FILES) if name not in but]
    remove_files(folder.parent, folder.name, own=OWN_FILES, names=listed)


def split_patches(vectors: Vectors, rows: int, columns: int) -> Patches:
    """(n, rows, columns, dim) float32 patches of (n, rows * columns * dim) vectors, row by row."""
    return np.asarray(vectors, np.float32).reshape(len(vectors), rows, columns, -1)


def neighborhood_means(patches: Patches) -> Patches:
    """(n, rows, columns, dim) mean of each patch and its eight neighbours; the outermost patches are repeated.

    Means over neighbours raise the AUC of planted halves by about .01.
    """
    rows, columns = patches.shape[1:3]
    padded = np.pad(patches, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    shifted = (padded[:, y : y + rows, x : x + columns] for y in range(3) for x in range(3))
    return np.asarray(sum(shifted) / np.float32(9), np.float32)


def _two_places(value: float) -> str:
    """A share with two places, rounded down, so that .899 is not called .9.

    >>> _two_places(0.899), _two_places(0.95)
    ('0.89', '0.95')
    """
    return f"{np.floor(100 * value + 1e-9) / 100:.2f}"
