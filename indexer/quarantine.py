"""Images that could not be read, with the reason, so that they are not tried again on every run.

A small JSON file beside the store's snapshots, of no weight to them: without it, bad files are tried once more.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from ..core.sealed_json import SealedJson
from ..errors import Damaged, StoreError

NAME = "quarantine.json"
FILE = SealedJson("clipfake-quarantine", 1, "quarantine list", Damaged, "remove it", sealed=False)


@dataclass(frozen=True)
class QuarantinedImage:
    """One file that could not be read, as it was then."""

    key: str
    path: str
    reason: str
    bytes: int  # -1 where it was not even there
    time: int  # nanoseconds since the epoch, -1 where it was not even there


def read_quarantine(folder: Path) -> dict[str, QuarantinedImage]:
    """key -> what is known of it; {} where there is no list, or none that can be read."""
    try:
        with FILE.reading(folder / NAME) as content:
            return {row["key"]: QuarantinedImage(**row) for row in content["rows"]}
    except (FileNotFoundError, StoreError):
        return {}  # they are tried again, and listed again


def write_quarantine(folder: Path, images: dict[str, QuarantinedImage]) -> None:
    """Write the list as a whole or not at all; raises StoreError."""
    FILE.write(folder / NAME, {"rows": [asdict(image) for _, image in sorted(images.items())]})
