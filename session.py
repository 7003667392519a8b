"""A store, the encoder of its vectors and a trained detector, opened once and used together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .detector.calibration import Calibration
from .detector.detector import QueryOptions, VectorDetector
from .detector.evidence import EvidenceOptions
from .detector.head import DEFAULT, Head, head_folder, vector_names_of
from .detector.judgeable import require_judgeable
from .detector.verdict import Refusal, Verdict
from .indexer.encoder_spec import EncoderSpec
from .indexer.encoders.encoder_name import INT8, seed_of
from .simulated.notice import NOTICE, is_standin
from .store.named_vectors import MAIN, NamedVectors, open_named_vectors
from .store.search.matches import Searcher
from .store.snapshot import Snapshot
from .store.store import Store

if TYPE_CHECKING:  # these import torch, which must not delay the error of a missing store or head
    from .indexer.embedding import EmbeddedImage, ImageInput
    from .indexer.encoders.base import Encoder


class Session:
    """A store with its encoder and a detector, each opened once, when it is first needed.

    Parameters
    ----------
    store : a store, or its folder
    head : name of the trained head
    encoder : an encoder, or a specification of one (default: the store's own, on the best device)
    evidence : how many stored neighbours are evidence, and which
    searcher_for : makes a searcher for the snapshot (default: the store's own index), see
        `clipfake.store.backends.remote_search`

    Raises
    ------
    NoStore, NotAStore, Damaged
        The store cannot be opened.

    >>> session = Session("mystore")                        # doctest: +SKIP
    >>> for image, verdict in session.judge(["a.jpg"]):     # doctest: +SKIP
    ...     print(image.name, verdict)
    """

    def __init__(
        self,
        store: Store | Path | str,
        head: str = DEFAULT,
        *,
        encoder: Encoder | EncoderSpec | None = None,
        evidence: EvidenceOptions = EvidenceOptions(),
        searcher_for: Callable[[Snapshot], Searcher] | None = None,
    ) -> None:
        self.store = store if isinstance(store, Store) else Store(Path(store))
        self.snapshot = self.store.snapshot()  # fixed for the lifetime of the session
        self.head_name = head
        self._encoder = encoder
        self._evidence, self._searcher_for = evidence, searcher_for

    @cached_property
    def detector(self) -> VectorDetector:
        """The trained detector; raises HeadError, SpaceMismatch or NotEnoughRows."""
        return VectorDetector.load(self.snapshot, self.head_name, self._evidence, self._searcher_for)

    def use(self, head: Head, calibration: Calibration) -> None:
        """Use a head and calibration in memory instead of saved ones."""
        self.detector = VectorDetector.from_trained(
            self.snapshot, head, calibration, self._evidence, self._searcher_for
        )

    @cached_property
    def encoder_spec(self) -> EncoderSpec:
        """Specification of the encoder of the store's own vectors."""
        spec = self._encoder if isinstance(self._encoder, EncoderSpec) else EncoderSpec()
        return spec if spec.name else EncoderSpec.of_space(self.snapshot.space, spec.device, spec.precision)

    @cached_property
    def main_encoder(self) -> Encoder:
        """The encoder of the store's own vectors; raises EncoderError or SpaceMismatch."""
        if self._encoder is None or isinstance(self._encoder, EncoderSpec):
            encoder = self.encoder_spec.load()
        else:
            encoder = self._encoder
        encoder.space.require(self.snapshot.space, f"the store {self.store.folder}")
        return encoder

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of the head's input: of all its vectors, for a head trained on named vectors."""
        if "detector" in vars(self):
            names = self.detector.head.vectors
        else:  # a service may start before a head is trained
            names = vector_names_of(head_folder(self.store.folder, self.head_name))
        if names == (MAIN,):
            return self.main_encoder
        from .indexer.views.create import encoder_with_views
        from .indexer.views.head_encoder import HeadEncoder

        columns = {name: open_named_vectors(self.store.folder, name) for name in names if name != MAIN}
        views = [name for name, column in columns.items() if column.view is not None]
        others = {name: self._other_encoder(column) for name, column in columns.items() if column.view is None}
        return HeadEncoder(names, encoder_with_views(self.store, self.main_encoder, views), others)

    def _other_encoder(self, column: NamedVectors) -> Encoder:
        """Load the encoder of named vectors that are not a view; raises EncoderError or SpaceMismatch."""
        spec = EncoderSpec.of_space(column.space, self.encoder_spec.device, self.encoder_spec.precision)
        encoder = spec.load()
        encoder.space.require(column.space, f"the vectors {column.name} of {self.store.folder}")
        return encoder

    def __repr__(self) -> str:
        return f"Session(store={str(self.store.folder)!r}, head={self.head_name!r})"

    @property
    def notice(self) -> str:
        """Notice that limits the meaning of the encoder's verdicts; empty for a real encoder."""
        return encoder_notice(self.snapshot.space.encoder)

    def embed(self, images: Iterable[ImageInput]) -> Iterator[EmbeddedImage]:
        """Embed images for the head, see `clipfake.indexer.embedding.embed_images`."""
        from .indexer.embedding import embed_images

        return embed_images(self.encoder, images)

    def judge(
        self,
        images: Iterable[ImageInput],
        options: QueryOptions = QueryOptions(),
        *,
        check_stability: bool = False,
        follow_links: bool = False,
    ) -> Iterator[tuple[EmbeddedImage, Verdict | Refusal]]:
        """Embed and judge images as a stream: one encoder pass and one search per batch, results in order.

        A confirmed copy of a stored image gets that image's label. A file that cannot be read, or an image with nothing
        to judge (too small, one colour), gets a `Refusal`.

        Parameters
        ----------
        images : files, folders, archives, arrays, see `clipfake.indexer.embedding.embed_images`
        check_stability : answer "unsure" where a degraded copy of the image gets another verdict
        follow_links : follow symbolic links inside a folder that lead out of it

        Raises
        ------
        SourceError, EncoderError
            A folder does not exist, or the device's memory is too small for one image.
        """
        from .indexer.degradations import DEGRADATIONS, degraded
        from .indexer.embedding import embed_batches, image_refs

        refs = image_refs(images, follow_links=follow_links)
        make_views = degraded if check_stability else None
        for batch in embed_batches(self.encoder, refs, make_views=make_views, check=require_judgeable, thumbnails=True):
            embedded = [image for image in batch if image.vector is not None]
            verdicts: Iterator[Verdict] = iter(())
            if embedded:
                vectors = np.stack([image.vector for image in embedded if image.vector is not None])
                digests = np.frombuffer(b"".join(image.digest for image in embedded), "V16")
                names, thumbnails = [image.name for image in embedded], [image.thumbnail for image in embedded]
                judged = self.detector.judge(names, vectors, digests, options, thumbnails=thumbnails)
                verdicts = iter(judged)
            for image in batch:
                if image.vector is None:
                    yield image, Refusal(image.name, image.error)
                    continue
                verdict = next(verdicts)
                if image.views is not None:
                    views = dict(zip(DEGRADATIONS, image.views, strict=True))
                    verdict = self.detector.check_stability(verdict, views, image.digest, options)
                yield image, verdict


def encoder_notice(encoder: str) -> str:
    """Return the notice for an encoder that is a stand-in or untrained; empty for a real one."""
    name = encoder.removeprefix(INT8)
    if is_standin(name):
        return NOTICE
    if seed_of(name) is not None:
        return "The encoder has random weights: use it to measure speed only, its verdicts mean nothing."
    return ""
