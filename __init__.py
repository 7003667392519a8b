"""clipfake: find AI-generated images, with the nearest known images as evidence.

    import clipfake
    clipfake.index(["data/*"], store="mystore")
    detector = clipfake.Detector.fit("mystore")
    detector.predict(["suspicious.jpg"])

Names are imported on first use, so that `import clipfake` loads neither torch nor FAISS. docs/PYTHON.md shows how they
work together. `help(clipfake.store)` lists the modules of a package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Detector as Detector
    from .api import index as index
    from .detector.detector import QueryOptions as QueryOptions
    from .detector.evidence import EvidenceOptions as EvidenceOptions
    from .detector.head import Head as Head
    from .detector.training.train import TrainOptions as TrainOptions
    from .detector.verdict import Refusal as Refusal
    from .detector.verdict import Verdict as Verdict
    from .errors import ClipfakeError as ClipfakeError
    from .indexer.encoders.load import load_encoder as load_encoder
    from .indexer.index_run import IndexOptions as IndexOptions
    from .indexer.report import IndexReport as IndexReport
    from .session import Session as Session
    from .store.filter import Filter as Filter
    from .store.space import Space as Space
    from .store.store import Store as Store

__version__ = "0.1.0"

__all__ = [
    "ClipfakeError",
    "Detector",
    "EvidenceOptions",
    "Filter",
    "Head",
    "IndexOptions",
    "IndexReport",
    "QueryOptions",
    "Refusal",
    "Session",
    "Space",
    "Store",
    "TrainOptions",
    "Verdict",
    "__version__",
    "index",
    "load_encoder",
]

_MODULES = {
    "ClipfakeError": "errors",
    "Detector": "api",
    "EvidenceOptions": "detector.evidence",
    "Filter": "store.filter",
    "Head": "detector.head",
    "IndexOptions": "indexer.index_run",
    "IndexReport": "indexer.report",
    "QueryOptions": "detector.detector",
    "Refusal": "detector.verdict",
    "Session": "session",
    "Space": "store.space",
    "Store": "store.store",
    "TrainOptions": "detector.training.train",
    "Verdict": "detector.verdict",
    "index": "api",
    "load_encoder": "indexer.encoders.load",
}


def __getattr__(name: str) -> Any:
    """Import an exported name on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
