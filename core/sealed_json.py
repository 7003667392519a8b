"""Small JSON files with a format, a version and, if sealed, a digest of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ClipfakeError
from .atomic_files import read_json, require_readable, write_text

# What reading the fields of an untrusted file can raise.
PARSE_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError)


def checksum(content: Any) -> str:
    """Hex BLAKE2b-128 of bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def digest_of(content: Mapping[str, Any]) -> str:
    """Checksum of a JSON object, independent of the order of its keys."""
    return checksum(json.dumps(content, sort_keys=True).encode())


@dataclass(frozen=True)
class SealedJson:
    """A kind of JSON file: writes it, reads it, and raises typed errors.

    >>> HEAD = SealedJson("clipfake head", 1, "head", HeadError, "train it again", sealed=False)   # doctest: +SKIP
    >>> with HEAD.reading(path) as content:                                                        # doctest: +SKIP
    ...     return Head(threshold=float(content["threshold"]))
    """

    format: str  # the value of "format" in the file
    version: int  # the newest version this release reads, and the one it writes
    kind: str  # name of the kind of file in errors: "manifest"
    error: type[ClipfakeError]  # raised for a file that cannot be read
    advice: str  # what the user should do then: "run `clipfake store repair`"
    sealed: bool = True  # whether the field "digest" has a digest of the other fields
    foreign: type[ClipfakeError] | None = None  # raised for another format or version (default: `error`)

    def write(
        self,
        path: Path,
        content: Mapping[str, Any],
        *,
        exclusive: bool = False,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Write `content` atomically; raises the errors of `written_aside`, which has the parameters too."""
        fields = {"format": self.format, "version": self.version, **content}
        # Converts keys to strings and tuples to lists, as they will be read: the digest depends on them.
        fields = json.loads(json.dumps(fields, allow_nan=False))
        if self.sealed:
            fields["digest"] = digest_of(fields)
        write_text(path, json.dumps(fields, indent=1) + "\n", exclusive=exclusive, check=check)

    @contextmanager
    def reading(self, path: Path) -> Iterator[dict[str, Any]]:
        """Yield the fields of a file; parse errors, also those raised in the block, become typed errors.

        Raises
        ------
        FileNotFoundError
            The file does not exist.
        self.foreign
            The file has another format, or a version this release cannot read.
        self.error
            The file was altered, or has invalid fields.
        Unreadable
            The file cannot be read now.
        """
        try:
            content = read_json(path)
            self.require_known(content, path)
            if self.sealed and content.pop("digest") != digest_of(content):
                raise self.error(f"{path} was altered (checksum differs); {self.advice}")
            yield content
        except FileNotFoundError:
            raise
        except PARSE_ERRORS as e:
            require_readable(path, e)
            reason = f"no field {e}" if isinstance(e, KeyError) else e
            raise self.error(f"{path} is not a readable {self.kind} ({reason}); {self.advice}") from e

    def require_known(self, content: Mapping[str, Any], where: object) -> None:
        """Raise `foreign` unless the fields have this format and a version this release reads."""
        file_format, version = content["format"], content["version"]
        if file_format != self.format:
            raise (self.foreign or self.error)(f"{where} is not a clipfake {self.kind} (format {file_format!r})")
        if not isinstance(version, int) or not 1 <= version <= self.version:
            raise (self.foreign or self.error)(
                f"{where} has format version {version!r}, this release reads 1 to {self.version}; upgrade clipfake"
            )
