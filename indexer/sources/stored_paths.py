"""Paths as the store keeps them: of a file, a member of an archive, or a row of a parquet file."""

from __future__ import annotations

import os
from contextlib import suppress


def is_elsewhere(path: str, stored_path: str) -> bool:
    """True if a stored image is still at its own path, which is not that of another image with the same key."""
    if container_of(path) == container_of(stored_path) or not file_exists(stored_path):
        return False
    with suppress(OSError):
        return not os.path.samefile(container_of(path), container_of(stored_path))  # noqa: PTH121
    return True


def file_exists(path: str) -> bool:
    """True if the file or archive of a stored path is on this machine."""
    return os.path.exists(container_of(path))  # noqa: PTH110 - called for every image of a folder that was moved


def container_of(path: str) -> str:
    """File that holds the image of a displayed path: an archive, a parquet file, or the file itself.

    >>> container_of("zip://a.jpg::/d.zip"), container_of("/t.parquet#3"), container_of("/d/a#1.jpg")
    ('/d.zip', '/t.parquet', '/d/a#1.jpg')
    """
    if "::" in path and path.startswith(("zip://", "tar://")):
        return path.rpartition("::")[2]
    table, number, row = path.rpartition("#")
    return table if number and row.isdecimal() else path
