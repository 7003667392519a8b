"""Whitening: reduce many correlated numbers to a few hundred uncorrelated ones of equal variance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy.linalg import block_diag

from ...core.sealed_json import checksum
from ...errors import Damaged, NotEnoughRows

DIMS = 512  # dimensions of the result, at most
ROWS_PER_DIM = 2  # rows for each dimension of the result, at least: the directions of fewer rows are noise
LEAST_ROWS = 16


@dataclass(frozen=True)
class Whitening:
    """An affine map to uncorrelated dimensions of variance 1: (x - mean) @ components."""

    mean: npt.NDArray[np.float32]  # (inputs,)
    components: npt.NDArray[np.float32]  # (inputs, dim)

    @property
    def dim(self) -> int:
        """Number of dimensions of the result."""
        return int(self.components.shape[1])

    @classmethod
    def fit(cls, rows: npt.NDArray[np.floating[Any]], dims: int = DIMS, *, per_dim: int = ROWS_PER_DIM) -> Whitening:
        """Fit the principal components of standardised rows, in descending order of variance.

        The result depends only on the rows: the sign of each component is that which makes its largest entry positive.

        Parameters
        ----------
        rows : (n, inputs) finite values
        dims : number of components, at most; never more than one for every `per_dim` rows

        Raises
        ------
        NotEnoughRows
            There are fewer than 16 rows, or they are all equal.
        """
        n = len(rows)
        if n < LEAST_ROWS:
            raise NotEnoughRows(
                f"a view is fitted to at least {LEAST_ROWS} images, found {n}; index more images, or add the view later"
            )
        mean, deviation = rows.mean(0, dtype=np.float64), rows.std(0, dtype=np.float64)
        scale = np.where(deviation > 1e-6 * (1 + np.abs(mean)), deviation, np.inf)  # drop constant inputs
        standardised = ((rows - mean) / scale).astype(np.float32)
        tall = n > rows.shape[1]
        product = standardised.T @ standardised if tall else standardised @ standardised.T
        variances, axes = np.linalg.eigh(product.astype(np.float64) / n)
        kept = [i for i in range(len(variances))[::-1] if variances[i] > 1e-6 * variances[-1] > 0]
        kept = kept[: min(dims, n // per_dim)]
        if not kept:
            raise NotEnoughRows(f"the {n} images that a view is fitted to are all equal; index other images")
        axes = axes[:, kept]
        if not tall:
            axes = standardised.T @ axes / np.sqrt(n * variances[kept])  # (inputs, dim), orthonormal
        axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(len(kept))])
        components = axes / np.sqrt(variances[kept]) / scale[:, None]
        return cls(mean.astype(np.float32), components.astype(np.float32))

    @classmethod
    def side_by_side(cls, parts: Sequence[Whitening]) -> Whitening:
        """Join maps of consecutive inputs; the results are side by side."""
        return cls(np.concatenate([part.mean for part in parts]), block_diag(*(part.components for part in parts)))

    def to_bytes(self) -> bytes:
        """Serialise in the safetensors format."""
        content: bytes = save({"mean": self.mean, "components": self.components})
        return content

    @classmethod
    def from_bytes(cls, content: bytes, where: object, inputs: int | None = None) -> Whitening:
        """Parse what `to_bytes` wrote; raises Damaged if the arrays do not fit `inputs` values.

        `where` names the file.
        """
        try:
            arrays = load(content)
            mean, components = arrays["mean"], arrays["components"]
        except (SafetensorError, KeyError, ValueError) as e:
            raise Damaged(f"{where} has no readable parameters of a view ({e}); make the view again") from e
        length = len(mean) if inputs is None else inputs
        if mean.shape != (length,) or components.ndim != 2 or len(components) != length or not components.shape[1]:
            raise Damaged(
                f"{where} has parameters of shapes {mean.shape} and {components.shape} for {length} values of the "
                f"encoder; make the view again"
            )
        if not (np.isfinite(mean).all() and np.isfinite(components).all()):
            raise Damaged(f"{where} has parameters that are not finite; make the view again")
        return cls(mean.astype(np.float32), components.astype(np.float32))

    @property
    def digest(self) -> str:
        """Checksum of the parameters."""
        return checksum(self.to_bytes())
