"""Images that could not be read, with the reason, so that they are not tried again on every run.

A small JSON file beside the store's snapshots, of no weight to them: without it, bad files are tried once more.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..core.atomic_files import read_json, write_text

NAME = "quarantine.json"
FORMAT, VERSION = "clipfake-quarantine", 1


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
        content = read_json(folder / NAME)
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            return {}
        return {row["key"]: QuarantinedImage(**row) for row in content["rows"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # they are tried again, and listed again


def write_quarantine(folder: Path, bad: dict[str, QuarantinedImage]) -> None:
    """Whole or not at all; raises StoreError."""
    rows = [asdict(row) for _, row in sorted(bad.items())]
    write_text(folder / NAME, json.dumps({"format": FORMAT, "version": VERSION, "rows": rows}, indent=1) + "\n")
