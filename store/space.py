"""Embedding spaces: which vectors may be compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import SpaceMismatch

MAIN = "main"  # name of the store's own vectors, beside those of named vectors
DIM_LIMIT = 1 << 20  # more than a hundred times what any known encoder has


@dataclass(frozen=True)
class Space:
    """Embedding space of vectors. Every block, shard, index and head names its space.

    Two vectors may be compared if and only if their spaces have the same fingerprint, dimension and normalisation. The
    encoder's name is for the user only, as the same weights may be in two folders.
    """

    encoder: str  # as the user named it: a hub id or the name of a directory
    fingerprint: str  # hex digest of weights and preprocessing
    dim: int
    normalised: bool = True  # rows have unit Euclidean length

    def __str__(self) -> str:
        return f"{self.encoder} ({self.dim}-d, {self.fingerprint[:12]})"

    def same(self, other: Space) -> bool:
        """True if vectors of the two spaces may be compared."""
        return (self.fingerprint, self.dim, self.normalised) == (
            other.fingerprint,
            other.dim,
            other.normalised,
        )

    def require(self, other: Space, where: str) -> None:
        """Raise SpaceMismatch unless `other` is the same space; `where` names what has the space `other`."""
        if not self.same(other):
            raise SpaceMismatch(
                f"{where} has vectors of {other}, not of {self}; vectors of two encoders cannot be compared. "
                f"Use the same --encoder, or another store"
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Space:
        """Parse the fields; raises KeyError, TypeError or ValueError if they are invalid."""
        dim = fields["dim"]
        if not isinstance(dim, int) or not 1 <= dim <= DIM_LIMIT:
            raise ValueError(f"invalid number of dimensions: {dim!r}")
        return cls(
            encoder=str(fields["encoder"]),
            fingerprint=str(fields["fingerprint"]),
            dim=dim,
            normalised=bool(fields["normalised"]),
        )
