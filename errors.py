"""Every error a caller can act on. A message says what was found, where, and what to do next.

ClipfakeError
├── StoreError              the store on disk
│   ├── NoStore             there is no store here
│   ├── NotAStore           a folder or file that is not ours, or of a version this release cannot read
│   ├── Damaged             a file of ours that is missing, truncated or altered
│   ├── Locked              another process is writing
│   ├── SpaceMismatch       vectors of one encoder meant for those of another
│   ├── EngineError         a search engine beyond this process refuses, or does not hold what it should
│   │   ├── EngineDown      it cannot be reached, or has too much to do
│   │   ├── EngineSlow      it did not answer in time
│   │   └── EngineDamaged   its files are missing, truncated or altered (also Damaged)
│   ├── BadBlock            rows that may not be stored (NaN, zero, duplicate keys, unequal columns)
│   └── NotEnoughRows       a question that the stored rows cannot answer (empty bank, one class only)
├── SourceError             a folder, archive or table of images that cannot be read as one
├── ImageError              one image that cannot be decoded: a row in the report, not the end of the run
├── EncoderError            an encoder that cannot be loaded or used
├── HeadError               training or a saved head
└── MissingExtra            an optional dependency that is not installed
"""


class ClipfakeError(Exception):
    """The root: `except ClipfakeError` catches what clipfake itself has to say."""


class StoreError(ClipfakeError):
    """The store on disk refuses or fails."""


class NoStore(StoreError):
    """No store exists where one was named."""


class NotAStore(StoreError):
    """A file or folder that is not ours, or of a format version this release cannot read."""


class Damaged(StoreError):
    """A file of ours that is missing, truncated or altered."""


class Locked(StoreError):
    """Another process is writing to this store."""


class SpaceMismatch(StoreError):
    """Vectors of one encoder were meant for those of another."""


class BackendError(StoreError):
    """A search engine beyond this process refuses, or does not hold what it should."""


class BackendUnavailable(BackendError):
    """A search engine cannot be reached, or has too much to do."""


class BackendTimeout(BackendError):
    """A search engine did not answer in time."""


class BackendDamaged(BackendError, Damaged):
    """An engine's own files are missing, truncated or altered."""


class BadBlock(StoreError):
    """Rows that may not be stored."""


class BadFilter(StoreError):
    """A filter names a label that does not exist."""


class NotEnoughRows(StoreError):
    """A question that the stored rows cannot answer."""


class SourceError(ClipfakeError):
    """A folder, archive or table of images that cannot be read as one."""


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
