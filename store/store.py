"""A store: a folder of immutable shards, and of snapshots that list the live rows (docs/FORMAT.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.atomic_files import TEMPORARY, require_local
from ..errors import BadBlock, BadFilter, InvalidOption, NoStore, NotAStore, StoreError
from .filter import Filter
from .manifest import Manifest, numbers, read_manifest, write_manifest
from .records import Vectors
from .retention import tidy
from .rooms import require_unlinked, store_lock
from .search.results import SearchResults
from .shard import ROWS_PER_SHARD, SECONDS_PER_SHARD
from .snapshot import Snapshot, open_snapshot
from .space import Space
from .writer import AppendCounts as AppendCounts  # re-exported
from .writer import Writer as Writer

if TYPE_CHECKING:
    from .exchange.torch_dataset import VectorDataset


@dataclass(frozen=True)
class DeleteReport:
    """Result of `Store.delete`."""

    rows: int  # number of deleted rows
    snapshot: int  # number of the new snapshot
    before: int  # number of the snapshot to `undo` to

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, repr=False)
class Store:
    """A store on disk.

    >>> store = Store.open("mystore")            # doctest: +SKIP
    >>> store.snapshot().search(queries, k=9)    # doctest: +SKIP
    """

    folder: Path

    def __post_init__(self) -> None:
        """Raise StoreError if the folder is a URL."""
        require_local(self.folder, "a store")

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.snapshot())

    def __repr__(self) -> str:
        try:
            return f"Store({str(self.folder)!r}: {self.snapshot().summary})"
        except StoreError as e:
            return f"Store({str(self.folder)!r}: {e})"

    def __bool__(self) -> bool:
        """True, also for a store without rows."""
        return True

    def search(
        self, vectors: Vectors, k: int = 9, where: Filter | None = None, *, recall: float = 0.99
    ) -> SearchResults:
        """Search the newest snapshot for the k nearest rows of each of (queries, dim) vectors.

        Parameters
        ----------
        where : rows that may be returned (default: all)
        recall : share of the true nearest rows to find on average; 1 searches exactly

        Raises
        ------
        BadBlock
            The vectors have another dimension.
        InvalidOption, BadFilter
            `k` is less than 1, or `where` is not a filter.
        """
        if k < 1:
            raise InvalidOption(f"k must be at least 1, found {k}")
        if where is not None and not isinstance(where, Filter):
            raise BadFilter(f"where must be a clipfake.Filter, found {type(where).__name__}")
        snapshot = self.snapshot()
        mask = None if where is None or where.selects_all else where.mask(snapshot)
        return SearchResults(snapshot, snapshot.search(np.atleast_2d(vectors), k, mask, recall))

    def to_pandas(self, where: Filter | None = None) -> Any:
        """The rows of the newest snapshot as a pandas DataFrame, without vectors; labels are strings.

        Parameters
        ----------
        where : rows to include (default: all)
        """
        from .exchange.tables import to_pandas

        snapshot = self.snapshot()
        return to_pandas(snapshot, None if where is None else where.mask(snapshot))

    def to_torch(self, where: Filter | None = None) -> VectorDataset:
        """The rows of the newest snapshot as a torch data set of (vector, label); labels are 0 real, 1 fake.

        Parameters
        ----------
        where : rows to include (default: all)
        """
        from .exchange.torch_dataset import VectorDataset

        snapshot = self.snapshot()
        return VectorDataset(snapshot, None if where is None else where.mask(snapshot))

    @classmethod
    def open(cls, folder: Path | str) -> Store:
        """Open an existing store; raises NoStore, NotAStore, Linked or Damaged."""
        store = cls(Path(folder))
        require_unlinked(store.folder)
        read_manifest(store.folder)
        return store

    @classmethod
    def create(cls, folder: Path | str, space: Space) -> Store:
        """Create an empty store or open an existing one; raises SpaceMismatch if that one has another space."""
        store = cls(Path(folder))
        require_unlinked(store.folder)
        store.require_room()
        if not numbers(store.folder):
            try:
                write_manifest(store.folder, replace(Manifest(-1, space).follow("created"), number=0))
            except StoreError:
                if not numbers(store.folder):  # else another process has created it meanwhile
                    raise
        space.require(read_manifest(store.folder).space, f"the store {folder}")
        return store

    def require_room(self) -> None:
        """Raise NotAStore if the folder contains other files, so that no store can be created in it."""
        if not numbers(self.folder) and self.folder.exists() and not _unused(self.folder):
            raise NotAStore(f"{self.folder} exists and is not a store; name an empty or new folder")

    def require_free(self) -> None:
        """Raise Locked if another process is writing; one may still start to write afterwards."""
        if numbers(self.folder):
            with store_lock(self.folder):
                pass

    def snapshot(self, number: int | None = None) -> Snapshot:
        """Open the newest snapshot, or an earlier one by its number. Its files are kept while it is referenced.

        Raises
        ------
        NoStore
            There is no snapshot with this number, or no longer.
        NotAStore, Damaged
            The manifest cannot be read.
        """
        return open_snapshot(self.folder, number)

    def snapshots(self) -> list[Manifest]:
        """Manifests of all snapshots, oldest first."""
        manifests = []
        for number in numbers(self.folder):
            with suppress(NoStore):  # removed by a writer in the meantime
                manifests.append(read_manifest(self.folder, number))
        return manifests

    @contextmanager
    def writer(
        self,
        note: str = "",
        *,
        rows_per_shard: int = ROWS_PER_SHARD,
        seconds_per_shard: float = SECONDS_PER_SHARD,
    ) -> Iterator[Writer]:
        """Open the store for writing. Appended rows are sealed when the block ends, even if it raises.

        Parameters
        ----------
        note : note of the snapshots it makes, shown by `clipfake store snapshots`
        rows_per_shard : number of rows after which a shard is sealed
        seconds_per_shard : seconds after the last seal at which a shard is sealed even with fewer rows

        Raises
        ------
        Locked
            Another process is writing.
        """
        with store_lock(self.folder) as lock:
            tidy(lock)
            writer = Writer(lock, note, rows_per_shard, seconds_per_shard)
            try:
                yield writer
            finally:  # the rows appended before an error are valid
                writer.seal()

    def delete(self, where: Filter, note: str = "deleted") -> DeleteReport:
        """Delete the rows that a filter selects; `undo` restores them until the store is compacted.

        Raises
        ------
        BadBlock
            The filter selects every row, which is probably a mistake.
        """
        if where.selects_all:
            raise BadBlock(
                "this would delete every row; name sources, labels, categories or keys, or remove the folder"
            )
        with self.writer(note) as writer:
            before = writer.snapshot.number
            rows = writer.delete(where.mask(writer.snapshot))
            return DeleteReport(rows, writer.snapshot.number, before)

    def undo(self, number: int) -> Snapshot:
        """Make a new snapshot with the rows of an earlier one. Nothing is lost: this can be undone as well.

        Raises
        ------
        NoStore, Damaged
            The snapshot does not exist or has damaged shards; nothing is changed.
        Locked
            Another process is writing.
        """
        with store_lock(self.folder) as lock:
            current, earlier = read_manifest(self.folder), self.snapshot(number)
            earlier.require_shards()
            after = current.follow(f"back to snapshot {number}", parts=earlier.manifest.parts)
            write_manifest(self.folder, after, lock)
        return self.snapshot()


def _unused(folder: Path) -> bool:
    """True if a folder is empty, or contains only leftovers of a store whose creation was interrupted."""
    snapshots = folder / "snapshots"
    return folder.is_dir() and all(
        path.suffix == TEMPORARY and path.parent == snapshots for path in folder.rglob("*") if path != snapshots
    )
