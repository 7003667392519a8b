"""A trained head: stored vectors, projected or not, to a margin.

It is saved as arrays and a JSON file, and bound to the embedding space it was trained in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.atomic_files import read_json, require_readable, written_aside
from ..core.reading import read_bounded
from ..core.sealed_json import PARSE_ERRORS, SealedJson
from ..errors import BadBlock, HeadError, SpaceMismatch
from ..store.named_vectors import MAIN
from ..store.records import Names, Vectors, names
from ..store.rooms import own_files, remove_files
from ..store.space import Space
from .linear import LinearClassifier
from .projection import KINDS, Projected, Projection
from .split import Split
from .svm import Svm
from .vocabulary import Mode, Vocabulary

ARRAYS_LIMIT = 1 << 32  # bytes of a head's arrays
FILE = SealedJson("clipfake head", 1, "head", HeadError, "train the head again", sealed=False)
DEFAULT = "default"
LEFT_OUT = "left_out"  # option: names of the sources that were stored at training, but chosen not to be trained on
TRIPLET_SVM = "triplet-svm"  # the source paper's classifier, and that of heads which name none
TITLES = {
    TRIPLET_SVM: "triplet projection and SVM",
    "rbf-svm": "RBF SVM on the stored vectors",
    "pca-svm": "principal components and SVM",
    "logistic": "logistic regression on the stored vectors",
}
IMPORTED = "imported"  # classifier of a head that others have trained
Classifier = Svm | LinearClassifier
REPLACED_FILES = re.compile(r"head-[0-9a-f]{16}\.safetensors|calibration(-[0-9a-f]{16})?\.json")


def head_folder(store: Path, name: str = DEFAULT) -> Path:
    """Return the folder in which a store keeps the head of this name; raises HeadError for an invalid name."""
    if not name or name.startswith(".") or Path(name).name != name:
        raise HeadError(f"{name!r} is not a valid name for a head; use letters, digits and dashes")
    return store / "heads" / name


def head_names(folder: Path) -> list[str]:
    """Names of the heads in a folder of heads, sorted."""
    return sorted(path.parent.name for path in folder.glob("*/head.json"))


def vector_names_of(folder: Path) -> tuple[str, ...]:
    """Names of the stored vectors that the head in a folder reads; the main ones if there is no head yet."""
    try:
        content = read_json(folder / "head.json")
        return tuple(map(str, content["options"].get("columns") or (MAIN,)))
    except PARSE_ERRORS:
        return (MAIN,)


@dataclass(frozen=True)
class Head:
    """Trained head. `decision_function` is above 0 where it leans fake."""

    space: Space  # of the vectors it was trained on; others are rejected
    snapshot: int  # number of the store's snapshot it was trained on
    split: Split
    projection: Projection
    classifier: Classifier
    threshold: float = 0.0  # of the decision function, chosen on the validation rows
    vocabulary: Vocabulary | None = None  # text vectors, of a head that reads text
    metrics: Mapping[str, Any] = field(default_factory=dict)  # per part, as JSON
    options: Mapping[str, Any] = field(default_factory=dict)  # how it was trained
    versions: Mapping[str, str] = field(default_factory=lambda: versions())

    def __post_init__(self) -> None:
        if self.projection.reads_text and self.vocabulary is None:
            raise HeadError("a head that reads text needs the text vectors of its categories; train it again")

    @cached_property
    def digest(self) -> str:
        """Hex BLAKE2b-128 over its arrays: two heads with the same digest give the same decision values."""
        digest = hashlib.blake2b(digest_size=16)
        for name, array in sorted(_arrays(self).items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the stored vectors that it reads, concatenated; the main ones unless it was trained on several."""
        return tuple(map(str, self.options.get("columns") or (MAIN,)))

    @property
    def classifier_name(self) -> str:
        """Name of its classifier, one of TITLES, or IMPORTED."""
        return str(self.options.get("classifier", TRIPLET_SVM))

    @property
    def imported(self) -> bool:
        """True if others have trained it, on none of the store's rows."""
        return self.classifier_name == IMPORTED

    @property
    def title(self) -> str:
        """What it computes, as a phrase."""
        if self.imported:
            return f"imported head: {self.options.get('title', 'of unknown origin')}"
        kind = f"{self.projection.kind} " if self.classifier_name == TRIPLET_SVM else ""
        return f"{kind}{TITLES.get(self.classifier_name, self.classifier_name)}"

    def text_vectors(
        self, vectors: Vectors, mode: Mode = "zero-shot", categories: Sequence[str] | Names | None = None
    ) -> Any:
        """(n, dim) text vectors of (n, dim) images for a head that reads text, else None."""
        if not self.projection.reads_text or self.vocabulary is None:
            return None
        return self.vocabulary.text_vectors(vectors, mode, categories)

    def transform(
        self, vectors: Vectors, *, mode: Mode = "zero-shot", categories: Sequence[str] | Names | None = None
    ) -> Projected:
        """(n, P) float32 vectors that the classifier reads; P is 128 after a projection, else dim.

        Parameters
        ----------
        mode, categories
            Where the category of an image comes from, for a head that reads text: "zero-shot" takes the stored category
            whose text is nearest, "given" the (n,) `categories`, "mean" the mean text vector.

        Raises
        ------
        SpaceMismatch
            The vectors have another dimension than the head's.
        BadBlock
            A vector holds NaN or infinity, with which every comparison would give a plausible answer.
        """
        vectors = np.atleast_2d(vectors)
        if vectors.shape[1] != self.space.dim:
            raise SpaceMismatch(f"found vectors of {vectors.shape[1]} dimensions, the head reads {self.space}")
        if len(wrong := np.flatnonzero(~np.isfinite(vectors).all(1))):
            raise BadBlock(
                f"vector {wrong[0]} of {len(vectors)} holds NaN or infinity; "
                f"encode its image again, with `--precision float32` if it was another precision"
            )
        return self.projection(vectors, self.text_vectors(vectors, mode, categories))

    def decision_function(
        self, vectors: Vectors, *, mode: Mode = "zero-shot", categories: Sequence[str] | Names | None = None
    ) -> npt.NDArray[np.float64]:
        """(n,) margins of (n, dim) stored vectors, above 0 leans fake; see `transform` for parameters and errors."""
        return self.classifier.decision_function(self.transform(vectors, mode=mode, categories=categories))

    def to_dict(self) -> dict[str, Any]:
        """Convert everything but the arrays to plain types."""
        return {
            "space": self.space.to_dict(),
            "snapshot": self.snapshot,
            "split": self.split.to_dict(),
            "projection": self.projection.kind,
            "threshold": self.threshold,
            "metrics": dict(self.metrics),
            "options": dict(self.options),
            "versions": dict(self.versions),
        }

    def save(self, folder: Path) -> None:
        """Write `head.json` and the arrays it names into a folder; if that fails, an earlier head stays."""
        from safetensors.numpy import save

        content = save({name: np.ascontiguousarray(array) for name, array in _arrays(self).items()})
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        # The name depends on the content and head.json is replaced last, so an interrupted save leaves the old head.
        arrays = folder / f"head-{digest[:16]}.safetensors"
        with written_aside(arrays, pending=True) as temporary:
            temporary.write_bytes(content)
        fields = {"arrays": arrays.name, "digest": digest, **self.to_dict()}
        if self.vocabulary is not None:
            fields["categories"] = self.vocabulary.categories.tolist()
        FILE.write(folder / "head.json", fields)
        current = {arrays.name, f"calibration-{self.digest[:16]}.json"}
        replaced = [name for name in own_files(folder.parent, folder.name, own=REPLACED_FILES) if name not in current]
        remove_files(folder.parent, folder.name, own=REPLACED_FILES, names=replaced)

    @classmethod
    def load(cls, folder: Path, space: Space | None = None) -> Head:
        """Load a head, and check that it was trained in `space`, if one is given.

        Raises
        ------
        HeadError
            There is no head, it is damaged, or this release does not know its format.
        SpaceMismatch
            It was trained on the vectors of another encoder.
        Unreadable
            One of its files cannot be read now.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            with FILE.reading(folder / "head.json") as fields:
                content = _read(folder / Path(fields["arrays"]).name)
                if hashlib.blake2b(content, digest_size=16).hexdigest() != fields["digest"]:
                    raise HeadError(f"{folder / fields['arrays']} was altered (checksum differs); {FILE.advice}")
                try:
                    head = _head(fields, load(content))
                except SafetensorError as e:
                    raise ValueError(str(e)) from e
                _validate(head)
        except FileNotFoundError as e:
            names = ", ".join(head_names(folder.parent))
            hint = f"name one of these with --head: {names}" if names else "run `clipfake train` first"
            raise HeadError(f"no head at {folder}; {hint}") from e
        if space is not None:
            head.space.require(space, "the queried vectors")
        return head


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path, ARRAYS_LIMIT)
    except OSError as e:
        require_readable(path, e)
        raise


def versions() -> dict[str, str]:
    """Versions of the libraries that a head depends on."""
    installed = {}
    for name in ("clipfake", "numpy", "scikit-learn", "torch"):
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def _arrays(head: Head) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {
        f"projection.{name}": array for name, array in head.projection.weights.items()
    }
    arrays |= {f"classifier.{name}": array for name, array in head.classifier.arrays().items()}
    arrays |= {"split.hashes": head.split.hashes, "split.parts": head.split.parts}
    if head.vocabulary is not None:
        arrays["vocabulary"] = head.vocabulary.vectors
    return arrays


def _head(fields: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Head:
    def under(prefix: str) -> dict[str, npt.NDArray[Any]]:
        return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}

    split = fields["split"]
    return Head(
        space=Space.from_dict(fields["space"]),
        snapshot=int(fields["snapshot"]),
        split=Split(arrays["split.hashes"], arrays["split.parts"], split["recipe"], int(split["seed"])),
        projection=Projection(fields["projection"], under("projection.")),
        classifier=_classifier(under("classifier.")),
        threshold=float(fields["threshold"]),
        vocabulary=Vocabulary(names(fields["categories"]), arrays["vocabulary"]) if "categories" in fields else None,
        metrics=fields["metrics"],
        options=fields["options"],
        versions=fields["versions"],
    )


def _classifier(arrays: Mapping[str, npt.NDArray[Any]]) -> Classifier:
    return Svm.from_arrays(arrays) if "vectors" in arrays else LinearClassifier.from_arrays(arrays)


def _validate(head: Head) -> None:
    """Raise ValueError for arrays whose shapes do not agree, or numbers that would make every margin NaN.

    The checksum does not rule these out: a head that somebody altered may have a correct one.
    """
    sizes = {"D": head.space.dim}
    for name, letters in KINDS[head.projection.kind].items():
        shape = head.projection.weights[name].shape
        if len(shape) != len(letters) or any(sizes.setdefault(a, n) != n for a, n in zip(letters, shape, strict=True)):
            raise ValueError(f"projection.{name} has the shape {shape}, expected {' x '.join(letters)} with {sizes}")
    head.classifier.require_dim(sizes.get("P", head.space.dim))
    parts, hashes = head.split.parts, head.split.hashes
    if hashes.ndim != 1 or hashes.shape != parts.shape or not len(hashes) or hashes.dtype != np.uint64:
        raise ValueError(f"split has {hashes.dtype} hashes of shape {hashes.shape} and parts of shape {parts.shape}")
    if (hashes[1:] < hashes[:-1]).any() or not np.isin(parts, (-1, 0, 1, 2)).all():
        raise ValueError("split is not sorted, or has unknown parts")
    if (texts := head.vocabulary) is not None and texts.vectors.shape != (len(texts), head.space.dim):
        raise ValueError(f"text vectors have the shape {texts.vectors.shape}, expected {(len(texts), head.space.dim)}")
    numbers = {"threshold": np.array(head.threshold), **_arrays(head)}
    for name, array in numbers.items():
        if not name.startswith("split.") and (array.dtype.kind != "f" or not np.isfinite(array).all()):
            raise ValueError(f"{name} must hold finite floats, found {array.dtype}")
    if not all(isinstance(fields, dict) for fields in (head.metrics, head.options, head.versions)):
        raise ValueError("metrics, options and versions must be JSON objects")
