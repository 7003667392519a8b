"""Embedding spaces: which vectors may be compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import SpaceMismatch

DIM_LIMIT = 1 << 20  # no encoder we know of gives a hundredth of it


@dataclass(frozen=True)
class Space:
    """Embedding space of vectors. It travels with every block, shard, index and head.

    Two vectors may be compared if and only if their spaces have the same fingerprint and dimension; the name is
    for people (the same weights may lie in two folders).
    """

    encoder: str  # what the user named: a hub id or the name of a directory
    fingerprint: str  # hex digest over weights and preprocessing
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
        """Raise SpaceMismatch unless `other`, the space of what is at `where`, is this one."""
        if not self.same(other):
            raise SpaceMismatch(
                f"{where} holds vectors of {other}, but these are of {self}: "
                f"vectors of two encoders cannot be compared. Name the same --encoder, or use another store"
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Space:
        """Raises KeyError, TypeError or ValueError where they name no space."""
        dim = fields["dim"]
        if not isinstance(dim, int) or not 1 <= dim <= DIM_LIMIT:
            raise ValueError(f"vectors of {dim!r} dimensions")
        return cls(
            encoder=str(fields["encoder"]),
            fingerprint=str(fields["fingerprint"]),
            dim=dim,
            normalised=bool(fields["normalised"]),
        )
