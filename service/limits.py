"""Limits on the size of requests and on the work in progress."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Limits of the service. A request that exceeds one is refused with a problem that names the limit."""

    connections: int = 512  # open at the same time
    client_connections: int = 384  # of one address, if it is another machine's
    head_seconds: float = 30.0  # for the whole head of a request, from the first moment or the last response
    backlog: int = 512  # connections that wait to be accepted; beyond, clients try again after a second

    image_bytes: int = 32 * 2**20  # of one file
    request_bytes: int = 128 * 2**20  # of one body
    json_bytes: int = 3 * 2**20  # of one JSON body without its images
    held_bytes: int = 512 * 2**20  # of the bodies of all requests in progress
    pixels: int = 64_000_000  # of one image, checked in its header before it is decoded
    images: int = 64  # in one request
    matches: int = 1000  # rows that one search returns
    seconds: float = 60.0  # for one request, from its whole head to the last byte of the response
    requests: int = 256  # in progress at the same time
    waiting: int = 256  # accepted images without a vector yet
    batch: int = 32  # images in one forward pass
    linger: float = 0.002  # seconds that a batch with room left waits for more images

    decoding_bytes: int = 768 * 2**20  # memory of the images under way; one that needs more is decoded alone

    def __post_init__(self) -> None:
        for name, limit in self.to_dict().items():
            if limit < 0 or (limit == 0 and name != "linger"):
                raise ValueError(f"the limit {name} is {limit}; it must be positive")
        if self.images > self.waiting:
            raise ValueError(
                f"the limit images is {self.images} but waiting is {self.waiting}; set waiting to {self.images} or more"
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
