"""Copy some rows of a store into another store, with everything that is stored of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import StoreError
from ..named_vectors import create_view, named_vectors_writer, open_named_vectors, vector_names
from ..records import Block
from ..search.matches import Positions
from ..snapshot import Snapshot
from ..store import Store

BLOCK_ROWS = 16_384  # rows in memory at a time


def copy_rows(snapshot: Snapshot, positions: Positions, folder: Path, note: str = "copied") -> Store:
    """Copy rows with their labels, vectors, thumbnails, text vectors and named vectors. Heads and indexes are not.

    If the process is killed, copying the same rows again completes the store.

    Parameters
    ----------
    positions : (n,) of the rows, ascending
    folder : of the store, which is created; it may exist with some of these rows
    note : of the snapshots that it makes

    Raises
    ------
    StoreError
        The folder holds a store with other rows, or anything else, or cannot be written to.
    Damaged
        A vector is not as it was written, so that it must not be copied.
    """
    require_target(snapshot, folder)
    store = Store.create(folder, snapshot.space)
    keys = snapshot.column("keys")[positions]
    present = store.snapshot()
    if len(present) != (present.find(keys) >= 0).sum():
        raise StoreError(f"{folder} is a store that holds other rows; name a new folder")
    with store.writer(note) as writer:
        for block in _blocks(snapshot, positions):
            writer.append(block)
    for name in vector_names(snapshot.folder):
        _copy_named_vectors(snapshot, positions, store, name)
    return store


def require_target(snapshot: Snapshot, folder: Path) -> None:
    """Raise StoreError if a folder is the snapshot's store itself, or neither a store nor empty."""
    if folder.resolve() == snapshot.folder.resolve():
        raise StoreError(f"{folder} is the store itself; name another folder for the copy")
    Store(folder).require_room()


def _blocks(snapshot: Snapshot, positions: Positions) -> Iterator[Block]:
    """The rows in blocks, with their thumbnails."""
    start = 0
    for block in snapshot.blocks(BLOCK_ROWS, positions):
        rows = positions[start : start + len(block)]
        snapshot.check_vectors(rows)
        thumbnails = snapshot.thumbnails(rows) if snapshot.has_thumbnails else ()
        yield replace(block, thumbnails=thumbnails if any(thumbnails) else ())
        start += len(block)


def _copy_named_vectors(snapshot: Snapshot, positions: Positions, store: Store, name: str) -> None:
    """Copy the named vectors of one name, as far as the rows have them."""
    column = open_named_vectors(snapshot.folder, name)
    if column.view is not None:
        create_view(store.folder, name, column.space, column.view, column.parameters())
    for part in snapshot.manifest.parts:
        column.check(part)  # otherwise damaged vectors would get a valid checksum
    stored = positions[~column.missing(snapshot)[positions]]
    with named_vectors_writer(store.folder, name, column.space) as writer:
        target = writer.snapshot.find(snapshot.column("keys")[stored])
        for start in range(0, len(stored), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            writer.put(target[rows], column.vectors(snapshot, stored[rows]).astype(np.float16))
