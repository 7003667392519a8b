"""Limits on what one client may send, and on what may wait."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Limits:
    """The service's bounds; what goes beyond one is refused with a problem that names it."""

    image_bytes: int = 32 * 2**20  # of one file
    request_bytes: int = 128 * 2**20  # of one body
    json_bytes: int = 3 * 2**20  # of a body of JSON, beside the images in it
    held_bytes: int = 512 * 2**20  # of the bodies of all requests that are being answered
    pixels: int = 64_000_000  # of one image, told by its header before it is decoded
    images: int = 64  # in one request
    matches: int = 1000  # rows that one search gives
    seconds: float = 60.0  # for one request, from its first byte to the last of the answer
    requests: int = 256  # at once
    waiting: int = 256  # images taken in whose vectors are not there yet
    batch: int = 32  # images the encoder sees at once
    linger: float = 0.002  # seconds a batch that is not full waits for more

    def __post_init__(self) -> None:
        for name, limit in self.to_dict().items():
            if limit < 0 or (limit == 0 and name != "linger"):
                raise ValueError(f"a limit of {limit} {name}; with that nothing could ever be answered")
        if self.images > self.waiting:
            raise ValueError(f"{self.images} images a request, but room for {self.waiting} only; raise `waiting`")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
