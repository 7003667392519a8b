"""Make the views of a store: fit what they need to images, and keep it beside their vectors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from ...errors import Locked, SpaceMismatch, StoreError
from ...store.named_vectors import (
    PARAMETERS,
    NamedVectors,
    ViewRecord,
    create_view,
    open_named_vectors,
    vector_names,
)
from ...store.space import Space
from ...store.store import Store
from ..embedding import embed_batches
from ..encoders.base import Encoder
from ..sources.image_ref import ImageRef
from .kinds import KINDS, TOKENS, kind_of
from .view_encoder import Views, grid_of, with_views
from .view_model import PatchGrid
from .whitening import Whitening

# Images that a view is fitted to, at most, each with the same chance. Fitted to as many images of each source, layers
# of MobileNet lost .023 of the neighbours' AUC on left-out generators and .011 on left-out real sources.
FITTED_TO = 2048
TOKEN_DIMS = 32  # dimensions of each patch and block
PATCHES_FITTED = 8  # patches of each image to which their whitening is fitted
LOCK_TIMEOUT = 60.0  # seconds to wait for another process that writes to the store


def views_of(store: Store) -> tuple[str, ...]:
    """Names of the views of a store; raises StoreError if named vectors cannot be read."""
    return tuple(name for name in vector_names(store.folder) if open_named_vectors(store.folder, name).view)


def open_views(store: Store, names: Sequence[str]) -> Views:
    """Read the views of these names, with what was fitted for them.

    Raises
    ------
    StoreError, Damaged
        There are no vectors of a name, they are not a view, or the fitted parameters cannot be read.
    """
    columns = {name: open_named_vectors(store.folder, name) for name in names}
    return {name: (_view_of(column), _whitening_of(column)) for name, column in columns.items()}


def _view_of(column: NamedVectors) -> str:
    kind = kind_of(column)
    if not kind:
        raise StoreError(
            f"the vectors {column.name} of {column.folder.parent.parent} are those of {column.space.encoder}, not a "
            f"view of the store's encoder; remove {column.folder} to make the view"
        )
    return kind


def _whitening_of(column: NamedVectors) -> Whitening | None:
    content = column.parameters()
    return Whitening.from_bytes(content, column.folder / PARAMETERS) if content else None


def encoder_with_views(store: Store, encoder: Encoder, names: Sequence[str]) -> Encoder:
    """Return an encoder that also computes views of a store.

    Raises
    ------
    SpaceMismatch
        The views were made by another encoder, or by other rules.
    EncoderError, StoreError, Damaged
        The encoder has no such views, or they cannot be read.
    """
    result = with_views(encoder, open_views(store, names))
    for name, space in result.spaces.items():
        if name in names and not space.same(stored := open_named_vectors(store.folder, name).space):
            raise SpaceMismatch(
                f"the view {name} of {store.folder} has vectors of {stored}, and this encoder gives {space}; "
                f"use the encoder with which the view was made"
            )
    return result


def create_views(
    store: Store,
    encoder: Encoder,
    names: Sequence[str],
    images: Callable[[int], Iterable[ImageRef]],
) -> None:
    """Create the views of these names that a store does not have yet.

    Parameters
    ----------
    encoder : encoder of the store's main vectors
    images : returns at most that many images to which views are fitted; called only if a view needs it

    Raises
    ------
    NotEnoughRows
        There are too few readable images to fit a view to.
    EncoderError
        The encoder has no such views.
    StoreError, Locked
        The store cannot be written, or another process has been writing to it for a minute.
    """
    stored = vector_names(store.folder)
    missing = [name for name in names if name not in stored]
    to_fit = [name for name in missing if KINDS[name].fitted]
    fitted: dict[str, Whitening | None] = dict.fromkeys(missing)
    with_views(encoder, {name: (name, None) for name in missing})  # refuse what the encoder lacks before fitting
    if to_fit:
        with_raw = with_views(encoder, {name: (name, None) for name in to_fit})
        fitted |= _fit(with_raw, to_fit, images(FITTED_TO))
    result = with_views(encoder, {name: (name, fitted[name]) for name in missing})
    for name, whitening in fitted.items():
        grid = grid_of(result) if name == TOKENS else PatchGrid()
        view = ViewRecord(name, rows=grid.rows, columns=grid.columns)
        _create(store, name, result.spaces[name], view, b"" if whitening is None else whitening.to_bytes())


def _create(store: Store, name: str, space: Space, view: ViewRecord, parameters: bytes) -> None:
    """Create a view, waiting for another process that writes to the store for a moment."""
    until = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            create_view(store.folder, name, space, view, parameters)
            return
        except Locked:
            if time.monotonic() >= until:
                raise
            time.sleep(0.2)


def _fit(encoder: Encoder, names: Sequence[str], images: Iterable[ImageRef]) -> dict[str, Whitening]:
    """Fit the whitening of each view to images; those that cannot be read are passed over."""
    values: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}
    grid = grid_of(encoder)
    read = (image for batch in embed_batches(encoder, images) for image in batch if image.vector is not None)
    for number, image in enumerate(read):
        assert image.vector is not None
        of_image = encoder.split(image.vector[None])
        for name in names:
            rows = of_image[name]
            values[name].append(_some_patches(rows, grid, number) if name == TOKENS else rows)
    fitted = {}
    for name, parts in values.items():
        rows = np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
        fitted[name] = _fit_tokens(rows, grid) if name == TOKENS and len(rows) else Whitening.fit(rows)
    return fitted


def _some_patches(row: npt.NDArray[np.float32], grid: PatchGrid, number: int) -> npt.NDArray[np.float32]:
    """(n, channels) a few patches of the image of this number, spread over the image and over the images."""
    patches = grid.rows * grid.columns
    wanted = min(PATCHES_FITTED, patches)
    places = (number + np.arange(wanted) * patches // wanted) % patches
    return row.reshape(patches, -1)[places]


def _fit_tokens(rows: npt.NDArray[np.float32], grid: PatchGrid) -> Whitening:
    """Fit the patches of each block to the same number of dimensions."""
    blocks = np.split(rows, np.cumsum(grid.channels)[:-1], axis=1)
    return Whitening.side_by_side([Whitening.fit(block, TOKEN_DIMS) for block in blocks])
