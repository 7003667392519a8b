"""All errors that callers can handle. A message says what was found, where, and what to do.

ClipfakeError
├── StoreError                  the store on disk
│   ├── NoStore                 no store exists at the path
│   ├── NotAStore               a folder or file that is not a store, or of an unsupported format version
│   ├── Damaged                 a file of the store that is missing, truncated or altered
│   ├── Locked                  another process is writing
│   ├── SpaceMismatch           vectors of different encoders
│   ├── BackendError            an external search back end fails, or does not hold the expected rows
│   │   ├── BackendUnavailable  it cannot be reached or is overloaded
│   │   ├── BackendTimeout      it did not respond in time
│   │   └── BackendDamaged      its files are missing, truncated or altered (also Damaged)
│   ├── BadBlock                rows that cannot be stored (NaN, zero, duplicate keys, unequal columns)
│   ├── BadFilter               a filter with an unknown label
│   └── NotEnoughRows           too few rows for an operation (an empty bank, or one class only)
├── SourceError                 a folder, archive or table of images that cannot be read
├── ImageError                  one image that cannot be decoded: a line in the report, not the end of the run
├── EncoderError                an encoder that cannot be loaded or used
├── HeadError                   training, or a saved head
└── MissingExtra                an optional dependency that is not installed
"""


class ClipfakeError(Exception):
    """Base class of all errors that clipfake raises on purpose."""


class StoreError(ClipfakeError):
    """An error of the store on disk."""


class NoStore(StoreError):
    """No store exists where one was named."""


class NotAStore(StoreError):
    """A folder or file that is not a store, or of a format version that this release cannot read."""


class Damaged(StoreError):
    """A file of the store is missing, truncated or altered."""


class Locked(StoreError):
    """Another process is writing to this store."""


class SpaceMismatch(StoreError):
    """Vectors of different encoders cannot be compared."""


class BackendError(StoreError):
    """An external search back end fails, or does not hold the expected rows."""


class BackendUnavailable(BackendError):
    """A search back end cannot be reached or is overloaded."""


class BackendTimeout(BackendError):
    """A search back end did not respond in time."""


class BackendDamaged(BackendError, Damaged):
    """The files of a search back end are missing, truncated or altered."""


class BadBlock(StoreError):
    """Rows that cannot be stored."""


class BadFilter(StoreError):
    """A filter names a label that does not exist."""


class NotEnoughRows(StoreError):
    """The store has too few rows for an operation."""


class SourceError(ClipfakeError):
    """A folder, archive or table of images that cannot be read."""


class ImageError(ClipfakeError):
    """One image that cannot be decoded."""


class EncoderError(ClipfakeError):
    """An encoder that cannot be loaded or used."""


class HeadError(ClipfakeError):
    """A head that cannot be trained, saved or loaded."""


class MissingExtra(ClipfakeError):
    """An optional dependency that is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an extra that is not installed; run `pip install 'clipfake[{extra}]'`")
        self.extra = extra
