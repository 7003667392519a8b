"""List of images that could not be read, with the reason, so that runs do not try them again.

It is a small JSON file beside the store's snapshots. If it is lost, bad files are tried once more.
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
    """A file that could not be read, with its size and time at that moment."""

    key: str
    path: str
    reason: str
    bytes: int  # -1 if the file was missing
    time: int  # nanoseconds since the epoch, -1 if the file was missing


def read_quarantine(folder: Path) -> dict[str, QuarantinedImage]:
    """Read the list, by key; {} if there is no list or it is unreadable."""
    try:
        with FILE.reading(folder / NAME) as content:
            return {row["key"]: QuarantinedImage(**row) for row in content["rows"]}
    except (FileNotFoundError, StoreError):
        return {}  # the bad files are tried again, and listed again


def write_quarantine(folder: Path, images: dict[str, QuarantinedImage]) -> None:
    """Write the list atomically; raises StoreError."""
    FILE.write(folder / NAME, {"rows": [asdict(image) for _, image in sorted(images.items())]})
