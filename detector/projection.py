"""Projection of a stored vector, and the text of its category, to what a classifier reads; one formula for all uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import HeadError
from ..store.records import Vectors

Weights = dict[str, npt.NDArray[np.float32]]
Projected = npt.NDArray[np.float32]  # (rows, 128), or (rows, dim) of "identity"; unit length but for "pca"

# The weights of each kind and their shapes: D is the dimension of the vectors, P of the projection, H of the hidden
# layer.
KINDS: dict[str, dict[str, str]] = {
    "identity": {},
    "pca": {"W": "PD", "b": "P"},
    "linear": {"W": "PD", "b": "P"},
    "mlp": {"W": "HD", "b": "H", "U": "PH", "c": "P"},
    "sum": {"W": "PD", "b": "P", "V": "PD", "c": "P"},
    "product": {"W": "PD", "b": "P", "V": "PD", "c": "P"},
    "concat": {"W": "PD", "b": "P", "V": "PD"},
    "triple": {"W": "PD", "b": "P", "V": "PD", "c": "P", "U": "PP", "T": "PP", "S": "PP", "d": "P"},
}
FUSIONS = ("sum", "product", "concat", "triple")  # the kinds that also read a text vector
TRIPLET_KINDS = ("linear", "mlp", *FUSIONS)  # the kinds that are trained with triplets, and give unit vectors
HIDDEN = 256


def forward(kind: str, w: dict[str, Any], x: Any, t: Any = None) -> Any:
    """Project x (n, D), with texts t (n, D), to rows (n, P); for numpy arrays and torch tensors.

    "identity" is x itself and "pca" Wx + b; all other kinds give unit rows.
    u = Wx + b and v = Vt + c are the projected image and text. "sum" is u + v and "product" u ⊙ v; "concat" is
    W[x; t], one matrix over both; "triple" is W'[u; v; u ⊙ v] with W' = [U T S].
    """
    if kind == "identity":
        return x
    u = x @ w["W"].T + w["b"]
    if kind == "pca":
        return u
    if kind == "mlp":
        z = (u * (u > 0)) @ w["U"].T + w["c"]
    elif kind == "sum":
        z = u + (t @ w["V"].T + w["c"])
    elif kind == "product":
        z = u * (t @ w["V"].T + w["c"])
    elif kind == "concat":
        z = u + t @ w["V"].T
    elif kind == "triple":
        v = t @ w["V"].T + w["c"]
        z = u @ w["U"].T + v @ w["T"].T + (u * v) @ w["S"].T + w["d"]
    else:
        z = u
    return z / ((z * z).sum(-1) + 1e-12)[..., None] ** 0.5


@dataclass(frozen=True)
class Projection:
    """A trained or random projection of stored vectors, or none ("identity")."""

    kind: str  # one of KINDS
    weights: Weights

    def __post_init__(self) -> None:
        expected = KINDS.get(self.kind)
        if expected is None or expected.keys() != self.weights.keys():
            raise HeadError(
                f"unknown projection {self.kind!r} with weights {', '.join(sorted(self.weights))}; this release reads "
                f"{', '.join(KINDS)}; train the head again"
            )

    @property
    def reads_text(self) -> bool:
        """True if it needs the text vector of each image."""
        return self.kind in FUSIONS

    def __call__(self, vectors: Vectors, texts: Vectors | None = None) -> Projected:
        """(n, P) float32 projections of (n, dim) vectors and, for a fusion, their (n, dim) text vectors."""
        if self.reads_text and texts is None:
            raise HeadError(f"a {self.kind} projection needs a text vector for each image, none was given")
        x = np.asarray(vectors, np.float32)
        t = None if texts is None else np.asarray(texts, np.float32)
        return np.asarray(forward(self.kind, self.weights, x, t), np.float32)

    @classmethod
    def initialize(cls, kind: str, vectors: Vectors, *, dim: int = 128, seed: int = 0) -> Projection:
        """Draw random initial weights of a kind in TRIPLET_KINDS, uniform within 1/√fan-in as in torch's Linear.

        The bias of the image side starts at -W·mean: encoders put their vectors into a narrow cone, and centred they
        spread over all directions.

        Parameters
        ----------
        vectors : (rows, dim) training rows, for their mean
        """
        rng = np.random.default_rng(seed)
        sizes = {"D": vectors.shape[1], "P": dim, "H": HIDDEN}
        weights = {}
        for name, letters in KINDS[kind].items():
            shape = tuple(sizes[letter] for letter in letters)
            bound = 1 / np.sqrt(shape[-1] if len(shape) > 1 else sizes["D"])
            weights[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
        weights["b"] = -(weights["W"] @ vectors.mean(0)).astype(np.float32)
        return cls(kind, weights)


def effective_rank(vectors: Vectors) -> float:
    """Number of directions that (n, d) vectors use: exp of the entropy of their variances (Roy & Vetterli 2007).

    >>> round(effective_rank(np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])), 6)
    2.0
    """
    centred = np.asarray(vectors, np.float64) - vectors.mean(0)
    values = np.linalg.eigvalsh(centred.T @ centred)
    if values.max() <= 0:
        return 0.0
    share = np.clip(values, 0, None) / np.clip(values, 0, None).sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))
