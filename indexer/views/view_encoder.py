"""An encoder of the main vector and of views, side by side, in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from ...errors import EncoderError
from ...store.named_vectors import MAIN
from ...store.space import Space
from ..decoding.image import Pixels
from ..encoders.base import Embeddings, Encoder, Features, Replicas, unit
from ..encoders.openvino import OpenVinoEncoder
from ..encoders.torch_encoder import TorchEncoder
from .crops import PixelsWithCrops, crops_of, cut
from .kinds import CROPS, CROPS5, KINDS, LAYERS, POOLED, RAW, TOKENS, view_space
from .view_model import PatchGrid, ViewModel
from .whitening import Whitening

FROM_MODEL = (LAYERS, POOLED, TOKENS)  # views from within the model, in the order of its values
Views = Mapping[str, tuple[str, Whitening | None]]  # name -> kind, and its whitening if it is fitted

SIDE = 64  # pixels a side of the image by which the lengths of the parts are found


class ViewEncoder(Encoder):
    """Encodes images as their main vectors followed by views. Make it with `with_views`.

    Parameters
    ----------
    encoder : encoder of the main vector
    views : a view that is not fitted yet returns what it is to be fitted to
    """

    def __init__(self, encoder: TorchEncoder | OpenVinoEncoder, views: Views) -> None:
        self._encoder, self._kinds = encoder, {name: kind for name, (kind, _) in views.items()}
        # a view is fitted to values with their length, since that is how they are whitened afterwards
        self._unit = {name for name, (kind, fitted) in views.items() if KINDS[kind].normalised and fitted is not None}
        self.has_text, self.overlaps, self.device = encoder.has_text, encoder.overlaps, encoder.device
        self._crops = max((KINDS[kind].crops for kind in self._kinds.values()), default=0)
        self.preprocess = None if self._crops else encoder.preprocess  # a GPU decoder keeps no full-size pixels
        self.reduces = encoder.reduces and not self._crops
        torch_encoder = encoder.torch_encoder if isinstance(encoder, OpenVinoEncoder) else encoder
        size = torch_encoder.preprocess.fixed_size
        if size is None and (self._crops or TOKENS in self._kinds.values()):
            raise EncoderError(
                f"{encoder.space.encoder} takes images of many sizes, so it has no crops and tokens of one; leave out "
                f"the views {CROPS}, {CROPS5} and {TOKENS}"
            )
        self._crop_size = size or (0, 0)
        from_model = {kind: fitted for kind, fitted in views.values() if kind in FROM_MODEL}
        ordered = {kind: from_model[kind] for kind in FROM_MODEL if kind in from_model}
        self.grid = PatchGrid()  # of the view `tokens`
        self._lengths = {MAIN: encoder.space.dim}
        if ordered:
            image = torch_encoder.inputs([np.zeros((SIDE, SIDE, 3), np.uint8)])
            model = ViewModel(torch_encoder.vision_model, ordered, image)
            with torch.inference_mode():
                _, *parts = model.parts(image)
            self.grid = model.grid
            self._lengths |= {kind: part.shape[1] for kind, part in zip(ordered, parts, strict=True)}
            other = torch_encoder.with_model(model)
            self._encoder = OpenVinoEncoder(other, encoder.precision) if isinstance(encoder, OpenVinoEncoder) else other
        digests = {name: "" if fitted is None else fitted.digest for name, (_, fitted) in views.items()}
        self._spaces = {MAIN: encoder.space} | {
            name: view_space(encoder.space, kind, self._lengths.get(kind, encoder.space.dim), digests[name])
            for name, kind in self._kinds.items()
        }

    @property
    def space(self) -> Space:
        return self._spaces[MAIN]

    @property
    def spaces(self) -> dict[str, Space]:
        return dict(self._spaces)

    @property
    def batch_size(self) -> int:
        return max(self._encoder.batch_size // (1 + self._crops), 1)

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        return self._encoder.encode_texts(texts)

    def shrink(self, pixels: Pixels) -> Pixels:
        small = self._encoder.shrink(pixels)
        if not self._crops or small is pixels:
            return small
        return PixelsWithCrops.of(small, cut(pixels, self._crop_size, self._crops))

    def encode(self, images: Sequence[Pixels]) -> Embeddings:
        return self.begin(images)()

    def begin(self, images: Sequence[Pixels]) -> Callable[[], Embeddings]:
        crops = [crop for pixels in images for crop in crops_of(pixels, self._crop_size, self._crops)]
        inputs = [np.asarray(pixels) for pixels in images] + crops
        if isinstance(self._encoder, OpenVinoEncoder):
            features = self._encoder.features(inputs)
            return lambda: self._assemble(features, len(images))
        wait = self._encoder.begin_features(inputs)
        return lambda: self._assemble(wait()[0], len(images))

    def begin_reduced(self, images: Sequence[Pixels]) -> Callable[[], tuple[Embeddings, Sequence[Pixels]]]:
        if not self.reduces or isinstance(self._encoder, OpenVinoEncoder):
            return super().begin_reduced(images)
        wait = self._encoder.begin_features(images, reduce=True)

        def wait_for_vectors() -> tuple[Embeddings, Sequence[Pixels]]:
            features, thumbnails = wait()
            return self._assemble(features, len(images)), thumbnails

        return wait_for_vectors

    def _assemble(self, features: Features, images: int) -> Embeddings:
        """Put the vectors of each image side by side; the features of its crops follow those of all images."""
        if not images:
            return np.zeros((0, sum(space.dim for space in self._spaces.values())), np.float32)
        ends = np.cumsum(list(self._lengths.values()))
        own = dict(zip(self._lengths, np.split(features[:images], ends[:-1], axis=1), strict=True))
        main = own[MAIN]
        crops = features[images:, : main.shape[1]].reshape(images, self._crops, main.shape[1])
        parts = [unit(main)]
        for name, kind in self._kinds.items():
            own_crops = crops[:, : KINDS[kind].crops]
            values = own_crops.mean(1) if KINDS[kind].crops else (own | {RAW: main})[kind]
            parts.append(unit(values) if name in self._unit else values)
        return np.concatenate(parts, axis=1)


def with_views(encoder: Encoder, views: Views) -> Encoder:
    """Return an encoder of the main vector and these views; see `ViewEncoder`.

    Raises
    ------
    EncoderError
        The encoder does not run in torch or OpenVINO, or lacks what a view is made of.
    """
    if not views:
        return encoder
    if isinstance(encoder, Replicas):
        return Replicas([with_views(replica, views) for replica in encoder.replicas])
    if not isinstance(encoder, TorchEncoder | OpenVinoEncoder):
        raise EncoderError(f"{encoder.space.encoder} has no views, which need a vision model in torch or OpenVINO")
    return ViewEncoder(encoder, views)


def grid_of(encoder: Encoder) -> PatchGrid:
    """Return the grid of the view `tokens` of an encoder; it has no rows if the encoder has no such view."""
    first = encoder.replicas[0]
    return first.grid if isinstance(first, ViewEncoder) else PatchGrid()
