"""Identity of small files: a digest of their content, computed again only after a change."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .reading import read_bounded
from .sealed_json import checksum

# A file can change again within the resolution of its times, so that times as recent as this prove nothing.
RECENT_SECONDS = 2.0
MAX_BYTES = 64 * 2**20  # of a file that is read; a larger one is known by its numbers and times alone

FileStat = tuple[int, int, int, int, int]  # device, inode, modified and changed in nanoseconds, bytes


class FileDigests:
    """Digests of files by path. A file that was replaced by an equal one keeps its digest."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[FileStat, str]] = {}

    def of(self, paths: Iterable[Path]) -> tuple[tuple[str, str], ...]:
        """Return the name and the digest of each file, without those that do not exist.

        Raises
        ------
        OSError
            A file cannot be read.
        """
        found = []
        for path in paths:
            with suppress(FileNotFoundError):  # a writer may have replaced it by one of another name
                found.append((path.name, self._digest(path)))
        return tuple(found)

    def _digest(self, path: Path) -> str:
        found = path.stat()
        now = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
        before, digest = self._known.get(path, (None, ""))
        settled = time.time() - max(found.st_mtime, found.st_ctime) > RECENT_SECONDS
        if now == before and settled:
            return digest
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
            return repr(now)
        digest = checksum(read_bounded(path, MAX_BYTES))
        self._known[path] = now, digest
        return digest
