"""A store: a folder of sealed shards, and snapshots that say which of their rows count (docs/FORMAT.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.atomic_files import TEMPORARY
from ..core.locking import writer_lock
from ..errors import NoStore, NotAStore, StoreError
from .filter import Filter
from .manifest import Manifest, numbers, read_manifest, write_manifest
from .records import Vectors
from .search.results import SearchResults
from .snapshot import Snapshot, open_snapshot
from .space import Space
from .writer import ROWS_PER_SHARD, SECONDS_PER_SHARD, tidy
from .writer import AppendCounts as AppendCounts  # of this file's interface too
from .writer import Writer as Writer

if TYPE_CHECKING:
    from .exchange.torch_dataset import VectorDataset


@dataclass(frozen=True, repr=False)
class Store:
    """A store on disk.

    >>> store = Store.open("mystore")            # doctest: +SKIP
    >>> store.snapshot().search(queries, k=9)    # doctest: +SKIP
    """

    folder: Path

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.snapshot())

    def __repr__(self) -> str:
        try:
            return f"Store({str(self.folder)!r}: {self.snapshot().summary})"
        except StoreError as e:
            return f"Store({str(self.folder)!r}: {e})"

    def __bool__(self) -> bool:
        """A store without rows is a store too."""
        return True

    def search(
        self, vectors: Vectors, k: int = 9, where: Filter | None = None, *, recall: float = 0.99
    ) -> SearchResults:
        """Search the newest snapshot for the k nearest rows of each of (queries, dim) vectors.

        Parameters
        ----------
        where : rows that may be found (default: all)
        recall : share of the true nearest rows to find on average; 1 searches exactly

        Raises
        ------
        BadBlock
            Vectors of another dimension.
        """
        snapshot = self.snapshot()
        mask = None if where is None or where.selects_all else where.mask(snapshot)
        return SearchResults(snapshot, snapshot.search(np.atleast_2d(vectors), k, mask, recall))

    def to_pandas(self, where: Filter | None = None) -> Any:
        """The rows of the newest snapshot as a pandas DataFrame, without vectors; labels are strings.

        Parameters
        ----------
        where : rows to take (default: all)
        """
        from .exchange.tables import to_pandas

        snapshot = self.snapshot()
        return to_pandas(snapshot, None if where is None else where.mask(snapshot))

    def to_torch(self, where: Filter | None = None) -> VectorDataset:
        """The rows of the newest snapshot as a torch data set of (vector, label); labels are 0 real, 1 fake.

        Parameters
        ----------
        where : rows to take (default: all)
        """
        from .exchange.torch_dataset import VectorDataset

        snapshot = self.snapshot()
        return VectorDataset(snapshot, None if where is None else where.mask(snapshot))

    @classmethod
    def open(cls, folder: Path | str) -> Store:
        """A store that is there; raises NoStore, NotAStore or Damaged."""
        store = cls(Path(folder))
        read_manifest(store.folder)
        return store

    @classmethod
    def create(cls, folder: Path | str, space: Space) -> Store:
        """An empty store, or the one that is there already; raises SpaceMismatch if that one is of another space."""
        store = cls(Path(folder))
        store.require_room()
        if not numbers(store.folder):
            write_manifest(store.folder, replace(Manifest(-1, space).follow("created"), number=0))
        space.require(read_manifest(store.folder).space, f"the store {folder}")
        return store

    def require_room(self) -> None:
        """Raise NotAStore where there is something else already, so that no store can be made."""
        if not numbers(self.folder) and self.folder.exists() and not _unused(self.folder):
            raise NotAStore(f"{self.folder} is there already and is no store; name an empty or new folder")

    def require_free(self) -> None:
        """Raise Locked if another process is writing; it may begin to a moment later."""
        if numbers(self.folder):
            with writer_lock(self.folder):
                pass

    def snapshot(self, number: int | None = None) -> Snapshot:
        """The newest snapshot, or an earlier one by its number; its files stay as long as it is held.

        Raises
        ------
        NoStore
            There is no snapshot of this number (any more).
        NotAStore, Damaged
            What says which rows it has cannot be read.
        """
        return open_snapshot(self.folder, number)

    def snapshots(self) -> list[Manifest]:
        """Manifests of all snapshots, oldest first."""
        found = []
        for number in numbers(self.folder):
            with suppress(NoStore):  # a writer gave it up meanwhile
                found.append(read_manifest(self.folder, number))
        return found

    @contextmanager
    def writer(
        self,
        note: str = "",
        *,
        rows_per_shard: int = ROWS_PER_SHARD,
        seconds_per_shard: float = SECONDS_PER_SHARD,
    ) -> Iterator[Writer]:
        """Hold the store for writing; what was appended is sealed when the block ends, well or not.

        Parameters
        ----------
        note : said of the snapshots it makes (`clipfake store snapshots`)
        rows_per_shard, seconds_per_shard : a shard is sealed when it has so many rows, or so long after the last one

        Raises
        ------
        Locked
            Another process is writing.
        """
        with writer_lock(self.folder):
            tidy(self.folder)
            writer = Writer(self.folder, note, rows_per_shard, seconds_per_shard)
            try:
                yield writer
            finally:  # what was taken in is good whatever became of the rest
                writer.seal()

    def undo(self, number: int) -> Snapshot:
        """Make a new snapshot with the rows of an earlier one; nothing is lost, this too can be undone.

        Raises
        ------
        NoStore, Damaged
            There is no such snapshot, or it is not whole; nothing has changed.
        Locked
            Another process is writing.
        """
        with writer_lock(self.folder):
            now, then = read_manifest(self.folder), self.snapshot(number).whole().manifest
            write_manifest(self.folder, now.follow(f"back to snapshot {number}", parts=then.parts))
        return self.snapshot()


def _unused(folder: Path) -> bool:
    """True for a folder that is empty, or holds only leftovers of a store whose creation was interrupted."""
    room = folder / "snapshots"
    return folder.is_dir() and all(
        path.suffix == TEMPORARY and path.parent == room for path in folder.rglob("*") if path != room
    )
