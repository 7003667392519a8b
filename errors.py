"""Errors that a caller can act on. A message says what was found, where, and what to do.

ClipfakeError
├── StoreError              the store on disk
│   ├── NoStore             there is no store at a path, or no such snapshot
│   ├── NotAStore           a folder or file that is not clipfake's, or of a version this release cannot read
│   ├── Linked              a store with a symbolic link in it, which could lead a write outside
│   ├── Damaged             a file of a store that is missing, truncated or altered
│   ├── Unreadable          a file that cannot be read now, for want of permission or because a disk is not there
│   ├── Unflushed           a change that was made, and that a power failure may undo, as the disk failed to flush it
│   ├── Locked              another process is writing
│   ├── SpaceMismatch       vectors of different encoders that cannot be compared
│   ├── BackendError        a search back end refuses a request, or does not have the rows it should
│   │   ├── BackendUnavailable  it cannot be reached, or is overloaded
│   │   ├── BackendTimeout  it did not answer in time
│   │   └── BackendDamaged  its files are missing, truncated or altered (also Damaged)
│   ├── BadBlock            invalid rows, vectors or masks (NaN, zero, duplicate keys, wrong shape)
│   ├── BadFilter           a filter with a label that does not exist
│   └── NotEnoughRows       too few stored rows (empty bank, one class only, missing named vectors)
├── SourceError             a folder, archive or table of images that cannot be read
├── ImageError              one image that cannot be decoded; it is reported, and the run continues
│   └── NothingToJudge      an image that can be decoded and indexed, but is too small or flat to be judged
├── EncoderError            an encoder that cannot be loaded or used
├── HeadError               a head that cannot be trained, saved or loaded
├── InvalidOption           a value that an option cannot have, from Python (also ValueError)
└── MissingExtra            an optional dependency that is not installed
"""


class ClipfakeError(Exception):
    """Base class of all errors of clipfake."""


class StoreError(ClipfakeError):
    """A store cannot be read or written."""


class NoStore(StoreError):
    """There is no store at this path, or no such snapshot in it."""


class NotAStore(StoreError):
    """A file or folder is not clipfake's, or has a format version this release cannot read."""


class Linked(StoreError):
    """A store has a symbolic link in it: what is written or removed there would be outside the store."""


class Damaged(StoreError):
    """A file of a store is missing, truncated or altered."""


class Unreadable(StoreError):
    """A file of a store cannot be read now: no permission, or a disk or network that fails. It need not be damaged."""


class Unflushed(StoreError):
    """A change was made, but the disk failed to flush it: a power failure may undo it."""


class Locked(StoreError):
    """Another process is writing to this store."""


class SpaceMismatch(StoreError):
    """Vectors of different encoders cannot be compared or stored together."""


class BackendError(StoreError):
    """A search back end refuses a request, or does not have the rows it should."""


class BackendUnavailable(BackendError):
    """A search back end cannot be reached, or is overloaded."""


class BackendTimeout(BackendError):
    """A search back end did not answer in time."""


class BackendDamaged(BackendError, Damaged):
    """The files of a search back end are missing, truncated or altered."""


class BadBlock(StoreError):
    """Rows, vectors or masks are invalid."""


class BadFilter(StoreError):
    """A filter names a label that does not exist."""


class NotEnoughRows(StoreError):
    """There are too few stored rows for what was requested."""


class SourceError(ClipfakeError):
    """A folder, archive or table of images cannot be read."""


class ImageError(ClipfakeError):
    """One image cannot be decoded."""


class NothingToJudge(ImageError):
    """One image is too small, or has one colour only: it can be indexed, but not judged."""


class EncoderError(ClipfakeError):
    """An encoder cannot be loaded or used."""


class HeadError(ClipfakeError):
    """A head cannot be trained, saved or loaded."""


class InvalidOption(ClipfakeError, ValueError):
    """An option has a value that it cannot have."""


class MissingExtra(ClipfakeError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an extra that is not installed; run `pip install 'clipfake[{extra}]'`")
        self.extra = extra
