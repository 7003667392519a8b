"""A store, the encoder of its vectors and a trained detector, opened once and used together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .core.locking import folder_lock
from .core.reading import read_bounded
from .detector.calibration import Calibration
from .detector.detector import QueryOptions, VectorDetector
from .detector.evidence import EvidenceOptions
from .detector.head import DEFAULT, Head, head_folder, vector_names_of
from .detector.judgeable import require_judgeable
from .detector.patches.patch_head import TOKENS, PatchHead
from .detector.patches.patch_map import WHOLE, Area
from .detector.patches.planted_images import measure_on_images
from .detector.split import PARTS
from .detector.verdict import Refusal, Verdict
from .errors import HeadError, ImageError
from .indexer.encoder_spec import EncoderSpec
from .indexer.encoders.encoder_name import INT8, seed_of
from .simulated.notice import NOTICE, is_standin
from .store.named_vectors import MAIN, NamedVectors, open_named_vectors
from .store.search.matches import Searcher
from .store.snapshot import Snapshot
from .store.store import Store

if TYPE_CHECKING:  # these import torch, which must not delay the error of a missing store or head
    from .indexer.decoding.image import Pixels
    from .indexer.embedding import EmbeddedImage, ImageInput
    from .indexer.encoders.base import Embeddings, Encoder
    from .indexer.encoders.external.own_encoder import EncoderLike
    from .indexer.encoders.preprocess import Preprocess


class Session:
    """A store with its encoder and a detector, each opened once, when it is first needed.

    Parameters
    ----------
    store : a store, or its folder
    head : name of the trained head
    encoder : the name of an encoder as for `load_encoder`, a specification of one, or any object with `encode` and a
        `space` (default: the store's own, on the best device)
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
        encoder: Encoder | EncoderLike | EncoderSpec | str | None = None,
        evidence: EvidenceOptions = EvidenceOptions(),
        searcher_for: Callable[[Snapshot], Searcher] | None = None,
    ) -> None:
        self.store = store if isinstance(store, Store) else Store(Path(store))
        self.snapshot = self.store.snapshot()  # fixed for the lifetime of the session
        self.head_name = head
        self._encoder = EncoderSpec(encoder) if isinstance(encoder, str) else encoder
        self._evidence, self._searcher_for = evidence, searcher_for

    @cached_property
    def detector(self) -> VectorDetector:
        """The trained detector; raises HeadError, SpaceMismatch or NotEnoughRows."""
        return VectorDetector.load(self.snapshot, self.head_name, self._evidence, self._searcher_for)

    def use(self, head: Head, calibration: Calibration, patches: PatchHead | None = None) -> None:
        """Use a head, calibration and patch head in memory instead of saved ones."""
        self.detector = VectorDetector.from_trained(
            self.snapshot, head, calibration, self._evidence, self._searcher_for, patches
        )

    @cached_property
    def encoder_spec(self) -> EncoderSpec:
        """Specification of the encoder of the store's own vectors."""
        spec = self._encoder if isinstance(self._encoder, EncoderSpec) else EncoderSpec()
        return spec if spec.name else EncoderSpec.of_space(self.snapshot.space, spec.device, spec.precision)

    @cached_property
    def main_encoder(self) -> Encoder:
        """The encoder of the store's own vectors; raises EncoderError, MissingExtra or SpaceMismatch."""
        if self._encoder is None or isinstance(self._encoder, EncoderSpec):
            encoder = self.encoder_spec.load()
        else:
            from .indexer.encoders.external.own_encoder import as_encoder

            encoder = as_encoder(self._encoder)
        encoder.space.require(self.snapshot.space, f"the store {self.store.folder}")
        return encoder

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder of the head's input: of all its vectors, for a head trained on named vectors."""
        return self._encoder_of_head(())

    @cached_property
    def query_encoder(self) -> Encoder:
        """The encoder of queries: of the head's input and, where a map is shown, of the patches beside it.

        Raises SpaceMismatch if the patches of the store are not those that the head has learned from.
        """
        patches = self._patch_head
        return self._encoder_with_patches(patches) if patches and patches.shown else self.encoder

    @property
    def _patch_head(self) -> PatchHead | None:
        if "detector" in vars(self):
            return self.detector.patches
        return PatchHead.load(head_folder(self.store.folder, self.head_name))

    def _encoder_with_patches(self, patches: PatchHead) -> Encoder:
        encoder = self._encoder_of_head((TOKENS,))
        patches.space.require(encoder.spaces[TOKENS], f"the view {TOKENS} of {self.store.folder}")
        return encoder

    def _encoder_of_head(self, beside: tuple[str, ...]) -> Encoder:
        """Encoder of the head's input, followed by these views."""
        if "detector" in vars(self):
            names = self.detector.head.vectors
        else:  # a service may start before a head is trained
            names = vector_names_of(head_folder(self.store.folder, self.head_name))
        if names == (MAIN,) and not beside:
            return self.main_encoder
        from .indexer.views.create import encoder_with_views
        from .indexer.views.head_encoder import HeadEncoder

        columns = {name: open_named_vectors(self.store.folder, name) for name in names if name != MAIN}
        views = [name for name, column in columns.items() if column.view is not None]
        others = {name: self._other_encoder(column) for name, column in columns.items() if column.view is None}
        own = encoder_with_views(self.store, self.main_encoder, list(dict.fromkeys([*views, *beside])))
        return own if names == (MAIN,) else HeadEncoder(names, own, others, beside)

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

    @cached_property
    def covered(self) -> Callable[[int, int], Area]:
        """Function of an image's height and width in pixels: the part of it that the store's encoder sees."""
        preprocess = self._preprocess
        return preprocess.covered if preprocess else lambda height, width: WHOLE

    @cached_property
    def _preprocess(self) -> Preprocess | None:
        encoder = self.main_encoder.replicas[0]
        preprocess: Preprocess | None = getattr(getattr(encoder, "torch_encoder", encoder), "preprocess", None)
        return preprocess

    def measure_maps(
        self, *, images: int = 300, seed: int = 0, on_progress: Callable[[int, int], None] | None = None
    ) -> PatchHead:
        """Make the planted test on images: of held-out rows whose files can be read. Saves the result with the head.

        Parameters
        ----------
        images : images of which half is swapped, at most
        on_progress : called with the number of images so far and in all

        Raises
        ------
        HeadError
            The head has no patch head, or another one was saved meanwhile.
        NotEnoughRows
            Too few files can be read.
        """
        from .indexer.decoding.image import decode
        from .indexer.sources.image_ref import BYTES_LIMIT

        patches, preprocess = self.detector.patches, self._preprocess
        if patches is None or preprocess is None:
            raise HeadError(
                f"the head {self.head_name} of {self.store.folder} scores no patches; add them with "
                f"`clipfake store add-vectors {TOKENS}`, then train again"
            )
        encoder = self._encoder_with_patches(patches)
        keys, labels, paths = (self.snapshot.column(name) for name in ("keys", "labels", "paths"))
        rows = np.flatnonzero(self.detector.head.split.parts_of(keys) == PARTS["test"])

        def read(row: int) -> Any:
            try:
                return preprocess.with_pillow(decode(read_bounded(Path(paths[row]), BYTES_LIMIT)).pixels)
            except (OSError, ImageError):
                return None

        def encode(pictures: Sequence[Pixels]) -> Embeddings:
            return encoder.split(encoder.encode(pictures))[TOKENS]

        measured = measure_on_images(
            patches, rows, labels[rows], read, encode, images=images, seed=seed, on_progress=on_progress
        )
        folder = head_folder(self.store.folder, self.head_name)
        with folder_lock(folder):
            saved = PatchHead.load(folder)
            if saved is None or saved.digest != patches.digest:
                raise HeadError(f"the head in {folder} was trained again meanwhile; run the same command again")
            measured.save(folder)
        return measured

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

        refs, encoder = image_refs(images, follow_links=follow_links), self.query_encoder
        make_views = degraded if check_stability else None
        for batch in embed_batches(encoder, refs, make_views=make_views, check=require_judgeable, thumbnails=True):
            embedded = [image for image in batch if image.vector is not None]
            verdicts: Iterator[Verdict] = iter(())
            if embedded:
                vectors = np.stack([image.vector for image in embedded if image.vector is not None])
                parts = encoder.split(vectors)
                vectors, patches = parts[MAIN], iter(parts.get(TOKENS, vectors[:, :0]))
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
                    views = dict(zip(DEGRADATIONS, encoder.split(image.views)[MAIN], strict=True))
                    verdict = self.detector.check_stability(verdict, views, image.digest, options)
                area = self.covered(image.height, image.width)
                verdict = self.detector.with_map(verdict, next(patches), area)
                yield replace(image, vector=encoder.split(image.vector[None])[MAIN][0]), verdict


def encoder_notice(encoder: str) -> str:
    """Return the notice for an encoder that is a stand-in or untrained; empty for a real one."""
    name = encoder.removeprefix(INT8)
    if is_standin(name):
        return NOTICE
    if seed_of(name) is not None:
        return "The encoder has random weights: use it to measure speed only, its verdicts mean nothing."
    return ""
