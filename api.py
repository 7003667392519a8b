"""The Python interface: index images, train a detector and judge images. `import clipfake` exports these names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .detector.detector import QueryOptions
from .detector.head import DEFAULT, Head
from .detector.training.fit import FitReport, fit_detector
from .detector.training.train import TrainOptions
from .detector.verdict import Refusal, Verdict
from .errors import NoStore
from .indexer.encoder_spec import EncoderSpec
from .indexer.encoders.encoder_name import DEFAULT_ENCODER
from .indexer.index_run import IndexOptions
from .indexer.report import IndexReport
from .session import Session
from .store.named_vectors import MAIN
from .store.records import Vectors
from .store.store import Store

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .indexer.embedding import ImageInput
    from .indexer.encoders.base import Encoder
    from .indexer.encoders.external.own_encoder import EncoderLike


def index(
    folders: Sequence[str | Path],
    store: Store | Path | str,
    *,
    encoder: Encoder | EncoderLike | EncoderSpec | str | None = None,
    options: IndexOptions = IndexOptions(),
    follow_links: bool = False,
    on_progress: Callable[[IndexReport], None] | None = None,
) -> IndexReport:
    """Index every image of some folders into a store, which is created if it does not exist. Resumable.

    Parameters
    ----------
    folders : folders, archives, tables of paths, URLs, or patterns such as "data/*"
    store : a store, or its folder
    encoder : the name of an encoder as for `load_encoder`, a specification of one, or any object with `encode` and a
        `space` (default: the store's own; for a new store openai/clip-vit-base-patch32)
    follow_links : follow symbolic links inside a folder that lead out of it
    on_progress : called with the report so far, repeatedly

    Raises
    ------
    SourceError, EncoderError, StoreError
        See `clipfake.indexer.index.index`. The images stored before an error are kept.
    """
    from .indexer.encoders.external.own_encoder import as_encoder
    from .indexer.index import index as index_images
    from .indexer.sources.folders import expand

    if encoder is None:
        try:
            space = Store.open(store.folder if isinstance(store, Store) else store).snapshot().space
            encoder = EncoderSpec.of_space(space)
        except NoStore:
            encoder = DEFAULT_ENCODER
    if isinstance(encoder, str):
        encoder = EncoderSpec(encoder)
    loaded = encoder.load() if isinstance(encoder, EncoderSpec) else as_encoder(encoder)
    if not isinstance(store, Store):
        store = Store.create(store, loaded.space)
    sources = expand(folders, follow_links=follow_links)
    return index_images(sources, store, loaded, options, on_progress)


class Detector:
    """Distinguishes real images from generated ones, with evidence. Make it with `fit` or `load`.

    >>> detector = Detector.load("mystore")     # doctest: +SKIP
    >>> detector.predict(["suspicious.jpg"])    # doctest: +SKIP
    """

    classes_ = ("real", "fake")  # columns of `predict_proba`, in order

    def __init__(self, session: Session, report: FitReport | None = None) -> None:
        self.session = session
        self._report = report

    @classmethod
    def fit(
        cls,
        store: Store | Path | str,
        *,
        options: TrainOptions = TrainOptions(),
        vectors: Sequence[str] = (MAIN,),
        encoder: Encoder | EncoderLike | EncoderSpec | str | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> Detector:
        """Train and calibrate a detector on the stored vectors. No image is opened; `save` keeps the result.

        Parameters
        ----------
        options : options of training, see `clipfake.TrainOptions`
        vectors : names of the stored vectors to train on, concatenated; "main" is the store's own
        encoder : encoder for `predict`, as for `index` (default: the store's own, loaded when it is first needed)
        on_progress : called with the name of each step

        Raises
        ------
        NotEnoughRows, HeadError, StoreError
            See `clipfake.detector.training.fit.fit_detector`.
        """
        session = Session(store, encoder=encoder)
        report = fit_detector(session.snapshot, options=options, vectors=vectors, on_progress=on_progress)
        session.use(report.trained.head, report.calibrated.calibration, report.patches)
        return cls(session, report)

    @classmethod
    def load(
        cls,
        store: Store | Path | str,
        name: str = DEFAULT,
        *,
        encoder: Encoder | EncoderLike | EncoderSpec | str | None = None,
    ) -> Detector:
        """Load a detector that was saved in a store; raises HeadError, SpaceMismatch or NotEnoughRows."""
        session = Session(store, name, encoder=encoder)
        _ = session.detector  # raise for a missing head here, not in the first `predict`
        return cls(session)

    def save(self, name: str = DEFAULT) -> Path:
        """Save the detector in its store under a name, and return its folder; raises StoreError."""
        report = replace(self.report, name=name)
        report.save()
        return report.folder

    @property
    def report(self) -> FitReport:
        """Report of training and evaluation; only a detector from `fit` has one."""
        if self._report is None:
            raise AttributeError("a loaded detector has no training report; see detector.head.metrics")
        return self._report

    @property
    def head(self) -> Head:
        """The trained head: `head.transform(vectors)`, `head.decision_function(vectors)`."""
        return self.session.detector.head

    def predict(
        self,
        images: Iterable[ImageInput],
        *,
        options: QueryOptions = QueryOptions(),
        check_stability: bool = False,
        follow_links: bool = False,
    ) -> list[Verdict | Refusal]:
        """Judge images: one answer each, in order. Encodes in batches, with one search per batch.

        Parameters
        ----------
        images : paths of files, folders or archives, bytes of a file, (height, width, 3) uint8 arrays, Pillow images
        options : prior, accepted error rate, see `clipfake.QueryOptions`
        check_stability : answer "unsure" where a degraded copy of the image gets another verdict
        follow_links : follow symbolic links inside a folder that lead out of it

        Returns
        -------
        A `Verdict` for each image, or a `Refusal` with the reason why it could not be read, or holds nothing to
        judge. `Session.judge` yields the same answers one by one.
        """
        if isinstance(images, str | bytes | Path):
            images = [images]
        judged = self.session.judge(images, options, check_stability=check_stability, follow_links=follow_links)
        return [answer for _, answer in judged]

    def predict_vectors(
        self, vectors: Vectors, names: Sequence[str] | None = None, *, options: QueryOptions = QueryOptions()
    ) -> list[Verdict]:
        """Judge (n, dim) unit vectors; `names` become the names of the images in the verdicts."""
        names = [f"vector {i}" for i in range(len(vectors))] if names is None else names
        return self.session.detector.judge(names, vectors, options=options)

    def decision_function(self, vectors: Vectors) -> npt.NDArray[np.float64]:
        """(n,) log-likelihood ratios of (n, dim) unit vectors, above 0 leans fake."""
        return self.session.detector.decision_function(vectors)

    def predict_proba(self, vectors: Vectors, *, prior: float = 0.5) -> npt.NDArray[np.float64]:
        """(n, 2) probabilities of real and fake of (n, dim) unit vectors, where `prior` is the share of fakes."""
        return self.session.detector.predict_proba(vectors, prior=prior)

    def __repr__(self) -> str:
        return f"Detector({self.head.title!r}, store={str(self.session.store.folder)!r})"
